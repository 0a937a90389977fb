"""One thing at a time, fair between callers: whoever wants little does not wait for all that another one wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator


class Turns:
    """Gives one turn after the other: callers take turns, and each caller's own go in order of arrival."""

    def __init__(self) -> None:
        self._taken = False
        # OrderedDict, not dict: taking the first of a plain dict gets slower with each one that was taken before.
        self._lines: OrderedDict[int, OrderedDict[asyncio.Future[None], None]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """Wait for a turn of the user `uid`, which lasts as long as the block."""
        if self._taken:
            await self._come(uid)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _come(self, uid: int) -> None:
        """Return when the turn was passed on to this one."""
        mine = asyncio.get_running_loop().create_future()
        line = self._lines.setdefault(uid, OrderedDict())
        line[mine] = None
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():  # it came at the same moment
                self._pass_on()
            line.pop(mine, None)
            if not line and self._lines.get(uid) is line:
                del self._lines[uid]
            raise

    def _pass_on(self) -> None:
        """Let the next one begin: the first of the caller who has waited longest for a turn."""
        while self._lines:
            uid, line = next(iter(self._lines.items()))
            mine, _ = line.popitem(last=False)
            if line:
                self._lines.move_to_end(uid)
            else:
                del self._lines[uid]
            if not mine.done():  # whose task was cancelled in this turn of the event loop
                mine.set_result(None)
                return
        self._taken = False
