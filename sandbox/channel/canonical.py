r"""JSON from a sandbox in the one form in which it goes on: into a stream, a document, a log, somebody's parser.

The form is strict JSON in UTF-8 without white space between its tokens. Whatever may end a line or steer a terminal
(C0, DEL, C1, U+2028, U+2029, the marks that reorder text) is written as an escape, so a text is one line for every
reader. At most `MAX_DEPTH` lists and objects are inside each other, as the harness has it. No number is longer than
`MAX_NUMBER_CHARS` or, with a point or an exponent, beyond a double. Half of a surrogate pair becomes U+FFFD. All else
stays as it was written: a name that an object has twice, too, of which the last counts for JavaScript and Python.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from math import isinf
from typing import NamedTuple

import msgspec

from sandbox.inside.harness.values import MAX_DEPTH

__all__ = ["MAX_NUMBER_CHARS", "Canonical", "NotCanonical", "canonical", "cuts"]

# Python refuses integers of more digits (`sys.set_int_max_str_digits`).
MAX_NUMBER_CHARS = 4_300
# So much is looked at in one go.
PIECE_BYTES = 32 << 10
# As long as this, other threads wait for their turn: Python itself would have them wait for 5 ms, each time.
TURN_S = 0.001
# msgspec checks so much in 5 ms, in which nothing else runs. SQLite takes five times as long, and lets other threads
# run.
AT_ONCE_BYTES = 8 << 20
LONGEST_PAIR = len(rb"\ud83d\ude00")
ROUNDS = (b"[]", b"{}") * 2

WHITE = b" \t\n\r"
C0 = bytes(range(32))
NUMERIC = b"+-.0123456789Ee"
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
STEPS = [(char in b"[{") - (char in b"]}") for char in range(256)]
AS_RUNS = bytes(ord("0" if char in NUMERIC else " ") for char in range(256))
AS_EXPONENTS = bytes(ord("0" if char in b"0123456789" else "e" if char in b"eE" else " ") for char in range(256))
AS_TOKENS = bytes(char if char in NUMERIC else ord(" ") for char in range(256))
LONG_RUN = b"0" * 210  # so long, at least, is a number beyond a double whose exponent has two digits or none
LARGE_EXPONENT = b"e000"
NUMBER = re.compile(rb"[-+.0-9eE]*")
CONTROL = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xd8\x9c|\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]")
BEGINS = (b"\x7f", b"\xc2", b"\xd8\x9c", b"\xe2\x80", b"\xe2\x81")  # found faster than the pattern
HIGH, LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
HALF = re.compile(rb"%s(?!%s)|(?<!%s)%s" % (HIGH, LOW, HIGH, LOW))
UNIT = re.compile(HIGH + LOW + rb"|\\u.{4}|\\.|[^\\]+", re.DOTALL)


class NotCanonical(ValueError):
    """A text that is no JSON, or none that every reader survives; says so in words that follow "something that"."""


class Canonical(NamedTuple):
    """A text in its one form, and whether halves of surrogate pairs were replaced in it."""

    text: bytes
    replaced: bool


def canonical(text: bytes) -> Canonical:
    """Return JSON (UTF-8) in its one form, in memory and time in proportion to it. Raises `NotCanonical`."""
    look = _Look()
    text = _changed(text, look.at)
    if not _is_json(text):
        raise NotCanonical("is no JSON")
    if look.white:  # only now: without the white space, `1 2` would be a number
        text = _changed(text, _Tight().at)
    return Canonical(text, look.replaced)


def _changed(text: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return a text with each piece of it changed; nothing is copied up to the first change."""
    if len(text) <= PIECE_BYTES:
        return change(text)
    done: list[bytes] = []
    same = 0
    began = time.monotonic()
    for start, end in cuts(text):
        piece = text[start:end]
        changed = change(piece)
        if not done and changed == piece:
            same = end
        else:
            done.append(changed)
        if time.monotonic() - began > TURN_S:
            time.sleep(0)
            began = time.monotonic()
    return b"".join((text[:same], *done)) if done else text


