"""From an allowed host to a connected socket: one resolution, every address judged, the judged address connected to.

Where this host goes through a proxy, that proxy is asked for the judged address. Only a policy that lets the proxy look
names up has it asked for the name, and then nobody here sees which address it chooses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Literal

from sandbox.egress.by_proxy import SUBJECT, NotConnected, open_tunnel
from sandbox.egress.refusal import Refusal
from sandbox.egress.rules import Allowlist, literal_address
from sandbox.proxies import DIRECT, Proxies, ProxyServer, is_loopback

__all__ = ["Resolve", "Server", "Upstream", "connect", "system_resolve"]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
MAX_ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Which way allowed connections leave this host, and who looks names up where that is a proxy."""

    proxies: Proxies = DIRECT
    resolver: Literal["host", "proxy"] = "host"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A connected socket; `address` is the one that was judged, empty where `proxy` chose it.

    `relays` says that the socket leads to the proxy itself, which wants whole addresses.
    """

    socket: socket.socket
    address: str = ""
    proxy: ProxyServer | None = None
    relays: bool = False


@dataclass(frozen=True, kw_only=True)
class Destination:
    """What is to be reached, and until when (in the loop's time)."""

    host: str
    port: int
    tls: bool
    deadline: float


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host as the host's own resolver gives them. Raises OSError.

    Each look-up has a thread of its own: the C library can't be interrupted, and a name server that never
    answers must neither hold the threads that others share nor the end of the process.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str], error: OSError | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(addresses)

    def look_up() -> None:
        addresses: list[str] = []
        failure = None
        try:
            # As bytes: the standard library applies no IDNA of its own.
            found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        except OSError as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, addresses, failure)

    threading.Thread(target=look_up, name="egress-resolve", daemon=True).start()
    return await answer


async def connect(
    host: str,
    port: int,
    *,
    tls: bool,
    allow: Allowlist,
    own: Collection[str],
    resolve: Resolve,
    upstream: Upstream,
    timeout_s: float,
) -> Server:
    """Return a connection to a host which the rules allow.

    Raises Refusal: 403 when one of the host's addresses may not be connected to, 502 when none answers.
    """
    loop = asyncio.get_running_loop()
    target = Destination(host=host, port=port, tls=tls, deadline=loop.time() + timeout_s)
    proxy = upstream.proxies.leading_to(host, port, tls=tls)
    if proxy is not None and upstream.resolver == "proxy" and not literal_address(host):
        return await _by_name(target, proxy)
    addresses = await _addresses(target, resolve, timeout_s, proxy)
    for address in addresses:
        if problem := allow.address_problem(address, own=own):
            raise Refusal(
                HTTPStatus.FORBIDDEN, f"{host}: {problem}, not in the policy's {allow.section}.allow_addresses"
            )
    # A name of this host's own loopback would mean the proxy's there.
    if proxy is not None and not all(map(is_loopback, addresses)):
        # Many proxies have no IPv6.
        *others, last = sorted(addresses, key=lambda address: ":" in address)[:MAX_ATTEMPTS]
        for address in others:
            with contextlib.suppress(NotConnected):
                return await _by_address(target, address, proxy)
        return await _by_address(target, last, proxy)
    try:
        direct, address = await _first_connected(addresses, port, target.deadline, allow)
    except _Unreached as error:
        raise Refusal(HTTPStatus.BAD_GATEWAY, f"{host}:{port} can't be reached: {error}") from None
    return Server(socket=direct, address=address)


async def _by_name(target: Destination, proxy: ProxyServer) -> Server:
    """Leave the name to the proxy."""
    server = await _to_proxy(target, proxy)
    if not target.tls:  # proxies seldom open tunnels for it
        return Server(socket=server, proxy=proxy, relays=True)
    await open_tunnel(server, proxy, f"{target.host}:{target.port}", deadline=target.deadline)
    return Server(socket=server, proxy=proxy)


async def _by_address(target: Destination, address: str, proxy: ProxyServer) -> Server:
    """Have the proxy connect to a judged address."""
    server = await _to_proxy(target, proxy)
    bracketed = f"[{address}]" if ":" in address else address
    await open_tunnel(server, proxy, f"{bracketed}:{target.port}", deadline=target.deadline)
    return Server(socket=server, address=address, proxy=proxy)


async def _to_proxy(target: Destination, proxy: ProxyServer) -> socket.socket:
    """Return a connection to the proxy, which an administrator named: its address is not judged."""
    try:
        left_s = target.deadline - asyncio.get_running_loop().time()
        addresses = await asyncio.wait_for(system_resolve(proxy.host, proxy.port), left_s)
        server, _ = await _first_connected(addresses, proxy.port, target.deadline)
    except _Unreached as error:
        raise Refusal(HTTPStatus.BAD_GATEWAY, f"{SUBJECT} can't be reached: {error}") from None
    except (asyncio.TimeoutError, OSError) as error:
        why = getattr(error, "strerror", None) or "none came in time"
        raise Refusal(HTTPStatus.BAD_GATEWAY, f"{SUBJECT} can't be reached: its name has no address: {why}") from None
    return server


class _Unreached(Exception):
    """No address answers; the text is the reason."""


async def _first_connected(
    addresses: Sequence[str], port: int, deadline: float, allow: Allowlist | None = None
) -> tuple[socket.socket, str]:
    """Return a connection to the first address that answers. Raises `_Unreached`."""
    loop = asyncio.get_running_loop()
    attempts = addresses[:MAX_ATTEMPTS]
    failure = ""
    for index, address in enumerate(attempts):
        share_s = max(0.0, deadline - loop.time()) / (len(attempts) - index)
        try:
            return await _connected(address, port, share_s, allow), address
        except asyncio.TimeoutError:
            failure = f"no answer within {share_s:.0f} s"
        except OSError as error:
            failure = os.strerror(error.errno) if error.errno else str(error)
    raise _Unreached(failure)


async def _addresses(target: Destination, resolve: Resolve, timeout_s: float, proxy: ProxyServer | None) -> list[str]:
    host = target.host
    if literal := literal_address(host):
        return [literal]
    lacks = f"{host} has no address" + (" here" if proxy is not None else "")
    try:
        addresses = list(await asyncio.wait_for(resolve(host, target.port), timeout_s))
    except asyncio.TimeoutError:
        raise Refusal(HTTPStatus.BAD_GATEWAY, f"{lacks}: none came within {timeout_s:.0f} s") from None
    except OSError as error:
        raise Refusal(HTTPStatus.BAD_GATEWAY, f"{lacks}: {error.strerror or error}") from None
    if not addresses:
        raise Refusal(HTTPStatus.BAD_GATEWAY, lacks)
    return addresses


async def _connected(address: str, port: int, timeout_s: float, allow: Allowlist | None = None) -> socket.socket:
    """Return a connection to an address; with `allow`, one that is not judged otherwise now that it is made."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(server, (address, port)), timeout_s)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer, own = server.getpeername()[0], server.getsockname()[0]
        if allow is not None and ip_address(peer) != ip_address(address):
            raise Refusal(HTTPStatus.FORBIDDEN, f"{address} turned out to be {peer}")
        # The kernel reaches an address of its own from that same address. Addresses come and go: this one is new.
        if allow is not None and own == peer and (problem := allow.address_problem(peer, own={peer})):
            raise Refusal(HTTPStatus.FORBIDDEN, problem)
    except BaseException:
        server.close()
        raise
    return server
