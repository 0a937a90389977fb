"""Takes the bodies of requests: each within its size and its time, and all that are held within a budget.

Of bodies that come at the same moment, one goes on by one piece in each turn of the event loop, and the others wait in
their sockets: what else there is to answer goes on between them. Callers take turns, so that nobody's body waits for
all that another one sends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from sandbox.errors import InvalidRequest
from sandbox.service.intake.budget import Budget, Part
from sandbox.service.intake.spool import Spool
from sandbox.service.intake.turns import Turns

BODY_TIMEOUT_S = 60.0


@dataclass(kw_only=True)
class Body:
    """The body of one request. It counts as its caller's `part` of the budget until the request ends."""

    spool: Spool
    part: Part

    def take(self) -> Spool:
        """Return the bytes, for whoever takes them to close, and keep none of them."""
        spool, self.spool = self.spool, Spool()
        return spool

    def drop(self) -> None:
        """Keep no bytes any more."""
        self.take().close()

    def keep_until(self, task: asyncio.Task[Any]) -> None:
        """Let it count until a task is done, also when its request ends before.

        The request gets another part for its answer.
        """
        kept, self.part = self.part, self.part.beside()
        task.add_done_callback(lambda _: kept.close())


class Intake:
    """Reads bodies of up to `largest_bytes()`, within the budget.

    Each body counts for what came of it, not for what it announces.
    """

    def __init__(
        self, *, largest_bytes: Callable[[], int], budget_bytes: int, timeout_s: float = BODY_TIMEOUT_S
    ) -> None:
        self._largest_bytes = largest_bytes
        self._budget = Budget(budget_bytes)
        self._timeout_s = timeout_s
        self._turns = Turns()

    @contextlib.asynccontextmanager
    async def body(self, request: web.Request, uid: int) -> AsyncIterator[Body]:
        """Give the body of a request of the user `uid`, and count it for the block.

        Raises `QueueFull` at once where it does not fit beside the others, `InvalidRequest` where it is too large, too
        slow or broken.
        """
        # The one place that refers to the bytes, so that they can go early.
        body = Body(spool=Spool(), part=self._budget.part(uid))
        try:
            if request.body_exists:
                try:
                    await asyncio.wait_for(self._read(request, body), self._timeout_s)
                except asyncio.TimeoutError:
                    raise InvalidRequest(
                        f"the request's body did not come within {self._timeout_s:g} s",
                        hint="send it again, as a whole",
                    ) from None
                except (web.RequestPayloadError, HttpProcessingError):
                    raise InvalidRequest("the request's body is broken", hint="send it again, as a whole") from None
            yield body
        finally:
            body.drop()  # what refers to an error that was raised here refers to the body, too, for a while
            body.part.close()

    async def _read(self, request: web.Request, body: Body) -> None:
        """Take a body as it comes."""
        part = body.part
        announced_bytes = request.content_length or 0
        self._check_size(announced_bytes)
        part.check(announced_bytes)
        part.on_given_up = body.drop
        with part.coming():
            async for piece in request.content.iter_any():
                self._check_size(part.size_bytes + len(piece))
                part.grow(part.size_bytes + len(piece))
                body.spool.add(piece)
                async with self._turns.turn(part.uid):
                    await asyncio.sleep(0)
            part.check_kept()  # its last piece may have made room, while it waited for its turn

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > (largest_bytes := self._largest_bytes()):
            raise InvalidRequest(
                f"the request's body is too large: this service takes {largest_bytes >> 20} MiB",
                hint=(
                    "send less, or have limits.payload_mib of a policy raised: bodies may have twice the largest of"
                    " them, and 8 MiB"
                ),
                http_status=413,
            )


BODY = web.RequestKey("body", Body)
