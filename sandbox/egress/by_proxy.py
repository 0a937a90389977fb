"""A tunnel through the HTTP proxy of this host's network: CONNECT, and what comes back, read strictly.

The program in the sandbox learns that there is such a proxy, neither its address nor its login.
"""

from __future__ import annotations

import asyncio
import re
import socket
from http import HTTPStatus

from sandbox.egress.refusal import Refusal
from sandbox.proxies import ProxyServer, refusal

__all__ = ["SUBJECT", "NotConnected", "open_tunnel", "refused_by"]

SUBJECT = "this host's proxy"
END = b"\r\n\r\n"
MAX_HEAD_BYTES = 16 << 10
READ_BYTES = 4 << 10
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r\n")


async def open_tunnel(server: socket.socket, proxy: ProxyServer, target: str, *, deadline: float) -> None:
    """Have the proxy at `server` connect to `host:port`. Closes the socket and raises Refusal when it does not."""
    loop = asyncio.get_running_loop()
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{proxy.authorization}\r\n"
    try:
        await loop.sock_sendall(server, request.encode("latin-1"))
        head = await asyncio.wait_for(_head(server), deadline - loop.time())
        if (match := _STATUS.match(head)) is None or END not in head:
            raise Refusal(HTTPStatus.BAD_GATEWAY, f"{SUBJECT} is no HTTP proxy: its answer is something else")
        if not match[1].startswith(b"2"):
            raise refused_by(proxy, int(match[1]), (match[2] or b"").decode("latin-1"), target)
    except asyncio.TimeoutError:
        server.close()
        raise Refusal(HTTPStatus.BAD_GATEWAY, f"{SUBJECT} does not answer in time") from None
    except BaseException:
        server.close()
        raise


class NotConnected(Refusal):
    """The proxy does not connect to this address; it may to another."""


def refused_by(proxy: ProxyServer, status: int, phrase: str, target: str) -> Refusal:
    """Return the end of a connection that the proxy does not make."""
    # A login that was refused is not tried again: some accounts are locked then.
    kind = Refusal if status in (401, 407) else NotConnected
    return kind(HTTPStatus.BAD_GATEWAY, f"{SUBJECT} {refusal(proxy, status, phrase, target)}")


async def _head(server: socket.socket) -> bytes:
    """Return the head of the proxy's answer. Nothing comes after it before the program has spoken."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while (end := data.find(END)) < 0:
        if len(data) > MAX_HEAD_BYTES or not (chunk := await loop.sock_recv(server, READ_BYTES)):
            return bytes(data)
        data += chunk
    refuses = not data.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))
    if end + len(END) < len(data) and not refuses:
        raise Refusal(HTTPStatus.BAD_GATEWAY, f"{SUBJECT} is no HTTP proxy: bytes came before the tunnel was used")
    return bytes(data)
