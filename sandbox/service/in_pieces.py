"""That a long text is JSON, found in small steps between which other threads run.

A JSON parser takes a text in one go and holds up every other thread meanwhile. So the text is given to it in pieces, each made a
text of its own: by what stands for all that came before, and by what closes what is open. A piece ends inside of a string, or
behind a token; the lists and objects that are open then, and that token, say what may come next. Pure.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TypeAlias

import msgspec

Written: TypeAlias = bytes | bytearray | memoryview
WINDOW_BYTES = 128 << 10
MAX_LEVELS = 2_000  # the parser takes fewer
ROUNDS = (b"[]", b"{}") * 12
HALF = len(rb"\ud83d")
LONGEST_PAIR = 2 * HALF
HIGH = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
WHITE = b" \t\n\r"
PAIRS = {ord("]"): ord("["), ord("}"): ord("{")}
STEPS = [(char in b"[{") - (char in b"]}") for char in range(256)]
BRACKETS_OR_TEXT = re.compile(rb'"[^"]*"?|[\[\]{}]')
LIST, OBJECT = b"[", b"{"
# The last token: a bracket, comma or colon; START before all others; NAME of a member; VALUE.
START, NAME, VALUE = b"s", b"n", b"v"
# By the innermost list or object and the last token: what stands for all that is in it so far, and what ends it then.
STANDS_FOR = {
    (LIST, b"["): (b"[", b"]"), (LIST, b","): (b"[0,", b"0]"), (LIST, VALUE): (b"[0", b"]"), (OBJECT, b"{"): (b"{", b"}"),
    (OBJECT, b","): (b'{"":0,', b'"":0}'), (OBJECT, b":"): (b'{"":', b"0}"), (OBJECT, NAME): (b'{""', b":0}"), (OBJECT, VALUE): (b'{"":0', b"}"),
    (b"", START): (b"", b""), (b"", VALUE): (b"", b""),
}  # fmt: skip
OUTER = {ord("["): (b"[", b"]"), ord("{"): (b'{"":', b"}")}
_PARSER = msgspec.json.Decoder(msgspec.Raw)


def check_json(text: memoryview) -> None:
    """Check that a text is strict JSON. Raises `msgspec.DecodeError`, `RecursionError` as the parser does."""
    progress = _Progress()
    place = 0
    while len(text) - place > WINDOW_BYTES:
        place += progress.take(bytes(text[place : place + WINDOW_BYTES]))
    progress.take_rest(bytes(text[place:]))


def end_of(body: Written, start: int) -> int:
    """Return where the list or object ends that begins at `start`, or the end of the body."""
    depth, in_string, place = 0, False, start
    while place < len(body):
        window = bytes(body[place : place + WINDOW_BYTES])
        if (len(window) - len(window.rstrip(b"\\"))) % 2 and len(window) > 1:
            window = window[:-1]  # what it escapes is in the next one
        masked = _masked(window)
        parts = masked.split(b'"')
        rest = _brackets(parts, in_string)
        levels = list(accumulate(map(STEPS.__getitem__, rest), initial=depth))
        if min(levels[1:], default=1) <= 0 or not depth:
            for token in BRACKETS_OR_TEXT.finditer(masked, masked.find(b'"') + 1 if in_string else 0):
                depth += (token[0] in b"[{") - (token[0] in b"]}")
                if not depth:
                    return place + token.end()
        else:
            depth = levels[-1]
        in_string ^= len(parts) % 2 == 0
        place += len(window)
    return len(body)


def _masked(window: bytes) -> bytes:
    """Return it with other characters in the place of escaped backslashes and quotes."""
    return window.replace(rb"\\", b"  ").replace(rb"\"", b"  ") if b"\\" in window else window


def _brackets(parts: list[bytes], in_string: bool) -> bytes:  # noqa: FBT001
    """Return the brackets of a text that was split at its quotes, without most pairs."""
    rest = b"".join(parts[in_string::2]).translate(None, NOT_BRACKETS)
    for pair in ROUNDS:
        rest = rest.replace(pair, b"")
    return rest


class _Progress:
    """What a parser knows between two pieces."""

    def __init__(self) -> None:
        self._open = bytearray()
        self._last = START  # inside of a string, the token before it
        self._in_string = False

    def take(self, window: bytes) -> int:
        """Check most of a window, and return how much of it that is. Raises `msgspec.DecodeError`."""
        before = self._opening()
        masked = _masked(window)
        end = self._cut(window, masked)
        self._follow(masked[:end].split(b'"'))
        if not self._open and not self._in_string:
            raise msgspec.DecodeError("JSON is malformed: trailing characters")
        _PARSER.decode(before + window[:end] + self._closing())
        return end

    def take_rest(self, window: bytes) -> None:
        """Check what comes last. Raises `msgspec.DecodeError`."""
        _PARSER.decode(self._opening() + window)

    def _opening(self) -> bytes:
        outer = b"".join(OUTER[level][0] for level in self._open[:-1])
        return outer + STANDS_FOR[bytes(self._open[-1:]), self._last][0] + b'"' * self._in_string

    def _closing(self) -> bytes:
        last = self._behind_string() if self._in_string else self._last
        try:
            innermost = STANDS_FOR[bytes(self._open[-1:]), last][1]
        except KeyError:
            raise msgspec.DecodeError("JSON is malformed") from None
        return b'"' * self._in_string + innermost + b"".join(OUTER[level][1] for level in reversed(self._open[:-1]))

    def _behind_string(self) -> bytes:
        """Return what a string is that stands behind the last token."""
        return NAME if self._open[-1:] == OBJECT and self._last in (b"{", b",") else VALUE

    def _cut(self, window: bytes, masked: bytes) -> int:
        """Return where a piece can end: inside of a string, not inside of an escape or a pair of them, else behind a token."""
        end = len(window)
        if (masked.count(b'"') + self._in_string) % 2:
            if (escape := masked.find(b"\\", end - LONGEST_PAIR)) >= 0:
                end = escape - HALF if masked[escape - HALF : escape - HALF + 1] == b"\\" and HIGH.match(masked, escape - HALF) else escape
        else:
            end = max(masked.rfind(token) for token in (b'"', b"[", b"]", b"{", b"}", b",", b":")) + 1
        if end <= 0:
            raise msgspec.DecodeError("JSON is malformed: too long a number, or too much white space")
        return end

    def _follow(self, parts: list[bytes]) -> None:
        """Go on behind a piece, which was split at its quotes. Raises `msgspec.DecodeError`."""
        for bracket in _brackets(parts, self._in_string):
            if bracket not in PAIRS:
                self._open.append(bracket)
            elif not self._open or self._open.pop() != PAIRS[bracket]:
                raise msgspec.DecodeError("JSON is malformed")
        if len(self._open) > MAX_LEVELS:
            raise RecursionError
        outside = parts[self._in_string :: 2]
        self._in_string ^= len(parts) % 2 == 0
        if self._in_string:
            self._last = (len(parts) > 1 and _last_token(outside[-1])) or self._last
        elif token := _last_token(outside[-1]):
            self._last = token
        else:  # right behind a string
            self._last = (len(outside) > 1 and _last_token(outside[-2])) or self._last
            self._last = self._behind_string()


def _last_token(outside: bytes) -> bytes:
    """Return the last token of what is outside of strings, or nothing."""
    last = outside.rstrip(WHITE)[-1:]
    return last if last in (b"", b"[", b"{", b",", b":") else VALUE
