"""Sandboxes started ahead of need: verified, harness ready, libraries preloaded, never yet used.

A shelf holds the ready sandboxes of one kind (image, policy, preloaded modules). How many, and how many are started at
once, follows from how fast runs ask for that kind and from how long a start takes; together they stay inside a memory
budget. Runs go first: nothing is started ahead of need while a run waits for a sandbox of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from sandbox.container.standby import ReadySandbox, Setting
from sandbox.errors import EngineUnavailable, SandboxError
from sandbox.wire.answers import PoolCounts

# Podman's own end of a sandbox that waits, should we be gone: longer than any stays on its shelf.
SPARE_S = 60.0
# The rate of a kind is that of its last runs: a flow that begins is seen after a few messages, one that ended within
# seconds.
RATE_WINDOW_S = 10.0
RATE_RUNS = 16
FIRST_GUESS_START_S = 0.5
FIRST_GUESS_MIB = 24.0
FAILED_PAUSE_S = 5.0
# Most runs are over in a few milliseconds: starting and removing sandboxes, which take hundreds, wait that long.
GRACE_S = 0.03


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """How many sandboxes may stand ready, and for how long.

    There are at most `per_kind` of a kind, and at most `most`, with `memory_mib` of memory, of all kinds. They are
    retired when their kind is unused for `idle_s`. At most `starters` of them are started at once.
    """

    memory_mib: float = 512.0
    most: int = 1_000
    per_kind: int = 4
    idle_s: float = 300.0
    starters: int = 1


@dataclass
class Shelf:
    """The ready sandboxes of one kind, oldest first, and what is known of the kind's use."""

    key: str
    setting: Setting
    waiting: deque[ReadySandbox] = field(default_factory=deque)
    starting: int = 0
    asked: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    start_s: float = FIRST_GUESS_START_S
    memory_mib: float = FIRST_GUESS_MIB
    failed_at: float = -math.inf

    def wanted(self, now: float, limits: PoolLimits) -> int:
        """Return how many should be ready: one for a kind in use, and twice what is asked for while one starts."""
        if not self.asked or now - self.asked[-1] > limits.idle_s or now - self.failed_at < FAILED_PAUSE_S:
            return 0
        return min(limits.per_kind, 1 + int(2 * self.meanwhile(now)))

    def meanwhile(self, now: float) -> float:
        """Return how many runs ask for the kind, at its present rate, while one sandbox of it starts."""
        recent = [moment for moment in list(self.asked)[-RATE_RUNS:] if now - moment <= RATE_WINDOW_S]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) * self.start_s / max(now - recent[0], self.start_s)


Clock = Callable[[], float]
Make = Callable[[Setting], ReadySandbox]


