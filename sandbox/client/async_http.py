"""HTTP over the service's Unix socket for asyncio; cancelling a task that waits drops its connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from sandbox.client.calls import check_request_id, gone
from sandbox.client.reading import Answer
from sandbox.client.unix_http import (
    CONNECT_PAUSE_S,
    CONNECT_TIMEOUT_S,
    FREE,
    IDLE_S,
    NoService,
    head_of,
    listener_of,
    opened,
    readable,
    tried,
)
from sandbox.errors import EngineUnavailable, Internal

PIECE_BYTES = 256 << 10
MAX_HEAD_BYTES = 64 << 10
MAX_LINE_BYTES = 1 << 10
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;.*)?")
GONE = (OSError, EOFError, ValueError)


class AsyncConnection:
    """HTTP over a Unix socket, for one request after the other, in one event loop at a time."""

    def __init__(self, path: str) -> None:
        self.timeout_s: float | None = None
        self._path = path
        self._process = os.getpid()
        self._socket: socket.socket | None = None
        self._data = bytearray()
        self._headers: dict[str, str] = {}
        self._asked = False
        self._timed_out = False
        self._broken_off = False

    @property
    def free(self) -> bool:
        """Tell whether it can take another request: connected, and nothing of an answer is left on it."""
        return self._socket is not None and not (
            self._asked or self._broken_off or self._data or readable(self._socket)
        )

    async def connect(self) -> socket.socket:
        """Connect, unless it is connected; wait a little where the service's list of newcomers is full.

        Raises `NoService`.
        """
        if self._socket is not None:
            return self._socket
        connection = opened()
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        try:
            while not tried(connection, self._path):
                if time.monotonic() > deadline:
                    raise NoService(self._path, OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
                await asyncio.sleep(CONNECT_PAUSE_S)
            if self._broken_off:
                raise self._gone(ConnectionAbortedError())
        except BaseException:
            connection.close()
            raise
        self._socket = connection
        return connection

    async def listener(self) -> int:
        """Connect, and return the user id of who listens, as the kernel tells it. Raises `NoService`."""
        return listener_of(await self.connect())

    async def answer(self, method: str, path: str, body: bytes | None, *, accept: str, prefer: str = "") -> int:
        """Send a request, once, and return the answer's status. Raises `NoService`, `EngineUnavailable`, `Internal`."""
        connection = await self.connect()
        request_id = os.urandom(16).hex()
        headers = head_of(method, path, request_id, accept=accept, prefer=prefer, body=body)
        if body is not None:
            headers["Content-Length"] = str(len(body))
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self._asked = True  # until all of the answer is read, nothing else can be asked here
        try:
            # Who refuses a body without reading it says why before it closes.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError), self._patience():
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(connection, "\r\n".join([*lines, "", ""]).encode())
                if body:
                    await loop.sock_sendall(connection, body)
            status = await self._head()
        except GONE as error:
            raise self._gone(error) from None
        check_request_id(self._headers, request_id)
        return status

    async def whole(self, status: int) -> Answer:
        """Return all of an answer. Raises `EngineUnavailable`."""
        try:
            body = b"".join([piece async for piece in self._pieces()])
        except GONE as error:
            raise self._gone(error) from None
        return Answer(status, self._headers, body)

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Give an answer line by line. Raises `EngineUnavailable`, `Internal` in a forked process."""
        line: list[bytes] = []
        try:
            async for piece in self._pieces():
                if os.getpid() != self._process:
                    raise Internal(
                        "this stream belongs to the process that it began in",
                        hint="begin a stream of its own after a fork",
                    )
                *ends, rest = piece.split(b"\n")
                for end in ends:
                    yield b"".join([*line, end, b"\n"])
                    line = []
                line.append(rest)
        except GONE as error:
            raise self._gone(error) from None
        if any(line):  # cut off in the middle
            raise self._gone(EOFError())

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the last answer by their names in lower case."""
        return self._headers

    def break_off(self) -> None:
        """Have whoever waits for the service find that it is gone."""
        self._broken_off = True
        if self._socket is not None and os.getpid() == self._process:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    # ---- what comes

    async def _head(self) -> int:
        while True:
            head = await self._until(b"\r\n\r\n", MAX_HEAD_BYTES)
            first, *others = head.split(b"\r\n")
            match = STATUS.match(first)
            if match is None:
                raise ValueError("no answer of HTTP")
            if (status := int(match[1])) >= 200:
                pairs = (line.decode("latin-1").partition(":") for line in others)
                self._headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
                return status

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Give the body as it comes; at its end, and not before, the connection may be used again."""
        if self._headers.get("transfer-encoding", "").lower() == "chunked":
            while (size := await self._chunk_bytes()) > 0:
                async for piece in self._exactly(size):
                    yield piece
                if await self._until(b"\r\n", 2):
                    raise ValueError("a chunk that does not end")
            while await self._until(b"\r\n", MAX_LINE_BYTES):
                pass
        elif (length := self._headers.get("content-length", "")).isdecimal():
            async for piece in self._exactly(int(length)):
                yield piece
        else:
            raise ValueError("an answer of unknown length")
        self._asked = self._headers.get("connection", "").lower() == "close"

    async def _chunk_bytes(self) -> int:
        match = SIZE.fullmatch(await self._until(b"\r\n", MAX_LINE_BYTES))
        if match is None:
            raise ValueError("no size of a chunk")
        return int(match[1], 16)

    async def _exactly(self, size: int) -> AsyncIterator[bytes]:
        while size > 0:
            piece = bytes(self._data[:size]) or await self._received(min(size, PIECE_BYTES))
            del self._data[: len(piece)]
            size -= len(piece)
            yield piece

    async def _until(self, end: bytes, most: int) -> bytes:
        while (at := self._data.find(end)) < 0:
            if len(self._data) > most:
                raise ValueError("a line that is too long")
            self._data += await self._received(PIECE_BYTES)
        found = bytes(self._data[:at])
        del self._data[: at + len(end)]
        return found

    async def _received(self, most: int) -> bytes:
        if self._socket is None:
            raise EOFError
        with self._patience():
            data = await asyncio.get_running_loop().sock_recv(self._socket, most)
        if self._timed_out:
            raise TimeoutError
        if not data:
            raise EOFError
        return data

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """Shut the connection when the time is over.

        This is not `wait_for`, which loses a cancellation that comes with the data.
        """
        if self.timeout_s is None:
            yield
            return
        timer = asyncio.get_running_loop().call_later(self.timeout_s, self._time_out)
        try:
            yield
        finally:
            timer.cancel()

    def _time_out(self) -> None:
        self._timed_out = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _gone(self, error: Exception) -> EngineUnavailable:
        if self._broken_off:
            return EngineUnavailable(
                "the call was broken off before it was answered",
                hint="something else ended what this client did; ask again",
            )
        return gone(TimeoutError() if self._timed_out else error, self.timeout_s)


class AsyncConnectionPool:
    """Connections to one socket.

    Each is used by one task at a time, and never again where an answer was not read to its end.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._free: list[tuple[AsyncConnection, float]] = []
        self._busy: dict[AsyncConnection, bool] = {}  # whether it is kept afterwards

    def _owned(self) -> None:
        """Begin anew in a forked process: the connections are its parent's."""
        if self._process != os.getpid():
            inherited = [connection for connection, _ in self._free]
            self._begin()
            for connection in inherited:
                connection.close()

    @contextlib.asynccontextmanager
    async def one(self, timeout_s: float | None) -> AsyncIterator[AsyncConnection]:
        """Give a connection that nobody else uses.

        It is used again if all of the answer was read, however the block ends.
        """
        connection = self._taken()
        connection.timeout_s = timeout_s
        try:
            yield connection
        finally:
            self._give_back(connection)

    def _taken(self) -> AsyncConnection:
        self._owned()
        found = None
        while self._free and found is None:
            connection, since = self._free.pop()
            if time.monotonic() - since < IDLE_S and connection.free:
                found = connection
            else:
                connection.close()
        found = found or AsyncConnection(self._path)
        self._busy[found] = True
        return found

    def _give_back(self, connection: AsyncConnection) -> None:
        self._owned()
        if self._busy.pop(connection, False) and connection.free and len(self._free) < FREE:
            self._free.append((connection, time.monotonic()))
            return
        connection.break_off()
        connection.close()

    def close(self) -> None:
        """Close those that nobody uses; the others when their answers are read."""
        self._owned()
        free, self._free = self._free, []
        self._busy = dict.fromkeys(self._busy, False)
        for connection, _ in free:
            connection.close()

    def break_off(self) -> None:
        """End whatever waits for an answer."""
        self._owned()
        for connection in self._busy:
            connection.break_off()
