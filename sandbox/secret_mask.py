"""Secrets, taken out of text before it is kept: each value, and the forms that programs usually write it in. Pure.

It is made for accidents: a password in a traceback, a token in a logged header. A program that wants to hide a secret in its
output finds a form that nobody looks for. What it costs is bounded, whatever a caller sends as a secret: a long value is looked for in
pieces, and where the values are too many or too long to be looked for, no text is kept at all.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain
from urllib.parse import quote, quote_plus

MARK = "[secret]"
# Shorter pieces of base64 are found in any text.
LEAST_BASE64 = 4
LEAST_LINE = 8
# Base64 that is longer than this may be broken into lines.
UNBROKEN = 56
BREAK = re.compile(r"(?:\s|\\[nr])+")
# A longer value is looked for in pieces, which overlap so that none of their base64 is left between them.
PIECE_CHARS = 256
OVERLAP_CHARS = 4
# More than this is not looked for.
MAX_CHARS = 64 << 10
MAX_FORMS = 8 << 10
# As many characters are soon made into their forms.
FEW_CHARS = 256
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
    """Masks these values. Their forms are made when they are first needed, or in `prepare`."""

    def __init__(self, values: Iterable[str]) -> None:
        self._values = tuple(values)

    @property
    def takes_long(self) -> bool:
        """Tell whether making the forms takes long enough to be done elsewhere."""
        return sum(map(len, self._values)) > FEW_CHARS

    def prepare(self) -> None:
        """Make the forms."""
        _ = self._forms

    @property
    def reach(self) -> int:
        """Return how far a form may reach into text that is cut off: broken lines have at least as many characters as breaks."""
        return 4 * max(map(len, self._forms or ()), default=0)

    @cached_property
    def _forms(self) -> dict[str, bool] | None:
        """Return what to look for, and whether it may be broken into lines; None where that is too much."""
        found: dict[str, bool] = {}
        if sum(map(len, self._values)) > MAX_CHARS:
            return None
        for part in {part for value in self._values for part in _parts(value) if part}:
            found |= dict.fromkeys(_forms(part), False) | {form: len(form) > UNBROKEN for form in _base64(part)}
            if len(found) > MAX_FORMS:
                return None
        return found

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
        if stop <= start:
            return ""
        if self._forms is None:
            return MARK
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
        forms = self._forms or {}
        spans = set(chain.from_iterable(_places(form, text) for form in forms))
        if any(forms.values()) and BREAK.search(text):
            joined, origin = _joined(text)
            for form, may_be_broken in forms.items():
                if may_be_broken:
                    spans |= {(origin[first], origin[last - 1] + 1) for first, last in _places(form, joined)}
        merged: list[tuple[int, int]] = []
        for first, last in sorted(spans):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return merged


def _places(form: str, text: str) -> Iterator[tuple[int, int]]:
    at = text.find(form)
    while at >= 0:
        yield at, at + len(form)
        at = text.find(form, at + 1)


def _joined(text: str) -> tuple[str, list[int]]:
    """Return a text without its breaks, and where each character of it was."""
    origin: list[int] = []
    kept = 0
    for gap in BREAK.finditer(text):
        origin += range(kept, gap.start())
        kept = gap.end()
    origin += range(kept, len(text))
    return "".join(map(text.__getitem__, origin)), origin


def _parts(value: str) -> Iterator[str]:
    """Give a value as it is, without the space around it, and each line of it that is long enough to tell something; the long ones in pieces."""
    yield from _pieces(value)
    yield from _pieces(value.strip())
    lines = [line.strip() for line in value.splitlines()]
    yield from (piece for line in lines if len(line) >= LEAST_LINE and len(lines) > 1 for piece in _pieces(line))


def _pieces(text: str) -> Iterator[str]:
    last = max(0, len(text) - PIECE_CHARS)
    yield from (text[start : start + PIECE_CHARS] for start in range(0, last, PIECE_CHARS - OVERLAP_CHARS))
    yield text[last:]


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
