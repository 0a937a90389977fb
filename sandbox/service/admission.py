"""Who runs next: a bounded number of runs, and a bounded queue that is fair between callers and between their nodes.

Callers with waiting runs take turns, one slot each; within a caller its nodes take turns; a node's runs go in order of
arrival. A caller that holds all the slots it may have sits out until one of them comes back. One event loop, no
threads, nothing polled: every slot that comes back is given on at once. Each operation costs the same however long
the queue is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from sandbox.errors import EngineUnavailable, QueueFull, SandboxError

MAX_RETRY_AFTER_S = 60
RECENT = 16  # completions that the estimate of the queue's pace rests on


@dataclass(frozen=True, kw_only=True)
class Quota:
    """One caller's part: how many of its runs may run at once (1 or more), and how many may wait (0 or more)."""

    running: int
    waiting: int


@dataclass(frozen=True, kw_only=True)
class AdmissionLimits:
    """How many runs may run and wait at once, in all and per caller, and how long one may wait.

    A `per_caller_waiting` well below `waiting` keeps room in the queue for the others.
    """

    running: int
    waiting: int
    per_caller_running: int
    per_caller_waiting: int
    wait_s: float

    @property
    def quota(self) -> Quota:
        """Return the part of a caller that has none of its own."""
        return Quota(running=self.per_caller_running, waiting=self.per_caller_waiting)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The right to run now, and what it cost: `waited_s` in the queue."""

    waited_s: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many runs hold a slot and how many wait; `callers` has the same by user id."""

    running: int
    waiting: int
    callers: dict[int, Counts] = field(default_factory=dict)


class _Pace:
    """How fast a queue moves, from the slots that came back while something waited in it."""

    def __init__(self) -> None:
        self._since = 0.0
        self._gap_s: float | None = None

    def began(self, now: float) -> None:
        """Note that something waits where nothing did: the time before says nothing about the pace."""
        self._since = now

    def moved(self, now: float) -> None:
        """Note that a slot came back."""
        gap_s = now - self._since
        self._gap_s = gap_s if self._gap_s is None else self._gap_s + (gap_s - self._gap_s) / RECENT
        self._since = now

    def retry_after_s(self, waiting: int, now: float) -> int:
        """Estimate in how many seconds those who wait now will have left the queue."""
        gap_s = max(self._gap_s or 0.0, now - self._since)  # a queue that stopped moving is slower than it was
        return min(max(math.ceil(waiting * gap_s), 1), MAX_RETRY_AFTER_S)


@dataclass(eq=False)
class _Waiter:
    """One run before its slot comes back. `turn` gets None with the slot, or why there will be none."""

    caller: _Caller
    node: str
    turn: asyncio.Future[SandboxError | None]
    granted: bool = False


@dataclass(eq=False)
class _Caller:
    """One caller's runs; forgotten when it has none. A node's line is ordered by arrival, the nodes by turn."""

    uid: int
    quota: Quota
    running: int = 0
    waiting: int = 0
    pace: _Pace = field(default_factory=_Pace)
    # OrderedDict, not dict: taking the first of a plain dict gets slower with each one that was taken before.
    nodes: OrderedDict[str, OrderedDict[_Waiter, None]] = field(default_factory=OrderedDict)

    def add(self, waiter: _Waiter) -> None:
        """Put a run at the end of its node's line."""
        self.nodes.setdefault(waiter.node, OrderedDict())[waiter] = None
        self.waiting += 1

    def discard(self, waiter: _Waiter) -> bool:
        """Take a run out of its line; tell whether it was in it."""
        line = self.nodes.get(waiter.node)
        if line is None or waiter not in line:
            return False
        del line[waiter]
        if not line:
            del self.nodes[waiter.node]
        self.waiting -= 1
        return True

    def first(self) -> _Waiter:
        """Return the run whose turn it is."""
        return next(iter(next(iter(self.nodes.values()))))

    def rotate(self, node: str) -> None:
        """Put a node that had its turn behind the others."""
        if node in self.nodes:
            self.nodes.move_to_end(node)


