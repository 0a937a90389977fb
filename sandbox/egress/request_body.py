"""Where the body of one request ends, by its length or by its chunks, so that not a byte more is forwarded; pure."""

from __future__ import annotations

import re
from typing import Protocol

__all__ = ["Body", "BodyRefused", "ChunkedBody", "SizedBody", "body_of"]

MAX_SIZE_LINE = 18
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")


class BodyRefused(ValueError):
    """The framing of a body is malformed, or uses what is not forwarded."""


class Body(Protocol):
    """Follows one body; `complete` once its last byte was taken."""

    complete: bool

    def take(self, data: bytes | memoryview) -> int:
        """Return how many of the next bytes belong to the body. Raises BodyRefused, and nothing else."""


class SizedBody:
    """A body of a length that was told in advance."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self.complete = size_bytes == 0

    def take(self, data: bytes | memoryview) -> int:
        """Return how many of the next bytes belong to the body."""
        count = min(len(data), self._left)
        self._left -= count
        self.complete = self._left == 0
        return count


class ChunkedBody:
    """A body in chunks, without extensions and trailers: two servers could read those in two ways."""

    def __init__(self) -> None:
        self._line = b""
        self._left = 0  # of a chunk and the CRLF after it
        self._last = False
        self.complete = False

    def take(self, data: bytes | memoryview) -> int:
        """Return how many of the next bytes belong to the body. Raises BodyRefused."""
        used = 0
        while used < len(data) and not self.complete:
            if self._left > 2:
                count = min(self._left - 2, len(data) - used)
                self._left -= count
                used += count
            elif self._left:
                if data[used] != b"\n\r"[self._left - 1]:
                    raise BodyRefused("a chunk of the request is not as long as it says")
                self._left -= 1
                used += 1
                self.complete = self._last and not self._left
            else:
                used += self._take_size(bytes(data[used : used + MAX_SIZE_LINE]))
        return used

    def _take_size(self, data: bytes) -> int:
        """Take bytes of the line with a chunk's size; after the last chunk, of size 0, only CRLF may come."""
        before = len(self._line)
        line = (self._line + data)[:MAX_SIZE_LINE]
        end = line.find(b"\n") + 1
        if not end:
            if len(line) >= MAX_SIZE_LINE or not re.fullmatch(rb"[0-9A-Fa-f]*\r?", line):
                raise BodyRefused("a chunk of the request has no plain size")
            self._line = line
            return len(line) - before
        match = _SIZE_LINE.fullmatch(line[:end])
        if match is None:
            raise BodyRefused("a chunk of the request has no plain size")
        self._line = b""
        size = int(match[1], 16)
        self._last = size == 0
        self._left = size + 2
        return end - before


def body_of(body_bytes: int | None) -> Body:
    """Return what follows a body of this many bytes, or a chunked one for None."""
    return ChunkedBody() if body_bytes is None else SizedBody(body_bytes)
