"""Bytes that arrive bit by bit and go to another process: a few in this process's memory, more in a file in memory."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from sandbox.errors import QueueFull
from sandbox.service.intake.budget import RETRY_AFTER_S

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Up to here they are cheap to copy; and of what is larger, the budget for bodies lets few be held at a time, each with
# a descriptor.
SMALL_BYTES = 1 << 20


class Spool:
    """Holds the bytes of one body until it is closed."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._file: io.FileIO | None = None
        self.size_bytes = 0

    def add(self, piece: bytes) -> None:
        """Put more behind what there is."""
        self.size_bytes += len(piece)
        if self._file is None and self.size_bytes <= SMALL_BYTES:
            self.data += piece
        else:
            _put(self.file(), piece)

    def file(self) -> io.FileIO:
        """Return them as a file in memory, which has no name (memfd_create(2)); it is closed with the spool.

        Raises `QueueFull`.
        """
        if self._file is None:
            try:
                self._file = io.FileIO(os.memfd_create("body", os.MFD_CLOEXEC), "r+b")
            except OSError as error:
                raise QueueFull(
                    f"the service can't hold one more body: {error.strerror}",
                    hint=f"try again in {RETRY_AFTER_S} s",
                    retry_after_s=RETRY_AFTER_S,
                ) from None
            _put(self._file, self.data)
            self.data = bytearray()
        return self._file

    def close(self) -> None:
        """Hold nothing any more."""
        self.data = bytearray()
        if self._file is not None:
            self._file.close()


def _put(file: io.FileIO, data: Buffer) -> None:
    with memoryview(data) as left:
        done = 0
        while done < len(left):
            done += file.write(left[done:]) or 0