class Admission:
    """The slots and the queue before them. `clock` gives seconds; only differences count."""

    def __init__(self, limits: AdmissionLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._running = 0
        self._waiting = 0
        self._pace = _Pace()
        self._callers: dict[int, _Caller] = {}
        self._round: OrderedDict[int, _Caller] = OrderedDict()  # who could run if there were a slot, next one first
        self.draining = False  # read by health; `drain` sets it
        self._empty = asyncio.Event()
        self._empty.set()

    @contextlib.asynccontextmanager
    async def slot(
        self,
        caller: int,
        node: str,
        *,
        quota: Quota | None = None,
        on_wait: Callable[[], None] = lambda: None,
        wait_s: float | None = None,
    ) -> AsyncIterator[Slot]:
        """Wait for a slot and hold it for the block.

        `caller` is a user id, `quota` its own part where it isn't the usual one; `on_wait` is called where the slot
        does not come at once, `wait_s` the longest wait where it isn't the usual one. Raises `QueueFull`, with the fact
        `retry_after_s`, at once where no more may wait, or after `wait_s` in the queue; `EngineUnavailable` once
        draining has begun.
        """
        arrived = self._clock()
        waiter = self._join(caller, node, quota or self._limits.quota)
        try:
            if not waiter.granted:
                on_wait()
                if refusal := await self._turn(waiter, self._limits.wait_s if wait_s is None else wait_s):
                    raise refusal
            yield Slot(waited_s=self._clock() - arrived)
        finally:  # the block ended, or the wait did: refused, or cancelled, maybe with the slot already granted
            self._leave(waiter)

    def counts(self) -> Counts:
        """Return what runs and waits now."""
        callers = {uid: Counts(running=one.running, waiting=one.waiting) for uid, one in self._callers.items()}
        return Counts(running=self._running, waiting=self._waiting, callers=callers)

    def drain(self) -> None:
        """Give no slot any more and refuse those who wait; runs that hold a slot keep it."""
        self.draining = True
        waiting = [waiter for caller in self._callers.values() for line in caller.nodes.values() for waiter in line]
        for waiter in waiting:
            self._refuse(waiter, _stopping())

    async def wait_empty(self, timeout_s: float) -> bool:
        """Wait until nothing runs or waits; tell whether that came true in time."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    def _join(self, uid: int, node: str, quota: Quota) -> _Waiter:
        """Put a run into the queue, from where it may get its slot at once; raise where the queue is full."""
        if self.draining:
            raise _stopping()
        caller = self._callers.setdefault(uid, _Caller(uid, quota))
        caller.quota = quota
        self._settle(caller)  # a larger quota may let waiting runs go first
        self._grant()
        # Nobody waits who could run, so where this run could, it is the next.
        if self._running >= self._limits.running or caller.running >= quota.running:
            self._check_room(caller)
        self._callers[uid] = caller
        waiter = _Waiter(caller, node, asyncio.get_running_loop().create_future())
        caller.add(waiter)
        self._waiting += 1
        self._settle(caller)
        self._grant()
        if not waiter.granted:
            if caller.waiting == 1:
                caller.pace.began(self._clock())
            if self._waiting == 1:
                self._pace.began(self._clock())
        return waiter

    def _check_room(self, caller: _Caller) -> None:
        if caller.waiting >= caller.quota.waiting:
            raise self._full(
                f"too many of your runs at once: {caller.running} run and {caller.waiting} wait, as many as you may"
                " have",
                caller.pace,
                caller.waiting,
            )
        if self._waiting >= self._limits.waiting:
            raise self._full(
                f"too many runs at once: {self._running} run and {self._waiting} wait, as many as this service takes",
                self._pace,
                self._waiting,
            )

    def _full(self, message: str, pace: _Pace, waiting: int) -> QueueFull:
        retry_after_s = pace.retry_after_s(waiting, self._clock())
        return QueueFull(message, hint=f"try again in {retry_after_s} s", retry_after_s=retry_after_s)

    async def _turn(self, waiter: _Waiter, wait_s: float) -> SandboxError | None:
        timer = asyncio.get_running_loop().call_later(wait_s, self._expire, waiter, wait_s)
        try:
            return await waiter.turn
        finally:
            timer.cancel()

    def _expire(self, waiter: _Waiter, wait_s: float) -> None:
        message = f"the run waited {wait_s:g} s for its turn and was given up"
        self._refuse(waiter, self._full(message, waiter.caller.pace, waiter.caller.waiting))

    def _refuse(self, waiter: _Waiter, error: SandboxError) -> None:
        if not waiter.turn.done():
            waiter.turn.set_result(error)
            self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        """Give the slot back and on to the next, or leave the queue; nothing where both are done."""
        caller = waiter.caller
        if waiter.granted:
            waiter.granted = False
            caller.running -= 1
            self._running -= 1
            if caller.waiting:
                caller.pace.moved(self._clock())
            if self._waiting:
                self._pace.moved(self._clock())
        elif caller.discard(waiter):
            self._waiting -= 1
        else:
            return
        self._settle(caller)
        self._grant()

    def _grant(self) -> None:
        """Give free slots to those whose turn it is."""
        while self._round and self._running < self._limits.running:
            caller = next(iter(self._round.values()))
            waiter = caller.first()
            caller.discard(waiter)
            self._waiting -= 1
            if not waiter.turn.cancelled():  # else its task was cancelled just now: the turn is the next one's
                waiter.granted = True
                waiter.turn.set_result(None)
                caller.running += 1
                self._running += 1
                caller.rotate(waiter.node)
                self._round.move_to_end(caller.uid)
            self._settle(caller)

    def _settle(self, caller: _Caller) -> None:
        """Let the round, the list of callers and the event agree with what changed for one caller."""
        if caller.waiting and caller.running < caller.quota.running:
            self._round.setdefault(caller.uid, caller)
        else:
            self._round.pop(caller.uid, None)
        if not caller.waiting and not caller.running:
            self._callers.pop(caller.uid, None)
        if self._running or self._waiting:
            self._empty.clear()
        else:
            self._empty.set()


def _stopping() -> EngineUnavailable:
    return EngineUnavailable("the service is stopping", hint="try again when it is back")
