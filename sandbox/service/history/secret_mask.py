"""Secrets, taken out of text before it is kept: each value, and the forms that programs usually write it in. Pure.

It is made for accidents: a password in a traceback, a token in a logged header. A program that wants to hide a secret
in its output finds a form that nobody looks for. What it costs is bounded, whatever a caller sends as a secret: a long
value is looked for in pieces, and where the values are too many or too long to be looked for, or found nearly
everywhere, no text is kept at all.
"""

from __future__ import annotations

import base64
import html
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain, islice
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
# In so many places of one text; with more, nearly all of it is secret.
MAX_PLACES = 32 << 10
# Between texts that are looked at together: no white space, so that nothing is found across it.
SEAM = "\0"
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

    def forget(self) -> None:
        """Keep no forms until they are needed again: they take hundreds of times the memory of the values."""
        self.__dict__.pop("_forms", None)

    @property
    def reach(self) -> int:
        """Return how far a form may reach into text that is cut off.

        Broken lines have at least as many characters as breaks.
        """
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
        """Return the last `chars` characters of a text without the secrets, and nothing of a secret cut in two."""
        window = text[-(chars + self.reach) :] if chars else ""
        return self._masked(window, max(0, len(window) - chars), len(window))

    def beginning(self, text: str, chars: int) -> str:
        """Return the first so many characters likewise."""
        window = text[: chars + self.reach]
        return self._masked(window, 0, min(len(window), chars))

    def each(self, texts: Sequence[str]) -> list[str]:
        """Return texts without the secrets, at the cost of one text as long as all of them."""
        window = SEAM.join(texts)
        spans = self._found(window)
        if spans is None:
            return [text and MARK for text in texts]
        firsts, lasts = [first for first, _ in spans], [last for _, last in spans]
        masked, start = [], 0
        for stop in accumulate(len(text) + len(SEAM) for text in texts):
            end = stop - len(SEAM)
            masked.append(_without(window, start, end, spans[bisect_right(lasts, start) : bisect_left(firsts, end)]))
            start = stop
        return masked

    def _masked(self, window: str, start: int, stop: int) -> str:
        if stop <= start:
            return ""
        spans = self._found(window)
        return MARK if spans is None else _without(window, start, stop, spans)

    def _found(self, text: str) -> list[tuple[int, int]] | None:
        """Return where secrets are, in order; what overlaps is one. None for a text that is not to be kept."""
        if self._forms is None:
            return None
        places = chain.from_iterable(_places(form, text) for form in self._forms)
        if any(self._forms.values()) and BREAK.search(text):
            places = chain(places, self._broken(text))
        spans = set(islice(places, MAX_PLACES))
        if next(places, None) is not None:
            return None
        merged: list[tuple[int, int]] = []
        for first, last in sorted(spans):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return merged

    def _broken(self, text: str) -> Iterator[tuple[int, int]]:
        """Give where forms are that are broken into lines."""
        joined, origin = _joined(text)
        for form, may_be_broken in (self._forms or {}).items():
            if may_be_broken:
                yield from ((origin[first], origin[last - 1] + 1) for first, last in _places(form, joined))


def _without(window: str, start: int, stop: int, spans: Iterable[tuple[int, int]]) -> str:
    """Return a part of a text without what is at these places; what begins before the part leaves no mark."""
    pieces: list[str] = []
    for first, last in spans:
        if first >= stop:
            break
        if last <= start:
            continue
        pieces += [window[start:first], MARK] if first >= start else []
        start = last
    return "".join([*pieces, window[start : max(start, stop)]])


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
    """Yield the parts of a value to look for; the long ones in pieces.

    They are the value as it is, the value without the space around it, and each of its lines that is long enough to
    tell something.
    """
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
