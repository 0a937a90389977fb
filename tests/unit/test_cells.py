"""Who gets which warm container, on makers that only count: real ones are in tests/escape/test_cells.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandbox.cell.cell import LIFE_S, Cell, NoCells, WarmContainer
from sandbox.cell.group import CellLimits
from sandbox.cell.pace import MAX_NODES, Paces
from sandbox.cell.warm import CellPool
from sandbox.container.isolation_row import FAST, WANTED
from sandbox.container.standby import AcquiredSandbox, Setting
from sandbox.errors import EngineUnavailable, SandboxError
from sandbox.kernel.process import CgroupEvents
from sandbox.models import ControlEvidence

START_S = 0.3


@dataclass(eq=False)
class FakeCell:
    """Stands for a cell."""

    maker: FakeMaker
    living: bool = True
    ended: bool = False
    events: CgroupEvents | None = None
    evidence: tuple[Any, ...] = (
        ControlEvidence(
            control="isolation", wanted="a cell", status="proven", mechanism="own net", evidence="shared: none"
        ),
    )
    marks: dict[str, float] = field(default_factory=lambda: {"begin": 0.0})

    def alive(self) -> bool:
        return self.living and self.maker.living

    def kill(self) -> None:
        self.living = False

    async def wait_end(self) -> None:
        await self.maker.world.emptied.wait()

    def end(self) -> None:
        self.living = False
        self.ended = True


@dataclass(eq=False)
class FakeMaker:
    """Stands for a warm container."""

    setting: Setting
    world: World
    living: bool = True
    disposed: bool = False
    preloaded: tuple[str, ...] = ("pandas",)
    made: list[FakeCell] = field(default_factory=list)

    @property
    def sandbox(self) -> FakeMaker:
        return self

    async def start(self, _name: str) -> None:
        await self.world.gate.wait()
        if self.world.broken:
            raise EngineUnavailable("no engine")
        if self.world.fault:
            raise self.world.fault
        self.world.makers.append(self)

    async def cell(self) -> Cell:
        await asyncio.sleep(0)
        if self.world.fault:
            raise self.world.fault
        if self.world.forbidden:
            raise NoCells("no namespaces here")
        if not self.living:
            raise EngineUnavailable("gone")
        self.made.append(FakeCell(self))
        return cast("Cell", self.made[-1])

    def kill(self) -> None:
        self.living = False

    def fit(self) -> bool:
        return self.living

    def memory_mib(self) -> float:
        return self.world.memory_mib

    async def dispose(self) -> None:
        self.disposed = True


@dataclass
class World:
    now: float = 1000.0
    memory_mib: float = 20.0
    broken: bool = False
    forbidden: bool = False
    fault: Exception | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
    makers: list[FakeMaker] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    evidence: dict[str, list[str]] = field(default_factory=dict)
    rows: list[ControlEvidence] = field(default_factory=list)  # of what `messages` got

    def cells(self, **limits: Any) -> CellPool:
        def make(setting: Setting) -> WarmContainer:
            return cast("WarmContainer", FakeMaker(setting, self))

        @contextlib.asynccontextmanager
        async def container(_setting: Setting, run_id: str) -> AsyncIterator[AcquiredSandbox]:
            self.containers.append(run_id)
            sandbox = SimpleNamespace(evidence=())
            yield cast("AcquiredSandbox", SimpleNamespace(sandbox=sandbox, proxy=None, asked=0.0))
            self.evidence[run_id] = [row.evidence for row in sandbox.evidence]

        self.gate.set()
        self.emptied.set()
        return CellPool(make, container, CellLimits(**limits), start_s=lambda _: START_S, clock=lambda: self.now)

    def alive(self) -> list[FakeMaker]:
        return [maker for maker in self.makers if maker.living]


@dataclass(frozen=True)
class Kind:
    """Stands for a setting."""

    owner: str
    kind: str
    policy: Any
    preload: tuple[str, ...] = ("pandas", "absent")


def setting(owner: str = "1000/node", *, per_run: str = "cell", kind: str = "kind") -> Setting:
    return cast("Setting", Kind(owner, kind, SimpleNamespace(isolation=SimpleNamespace(per_run=per_run))))


def trial(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in an event loop with a world of its own."""

    def run() -> None:
        async def inside() -> None:
            await asyncio.wait_for(test(World()), 20)

        asyncio.run(inside())

    run.__name__ = test.__name__
    return run


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def run(cells: CellPool, wanted: Setting, name: str = "run", until: asyncio.Event | None = None) -> FakeCell:
    """Carry out one run, which lasts until it is told to end."""
    async with cells.source(wanted, name) as ready:
        if until is not None:
            await until.wait()
        return cast("FakeCell", ready.sandbox)


