"""Secrets, taken out of text before it is kept: each value, and the forms that programs usually write it in. Pure.

It is made for accidents: a password in a traceback, a token in a logged header. A program that wants to hide a secret in its
output finds a form that nobody looks for.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote, quote_plus

MARK = "[secret]"
# Shorter pieces of base64 are found in any text.
LEAST_BASE64 = 4
LEAST_LINE = 8
# Base64 that is longer than this may be broken into lines.
UNBROKEN = 56
BREAK = r"(?:\s|\\n|\\r)*"
ESCAPES: tuple[Callable[[str], str], ...] = (
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: repr(text + "'\"")[1:-4],  # with both quotes in it, it stands between ' and escapes them
    lambda text: repr(text + "'")[1:-2],  # between "
    lambda text: ascii(text + "'\"")[1:-4],
    lambda text: ascii(text + "'")[1:-2],
    lambda text: repr(text.encode(errors="surrogatepass") + b"'\"")[2:-4],
    lambda text: repr(text.encode(errors="surrogatepass") + b"'")[2:-2],
)


class Mask:
    """Masks these values."""

    def __init__(self, values: Iterable[str]) -> None:
        parts = {part for value in values for part in _parts(value) if part}
        self._plain = sorted(form for part in parts for form in _forms(part))
        encoded = {form for part in parts for form in _base64(part)}
        self._plain += sorted(encoded)
        self._broken = [re.compile(BREAK.join(map(re.escape, form))) for form in sorted(encoded) if len(form) > UNBROKEN]
        # How far a form may reach into text that is cut off: broken lines have at least as many characters as breaks.
        self.reach = 4 * max(map(len, self._plain), default=0)

    def text(self, text: str) -> str:
        """Return the text without the secrets."""
        return self.end(text, len(text))

    def end(self, text: str, chars: int) -> str:
        """Return the last so many characters of a text, without the secrets; of one that would be cut in two, nothing."""
        window = text[-(chars + self.reach) :] if chars else ""
        return self._masked(window, max(0, len(window) - chars), len(window))

    def beginning(self, text: str, chars: int) -> str:
        """Return the first so many characters likewise."""
        window = text[: chars + self.reach]
        return self._masked(window, 0, min(len(window), chars))

    def _masked(self, window: str, start: int, stop: int) -> str:
        pieces: list[str] = []
        for first, last in self._found(window):
            if last <= start:
                continue
            if first >= stop:
                break
            pieces += [window[start:first], MARK] if first >= start else []
            start = last
        return "".join([*pieces, window[start : max(start, stop)]])

    def _found(self, text: str) -> list[tuple[int, int]]:
        """Return where secrets are, in order; what overlaps is one."""
        spans = sorted({*self._found_plain(text), *(match.span() for form in self._broken for match in form.finditer(text))})
        merged: list[tuple[int, int]] = []
        for first, last in spans:
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return merged

    def _found_plain(self, text: str) -> Iterator[tuple[int, int]]:
        for form in self._plain:
            at = text.find(form)
            while at >= 0:
                yield at, at + len(form)
                at = text.find(form, at + 1)


def _parts(value: str) -> Iterator[str]:
    """Give a value as it is, without the space around it, and each line of it that is long enough to tell something."""
    yield value
    yield value.strip()
    lines = [line.strip() for line in value.splitlines()]
    yield from (line for line in lines if len(line) >= LEAST_LINE and len(lines) > 1)


def _forms(value: str) -> Iterator[str]:
    data = value.encode(errors="surrogatepass")
    yield value
    yield from (data.hex(), data.hex().upper(), data.hex(" "), data.hex(":"))
    yield from (html.escape(value), html.escape(value, quote=False))
    for form in (quote(data, safe=""), quote(data), quote_plus(data)):
        yield form
        yield re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), form)
    for escape in ESCAPES:
        yield (once := escape(value))
        yield from (again(once) for again in ESCAPES)


def _base64(value: str) -> Iterator[str]:
    """Give the value's base64, and the part of it that is the same wherever it stands in what is encoded with it."""
    data = value.encode(errors="surrogatepass")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        if data:
            yield encode(data).decode()
        for before in range(3):
            own = encode(bytes(before) + data)[(0, 2, 3)[before] : (before + len(data)) * 8 // 6].decode()
            if len(own) >= LEAST_BASE64:
                yield own
