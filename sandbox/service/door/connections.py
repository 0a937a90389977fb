"""Connections: how many one user may hold, how long one may be silent, and what is said to those that speak no HTTP.

A connection costs a descriptor and memory before anything is known of its request. Past the bound a user's further
connections are answered and closed at once; everybody else's are taken.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from sandbox.errors import Internal, InvalidRequest, SandboxError
from sandbox.service.answers import SERVER, error_answer, sign, translated
from sandbox.service.door.access import peer_of
from sandbox.service.door.listen import BACKLOG
from sandbox.service.intake.reading import BODY_TIMEOUT_S

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

PER_USER = 400
# So many descriptors are enough. All connections together take at most half of them; runs need the others.
DESCRIPTORS = 65_536
DESCRIPTORS_SHARE = 2
# A connection without a request is closed after so long; clients open another.
IDLE_S = 75.0
# Who is refused is heard out for so long: a connection that is closed while its client still sends is reset, and the
# client may never see the answer. So many at a time, of which the oldest make room: twice what is accepted in one turn
# of the event loop, so that whoever asks at once is heard, however many come.
LINGER_S = 2.0
LINGERING = 2 * BACKLOG
LINGERING_SHARE = 4
FEW = 64
HEAD_END = b"\r\n\r\n"
HEADS = 256  # in one piece; more are parsed together
# What comes is read in pieces of so much, not asyncio's 256 KiB: of many clients that send at once, none keeps the
# event loop long.
PIECE_BYTES = 32 << 10
BODY = json.dumps(
    {
        "error": {
            "code": "queue_full",
            "message": f"too many connections at once: yours, of which you may hold {PER_USER}, or everybody's",
            "hint": "close those that are not in use, then try again",
            "facts": {},
        }
    }
).encode()
REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\nServer: %s\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection:"
    b" close\r\nContent-Length: %d\r\n\r\n%s" % (SERVER.encode(), len(BODY), BODY)
)


class Speaker(web.RequestHandler):
    """Serves one connection. What goes wrong before a route is found is answered in the shape of every other error."""

    __slots__ = ("_broken", "_coming", "_refused")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve."""
        self._refused = False
        self._coming: StreamReader = EMPTY_PAYLOAD  # the body of the request whose head came last
        self._broken = False
        transport.max_size = PIECE_BYTES  # type: ignore[attr-defined] # asyncio documents no other way, nor this one
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take what came, one head after the other.

        The parser forgets the requests that stand in one piece with a broken one.
        """
        if self._refused:
            return
        *heads, rest = data.split(HEAD_END, HEADS)
        for head in heads:
            self._parse(head + HEAD_END)
        if rest or not data:  # with nothing new it goes on with what it has, once a reader has made room
            self._parse(rest)

    def _parse(self, data: bytes) -> None:
        """Parse more, and tell whoever reads a body that it is broken: the library would let it wait for the rest."""
        before = self._request_count
        super().data_received(data)
        if self._request_count == before or self._broken:
            return
        message, body = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            self._coming = body
        elif not self._coming.is_eof():
            self._broken = True
            self._coming.set_exception(web.RequestPayloadError("broken"))  # first: nobody may take it as whole
            self._coming.feed_eof()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Return the answer to what is no HTTP, after which the connection ends; nothing of what came is quoted."""
        super().handle_error(request, status, exc, message)  # logs it, and raises where an answer has begun
        error: SandboxError = Internal("the service has a defect", hint="its log says more; report this")
        if isinstance(exc, LineTooLong):
            error = InvalidRequest(
                "the head of the request has a line that is too long", hint="shorten its address or headers"
            )
        elif status < 500:
            error = InvalidRequest(
                "what came is no HTTP/1.1 request, or a broken one",
                hint="look at what the client sends; GET /v1/health is the smallest request",
            )
        answer = error_answer(error)
        answer.force_close()
        return answer

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; one that the library gave before any of our code saw the request gets the shape of ours."""
        if isinstance(resp, web.HTTPException):
            resp = error_answer(translated(resp, request))
        if not resp.prepared:
            if self._broken and request.content is self._coming:
                resp.force_close()  # where the next request would begin, nobody can tell
            sign(request, resp)
        sent = await super().finish_response(request, resp, start_time)
        if (
            resp.status >= 400
            and not resp.keep_alive
            and isinstance(self.transport, asyncio.Transport)
            and not self.transport.is_closing()
        ):
            self._refused = True
            self.transport.write_eof()
            await asyncio.sleep(LINGER_S)  # or until the client closes its side, which ends this task
        return sent


class BoundedServer:
    """Makes what serves a connection, within the bound; in the place of the `Server` itself.

    `idle_s` is how long a connection may be without a request; `total` is how many there may be, of all users.
    """

    def __init__(
        self, server: web.Server, *, per_user: int = PER_USER, total: int | None = None, idle_s: float = IDLE_S
    ) -> None:
        self._server = server
        self._per_user = per_user
        self._total = most_connections() if total is None else total
        # Bodies are taken as they are: a compressed one could grow a thousandfold.
        # What is refused before its body came is read to its end, within the time that a body has: a connection that is
        # closed while its client still sends is reset, and the client may never see the answer.
        self._options: dict[str, Any] = {"keepalive_timeout": idle_s, "lingering_time": BODY_TIMEOUT_S,
                                         "access_log": None, "auto_decompress": False,
                                         "read_bufsize": PIECE_BYTES // 2}  # fmt: skip # it reads on to twice that
        self._users: dict[web.RequestHandler, int] = {}
        self._lingering = min(LINGERING, max(self._total // LINGERING_SHARE, FEW))
        self._refused: dict[_Refused, None] = {}  # the oldest first

    def refused(self) -> asyncio.Protocol:
        """Return what tells one more client that there are too many, and hears it out."""
        if len(self._refused) >= self._lingering:
            next(iter(self._refused)).end()
        refused = _Refused(lambda: self._refused.pop(refused, None))
        self._refused[refused] = None
        return refused

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a connection that was just accepted."""
        return _Door(self)

    def handler(self, uid: int) -> web.RequestHandler | None:
        """Return what serves one more connection of a user, or None where there are too many."""
        self._users = {handler: self._users[handler] for handler in self._server.connections if handler in self._users}
        if len(self._users) >= self._total or sum(owner == uid for owner in self._users.values()) >= self._per_user:
            return None
        handler = Speaker(self._server, loop=asyncio.get_running_loop(), **self._options)
        self._users[handler] = uid
        return handler


def more_descriptors() -> None:
    """Let this process have all descriptors that it may, within reason: the usual 1,024 are two users' connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_connections() -> int:
    """Return how many connections there may be, by how many descriptors there may be."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (DESCRIPTORS if soft == resource.RLIM_INFINITY else soft) // DESCRIPTORS_SHARE


class _Door(asyncio.Protocol):
    """Looks who connects, and hands the connection over."""

    def __init__(self, connections: BoundedServer) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        uid = peer_of(transport.get_extra_info("socket")).uid
        handler = self._connections.handler(uid)
        protocol = self._connections.refused() if handler is None else handler
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


class _Refused(asyncio.Protocol):
    """Says no, and takes what comes until the client has heard it.

    What was said stays readable for the client after the end.
    """

    def __init__(self, on_end: Callable[[], object]) -> None:
        self._on_end = on_end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(REFUSAL)
        self._transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self.end)

    def end(self) -> None:
        """Hear no more."""
        self._on_end()
        self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._timer.cancel()
        self._on_end()
