"""The pool, on sandboxes that only count: real ones are in tests/integration/test_service.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from sandbox.container.pool import GRACE_S, PoolLimits, SandboxPool
from sandbox.container.standby import ReadySandbox, Setting
from sandbox.errors import EngineUnavailable


@dataclass(frozen=True)
class Kind:
    """Stands for a setting."""

    kind: str
    preload: tuple[str, ...] = ()


class Sandbox:
    """Stands for a sandbox; `world` keeps what happened to all of them."""

    def __init__(self, setting: Kind, world: World) -> None:
        self.setting, self.world = setting, world
        self.asked = world.now
        self.sandbox = self
        self.id = ""
        self.preloaded: tuple[str, ...] = ()
        self.living = True

    async def start(self, sandbox_id: str, *, idle_s: float, ahead: bool = False) -> None:
        assert idle_s > 0
        self.id = sandbox_id
        self.world.begun.append(self)
        await self.world.gate.wait()
        self.world.now += 0.2
        if self.world.broken:
            raise EngineUnavailable("no engine")
        self.preloaded = tuple(name for name in self.setting.preload if name != "absent")
        self.world.started.append(self)

    async def dispose(self) -> None:
        self.world.disposed.append(self)

    def kill(self) -> None:
        self.living = False

    def fit(self) -> bool:
        return self.living

    def memory_mib(self) -> float:
        return self.world.memory_mib


@dataclass
class World:
    now: float = 1000.0
    memory_mib: float = 20.0
    broken: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[Sandbox] = field(default_factory=list)
    started: list[Sandbox] = field(default_factory=list)
    disposed: list[Sandbox] = field(default_factory=list)

    def pool(self, **limits: Any) -> SandboxPool:
        def make(setting: Setting) -> ReadySandbox:
            return cast("ReadySandbox", Sandbox(cast("Kind", setting), self))

        self.gate.set()
        return SandboxPool(make, PoolLimits(**limits), clock=lambda: self.now)


def setting(kind: str) -> Setting:
    return cast("Setting", Kind(kind))


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(8):
        await asyncio.sleep(GRACE_S / 4)


def trial(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in an event loop with a world of its own."""

    def run() -> None:
        async def inside() -> None:
            await asyncio.wait_for(test(World()), 20)

        asyncio.run(inside())

    run.__name__ = test.__name__
    return run


@trial
async def test_the_first_run_gets_a_sandbox_of_its_own_and_the_second_a_ready_one(world: World) -> None:
    async with world.pool() as pool:
        async with pool.source(setting("a"), "run-1") as first:
            assert cast("Sandbox", first).id == "run-1"
        await settle()
        assert pool.counts().ready == 1
        async with pool.source(setting("a"), "run-2") as second:
            assert second is not first
            assert cast("Sandbox", second).id != "run-2", "it was there before"
        assert pool.counts().cold == 1


@trial
async def test_no_sandbox_is_ever_given_out_twice(world: World) -> None:
    seen: list[int] = []

    async def run(pool: SandboxPool, number: int) -> None:
        async with pool.source(setting("ab"[number % 2]), f"run-{number}") as ready:
            seen.append(id(ready))
            await asyncio.sleep(0)
            if number % 5 == 0:
                raise KeyError

    async with world.pool(per_kind=3, starters=2) as pool:
        for _ in range(20):
            await asyncio.gather(*(run(pool, number) for number in range(10)), return_exceptions=True)
    assert len(seen) == 200
    used = [sandbox for sandbox in world.disposed if id(sandbox) in set(seen)]
    assert len({id(sandbox) for sandbox in used}) == len(used)
    assert len(world.disposed) == len(world.started), "every sandbox that was started was disposed of"
    assert len({id(sandbox) for sandbox in world.disposed}) == len(world.disposed), "and only once"


@trial
async def test_a_sandbox_is_destroyed_whatever_happened_in_its_run(world: World) -> None:
    async with world.pool() as pool:
        with pytest.raises(KeyError):
            async with pool.source(setting("a"), "run"):
                raise KeyError
        given = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(hold(pool, given))
        sandbox = await given
        task.cancel()
        await settle()
        assert task.cancelled()
        assert sandbox in world.disposed, "while the pool lives, not only when it ends"
    assert {s.id for s in world.started} == {s.id for s in world.disposed}


async def hold(pool: SandboxPool, given: asyncio.Future[ReadySandbox]) -> None:
    async with pool.source(setting("a"), "held") as ready:
        given.set_result(ready)
        await asyncio.sleep(60)


@trial
async def test_nothing_is_started_ahead_while_a_run_waits_for_its_own(world: World) -> None:
    async with world.pool(starters=2) as pool:
        async with pool.source(setting("a"), "run"):
            pass
        await settle()
        world.gate.clear()
        world.begun.clear()
        waiting = asyncio.create_task(use(pool, "b"))
        await settle()
        pool.warm(setting("c"))
        await settle()
        assert [sandbox.setting.kind for sandbox in world.begun] == ["b"]
        world.gate.set()
        await waiting
        await settle()
        assert {sandbox.setting.kind for sandbox in world.begun} == {"b", "c"}


async def use(pool: SandboxPool, kind: str) -> None:
    async with pool.source(setting(kind), f"use-{kind}"):
        pass