@trial
async def test_runs_of_one_node_share_a_container_and_never_a_cell(world: World) -> None:
    async with world.cells() as cells:
        seen = [await run(cells, setting()) for _ in range(5)]
        assert len(world.makers) == 1
        assert len(set(map(id, seen))) == 5
        assert not any(cell.living for cell in seen)


@trial
async def test_another_caller_node_or_kind_gets_another_container(world: World) -> None:
    async with world.cells() as cells:
        for wanted in (setting("1/a"), setting("1/b"), setting("2/a"), setting("1/a", kind="other"), setting("1/a")):
            await run(cells, wanted)
        assert len(world.makers) == 4


@trial
async def test_a_container_carries_out_one_run_at_a_time_and_more_are_started_up_to_the_limit(world: World) -> None:
    async with world.cells(per_node=2) as cells:
        end = asyncio.Event()
        runs = [asyncio.create_task(run(cells, setting(), str(n), end)) for n in range(5)]
        await settle()
        assert len(world.makers) == 2
        assert [sum(cell.living for cell in maker.made) for maker in world.makers] == [2, 2], "one at work, one ready"
        end.set()
        await asyncio.gather(*runs)
        assert len(world.makers) == 2


@trial
async def test_a_container_is_free_once_what_the_last_run_left_is_gone_and_none_is_started_for_who_waits_for_that(
    world: World,
) -> None:
    async with world.cells(per_node=3) as cells:
        first = await run(cells, setting())
        await settle()
        world.emptied.clear()
        await run(cells, setting())
        waiting = [asyncio.create_task(run(cells, setting()))]
        await settle()
        assert (len(world.makers), waiting[0].done(), first.ended) == (1, False, True)
        waiting.append(asyncio.create_task(run(cells, setting())))
        await settle()
        assert len(world.makers) == 2
        world.emptied.set()
        await asyncio.gather(*waiting)
        await settle()
        assert all(cell.ended for maker in world.makers for cell in maker.made[:-1])


@trial
async def test_a_container_whose_last_run_does_not_end_is_replaced(world: World) -> None:
    async with world.cells(gone_s=0.05) as cells:
        world.emptied.clear()
        stuck = await run(cells, setting())
        later = await run(cells, setting())
        await settle()
        assert not stuck.maker.living
        assert stuck.ended
        assert later.maker is not stuck.maker


@trial
async def test_a_run_whose_container_dies_waits_for_the_next_one(world: World) -> None:
    async with world.cells(per_node=1) as cells:
        await run(cells, setting())
        world.makers[0].kill()
        await run(cells, setting())
        await settle()
        assert len(world.makers) == 2
        assert world.makers[0].disposed
        assert cells.counts().broken == 1


@trial
async def test_waiting_runs_are_not_lost_when_the_container_dies(world: World) -> None:
    async with world.cells(per_node=1) as cells:
        end = asyncio.Event()
        first = asyncio.create_task(run(cells, setting(), "first", end))
        await settle()
        others = [asyncio.create_task(run(cells, setting(), str(n))) for n in range(3)]
        await settle()
        world.makers[0].kill()
        end.set()
        await asyncio.gather(first, *others)
        assert len(world.makers) == 2


