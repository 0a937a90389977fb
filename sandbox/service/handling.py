"""The requests that are being handled: when the service stops, they end, too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler


class Handling:
    """Knows the task of each request of an application, from its head to the end of its answer."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Know the present task during the block."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def settle(self, *, grace_s: float, end_s: float) -> int:
        """Wait until all have ended, at most `grace_s`; then end them, which may take `end_s`. Return how many were ended."""
        tasks = set(self._tasks)
        if not tasks:
            return 0
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=end_s)
        return len(late)


HANDLING = web.AppKey("handling", Handling)


@web.middleware
async def handled(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Have the application know the task of each request."""
    with request.app[HANDLING].noted():
        return await handler(request)
