"""Answers: JSON documents, and errors in the one shape that clients know."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from aiohttp import web

from sandbox.document import error_document
from sandbox.errors import EngineUnavailable, InvalidRequest, NotFound, QueueFull, SandboxError

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

JSON = "application/json"
PIECE_BYTES = 256 << 10
# A client that does not take one piece in so long is gone.
WRITE_TIMEOUT_S = 30.0


def document(value: object, *, status: int = 200) -> web.Response:
    """Return a JSON answer."""
    return web.Response(status=status, body=json.dumps(value).encode(), content_type=JSON)


async def sent(
    request: web.Request, response: web.StreamResponse, pieces: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Send an answer piece by piece, as fast as the client takes it; one that is gone, or hardly reads, is cut off."""
    try:
        await response.prepare(request)
        async for piece in pieces:
            view = memoryview(piece)
            for start in range(0, len(view), PIECE_BYTES):
                await asyncio.wait_for(response.write(view[start : start + PIECE_BYTES]), WRITE_TIMEOUT_S)
        await asyncio.wait_for(response.write_eof(), WRITE_TIMEOUT_S)
    except (ConnectionError, asyncio.TimeoutError):
        if request.transport is not None:
            request.transport.abort()
    return response


async def large(request: web.Request, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
    """Send a JSON document that may be large, and that nobody is to keep in memory for a client that does not read."""

    async def whole() -> AsyncIterator[bytes]:
        yield body

    response = web.StreamResponse(headers={"Content-Type": JSON, **headers})
    response.content_length = len(body)
    return await sent(request, response, whole())


def error_answer(error: SandboxError) -> web.Response:
    """Return an error's answer, with the time to wait where trying again makes sense."""
    headers = {}
    if isinstance(error, (QueueFull, EngineUnavailable)):
        headers["Retry-After"] = str(error.facts.get("retry_after_s", 1))
    status = int(error.facts.pop("http_status", error.http_status))
    run_id = error.facts.pop("run_id", None)
    return web.Response(status=status, body=error_document(error, run_id=run_id), content_type=JSON, headers=headers)


def translated(answer: web.HTTPException, request: BaseRequest) -> SandboxError:
    """Return what aiohttp found wrong in our own words."""
    if isinstance(answer, web.HTTPMethodNotAllowed):
        return InvalidRequest(
            f"{request.path[:200]} has no {request.method[:20]}", hint=f"it has {', '.join(sorted(answer.allowed_methods))}",
            http_status=405,
        )  # fmt: skip
    if isinstance(answer, web.HTTPNotFound):
        return NotFound(f"there is nothing at {request.path[:200]!r}", hint="see docs/service.md")
    return InvalidRequest(f"the request can't be served: {answer.reason}", hint="see docs/service.md")