@trial
async def test_an_engine_that_is_gone_is_told_to_whoever_waits_and_tried_again_by_the_next(world: World) -> None:
    async with world.cells() as cells:
        world.broken = True
        with pytest.raises(SandboxError, match="no engine"):
            await run(cells, setting())
        world.broken = False
        await run(cells, setting())


@trial
async def test_any_fault_of_a_container_that_starts_is_told_to_who_waits(world: World) -> None:
    async with world.cells(per_node=1) as cells:
        world.fault = OSError("no descriptors left")
        with pytest.raises(OSError, match="no descriptors left"):
            await run(cells, setting())
        world.fault = None
        await run(cells, setting())
        await settle()
        world.fault = OSError("no descriptors left")
        await run(cells, setting())  # its cell was there before
        with pytest.raises(OSError, match="no descriptors left"):
            await run(cells, setting())
        world.fault = None
        await run(cells, setting())
    assert all(maker.disposed for maker in world.makers)


@trial
async def test_a_container_that_is_too_much_does_not_fail_those_who_wait_for_another(world: World) -> None:
    async with world.cells(per_node=2) as cells:
        end = asyncio.Event()
        first = asyncio.create_task(run(cells, setting(), "first", end))
        await settle()
        world.broken = True
        second = asyncio.create_task(run(cells, setting(), "second"))
        await settle()
        assert not second.done()
        end.set()
        await asyncio.gather(first, second)


@trial
async def test_a_cell_that_died_alone_is_replaced_in_the_same_container(world: World) -> None:
    async with world.cells() as cells:
        await run(cells, setting())
        await settle()
        world.makers[0].made[-1].living = False
        await run(cells, setting())
        assert (len(world.makers), cells.counts().broken) == (1, 0)


@trial
async def test_modules_that_can_not_be_imported_are_not_tried_by_the_next_container(world: World) -> None:
    async with world.cells() as cells:
        await run(cells, setting())
        world.makers[0].kill()
        await run(cells, setting())
        assert [maker.setting.preload for maker in world.makers] == [("pandas", "absent"), ("pandas",)]


@trial
async def test_runs_that_wait_when_the_service_stops_are_told(world: World) -> None:
    async with world.cells(per_node=1) as cells:
        end = asyncio.Event()
        first = asyncio.create_task(run(cells, setting(), "first", end))
        await settle()
        second = asyncio.create_task(run(cells, setting(), "second"))
        await settle()
        await cells.__aexit__(None, None, None)
        with pytest.raises(SandboxError, match="stopping"):
            await second
        end.set()
        await first
        await settle()


@trial
async def test_a_cancelled_run_leaves_its_turn_to_the_next(world: World) -> None:
    async with world.cells(per_node=1) as cells:
        end = asyncio.Event()
        first = asyncio.create_task(run(cells, setting(), "first", end))
        await settle()
        waiting = [asyncio.create_task(run(cells, setting(), str(n))) for n in range(3)]
        await settle()
        waiting[0].cancel()
        end.set()
        waiting[1].cancel()  # whether or not its turn has just come
        await asyncio.gather(first, *waiting, return_exceptions=True)
        await run(cells, setting())
        await settle()
        assert len(world.makers) == 1
        assert [sum(cell.living for cell in maker.made) for maker in world.makers] == [1]


@trial
async def test_a_run_that_is_cancelled_while_its_container_starts_leaves_it_for_the_next(world: World) -> None:
    async with world.cells(per_node=1) as cells:
        world.gate.clear()
        first = asyncio.create_task(run(cells, setting()))
        await settle()
        first.cancel()
        world.gate.set()
        await settle()
        await run(cells, setting())
        assert len(world.makers) == 1


