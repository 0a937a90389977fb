"""Text of a sandbox on its way to a terminal: nothing in it may steer the terminal."""

from __future__ import annotations

import codecs
import re
from typing import Protocol

# C0 but tab and newline, DEL, C1, and the marks that reorder text.
CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escaped(text: str) -> str:
    r"""Return `text` with every control character shown as its code, such as `\x1b`."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def escaped_json(text: str) -> str:
    """Return the same JSON with what could steer a terminal written as escapes of JSON itself."""
    # Apart from carriage returns between values, JSON has such characters only inside strings, where \\u stands for
    # them.
    return CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\r", " "))


class Writable(Protocol):
    """What a screen writes to."""

    def write(self, data: bytes, /) -> int:
        """Write all of `data`."""

    def flush(self) -> None:
        """Pass on what was kept back."""


class Screen:
    """Writes a program's bytes to one stream as they come: escaped on a terminal, unchanged elsewhere."""

    def __init__(self, stream: Writable, *, terminal: bool) -> None:
        self._stream = stream
        self._terminal = terminal
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._at_line_start = True

    def write(self, data: bytes) -> None:
        """Write and flush."""
        if self._terminal:
            data = escaped(self._decoder.decode(data)).encode()
        if data:
            self._at_line_start = data.endswith(b"\n")
            self._stream.write(data)
            self._stream.flush()

    def write_as_is(self, data: bytes) -> None:
        """Write what is already safe to show."""
        self._stream.write(data)
        self._stream.flush()

    def end(self) -> None:
        """Write what the program began and did not end: a part of a character. Then begin a new line."""
        if rest := self._decoder.decode(b"", final=True):
            self._at_line_start = False
            self.write_as_is(rest.encode())
        self.end_line()

    def end_line(self) -> None:
        """Begin a new line unless one has begun."""
        if not self._at_line_start:
            self.write(b"\n")
