"""Bytes between a sandbox and a server: counted, limited in number and in silence, never more than a buffer held."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from sandbox.egress.answer_head import ClosingAnswer
from sandbox.egress.refusal import Refusal
from sandbox.egress.request_body import Body, BodyRefused

__all__ = ["USED_UP", "Meter", "Splice"]

UP_BUFFER_BYTES = 64 << 10
DOWN_BUFFER_BYTES = 256 << 10
# What the reason of a connection ends with that met the limit.
USED_UP = " that may be sent and received are used up"


class Meter:
    """Counts the bytes of all connections of one sandbox, in both directions, against their limit."""

    def __init__(self, limit_bytes: int, on_bytes: Callable[[int], None] | None) -> None:
        self._limit_bytes = limit_bytes
        self._left_bytes = limit_bytes
        self._on_bytes = on_bytes

    def take(self, count: int) -> None:
        """Account for bytes about to be passed on, `on_bytes` told of them. Raises Refusal when they are too many."""
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise self._used_up()
        if self._on_bytes:
            self._on_bytes(count)

    def check(self) -> None:
        """Raise Refusal when nothing is left."""
        if self._left_bytes <= 0:
            raise self._used_up()

    def _used_up(self) -> Refusal:
        large = self._limit_bytes >= 1 << 20
        size = f"{self._limit_bytes >> 20} MiB" if large else f"{self._limit_bytes} bytes"
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, f"the {size}{USED_UP}")


class Splice:
    """The two directions of one connection. Both methods raise Refusal (limit, silence) and OSError.

    `received_all` says that the server has ended its side, and that the program has been sent everything.
    """

    def __init__(self, client: socket.socket, server: socket.socket, meter: Meter, *, idle_timeout_s: float) -> None:
        self._client = client
        self._server = server
        self._meter = meter
        self._idle_timeout_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._moved_at = self._loop.time()
        self.bytes_up = 0
        self.bytes_down = 0
        self.received_all = False

    async def tunnel(self, first: bytes) -> None:
        """Send `first`, then pass on what comes from either side until both have ended."""
        await self._both(self._send_all(first), self._receive_and_end(), until_down=False)

    async def exchange(self, head: bytes, body: Body, rest: bytes, check: Callable[[int], None]) -> None:
        """Send one request, whose body begins with `rest`, and pass on the answer until the server ends it.

        `check` is told the answer's status before anything of it is passed on; what it raises is raised.
        """
        await self._both(self._send_request(head, body, rest), self._receive(ClosingAnswer(check)), until_down=True)

    async def _both(self, up: Coroutine[Any, Any, None], down: Coroutine[Any, Any, None], *, until_down: bool) -> None:
        """Run both directions until they have ended, or only `down` has. Silence in both is too long a silence."""
        receiving = asyncio.create_task(down)
        tasks = {asyncio.create_task(up), receiving}
        pending = set(tasks)
        try:
            while pending and not (until_down and receiving.done()):
                left_s = self._moved_at + self._idle_timeout_s - self._loop.time()
                if left_s <= 0:
                    raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, f"not a byte came for {self._idle_timeout_s:g} s")
                done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_all(self, first: bytes) -> None:
        await self._send(first)
        buffer = memoryview(bytearray(UP_BUFFER_BYTES))
        while size := await self._loop.sock_recv_into(self._client, buffer):
            await self._send(buffer[:size])
        self._end(self._server)

    async def _send_request(self, head: bytes, body: Body, rest: bytes) -> None:
        await self._send(head)
        data: bytes | memoryview = rest
        buffer = memoryview(bytearray(UP_BUFFER_BYTES))
        while True:
            try:
                count = body.take(data)
            except BodyRefused as error:
                raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from None
            await self._send(data[:count])
            if body.complete:  # what else came is not part of the request, and goes nowhere
                return
            size = await self._loop.sock_recv_into(self._client, buffer)
            if not size:
                raise Refusal(HTTPStatus.BAD_REQUEST, "the body of the request is cut short")
            data = buffer[:size]

    async def _receive(self, answer: ClosingAnswer | None = None) -> None:
        buffer = memoryview(bytearray(DOWN_BUFFER_BYTES))
        while size := await self._loop.sock_recv_into(self._server, buffer):
            self._meter.take(size)
            data = answer.take(buffer[:size]) if answer else buffer[:size]
            if data:
                await self._loop.sock_sendall(self._client, data)
                self.bytes_down += size
            await self._pause()
        if answer and (held := answer.rest()):
            await self._loop.sock_sendall(self._client, held)
            self.bytes_down += len(held)
        self.received_all = True

    async def _receive_and_end(self) -> None:
        await self._receive()
        self._end(self._client)

    async def _send(self, data: bytes | memoryview) -> None:
        self._meter.take(len(data))
        await self._loop.sock_sendall(self._server, data)
        self.bytes_up += len(data)
        await self._pause()

    async def _pause(self) -> None:
        """Let others run: a socket that is always ready never makes the loop wait."""
        self._moved_at = self._loop.time()
        await asyncio.sleep(0)

    @staticmethod
    def _end(target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it may be gone already
            target.shutdown(socket.SHUT_WR)