@trial
async def test_where_no_cell_can_be_made_every_run_gets_a_container_that_says_why(world: World) -> None:
    async with world.cells() as cells:
        world.forbidden = True
        for number in range(2):
            async with cells.source(setting(), str(number)) as ready:
                row = ready.sandbox.evidence[-1]
                assert (row.control, row.wanted, row.mechanism) == ("isolation", "a cell", "container")
                assert "no namespaces here" in row.evidence
        assert world.containers == ["0", "1"]
        assert len(world.makers) == 1, "it is tried once"


@trial
async def test_other_policies_and_runs_of_nobody_get_containers(world: World) -> None:
    async with world.cells() as cells:
        for wanted in (setting(per_run="container"), setting(owner="")):
            async with cells.source(wanted, "run"):
                pass
        assert (len(world.containers), world.makers) == (2, [])


@trial
async def test_a_container_whose_memory_limit_was_reached_is_not_used_again(world: World) -> None:
    async with world.cells() as cells:
        async with cells.source(setting(), "run") as ready:
            cast("FakeCell", ready.sandbox).events = CgroupEvents(oom_kills=1, fork_failures=0, peak_bytes=None)
        await settle()
        assert world.makers[0].disposed
        await run(cells, setting())
        assert len(world.makers) == 2


@trial
async def test_an_old_container_is_replaced(world: World) -> None:
    async with world.cells() as cells:
        await run(cells, setting())
        world.now += LIFE_S
        await run(cells, setting())
        await run(cells, setting())
        assert len(world.makers) == 2


@trial
async def test_idle_containers_retire(world: World) -> None:
    async with world.cells(idle_s=0.2) as cells:
        await run(cells, setting())
        world.now += 1
        while not world.makers[0].disposed:
            await asyncio.sleep(0.01)
        assert (cells.counts().containers, cells.counts().retired) == (0, 1)


@trial
async def test_within_the_memory_budget_the_idle_ones_go_first(world: World) -> None:
    async with world.cells(memory_mib=60) as cells:
        for owner in ("1/a", "1/b", "1/c"):
            await run(cells, setting(owner))
        await settle()
        assert {maker.setting.owner for maker in world.alive()} == {"1/b", "1/c"}
        assert cells.counts().memory_mib <= 60


@trial
async def test_there_are_no_more_warm_containers_than_there_may_be_and_the_idle_ones_go_first(world: World) -> None:
    async with world.cells(most=2) as cells:
        for owner in ("1/a", "1/b", "1/c", "1/d"):
            await run(cells, setting(owner))
            await settle()
            assert len(world.alive()) <= 2
        assert {maker.setting.owner for maker in world.alive()} == {"1/c", "1/d"}


@trial
async def test_dropped_containers_go_at_once_when_idle_and_else_with_their_run(world: World) -> None:
    async with world.cells() as cells:
        end = asyncio.Event()
        busy = asyncio.create_task(run(cells, setting("1/busy"), "run", end))
        await run(cells, setting("1/idle"))
        await settle()
        await cells.drop(lambda _: True)
        assert [maker.disposed for maker in world.makers if maker.setting.owner == "1/idle"] == [True]
        assert not busy.done()
        end.set()
        await busy
        await settle()
        assert all(maker.disposed for maker in world.makers)


@trial
async def test_at_the_end_nothing_is_left(world: World) -> None:
    async with world.cells() as cells:
        await run(cells, setting("1/a"))
        await run(cells, setting("1/b"))
        world.gate.clear()
        late = asyncio.create_task(run(cells, setting("1/c")))
        await settle()
        late.cancel()
        world.gate.set()
    assert all(maker.disposed for maker in world.makers)
    assert not any(cell.living for maker in world.makers for cell in maker.made)


# ---- by pace


async def messages(
    world: World, cells: CellPool, count: int, *, take_s: float, pause_s: float, node: str = "1000/node"
) -> list[str]:
    """Carry out messages one after the other, and return what each got."""
    got = []
    for number in range(count):
        before = len(world.containers)
        async with cells.source(setting(node, per_run="auto"), f"{node}-{number}") as ready:
            world.rows += [row for row in ready.sandbox.evidence if row.control == "isolation"]
            world.now += take_s
        await settle()
        world.now += pause_s
        got.append("container" if len(world.containers) > before else "cell")
    return got


