"""How many connections one user may hold, and how long one may keep the service waiting.

A connection costs a descriptor and memory before anything is known of its request. Past the bound a user's further
connections are answered and closed at once; everybody else's are taken.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, cast

from sandbox.service.access import peer_of

if TYPE_CHECKING:
    from aiohttp.web import Server
    from aiohttp.web_protocol import RequestHandler

PER_USER = 400
# A connection without a request is closed after so long; clients open another.
IDLE_S = 75.0
BODY = json.dumps(
    {"error": {"code": "queue_full", "message": f"too many connections at once: a user may hold {PER_USER}",
               "hint": "close those that are not in use, then try again", "facts": {}}}
).encode()  # fmt: skip
REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


class Connections:
    """Makes what serves a connection, within the bound; in the place of the `Server` itself."""

    def __init__(self, server: Server, *, per_user: int = PER_USER) -> None:
        self._server = server
        self._per_user = per_user
        self._users: dict[RequestHandler, int] = {}

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a connection that was just accepted."""
        return _Door(self)

    def handler(self, uid: int) -> RequestHandler | None:
        """Return what serves one more connection of a user, or None where there are too many."""
        self._users = {handler: self._users[handler] for handler in self._server.connections if handler in self._users}
        if sum(owner == uid for owner in self._users.values()) >= self._per_user:
            return None
        handler = self._server()
        self._users[handler] = uid
        return handler


class _Door(asyncio.Protocol):
    """Looks who connects, and hands the connection over."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        uid = peer_of(transport.get_extra_info("socket")).uid
        handler = self._connections.handler(uid)
        if handler is None:
            transport.write(REFUSAL)
            transport.close()
            return
        transport.set_protocol(handler)
        handler.connection_made(transport)
