"""The program's end of the packet socket to the supervisor."""

from __future__ import annotations

import os
import struct

from sandbox.inside.harness.limits import CHUNK_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Iterable


class ShortenedError(OSError):
    """A file became shorter while it was sent; zeros stand for what was cut off."""


class Channel:
    """The program's end of the packet socket to the supervisor; shared by its threads and its forks."""

    def __init__(self, end: socket) -> None:
        from _thread import allocate_lock

        self._socket = end
        self._lock = allocate_lock()
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        from _thread import allocate_lock

        self._lock = allocate_lock()  # a thread that held it doesn't exist in the copy

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._socket.fileno()

    def send(self, kind: bytes, body: bytes | memoryview = b"") -> None:
        """Send one packet; packets of several threads and processes never mix."""
        self._socket.send(b"".join((kind, body)))

    def send_file(self, name: str, size: int, read: Callable[[int], bytes | memoryview]) -> None:
        """Send a file in one piece, one file at a time over all threads and forked processes.

        `read` gives the next bytes, at most as many as it is asked for.
        """
        import fcntl

        with self._lock:
            fcntl.lockf(self._socket.fileno(), fcntl.LOCK_EX)
            try:
                self.send(b"F", struct.pack(">Q", size) + name.encode("utf-8"))
                missing = size
                try:
                    while missing:
                        chunk = read(min(CHUNK_BYTES, missing))
                        if not chunk:
                            raise ShortenedError("it became shorter meanwhile, and ends in zeros")
                        self.send(b"f", chunk)
                        missing -= len(chunk)
                finally:
                    while missing:  # its size was told: nothing else of a file would be taken before all of it
                        chunk = bytes(min(CHUNK_BYTES, missing))
                        self.send(b"f", chunk)
                        missing -= len(chunk)
            finally:
                fcntl.lockf(self._socket.fileno(), fcntl.LOCK_UN)

    def send_json(self, kind: bytes, chunks: Iterable[bytes]) -> None:
        """Send JSON text in packets."""
        for chunk in chunks:
            for start in range(0, len(chunk), CHUNK_BYTES):
                self.send(kind, chunk[start : start + CHUNK_BYTES])


class Nobody:
    """A channel that nobody listens to."""

    def send(self, _kind: bytes, _body: bytes | memoryview = b"") -> None:
        """Drop a packet."""

    def send_json(self, _kind: bytes, chunks: Iterable[bytes]) -> None:
        """Make the text, and drop it."""
        for _ in chunks:
            continue