@trial
async def test_a_ready_sandbox_that_died_is_not_given_out(world: World) -> None:
    async with world.pool() as pool:
        pool.warm(setting("a"))
        await settle()
        world.started[0].living = False
        async with pool.source(setting("a"), "run") as ready:
            assert cast("Sandbox", ready) is not world.started[0]


@trial
async def test_more_are_kept_ready_the_more_often_they_are_asked_for(world: World) -> None:
    async with world.pool(per_kind=4) as pool:
        await use(pool, "a")
        await settle()
        assert pool.counts().ready == 1
        for _ in range(30):
            await use(pool, "a")
            world.now += 0.1
        await settle()
        assert 2 <= pool.counts().ready <= 4


@trial
async def test_idle_kinds_are_retired_and_old_sandboxes_replaced(world: World) -> None:
    async with world.pool(idle_s=100) as pool:
        pool.warm(setting("a"))
        await settle()
        (old,) = world.started
        world.now += 60
        pool.warm(setting("a"))
        await settle()
        world.now += 50
        pool.warm(setting("b"))
        await settle()
        assert old in world.disposed, "it waited for longer than idle_s, though its kind is in use"
        assert {s.setting.kind for s in world.started if s not in world.disposed} == {"a", "b"}
        world.now += 101
        pool.warm(setting("c"))
        await settle()
        assert {s.setting.kind for s in world.started if s not in world.disposed} == {"c"}
        assert pool.counts().kinds == 1


@trial
async def test_the_memory_budget_holds_and_what_was_used_last_stays(world: World) -> None:
    world.memory_mib = 100
    async with world.pool(memory_mib=250) as pool:
        for kind in "abc":
            pool.warm(setting(kind))
            await settle()
        assert {s.setting.kind for s in world.started if s not in world.disposed} == {"b", "c"}
        assert pool.counts().memory_mib <= 250


@trial
async def test_there_are_no_more_ready_sandboxes_than_there_may_be_and_what_was_used_last_stays(world: World) -> None:
    async with world.pool(most=2) as pool:
        for kind in "abcd":
            pool.warm(setting(kind))
            await settle()
            assert len([s for s in world.started if s not in world.disposed]) <= 2
        assert {s.setting.kind for s in world.started if s not in world.disposed} == {"c", "d"}


@trial
async def test_a_kind_that_can_not_start_is_left_alone_for_a_while(world: World) -> None:
    world.broken = True
    async with world.pool() as pool:
        pool.warm(setting("a"))
        await settle()
        assert len(world.begun) == 1
        assert pool.counts().failed == 1
        with pytest.raises(EngineUnavailable):
            await use(pool, "a")
        await settle()
        tries = len(world.begun)
        await settle()
        assert len(world.begun) == tries
        world.broken = False
        world.now += 6
        await use(pool, "a")
        await settle()
        assert pool.counts().ready == 1


@trial
async def test_dropping_a_kind_retires_what_is_ready_and_what_is_being_started(world: World) -> None:
    async with world.pool() as pool:
        pool.warm(setting("a"))
        pool.warm(setting("b"))
        await settle()
        world.gate.clear()
        await_a = asyncio.create_task(use(pool, "a"))
        await settle()
        await pool.drop(lambda each: cast("Kind", each).kind == "a")
        world.gate.set()
        await await_a
        await settle()
        assert {s.setting.kind for s in world.started if s not in world.disposed} == {"b"}


@trial
async def test_closing_leaves_nothing_also_of_what_was_being_started(world: World) -> None:
    async with world.pool(starters=2) as pool:
        pool.warm(setting("a"))
        await settle()
        world.gate.clear()
        pool.warm(setting("b"))
        await settle()
    assert {s.id for s in world.started} == {s.id for s in world.disposed}


@trial
async def test_modules_are_preloaded_ahead_of_need_only_and_those_that_can_not_be_are_not_tried_again(
    world: World,
) -> None:
    kind = cast("Setting", Kind("a", preload=("numpy", "absent")))
    async with world.pool() as pool:
        async with pool.source(kind, "first"):
            pass
        await settle()
        world.now += 60
        async with pool.source(kind, "second"):
            pass
        await settle()
        assert [sandbox.setting.preload for sandbox in world.begun] == [(), ("numpy", "absent"), ("numpy",)]
        assert pool.counts().kinds == 1


@trial
async def test_as_many_start_at_once_as_the_pace_of_runs_asks_for(world: World) -> None:
    async with world.pool(starters=3, per_kind=4) as pool:
        pool.warm(setting("slow"))
        await settle()
        world.gate.clear()
        world.begun.clear()
        for kind in ("slow", "other"):
            pool.warm(setting(kind))
            await settle()
        assert len(world.begun) == 1, "one at a time is enough for what comes now and then"
        for _ in range(6):
            pool.warm(setting("fast"))
            world.now += 0.1
        await settle()
        assert len(world.begun) == 3
        world.gate.set()
        await settle()


@trial
async def test_a_flow_that_begins_is_followed_within_a_few_messages(world: World) -> None:
    async with world.pool(per_kind=4) as pool:
        for _ in range(4):
            await use(pool, "a")
            world.now += 0.1
        await settle()
        assert pool.counts().ready >= 2