@trial
async def test_a_node_that_is_faster_than_containers_are_made_gets_cells_and_the_receipt_says_which(
    world: World,
) -> None:
    async with world.cells() as cells:
        got = await messages(world, cells, 20, take_s=0.1, pause_s=0.05)
        # After eight that were fast, the first warm container is started, and nobody waits for it.
        assert got == ["container"] * 9 + ["cell"] * 11
        assert ["come no faster than" in world.evidence[f"1000/node-{n}"][0] for n in range(9)] == [True] * 8 + [False]
        assert "its first cell is being made" in world.evidence["1000/node-8"][0]
        assert [(row.wanted, row.mechanism) for row in world.rows[8:10]] == [
            (WANTED["auto"], "container"),
            (WANTED["auto"], "own net"),
        ]
        assert world.rows[-1].evidence == f"shared: none; {FAST}", "why, in a cell, too"


@trial
async def test_a_policy_of_cells_alone_asks_for_no_pace(world: World) -> None:
    async with world.cells() as cells, cells.source(setting(), "run") as ready:
        (row,) = ready.sandbox.evidence
        assert (row.wanted, row.evidence) == ("a cell", "shared: none")


@trial
async def test_a_node_with_pauses_stays_in_containers(world: World) -> None:
    async with world.cells() as cells:
        assert await messages(world, cells, 30, take_s=0.1, pause_s=START_S) == ["container"] * 30
        assert not world.makers


@trial
async def test_many_long_programs_at_once_are_not_fast(world: World) -> None:
    async with world.cells() as cells, contextlib.AsyncExitStack() as held:
        for number in range(30):
            await held.enter_async_context(cells.source(setting(per_run="auto"), f"long-{number}"))
            world.now += 0.001
        world.now += 10
        await held.aclose()
        assert await messages(world, cells, 1, take_s=0.1, pause_s=0) == ["container"]


@trial
async def test_a_node_that_became_slow_goes_back_to_containers_and_one_in_between_does_not_change_each_time(
    world: World,
) -> None:
    async with world.cells() as cells:
        await messages(world, cells, 12, take_s=0.01, pause_s=0.01)
        assert await messages(world, cells, 20, take_s=0.01, pause_s=1.5 * START_S) == ["cell"] * 20
        slow = await messages(world, cells, 20, take_s=0.01, pause_s=3 * START_S)
        assert slow[-12:] == ["container"] * 12
        assert "cell" in slow, "not at the first pause"
        await messages(world, cells, 12, take_s=0.01, pause_s=0.01)
        world.now += 60
        assert await messages(world, cells, 1, take_s=0.01, pause_s=0) == ["container"], "at once after a long one"


@trial
async def test_the_pace_of_one_node_is_not_that_of_another(world: World) -> None:
    async with world.cells() as cells:
        await messages(world, cells, 12, take_s=0.01, pause_s=0.01)
        assert await messages(world, cells, 4, take_s=0.01, pause_s=0.01, node="1000/other") == ["container"] * 4


@trial
async def test_by_pace_a_host_without_cells_gives_containers_and_says_why(world: World) -> None:
    world.forbidden = True
    async with world.cells() as cells:
        assert await messages(world, cells, 20, take_s=0.01, pause_s=0.01) == ["container"] * 20
        assert "no namespaces here" in world.evidence["1000/node-19"][0]


def test_paces_of_many_nodes_take_no_more_and_more_memory() -> None:
    paces = Paces()
    first = paces.of("first")
    for number in range(3 * MAX_NODES):
        paces.of(number)
        assert paces.of("first") is first, "it is in use"
    assert len(paces) == MAX_NODES
