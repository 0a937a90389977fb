"""The job socket to the runner."""

from __future__ import annotations

import select
import sys
import time
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket

from sandbox.inside.harness.json_text import json_encoder
from sandbox.inside.harness.limits import CHUNK_BYTES, MAX_BODY_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


MAKE_CELL = b"K\0\0\0\0"  # a frame without a body, which comes with the cell's channel


class HarnessError(Exception):
    """The supervisor cannot go on: the connection is gone or what came over it makes no sense."""


def exactly(source: socket, size: int) -> bytearray:
    """Return the next `size` bytes that come. Raises HarnessError at the end of the connection."""
    data = bytearray(size)
    view = memoryview(data)
    received = 0
    while received < size:
        count = source.recv_into(view[received:], min(size - received, MAX_BODY_BYTES))
        if count == 0:
            raise HarnessError("the runner is gone")
        received += count
    return data


class Connection:
    """The job socket: exact reads before the program starts, bounded buffered writes after."""

    def __init__(self, opened: socket) -> None:
        self._socket = opened
        self.fd = self._socket.fileno()
        self._out = bytearray()

    def close(self) -> None:
        """Close it in this process."""
        self._socket.close()

    def next_channel(self) -> socket | None:
        """Return the channel of the next cell, passed on unread; None when the runner is gone. Raises HarnessError."""
        head, rights, _, _ = self._socket.recvmsg(len(MAKE_CELL), CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
        if not head:
            return None
        if head != MAKE_CELL or len(rights) != 1 or rights[0][:2] != (SOL_SOCKET, SCM_RIGHTS):
            raise HarnessError("expected the order to make a cell")
        return socket(AF_UNIX, SOCK_STREAM, 0, int.from_bytes(rights[0][2], sys.byteorder))

    def read(self) -> tuple[bytes, bytearray]:
        """Return the next frame's type and body. Raises HarnessError."""
        head = exactly(self._socket, 5)
        size = int.from_bytes(head[1:], "big")
        if size > MAX_BODY_BYTES:
            raise HarnessError(f"a frame of {size} bytes is too large")
        return bytes(head[:1]), exactly(self._socket, size)

    def nonblocking(self) -> None:
        """Switch to buffered writes, for the time in which the program runs."""
        self._socket.setblocking(False)  # noqa: FBT003

    @property
    def pending(self) -> int:
        """Bytes not yet sent."""
        return len(self._out)

    def put(self, kind: bytes, body: bytes) -> None:
        """Queue a frame and send what the socket takes now. Raises HarnessError when the runner is gone."""
        self._out += kind
        self._out += len(body).to_bytes(4, "big")
        self._out += body
        self.flush()

    def put_json(self, kind: bytes, fields: dict[str, Any]) -> None:
        """Queue a frame with a JSON body."""
        self.put(kind, json_encoder()(fields).encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Send what the socket takes now. Raises HarnessError when the runner is gone."""
        while self._out:
            try:
                with memoryview(self._out) as view:
                    sent = self._socket.send(view[:CHUNK_BYTES])
            except BlockingIOError:
                return
            except OSError:
                raise HarnessError("the runner is gone") from None
            del self._out[:sent]

    def receive(self) -> bytes:
        """Return what came while the program runs: b"" at the end of the connection."""
        try:
            return self._socket.recv(4096)
        except BlockingIOError:
            return b"?"
        except OSError:
            return b""

    def settle(self, timeout_s: float) -> None:
        """Send everything queued, then wait for the runner to close, for at most `timeout_s`."""
        self.nonblocking()
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        while time.monotonic() < deadline:
            poll.register(self.fd, select.POLLIN | (select.POLLOUT if self._out else 0))
            poll.poll(max(1, int(1000 * (deadline - time.monotonic()))))
            self.flush()
            if not self.receive():
                return
