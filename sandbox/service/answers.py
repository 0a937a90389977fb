"""Answers: JSON documents, and errors in the one shape that clients know."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sandbox import __version__
from sandbox.document import error_document
from sandbox.errors import EngineUnavailable, InvalidRequest, NotFound, QueueFull, SandboxError
from sandbox.service.intake.reading import BODY
from sandbox.wire.given import Given, encoded

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

JSON = "application/json"
SERVER = f"podman-sandbox-runner/{__version__}"
REQUEST_ID = "X-Request-Id"
NAMED = re.compile(r"[!-~]{1,128}")
PIECE_BYTES = 256 << 10
# A client may keep us waiting for so long; what it takes at this rate costs it nothing.
WRITE_TIMEOUT_S = 30.0
LEAST_RATE = 1 << 20  # bytes a second


async def signed(request: BaseRequest, response: web.StreamResponse) -> None:
    """Have an answer say who gives it, and to which request: by the id that its client chose, if it did."""
    sign(request, response)


def sign(request: BaseRequest, response: web.StreamResponse) -> None:
    """Say it in the headers of an answer that has not begun."""
    response.headers["Server"] = SERVER
    if NAMED.fullmatch(named := request.headers.get(REQUEST_ID, "")):
        response.headers[REQUEST_ID] = named


def document(value: Given, *, status: int = 200) -> web.Response:
    """Return a JSON answer."""
    return web.Response(status=status, body=encoded(value), content_type=JSON)


async def counted(request: web.Request, value: Given) -> web.StreamResponse:
    """Send a JSON answer that may be large: made in a thread, and its caller's part of the budget until it is taken.

    Raises `QueueFull`.
    """
    body = await asyncio.to_thread(encoded, value)
    request[BODY].part.grow(len(body))
    return await large(request, [body], {})


class Patience:
    """How much longer one client may keep us waiting, before its connection is cut."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._left_s = WRITE_TIMEOUT_S

    async def wait(self, write: Coroutine[Any, Any, None], size_bytes: int) -> None:
        """Wait until the client takes so many bytes. Raises `ConnectionError` where it is gone, or was cut off."""
        self._left_s = min(self._left_s + size_bytes / LEAST_RATE, WRITE_TIMEOUT_S)
        began = time.monotonic()
        # Not `wait_for`, which loses a cancellation that comes when the bytes have just been taken.
        timer = asyncio.get_running_loop().call_later(self._left_s, self._transport.abort)
        try:
            await write
        finally:
            timer.cancel()
        self._left_s -= time.monotonic() - began


async def sent(request: web.Request, response: web.StreamResponse, pieces: AsyncIterator[bytes]) -> web.StreamResponse:
    """Send an answer piece by piece, as fast as the client takes it; one that is gone, or hardly reads, is cut off."""
    if request.transport is None:
        return response
    patience = Patience(request.transport)
    try:
        await response.prepare(request)
        async for piece in pieces:
            view = memoryview(piece)
            for start in range(0, len(view), PIECE_BYTES):
                part = view[start : start + PIECE_BYTES]
                await patience.wait(response.write(part), len(part))
        await patience.wait(response.write_eof(), 0)
    except ConnectionError:  # nobody is left to tell
        pass
    return response


async def large(
    request: web.Request, pieces: list[bytes], headers: dict[str, str], *, content_type: str = JSON, status: int = 200
) -> web.StreamResponse:
    """Send an answer that may be large, and of which nothing is kept that the client has taken."""

    async def whole() -> AsyncIterator[bytes]:
        pieces.reverse()
        while pieces:
            yield pieces.pop()

    response = web.StreamResponse(status=status, headers={"Content-Type": content_type, **headers})
    response.content_length = sum(map(len, pieces))
    return await sent(request, response, whole())


def gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Give the same bytes in pieces that are worth a write each; a large one is not copied."""
    small: list[bytes] = []
    size_bytes = 0
    for piece in pieces:
        if size_bytes + len(piece) > PIECE_BYTES and small:
            yield b"".join(small)
            small, size_bytes = [], 0
        small.append(piece)
        size_bytes += len(piece)
    yield b"".join(small)


def error_answer(error: SandboxError) -> web.Response:
    """Return an error's answer, with the time to wait where trying again makes sense."""
    headers = {}
    if isinstance(error, (QueueFull, EngineUnavailable)):
        headers["Retry-After"] = str(error.facts.get("retry_after_s", 1))
    status = int(error.facts.pop("http_status", error.http_status))
    if methods := error.facts.pop("allow", ""):
        headers["Allow"] = str(methods)
    return web.Response(status=status, body=error_document(error), content_type=JSON, headers=headers)


def translated(answer: web.HTTPException, request: BaseRequest) -> SandboxError:
    """Return what aiohttp found wrong in our own words."""
    if isinstance(answer, web.HTTPMethodNotAllowed):
        methods = ", ".join(sorted(answer.allowed_methods))
        return InvalidRequest(
            f"{request.path[:200]} has no {request.method[:20]}",
            hint=f"it has {methods}",
            http_status=405,
            allow=methods,
        )
    if isinstance(answer, web.HTTPNotFound):
        return NotFound(f"there is nothing at {request.path[:200]!r}", hint=f"there are {', '.join(paths_of(request))}")
    return InvalidRequest(f"the request can't be served: {answer.reason}", hint="correct its address, headers or body")


def paths_of(request: BaseRequest) -> list[str]:
    """Return what there is in the place of an address that leads nowhere."""
    application = getattr(request, "app", None)
    return (
        sorted({resource.canonical for resource in application.router.resources()})
        if application is not None
        else ["/v1/health"]
    )
