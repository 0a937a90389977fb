"""Where runs get cells from: warm containers, one or a few for each caller and node, image and policy.

A warm container carries out one run at a time, so that its cgroup's limits are that run's, and has the next cell ready
meanwhile; it is free again when every process of the run is gone. More of them are started while runs wait; idle ones
retire; one that broke is replaced, and who waits for it waits for the next. Whoever can't have a cell gets a container
of its own, which holds more, and the receipt says why. Where the policy says "auto", so does a node whose messages come
no faster than containers are made.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace

from sandbox.cell.cell import LIFE_S, Cell, NoCells, WarmContainer
from sandbox.cell.group import FIRST_GUESS_MIB, CellLimits, ReadyCell, WarmGroup, WarmMember
from sandbox.cell.pace import Paces
from sandbox.container.isolation_row import SLOW_ENOUGH, STARTS, in_cell, in_container
from sandbox.container.standby import AcquiredSandbox, Setting, Source
from sandbox.errors import EngineUnavailable, SandboxError
from sandbox.wire.answers import CellCounts

CHECK_S = 5.0
ATTEMPTS = 3
# What keeps a host from making cells may be a setting, or a count that is used up for a while.
AGAIN_S = 60.0


class CellPool:
    """Gives runs their cells, and every other run what `containers` gives it."""

    def __init__(
        self,
        make: Callable[[Setting], WarmContainer],
        containers: Source,
        limits: CellLimits,
        *,
        start_s: Callable[[Setting], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take `make`, which returns an unstarted maker for a setting, and `start_s`, which starting one takes."""
        self._make = make
        self._containers = containers
        self._limits = limits
        self._start_s = start_s
        self._clock = clock
        self._paces = Paces()
        self._groups: OrderedDict[tuple[str, str], WarmGroup] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False
        self._count = {"cells": 0, "started": 0, "retired": 0, "broken": 0, "refused": 0}

    async def __aenter__(self) -> CellPool:
        """Begin to retire what is idle."""
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Remove every warm container."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for group in self._groups.values():
            group.fail(EngineUnavailable("the service is stopping", hint="try again when it is back"))
        await self.drop(lambda _: True)
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- for runs

    def source(self, setting: Setting, run_id: str) -> contextlib.AbstractAsyncContextManager[AcquiredSandbox]:
        """Give one run its sandbox: a cell where its policy says so and this host can. See `standby.Source`."""
        per_run = setting.policy.isolation.per_run
        if per_run == "container" or not setting.owner:
            return self._containers(setting, run_id)
        return self._by_pace(setting, run_id) if per_run == "auto" else self._cell(setting, run_id)

    @contextlib.asynccontextmanager
    async def _by_pace(self, setting: Setting, run_id: str) -> AsyncIterator[AcquiredSandbox]:
        """Give a run a cell while its node is too fast for containers, and no run waits for the first warm one."""
        asked, start_s = self._clock(), self._start_s(setting)
        pace = self._paces.of((setting.owner, setting.kind))
        fast = pace.begins(asked, start_s)
        at_hand = fast and self._at_hand(self._group(setting))
        try:
            async with (
                self._cell(setting, run_id)
                if at_hand
                else self._container(setting, run_id, STARTS if fast else SLOW_ENOUGH)
            ) as ready:
                yield ready
        finally:
            pace.ended(asked, self._clock(), start_s)

    @contextlib.asynccontextmanager
    async def _cell(self, setting: Setting, run_id: str) -> AsyncIterator[AcquiredSandbox]:
        group = self._group(setting)
        try:
            taken = await self._take(group) if self._clock() >= group.not_before else None
        except NoCells as refusal:
            taken = None
            group.why_not, group.not_before = refusal.message, self._clock() + AGAIN_S
        if taken is None:
            self._count["refused"] += 1
            async with self._container(setting, run_id, group.why_not) as ready:
                yield ready
            return
        warm, cell = taken
        cell.evidence = in_cell(setting.policy.isolation.per_run, cell.evidence)
        try:
            yield ReadyCell(sandbox=cell, asked=cell.marks["begin"])
        finally:
            self._give_back(group, warm, cell)

    @contextlib.asynccontextmanager
    async def _container(self, setting: Setting, run_id: str, why: str) -> AsyncIterator[AcquiredSandbox]:
        async with self._containers(setting, run_id) as ready:
            ready.sandbox.evidence += (in_container(setting.policy.isolation.per_run, why),)
            yield ready

    async def drop(self, unwanted: Callable[[Setting], bool]) -> None:
        """Retire warm containers with an `unwanted` setting, each when its run has ended; wait for the idle ones."""
        going = []
        for key, group in list(self._groups.items()):
            if unwanted(group.setting):
                del self._groups[key]
                while group.idle:
                    going.append(self._retire(group.idle.pop()))
        await asyncio.gather(*going, return_exceptions=True)

    def makers(self) -> list[WarmContainer]:
        """Return the makers of all warm containers."""
        return [warm.maker for group in self._groups.values() for warm in group.all]

    def counts(self) -> CellCounts:
        """Return what there is now."""
        return CellCounts(containers=len(self.makers()), memory_mib=round(self._memory_mib(), 1), **self._count)

    # ---- taking and giving back

    def _group(self, setting: Setting) -> WarmGroup:
        key = (setting.owner, setting.kind)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = WarmGroup(key, setting)
        self._groups.move_to_end(key)  # most recently used last
        return group

    async def _take(self, group: WarmGroup) -> tuple[WarmMember, Cell]:
        """Return a free container and the cell that it has ready. Raises a `SandboxError`."""
        for attempt in range(ATTEMPTS):
            warm = group.idle.pop() if group.idle else await self._free_one(group, again=attempt > 0)
            group.busy.add(warm)
            try:
                cell = await self._next(warm)
            except asyncio.CancelledError:
                self._free(group, warm)
                raise
            except Exception as error:
                self._broken(group, warm)
                if not isinstance(error, SandboxError) or isinstance(error, NoCells) or attempt == ATTEMPTS - 1:
                    raise
                continue
            if cell.alive() and warm.maker.fit():
                self._count["cells"] += 1
                warm.next = asyncio.create_task(warm.maker.cell())
                return warm, cell
            self._broken(group, warm)
        raise EngineUnavailable("the warm containers of this node die as they start", hint="run `sandbox doctor`")

    async def _next(self, warm: WarmMember) -> Cell:
        """Return the cell that waits; another one where only that has died."""
        cell = await asyncio.shield(warm.next)
        if not cell.alive() and warm.maker.fit():
            warm.next = asyncio.create_task(warm.maker.cell())
            cell = await asyncio.shield(warm.next)
        return cell

    async def _free_one(self, group: WarmGroup, *, again: bool) -> WarmMember:
        """Wait for a container of the group to be free, and start one more while there is room.

        Raises a `SandboxError`.

        Who has to wait `again`, because a container died, comes first.
        """
        turn: asyncio.Future[WarmMember] = asyncio.get_running_loop().create_future()
        (group.waiting.appendleft if again else group.waiting.append)(turn)
        self._grow(group)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._free(group, turn.result())
            raise

    def _give_back(self, group: WarmGroup, warm: WarmMember, cell: Cell) -> None:
        """End a cell; its container is free again when it is gone, unless its cgroup has been at a limit."""
        cell.kill()
        warm.used = self._clock()
        if (
            (events := cell.events) and (events.oom_kills or events.fork_failures)
        ) or warm.used - warm.born > LIFE_S / 2:
            cell.end()
            self._replace(group, warm)
        else:
            group.ending.add(warm)
            self._in_background(self._emptied(group, warm, cell))

    async def _emptied(self, group: WarmGroup, warm: WarmMember, cell: Cell) -> None:
        """Wait until a cell's processes have ended, then let the next in line have the container.

        They count against the container's limits until then.
        """
        try:
            await asyncio.wait_for(cell.wait_end(), self._limits.gone_s)
        except asyncio.TimeoutError:
            self._replace(group, warm)
        else:
            self._free(group, warm)
        finally:
            cell.end()

    def _replace(self, group: WarmGroup, warm: WarmMember) -> None:
        """Retire a container that has just had a run, and start another one for those who wait."""
        group.busy.discard(warm)
        group.ending.discard(warm)
        self._retire(warm)
        self._grow(group)

    def _free(self, group: WarmGroup, warm: WarmMember) -> None:
        """Let the next in line have a container.

        A container whose group was dropped serves only those who waited before that.
        """
        group.ending.discard(warm)
        while group.waiting:
            if not (turn := group.waiting.popleft()).done():
                turn.set_result(warm)
                return
        group.busy.discard(warm)
        if self._closing or self._groups.get(group.key) is not group:
            self._retire(warm)
        else:
            group.idle.append(warm)
            self._room(0.0)

    def _broken(self, group: WarmGroup, warm: WarmMember) -> None:
        self._count["broken"] += 1
        group.busy.discard(warm)
        self._retire(warm, counted=False)
        self._grow(group)

    # ---- warm containers

    def _grow(self, group: WarmGroup) -> None:
        """Start one more container where runs wait that none on its way, or about to be free, is for."""
        waiting = sum(not turn.done() for turn in group.waiting)
        if waiting <= len(group.ending) or group.starting or self._closing or len(group.all) >= self._limits.per_node:
            return
        if self._room(FIRST_GUESS_MIB) or not group.all:
            group.starting += 1
            self._in_background(self._start(group))

    def _at_hand(self, group: WarmGroup) -> bool:
        """Tell whether a run of the group need not wait for its first container, which is started if need be."""
        if not (group.all or group.starting) and self._clock() >= group.not_before:
            group.starting += 1
            self._in_background(self._start(group))
        return bool(group.all) or self._clock() < group.not_before

    def _room(self, more_mib: float) -> bool:
        """Tell whether so much more fits the budget, after retiring what is idle and was used longest ago."""
        for group in self._groups.values():
            while group.idle and not self._fits(more_mib):
                self._retire(group.idle.pop(0))
        return self._fits(more_mib)

    def _fits(self, more_mib: float) -> bool:
        count = sum(len(group.all) + group.starting for group in self._groups.values()) + bool(more_mib)
        return count <= self._limits.most and self._memory_mib() + more_mib <= self._limits.memory_mib

    def _memory_mib(self) -> float:
        starting = sum(group.starting for group in self._groups.values()) * FIRST_GUESS_MIB
        return starting + sum(warm.memory_mib for group in self._groups.values() for warm in group.all)

    async def _start(self, group: WarmGroup) -> None:
        maker = self._make(group.setting)
        try:
            await maker.start(uuid.uuid4().hex)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told to who waits
            group.starting -= 1
            if not group.all:  # else those that are busy will be free
                group.fail(error)
            return
        group.starting -= 1
        self._count["started"] += 1
        # What can't be imported is not tried again.
        group.setting = replace(group.setting, preload=maker.preloaded)
        now = self._clock()
        warm = WarmMember(maker=maker, born=now, used=now, next=asyncio.create_task(maker.cell()))
        warm.memory_mib = maker.memory_mib() or FIRST_GUESS_MIB
        group.busy.add(warm)
        self._free(group, warm)
        self._grow(group)

    def _retire(self, warm: WarmMember, *, counted: bool = True) -> asyncio.Task[None]:
        self._count["retired"] += counted
        return self._in_background(self._removed(warm))

    async def _removed(self, warm: WarmMember) -> None:
        warm.maker.sandbox.kill()
        # Its last cell may not have come to be. A dead engine can't remove anything: what is left is swept later.
        with contextlib.suppress(Exception):
            (await warm.next).end()
        with contextlib.suppress(Exception):
            await warm.maker.dispose()

    async def _keep(self) -> None:
        """Retire what nobody has used for long, what has died, and groups that are empty."""
        while True:
            await asyncio.sleep(min(CHECK_S, self._limits.idle_s / 4))
            now = self._clock()
            for key, group in list(self._groups.items()):
                for warm in list(group.idle):
                    if not warm.maker.fit() or now - warm.used > self._limits.idle_s or now - warm.born > LIFE_S / 2:
                        group.idle.remove(warm)
                        self._retire(warm)
                if not (group.all or group.starting or group.waiting):
                    del self._groups[key]

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
