"""Takes the bodies of requests: each within its size and its time, and all that are held within a budget."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from sandbox.errors import InvalidRequest, QueueFull

BODY_TIMEOUT_S = 60.0
RETRY_AFTER_S = 1


@dataclass(kw_only=True)
class Body:
    """The body of one request. It counts against the budget until `held` is closed."""

    data: bytes
    held: contextlib.ExitStack

    def take(self) -> bytes:
        """Return the bytes, and keep none: what a run needs of them is a copy."""
        data, self.data = self.data, b""
        return data

    def keep_until(self, task: asyncio.Task[Any]) -> None:
        """Let it count until a task is done, also when its request ends before."""
        later = self.held.pop_all()
        task.add_done_callback(lambda _: later.close())


class Intake:
    """Reads bodies of up to `largest_bytes()`, which hold `budget_bytes` together; a single one is always taken."""

    def __init__(self, *, largest_bytes: Callable[[], int], budget_bytes: int, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._largest_bytes = largest_bytes
        self._budget_bytes = budget_bytes
        self._timeout_s = timeout_s
        self._held_bytes = 0

    @contextlib.asynccontextmanager
    async def body(self, request: web.Request) -> AsyncIterator[Body]:
        """Give the body of a request, and count it for the block.

        Raises `QueueFull` at once where it does not fit beside the others, `InvalidRequest` where it is too large, too
        slow or broken.
        """
        with contextlib.ExitStack() as held:
            body = Body(data=b"", held=held)  # the one place that refers to the bytes, so that they can go early
            if request.body_exists:
                try:
                    body.data = await asyncio.wait_for(self._read(request, held), self._timeout_s)
                except asyncio.TimeoutError:
                    raise InvalidRequest(
                        f"the request's body did not come within {self._timeout_s:g} s", hint="send it again, as a whole"
                    ) from None
                except (web.RequestPayloadError, HttpProcessingError):
                    raise InvalidRequest("the request's body is broken", hint="send it again, as a whole") from None
            yield body

    async def _read(self, request: web.Request, held: contextlib.ExitStack) -> bytes:
        share = _Share()
        held.callback(self._count, share, 0)
        self._grow(share, request.content_length or 0)
        pieces: list[bytes] = []
        received = 0
        async for piece in request.content.iter_any():
            received += len(piece)
            self._grow(share, max(received, share.size_bytes))  # in chunks, nobody says ahead how much will come
            pieces.append(piece)
        return b"".join(pieces)

    def _grow(self, share: _Share, size_bytes: int) -> None:
        """Let a body count for so much. Raises `InvalidRequest`, `QueueFull`."""
        if size_bytes > (largest_bytes := self._largest_bytes()):
            raise InvalidRequest(
                f"the request's body is too large: this service takes {largest_bytes >> 20} MiB",
                hint="send less, or have limits.payload_mib of a policy raised: bodies may have twice the largest of them, and 8 MiB",
                http_status=413,
            )
        others_bytes = self._held_bytes - share.size_bytes
        if others_bytes and others_bytes + size_bytes > self._budget_bytes:
            raise QueueFull(
                f"the requests that wait and run hold {others_bytes >> 20} MiB already, and this one does not fit beside them",
                hint=f"try again in {RETRY_AFTER_S} s", retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        self._count(share, size_bytes)

    def _count(self, share: _Share, size_bytes: int) -> None:
        self._held_bytes += size_bytes - share.size_bytes
        share.size_bytes = size_bytes


@dataclass
class _Share:
    """What one body counts for."""

    size_bytes: int = 0


BODY = web.RequestKey("body", Body)
