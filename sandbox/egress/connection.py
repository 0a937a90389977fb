"""One connection of a sandbox to the proxy, from its first byte to its record.

The order of the checks: the request's form, the rule, the addresses, the connection, the name in the TLS handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from sandbox.egress.by_proxy import refused_by
from sandbox.egress.client_hello import ClientHelloReader, HelloRefused
from sandbox.egress.refusal import Refusal
from sandbox.egress.request_body import body_of
from sandbox.egress.request_head import END, HeadRefused, RequestHead, parse_head
from sandbox.egress.rules import Allowlist, literal_address, shown
from sandbox.egress.splice import Meter, Splice
from sandbox.egress.upstream import Resolve, Server, Upstream, connect
from sandbox.models import EgressRecord

__all__ = ["STILL_OPEN", "EgressCaps", "EgressConnection", "Surroundings"]

READ_BYTES = 16 << 10
STILL_OPEN = "open when the sandbox ended"
LINGER_S = 2.0
LINGER_BYTES = 1 << 20
# A fatal TLS alert, access_denied: after the 200 an answer in words would be no TLS.
ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class EgressCaps:
    """Limits of one sandbox. `transfer_bytes` counts both directions of all `connections` together.

    More than `simultaneous` connections at once wait for their turn. `head_timeout_s` is for a whole head or TLS
    handshake, `connect_timeout_s` for resolving and connecting, `idle_timeout_s` for silence in both directions.
    """

    transfer_bytes: int
    connections: int
    simultaneous: int = 32
    head_bytes: int = 16 << 10
    head_timeout_s: float = 10
    connect_timeout_s: float = 10
    idle_timeout_s: float = 60


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What all connections of one sandbox share."""

    allow: Allowlist
    caps: EgressCaps
    meter: Meter
    resolve: Resolve
    own: Collection[str]
    upstream: Upstream