class SandboxPool:
    """Gives each run a ready sandbox, or else one of its own, and disposes of it behind the run's back."""

    def __init__(self, make: Make, limits: PoolLimits, *, clock: Clock = time.monotonic) -> None:
        """`make` returns a sandbox of a setting that has not been started."""
        self._make = make
        self._limits = limits
        self._clock = clock
        self._shelves: OrderedDict[str, Shelf] = OrderedDict()
        self._cold = 0
        self._last_taken = -math.inf
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._closing = False
        self._count = {"started": 0, "taken": 0, "cold": 0, "retired": 0, "failed": 0}

    async def __aenter__(self) -> SandboxPool:
        """Begin to start sandboxes ahead of need."""
        self._keepers = [asyncio.create_task(self._keep()) for _ in range(self._limits.starters)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Dispose of every sandbox that waits, and wait for those being disposed of."""
        self._closing = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for shelf in self._shelves.values():
            while shelf.waiting:
                self._discard(shelf.waiting.popleft())
        self._shelves.clear()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- for runs

    @contextlib.asynccontextmanager
    async def source(self, setting: Setting, run_id: str) -> AsyncIterator[ReadySandbox]:
        """Give one run its sandbox, and destroy it afterwards without keeping the run waiting. See `standby.Source`."""
        shelf = self._shelf(setting)
        shelf.asked.append(self._clock())
        ready = self._ready_one(shelf)
        if ready is None:
            ready = await self._cold_one(shelf, run_id)
        self._count["taken"] += 1
        self._last_taken = self._clock()
        self._changed.set()
        try:
            yield ready
        finally:
            self._discard(ready)

    def warm(self, setting: Setting) -> None:
        """Have a sandbox of this kind ready soon, as if a run had asked for one."""
        self._shelf(setting).asked.append(self._clock())
        self._changed.set()

    def start_s(self, setting: Setting) -> float:
        """Return how long a sandbox of this kind takes to start, in seconds, by those that were started last."""
        shelf = self._shelves.get(setting.kind)
        return shelf.start_s if shelf is not None else FIRST_GUESS_START_S

    async def drop(self, unwanted: Callable[[Setting], bool]) -> None:
        """Retire every ready sandbox whose setting is `unwanted`, and wait until they are gone."""
        for key, shelf in list(self._shelves.items()):
            if unwanted(shelf.setting):
                del self._shelves[key]
                self._retire(shelf, len(shelf.waiting))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def counts(self) -> PoolCounts:
        """Return what there is now."""
        shelves = self._shelves.values()
        return PoolCounts(
            ready=sum(len(shelf.waiting) for shelf in shelves),
            starting=sum(shelf.starting for shelf in shelves),
            kinds=len(shelves),
            memory_mib=round(self._memory_mib(), 1),
            **self._count,
        )

    def levels(self) -> list[tuple[str, int, int]]:
        """Return, for every kind, the name of its image, how many are ready and how many are being started."""
        shelves = self._shelves.values()
        return [(shelf.setting.admitted.name, len(shelf.waiting), shelf.starting) for shelf in shelves]

    # ---- shelves

    def _shelf(self, setting: Setting) -> Shelf:
        key = setting.kind
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = Shelf(key, setting)
        self._shelves.move_to_end(key)  # most recently used last
        return shelf

    def _ready_one(self, shelf: Shelf) -> ReadySandbox | None:
        while shelf.waiting:
            ready = shelf.waiting.popleft()
            if ready.fit():
                return ready
            self._discard(ready)
        return None

    async def _cold_one(self, shelf: Shelf, run_id: str) -> ReadySandbox:
        self._cold += 1
        self._count["cold"] += 1
        # The program imports what it needs by itself, while it runs.
        setting = replace(shelf.setting, preload=())
        try:
            try:
                return await self._start(shelf, setting, run_id)
            except EngineUnavailable:
                # Podman's service may have died over it: nothing is left of that try, and the next has a new service.
                return await self._start(shelf, setting, run_id)
        finally:
            self._cold -= 1
            self._changed.set()

    async def _start(self, shelf: Shelf, setting: Setting, sandbox_id: str, *, ahead: bool = False) -> ReadySandbox:
        began = self._clock()
        ready = self._make(setting)
        await ready.start(sandbox_id, idle_s=self._limits.idle_s + SPARE_S, ahead=ahead)
        self._count["started"] += 1
        shelf.start_s += 0.3 * (self._clock() - began - shelf.start_s)
        return ready

    def _discard(self, ready: ReadySandbox) -> None:
        """Dispose of a sandbox in the background."""
        task = asyncio.create_task(self._disposed(ready))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _disposed(self, ready: ReadySandbox) -> None:
        ready.sandbox.kill()
        if not self._closing:
            await asyncio.sleep(GRACE_S)
        # A dead engine can't remove anything; what is left is swept later. The sandbox's processes are gone.
        with contextlib.suppress(SandboxError):
            await ready.dispose()

    # ---- ahead of need

    async def _keep(self) -> None:
        """Start what is missing, retire what is idle; sleep until something changes."""
        # Not for ever: wait_for() loses a cancellation that comes together with what it waits for, before Python 3.12.
        while not self._closing:
            self._retire_idle()
            shelf = self._next()
            if shelf is not None:
                await self._stock(shelf)
                continue
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._pause_s())

    async def _stock(self, shelf: Shelf) -> None:
        shelf.starting += 1
        try:
            if self._clock() - self._last_taken < GRACE_S:
                await asyncio.sleep(GRACE_S)
            ready = await self._start(shelf, shelf.setting, uuid.uuid4().hex, ahead=True)
        except SandboxError:
            # Whoever runs next is told why; until then nothing is tried again and again.
            self._count["failed"] += 1
            shelf.failed_at = self._clock()
        else:
            if self._shelves.get(shelf.key) is shelf:
                shelf.waiting.append(ready)
                shelf.memory_mib = ready.memory_mib() or shelf.memory_mib
                # What can't be imported is not tried again.
                shelf.setting = replace(shelf.setting, preload=ready.preloaded)
                self._fits(shelf, more_mib=0.0)  # it may be larger than was guessed
            else:  # dropped meanwhile
                self._discard(ready)
        finally:
            shelf.starting -= 1

    def _next(self) -> Shelf | None:
        """Return the shelf that most lacks a sandbox, or None. While a run starts its own, nothing is started ahead."""
        now = self._clock()
        if self._cold or self._closing or self._enough_starting(now):
            return None
        short = [
            (shelf.wanted(now, self._limits) - len(shelf.waiting) - shelf.starting, number, shelf)
            for number, shelf in enumerate(self._shelves.values())
        ]
        missing, _, shelf = max(short, key=lambda row: row[:2], default=(0, 0, None))
        if missing <= 0 or shelf is None:
            return None
        return shelf if self._fits(shelf, more_mib=shelf.memory_mib) else None

    def _enough_starting(self, now: float) -> bool:
        """Tell whether as many are being started as the rate of all runs asks for: each start takes their time."""
        starting = sum(shelf.starting for shelf in self._shelves.values())
        return starting >= max(1, math.ceil(sum(shelf.meanwhile(now) for shelf in self._shelves.values())))

    def _fits(self, shelf: Shelf, *, more_mib: float) -> bool:
        """Tell whether so much more fits the budget, after retiring what waits of kinds that were used longer ago."""
        for other in list(self._shelves.values()):
            if self._has_room(more_mib) or other is shelf:
                break
            self._retire(other, len(other.waiting))
        return self._has_room(more_mib)

    def _has_room(self, more_mib: float) -> bool:
        count = sum(len(shelf.waiting) + shelf.starting for shelf in self._shelves.values()) + bool(more_mib)
        return count <= self._limits.most and self._memory_mib() + more_mib <= self._limits.memory_mib

    def _memory_mib(self) -> float:
        return sum((len(shelf.waiting) + shelf.starting) * shelf.memory_mib for shelf in self._shelves.values())

    def _retire_idle(self) -> None:
        now = self._clock()
        for key, shelf in list(self._shelves.items()):
            if not shelf.asked or now - shelf.asked[-1] > self._limits.idle_s:
                self._retire(shelf, len(shelf.waiting))
                if not shelf.starting:
                    del self._shelves[key]
            else:
                # Podman ends a sandbox that waits much longer.
                self._retire(shelf, sum(now - ready.asked > self._limits.idle_s for ready in shelf.waiting))

    def _retire(self, shelf: Shelf, count: int) -> None:
        for _ in range(count):
            self._count["retired"] += 1
            self._discard(shelf.waiting.popleft())

    def _pause_s(self) -> float:
        """Return how long nothing will change by itself."""
        now = self._clock()
        ends = [shelf.asked[-1] + self._limits.idle_s for shelf in self._shelves.values() if shelf.asked]
        ends += [
            shelf.failed_at + FAILED_PAUSE_S
            for shelf in self._shelves.values()
            if shelf.failed_at > now - FAILED_PAUSE_S
        ]
        return max(0.05, min(ends, default=now + 60.0) - now + 0.01)