def cuts(text: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield where pieces begin and end.

    That is never inside a character, an escape, a surrogate pair or what may be a number.
    """
    start = 0
    while start < len(text):
        end = start + PIECE_BYTES
        if end < len(text):
            if b"\\" in text[max(start, end - LONGEST_PAIR) : end]:
                units = UNIT.finditer(text, start, end + LONGEST_PAIR)
                end = next((unit.end() for unit in units if unit.end() >= end), end)
            if text[end - 1] in NUMERIC and (run := NUMBER.match(text, end, end + MAX_NUMBER_CHARS)):
                end = run.end()
            end += next((n for n in range(3) if text[end + n : end + n + 1] <= b"\x7f" or text[end + n] >= 0xC0), 3)
        yield start, min(end, len(text))
        start = end


def _masked(piece: bytes) -> bytes:
    """Return a piece in which escaped quotes end no string.

    Characters that JSON can't have stand for escapes of backslashes and quotes.
    """
    return piece.replace(b"\\\\", b"\0\0").replace(b'\\"', b"\0\1") if b"\\" in piece else piece


class _Look:
    """Looks at one piece after the other, and keeps what must be known of those before.

    `white` tells whether there was white space outside of strings.
    """

    def __init__(self) -> None:
        self.replaced = False
        self.white = False
        self._in_string = 0
        self._depth = 0

    def at(self, piece: bytes) -> bytes:
        """Return a piece with its characters in their form.

        Raises `NotCanonical`; the grammar is left to the parser.
        """
        piece = self._characters(piece)
        parts = _masked(piece).split(b'"')
        outside = b'"'.join(parts[self._in_string :: 2])
        self._in_string ^= (len(parts) - 1) & 1
        white = len(outside) - len(outside.translate(None, WHITE))
        self.white |= white > 0
        if len(piece) - len(piece.translate(None, C0)) != white - outside.count(b" "):
            raise NotCanonical("is no JSON")
        self._levels(outside.translate(None, NOT_BRACKETS))
        self._numbers(outside)
        return piece

    def _characters(self, piece: bytes) -> bytes:
        if b"\\ud" in piece or b"\\uD" in piece:
            if b"\0" in piece:
                raise NotCanonical("is no JSON")
            mended, halves = HALF.subn(b"\xef\xbf\xbd", piece.replace(b"\\\\", b"\0\0"))
            piece = mended.replace(b"\0\0", b"\\\\") if halves else piece
            self.replaced |= halves > 0
        if piece.isascii():
            return piece.replace(b"\x7f", b"\\u007f") if b"\x7f" in piece else piece
        try:
            piece.decode()
        except UnicodeDecodeError:
            raise NotCanonical("is no UTF-8") from None
        for char in set(CONTROL.findall(piece)) if any(begin in piece for begin in BEGINS) else ():
            piece = piece.replace(char, b"\\u%04x" % ord(char.decode()))
        return piece

    def _levels(self, brackets: bytes) -> None:
        """Count how deep the piece goes. Raises `NotCanonical`."""
        rest = brackets
        for pair in ROUNDS:
            rest = rest.replace(pair, b"")
        opened = rest.count(b"[") + rest.count(b"{")
        # Each round takes one level off at most: what can't be too deep needs no counting one by one.
        if self._depth + opened + len(ROUNDS) > MAX_DEPTH:
            deepest = max(accumulate(map(STEPS.__getitem__, brackets), initial=self._depth))
            if deepest > MAX_DEPTH:
                raise NotCanonical(f"is nested more than {MAX_DEPTH} levels deep")
        self._depth += 2 * opened - len(rest)

    def _numbers(self, outside: bytes) -> None:
        """Look for numbers that some readers can't take. Raises `NotCanonical`."""
        if not (LARGE_EXPONENT in outside.translate(AS_EXPONENTS, b"+") or LONG_RUN in outside.translate(AS_RUNS)):
            return
        for token in outside.translate(AS_TOKENS).split():
            if len(token) > MAX_NUMBER_CHARS:
                raise NotCanonical(f"has a number of more than {MAX_NUMBER_CHARS} characters")
            if not token.lstrip(b"-").isdigit() and beyond(token):
                raise NotCanonical("has a number beyond 1.8e308")


def beyond(number: bytes) -> bool:
    """Tell whether readers would turn a number into infinity; what is no number is the parser's to refuse."""
    try:
        return isinf(float(number))
    except ValueError:
        return False


class _Tight:
    """Takes the white space between tokens out of one piece after the other of what is known to be JSON."""

    def __init__(self) -> None:
        self._in_string = 0

    def at(self, piece: bytes) -> bytes:
        """Return a piece without it."""
        parts = _masked(piece).split(b'"')
        parts[self._in_string :: 2] = [part.translate(None, WHITE) for part in parts[self._in_string :: 2]]
        self._in_string ^= (len(parts) - 1) & 1
        return b'"'.join(parts).replace(b"\0\1", b'\\"').replace(b"\0\0", b"\\\\")


def _is_json(text: bytes) -> bool:
    """Tell whether a text of bounded depth, without control characters and of valid UTF-8, is strict JSON."""
    if len(text) <= AT_ONCE_BYTES:
        try:
            msgspec.json.decode(text, type=msgspec.Raw)
        except msgspec.DecodeError:
            return False
        return True
    import sqlite3  # its parser keeps some bytes for each value, not a Python object

    try:
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            return bool(database.execute("SELECT json_valid(CAST(? AS TEXT))", (text,)).fetchone()[0])
    except sqlite3.Error:
        return False
