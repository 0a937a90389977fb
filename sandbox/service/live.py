"""What is queued or going on: runs, and builds and checks, to end them all.

Of a run it has who asked, since when, and the way to end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast

from sandbox.environment.requirements import without_hashes
from sandbox.errors import MAX_FACT_CHARS, EngineUnavailable, NotFound, SandboxError
from sandbox.wire.answers import RecordedRun

LOG = logging.getLogger("sandbox.service")


def shortened(requirements: Iterable[str]) -> tuple[str, ...]:
    """Return requirements for a list of runs: as many as fit there, and how many more there are."""
    left = list(map(without_hashes, requirements))
    room = list(accumulate(map(len, left)))
    fit = bisect_right(room, MAX_FACT_CHARS)
    return (*left[:fit], f"and {len(left) - fit} more") if fit < len(left) else tuple(left)


@dataclass(eq=False)
class LiveRun:
    """One run that has not ended; `received` is in seconds since 1970.

    The result of one that is `detached` is fetched later. `accepted` is set once it waits for its turn or is being
    prepared, `over` when everything that is kept of it is kept.
    """

    run_id: str
    caller_uid: int
    caller: str
    node_id: str
    policy: str
    requirements: tuple[str, ...]  # `shortened`
    received: float = field(default_factory=time.time)
    detached: bool = False
    step: str = "queued"
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    cancel: asyncio.Event = field(default_factory=asyncio.Event)

    def public(self) -> RecordedRun:
        """Return what a client is told of it."""
        return RecordedRun(
            run_id=self.run_id,
            caller=self.caller_uid,
            caller_name=self.caller,
            node_id=self.node_id,
            policy=self.policy,
            requirements=", ".join(self.requirements),
            received=self.received,
            state=self.step,
            outcome=None,
        )


def no_run(run_id: str) -> NotFound:
    """Return what a caller is told who asks for a run that is not there, or is somebody else's."""
    return NotFound(f"there is no run {run_id[:64]!r}", hint="`sandbox runs` and GET /v1/runs list them")


class LiveRuns:
    """Every run that has not ended, and every build and check."""

    def __init__(self) -> None:
        self._runs: dict[str, LiveRun] = {}
        self._errands: set[asyncio.Task[Any]] = set()
        self._kept: set[asyncio.Task[Any]] = set()

    def __iter__(self) -> Iterator[LiveRun]:
        """Yield them, oldest first."""
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._runs)

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Hold the task of a run that goes on without its client: the event loop itself holds none."""
        self._kept.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[Any]) -> None:
        """Forget a task; an error of the run is in the history, and maybe nobody else asks for it."""
        self._kept.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, SandboxError):
            LOG.error("a run that was to go on without its client failed", exc_info=error)

    async def wait_kept(self, timeout_s: float) -> None:
        """Wait until the tasks that are held have ended and written what became of them, at most so long."""
        if self._kept:
            await asyncio.wait(self._kept, timeout=timeout_s)

    def add(self, run: LiveRun) -> None:
        """Note one that has been asked for."""
        self._runs[run.run_id] = run

    def ended(self, run: LiveRun) -> None:
        """Forget one."""
        self._runs.pop(run.run_id, None)
        run.over.set()

    def find(self, run_id: str, may_see: Callable[[LiveRun], bool]) -> LiveRun | None:
        """Return a run that the caller may see, or None."""
        run = self._runs.get(run_id)
        return run if run is not None and may_see(run) else None

    def cancel(self, run_id: str, may_see: Callable[[LiveRun], bool]) -> None:
        """End one at once. Raises `NotFound`, also for somebody else's."""
        run = self.find(run_id, may_see)
        if run is None:
            raise NotFound(
                f"no run {run_id[:64]!r} is going on", hint="`sandbox ps` and GET /v1/runs list those that are"
            )
        run.cancel.set()

    def cancel_all(self) -> int:
        """End all runs; return how many."""
        for run in self:
            run.cancel.set()
        return len(self)

    @contextlib.asynccontextmanager
    async def errand(self) -> AsyncIterator[None]:
        """Have the block, a build or a check with its wait for a turn, ended by `stop_errands`.

        Raises `EngineUnavailable` then.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._errands.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._errands:
                raise
            raise EngineUnavailable("a maintainer ended everything that went on", hint="ask for it again") from None
        finally:
            self._errands.discard(task)

    def stop_errands(self) -> int:
        """End all builds and checks; return how many."""
        ended, self._errands = self._errands, set()
        for task in ended:
            task.cancel()
        return len(ended)
