"""The requests that are being handled: when the service stops, they end, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_request import BaseRequest

    HandlesRequests = Callable[[BaseRequest], Awaitable[web.StreamResponse]]


class Handling:
    """Knows the task of each request from its head to the end of its answer."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def around(self, handler: HandlesRequests) -> HandlesRequests:
        """Return what handles requests likewise, and notes each."""

        async def noted(request: BaseRequest) -> web.StreamResponse:
            task = asyncio.current_task()
            if task is None:
                raise RuntimeError
            self._tasks.add(task)
            try:
                return await handler(request)
            finally:
                self._tasks.discard(task)

        return noted

    async def settle(self, *, grace_s: float, end_s: float) -> int:
        """Wait until all have ended, at most `grace_s`; then end them, which may take `end_s`.

        Return how many were ended.
        """
        tasks = set(self._tasks)
        if not tasks:
            return 0
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=end_s)
        return len(late)