class EgressConnection:
    """Serves one accepted socket; `close()` when done, then `record()`."""

    def __init__(self, client: socket.socket, around: Surroundings) -> None:
        self._client = client
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._server: Server | None = None
        self._splice: Splice | None = None
        self._answer_begun = False
        self._host = ""
        self._port = 0
        self._allowed = False
        self._reason = STILL_OPEN

    async def serve(self) -> None:
        """Serve until either side ends. Raises nothing that the sandbox or a server can cause."""
        try:
            await self._serve()
            self._reason = ""
        except Refusal as refusal:
            await self.refuse(refusal)
        except OSError as error:
            await self.refuse(Refusal(HTTPStatus.BAD_GATEWAY, f"the connection broke: {error.strerror or error}"))

    async def refuse(self, refusal: Refusal) -> None:
        """End the connection with an answer in words, or, inside a tunnel, with a TLS alert."""
        self._reason = refusal.reason
        self._allowed = self._allowed and not refusal.denied
        if self._splice is not None and self._splice.bytes_down:
            return  # in the middle of an answer there is no place for another
        answer = ACCESS_DENIED if self._answer_begun else refusal.response()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._say(answer), LINGER_S)

    def drop(self, reason: str) -> None:
        """Say nothing; only the record has the reason."""
        self._reason = reason

    def close(self) -> None:
        """Close both sockets."""
        self._client.close()
        if self._server is not None:
            self._server.socket.close()

    def record(self) -> EgressRecord:
        """Return what became of the connection."""
        splice, server = self._splice, self._server
        complete = self._reason == STILL_OPEN and splice is not None and splice.received_all
        return EgressRecord(
            host=shown(self._host),
            port=self._port,
            allowed=self._allowed,
            address=server.address if server else "",
            proxy=server.proxy.shown if server and server.proxy else "",
            reason="" if complete else self._reason,
            bytes_up=splice.bytes_up if splice else 0,
            bytes_down=splice.bytes_down if splice else 0,
        )

    async def _serve(self) -> None:
        around, caps = self._around, self._around.caps
        around.meter.check()
        data, rest = await self._in_time(self._read_head(), "the head of the request")
        try:
            head = parse_head(data)
        except HeadRefused as error:
            raise Refusal(error.status, str(error)) from None
        if head.tunnel and rest:
            raise Refusal(HTTPStatus.BAD_REQUEST, "bytes came before the tunnel was open")
        decision = around.allow.decide(head.host, head.port)
        self._host, self._port, self._allowed = decision.host, decision.port, decision.allowed
        if not decision.allowed:
            raise Refusal(HTTPStatus.FORBIDDEN, decision.reason)
        self._server = server = await connect(
            self._host,
            self._port,
            tls=head.tunnel,
            allow=around.allow,
            own=around.own,
            resolve=around.resolve,
            upstream=around.upstream,
            timeout_s=caps.connect_timeout_s,
        )
        splice = Splice(self._client, server.socket, around.meter, idle_timeout_s=caps.idle_timeout_s)
        if head.tunnel:
            await self._tunnel(splice)
        else:
            await self._exchange(splice, server, head, rest)

    async def _tunnel(self, splice: Splice) -> None:
        self._answer_begun = True
        await self._loop.sock_sendall(self._client, b"HTTP/1.1 200 Connection established\r\n\r\n")
        first = await self._in_time(self._read_hello(), "the TLS handshake")
        self._splice = splice
        await splice.tunnel(first)

    async def _exchange(self, splice: Splice, server: Server, head: RequestHead, rest: bytes) -> None:
        self._splice = splice
        relay = server.proxy if server.relays else None

        def check(status: int) -> None:
            # What other answers it gives are those of a gateway, and stand for the server's.
            if relay is not None and status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                raise refused_by(relay, status, "", f"{self._host}:{self._port}")

        forwarded = head.forwarded(self._host, by=relay)
        await splice.exchange(forwarded, body_of(head.body_bytes), rest, check)
        if not splice.bytes_down:
            raise Refusal(HTTPStatus.BAD_GATEWAY, f"{self._host}:{self._port} closed the connection without an answer")

    async def _read_head(self) -> tuple[bytes, bytes]:
        """Return the head of the request and what came after it."""
        data = bytearray()
        limit = self._around.caps.head_bytes
        while (end := data.find(END)) < 0:
            if len(data) >= limit:
                break
            if not (chunk := await self._loop.sock_recv(self._client, READ_BYTES)):
                raise Refusal(HTTPStatus.BAD_REQUEST, "the connection ended before a request")
            data += chunk
            if not 0x41 <= data[0] <= 0x5A:
                raise Refusal(HTTPStatus.BAD_REQUEST, "this is not an HTTP request: the proxy speaks HTTP/1.1")
        end += len(END)
        if not len(END) <= end <= limit:
            raise Refusal(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head of the request is larger than {limit} bytes"
            )
        return bytes(data[:end]), bytes(data[end:])

    async def _read_hello(self) -> bytes:
        """Return the bytes up to a ClientHello that names the host of the tunnel, and what came with it."""
        hello, first = ClientHelloReader(), bytearray()
        try:
            while not hello.complete:
                if not (chunk := await self._loop.sock_recv(self._client, READ_BYTES)):
                    raise Refusal(HTTPStatus.BAD_REQUEST, "the connection ended before its TLS handshake")
                first += chunk
                hello.feed(chunk)
        except HelloRefused as error:
            raise Refusal(HTTPStatus.FORBIDDEN, str(error)) from None
        name = hello.server_name
        if name is None and not literal_address(self._host):
            raise Refusal(HTTPStatus.FORBIDDEN, f"the TLS handshake names no server; it has to name {self._host}")
        if name is not None and name.lower() != self._host:
            raise Refusal(
                HTTPStatus.FORBIDDEN, f"the TLS handshake names {shown(name)!r}, but the tunnel is to {self._host}"
            )
        return bytes(first)

    async def _in_time(self, reading: Awaitable[Result], what: str) -> Result:
        timeout_s = self._around.caps.head_timeout_s
        try:
            return await asyncio.wait_for(reading, timeout_s)
        except asyncio.TimeoutError:
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, f"{what} did not come within {timeout_s:g} s") from None

    async def _say(self, answer: bytes) -> None:
        """Send the last words and wait for the program to take them: closing at once could throw them away."""
        await self._loop.sock_sendall(self._client, answer)
        self._client.shutdown(socket.SHUT_WR)
        left = LINGER_BYTES
        while left > 0 and (chunk := await self._loop.sock_recv(self._client, READ_BYTES)):
            left -= len(chunk)
