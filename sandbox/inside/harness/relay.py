"""The way out: carries bytes between a loopback port and the runner's egress proxy."""

from __future__ import annotations

import select
import time
from _socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


RELAYED_BYTES = 262_144
MAX_RELAYED = 64


class Relay:
    """Carries bytes between connections to a loopback port and the runner's egress proxy, blindly.

    It runs in a process of its own. Whatever is decided is decided by the proxy, outside.
    """

    def __init__(self, listener: socket, target: str) -> None:
        self.listener = listener
        self.target = target
        self.ends: dict[int, tuple[socket, socket]] = {}  # descriptor to itself and the other end
        self.waiting: dict[int, bytes] = {}  # what an end has not taken yet
        self.finished: set[int] = set()  # ends that will send no more

    def serve(self) -> NoReturn:
        """Relay until killed; never returns."""
        while True:
            poll = select.poll()
            if len(self.ends) < 2 * MAX_RELAYED:
                poll.register(self.listener.fileno(), select.POLLIN)
            for descriptor, (_, other) in self.ends.items():
                idle = descriptor in self.finished or other.fileno() in self.waiting
                events = (0 if idle else select.POLLIN) | (select.POLLOUT if descriptor in self.waiting else 0)
                if events:  # poll tells of a hang-up even unasked, and what waits must still be delivered
                    poll.register(descriptor, events)
            for descriptor, events in poll.poll():
                if descriptor == self.listener.fileno():
                    self._accept()
                elif descriptor in self.ends:
                    self._move(descriptor, events)

    def _accept(self) -> None:
        try:
            inner = socket(fileno=self.listener._accept()[0])  # type: ignore[attr-defined] # of the C type
        except OSError:
            time.sleep(0.01)  # no descriptor left: some will be closed
            return
        outer = socket(AF_UNIX, SOCK_STREAM)
        try:
            outer.connect(self.target)
        except OSError:  # the runner is gone, or too busy
            outer.close()
            inner.close()
            return
        for end, other in ((inner, outer), (outer, inner)):
            end.setblocking(False)  # noqa: FBT003
            self.ends[end.fileno()] = (end, other)

    def _move(self, descriptor: int, events: int) -> None:
        end, other = self.ends[descriptor]
        try:
            if events & select.POLLOUT:
                self._send(end, self.waiting.pop(descriptor, b""))
            else:
                data = end.recv(RELAYED_BYTES)
                if data:
                    self._send(other, data)
                else:
                    self.finished.add(descriptor)
                    self._pass_end(other)
            if {descriptor, other.fileno()} <= self.finished and not self.waiting.keys() & {descriptor, other.fileno()}:
                self._close(descriptor)
        except BlockingIOError:
            return
        except OSError:
            self._close(descriptor)

    def _send(self, end: socket, data: bytes) -> None:
        try:
            sent = end.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.waiting[end.fileno()] = data[sent:]
        else:
            self._pass_end(end)

    def _pass_end(self, end: socket) -> None:
        """Tell `end` that nothing more comes, once it has taken everything."""
        other = self.ends[end.fileno()][1]
        if other.fileno() in self.finished and end.fileno() not in self.waiting:
            end.shutdown(SHUT_WR)

    def _close(self, descriptor: int) -> None:
        for end in self.ends[descriptor]:
            number = end.fileno()
            self.ends.pop(number)
            self.waiting.pop(number, None)
            self.finished.discard(number)
            end.close()
