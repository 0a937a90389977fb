"""The head of a plain-HTTP answer, marked as the connection's last answer. Pure.

The proxy serves one request per connection. A server need not repeat the `Connection: close` that it was sent, and a
client that reads no such word tries the connection again and waits in vain.
"""

from __future__ import annotations

import re
from collections.abc import Callable

END = b"\r\n\r\n"
MAX_HEAD_BYTES = 64 << 10
_HOP = re.compile(rb"(?im)^(?:connection|keep-alive|proxy-connection):[^\r\n]*\r\n")
_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)\d\d[ \r]")
_ANSWER = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n")


class ClosingAnswer:
    """Passes an answer on piece by piece, its head changed. What has no head of HTTP/1 passes as it came.

    `check` is told the status before the head is passed on, and may raise.
    """

    def __init__(self, check: Callable[[int], None] = lambda _status: None) -> None:
        self._held: bytearray | None = bytearray()
        self._check = check

    def take(self, data: bytes | memoryview) -> bytes | memoryview:
        """Return what may be passed on of everything so far."""
        if self._held is None:
            return data
        self._held += data
        ready = bytearray()
        while (end := self._held.find(END)) >= 0:
            head = bytes(self._held[: end + len(END)])
            del self._held[: len(head)]
            if _INTERIM.match(head):
                ready += head
                continue
            if status := _ANSWER.match(head):
                self._check(int(status[1]))
            ready += closing(head) + self._held
            self._held = None
            return bytes(ready)
        if len(self._held) > MAX_HEAD_BYTES:
            ready += self._held
            self._held = None
        return bytes(ready)

    def rest(self) -> bytes:
        """Return what was held back when the server ended before its head was complete."""
        held, self._held = bytes(self._held or b""), None
        return held


def closing(head: bytes) -> bytes:
    """Return the head of an answer with `Connection: close` and without any other word on the connection."""
    status = _ANSWER.match(head)
    if status is None:
        return head
    fields = _HOP.sub(b"", head[status.end() :])
    return head[: status.end()] + b"Connection: close\r\n" + fields
