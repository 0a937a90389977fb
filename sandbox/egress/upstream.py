"""From an allowed host to a connected socket: one resolution, every address judged, the judged address connected to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from http import HTTPStatus
from ipaddress import ip_address

from sandbox.egress.refusal import Refusal
from sandbox.egress.rules import Allowlist, literal_address

__all__ = ["Resolve", "connect", "system_resolve"]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
MAX_ATTEMPTS = 8


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
    host: str, port: int, *, allow: Allowlist, own: Collection[str], resolve: Resolve, timeout_s: float
) -> tuple[socket.socket, str]:
    """Return a socket that is connected to a host which the rules allow, and its address.

    Raises Refusal: 403 when one of the host's addresses may not be connected to, 502 when none answers.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    addresses = await _addresses(host, port, resolve, timeout_s)
    for address in addresses:
        if problem := allow.address_problem(address, own=own):
            raise Refusal(
                HTTPStatus.FORBIDDEN, f"{host}: {problem}, not in the policy's {allow.section}.allow_addresses"
            )
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
    raise Refusal(HTTPStatus.BAD_GATEWAY, f"{host}:{port} can't be reached: {failure}")


async def _addresses(host: str, port: int, resolve: Resolve, timeout_s: float) -> list[str]:
    if literal := literal_address(host):
        return [literal]
    try:
        addresses = list(await asyncio.wait_for(resolve(host, port), timeout_s))
    except asyncio.TimeoutError:
        raise Refusal(HTTPStatus.BAD_GATEWAY, f"{host}: no address came within {timeout_s:.0f} s") from None
    except OSError as error:
        raise Refusal(HTTPStatus.BAD_GATEWAY, f"{host} has no address: {error.strerror or error}") from None
    if not addresses:
        raise Refusal(HTTPStatus.BAD_GATEWAY, f"{host} has no address")
    return addresses


async def _connected(address: str, port: int, timeout_s: float, allow: Allowlist) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(server, (address, port)), timeout_s)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer, own = server.getpeername()[0], server.getsockname()[0]
        if ip_address(peer) != ip_address(address):
            raise Refusal(HTTPStatus.FORBIDDEN, f"{address} turned out to be {peer}")
        # The kernel reaches an address of its own from that same address. Addresses come and go: this one is new.
        if own == peer and (problem := allow.address_problem(peer, own={peer})):
            raise Refusal(HTTPStatus.FORBIDDEN, problem)
    except BaseException:
        server.close()
        raise
    return server
