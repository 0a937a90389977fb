"""Who gets a slot and when: caps, fairness, refusals, cancellation, draining."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import EngineUnavailable, QueueFull
from sandbox.service.admission import Admission, AdmissionLimits, Counts, Quota

ANN, BEN, CAT = 1001, 1002, 1003
WIDE = AdmissionLimits(running=1, waiting=10_000, per_caller_running=10_000, per_caller_waiting=10_000, wait_s=3600)


def limits(
    *, running: int = 1, waiting: int = 100, caller_running: int = 100, caller_waiting: int = 100, wait_s: float = 3600
) -> AdmissionLimits:
    return AdmissionLimits(
        running=running,
        waiting=waiting,
        per_caller_running=caller_running,
        per_caller_waiting=caller_waiting,
        wait_s=wait_s,
    )


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Crowd:
    """Runs that hold their slot until they are told to end; `order` has those that got one, in that order."""

    def __init__(self, bounds: AdmissionLimits) -> None:
        self.clock = Clock()
        self.admission = Admission(bounds, clock=self.clock)
        self.order: list[str] = []
        self.waited: dict[str, float] = {}
        self.holding: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.told: list[str] = []

    def send(self, name: str, caller: int, node: str = "n", quota: Quota | None = None) -> None:
        """Start a run without letting it come to its slot yet."""
        self.tasks[name] = asyncio.ensure_future(self.run(name, caller, node, quota))

    async def run(self, name: str, caller: int, node: str, quota: Quota | None) -> None:
        async with self.admission.slot(caller, node, quota=quota, on_wait=lambda: self.told.append(name)) as slot:
            self.order.append(name)
            self.waited[name] = slot.waited_s
            self.holding[name] = asyncio.Event()
            try:
                await self.holding[name].wait()
            finally:
                del self.holding[name]

    async def end(self, name: str) -> None:
        self.holding[name].set()
        await settled()

    async def end_all(self) -> None:
        while self.holding:
            await self.end(next(iter(self.holding)))

    def refused(self, name: str) -> bool:
        return self.tasks[name].done() and isinstance(self.tasks[name].exception(), QueueFull)

    async def refusal(self, name: str) -> QueueFull:
        with pytest.raises(QueueFull) as caught:
            await self.tasks[name]
        return caught.value


async def settled() -> None:
    """Let every task go on until it waits for something."""
    for _ in range(8):
        await asyncio.sleep(0)


def play(bounds: AdmissionLimits, scene: Callable[[Crowd], Awaitable[None]]) -> None:
    """Act a scene, then check that nothing of it is left in the queue."""

    async def act() -> None:
        crowd = Crowd(bounds)
        await scene(crowd)
        await crowd.end_all()
        await asyncio.wait_for(asyncio.gather(*crowd.tasks.values(), return_exceptions=True), 20)
        assert crowd.admission.counts() == Counts(running=0, waiting=0)

    asyncio.run(act())


def test_a_run_gets_a_free_slot_without_waiting() -> None:
    async def scene(crowd: Crowd) -> None:
        crowd.send("a", ANN)
        await settled()
        assert crowd.order == ["a"]
        assert crowd.waited["a"] == 0

    play(limits(), scene)


def test_a_slot_tells_how_long_it_was_waited_for() -> None:
    async def scene(crowd: Crowd) -> None:
        for name in ("a", "b"):
            crowd.send(name, ANN)
        await settled()
        crowd.clock.now += 7
        await crowd.end("a")
        assert crowd.waited == {"a": 0, "b": 7}

    play(limits(), scene)


def test_whoever_has_to_wait_is_told_so_and_nobody_else() -> None:
    async def scene(crowd: Crowd) -> None:
        for name in ("at once", "waits", "refused"):
            crowd.send(name, ANN)
        await settled()
        assert crowd.refused("refused")
        assert (crowd.order, crowd.told) == (["at once"], ["waits"])
        await crowd.end("at once")
        assert (crowd.order, crowd.told) == (["at once", "waits"], ["waits"])

    play(limits(waiting=1), scene)


def test_a_thousand_waiting_runs_of_one_caller_delay_anothers_by_one_slot() -> None:
    async def scene(crowd: Crowd) -> None:
        for n in range(1_000):
            crowd.send(f"flood {n}", ANN, f"node {n % 7}")
        await settled()
        crowd.send("single", BEN)
        await settled()
        for _ in range(2):
            await crowd.end(crowd.order[-1])
        assert "single" in crowd.order

    play(WIDE, scene)


def test_callers_take_turns_and_so_do_the_nodes_of_each() -> None:
    async def scene(crowd: Crowd) -> None:
        crowd.send("first", CAT)
        for name in ("ann x1", "ann x2", "ann x3", "ann y1"):
            crowd.send(name, ANN, name[4])
        for name in ("ben z1", "ben z2", "ben z3"):
            crowd.send(name, BEN, name[4])
        await settled()
        await crowd.end_all()
        assert crowd.order == ["first", "ann x1", "ben z1", "ann y1", "ben z2", "ann x2", "ben z3", "ann x3"]

    play(limits(), scene)


def test_a_caller_at_its_cap_leaves_free_slots_to_others() -> None:
    async def scene(crowd: Crowd) -> None:
        for n in range(5):
            crowd.send(f"ann {n}", ANN)
        await settled()
        crowd.send("ben", BEN)
        await settled()
        assert crowd.order == ["ann 0", "ann 1", "ben"]
        await crowd.end("ben")
        assert crowd.order == ["ann 0", "ann 1", "ben"]
        await crowd.end("ann 1")
        assert crowd.order == ["ann 0", "ann 1", "ben", "ann 2"]

    play(limits(running=4, caller_running=2), scene)


def test_a_full_queue_refuses_at_once() -> None:
    async def scene(crowd: Crowd) -> None:
        for n in range(3):
            crowd.send(f"ann {n}", ANN)
        crowd.send("ben", BEN)
        await settled()
        assert [name for name in crowd.tasks if crowd.refused(name)] == ["ben"]
        assert "1 run and 2 wait" in (await crowd.refusal("ben")).message

    play(limits(waiting=2), scene)


def test_a_callers_full_part_of_the_queue_leaves_room_to_others() -> None:
    async def scene(crowd: Crowd) -> None:
        for n in range(4):
            crowd.send(f"ann {n}", ANN)
        crowd.send("ben", BEN)
        await settled()
        assert [name for name in crowd.tasks if crowd.refused(name)] == ["ann 3"]
        assert "your runs" in (await crowd.refusal("ann 3")).message

    play(limits(caller_waiting=2), scene)


def test_a_queue_full_of_runs_that_may_not_run_now_does_not_keep_others_from_a_free_slot() -> None:
    async def scene(crowd: Crowd) -> None:
        for n in range(3):
            crowd.send(f"ann {n}", ANN)
        crowd.send("ben", BEN)
        await settled()
        assert crowd.order == ["ann 0", "ben"]

    play(limits(running=2, waiting=2, caller_running=1), scene)


def test_without_a_queue_a_run_gets_a_slot_or_a_refusal() -> None:
    async def scene(crowd: Crowd) -> None:
        for name in ("a", "b"):
            crowd.send(name, ANN)
        await settled()
        assert crowd.order == ["a"]
        assert crowd.refused("b")

    play(limits(waiting=0), scene)


def test_a_quota_of_ones_own_replaces_the_usual_one_up_and_down() -> None:
    async def scene(crowd: Crowd) -> None:
        for n in range(3):
            crowd.send(f"ann {n}", ANN, quota=Quota(running=2, waiting=0))
            crowd.send(f"ben {n}", BEN)
        await settled()
        assert crowd.order == ["ann 0", "ben 0", "ann 1"]
        assert crowd.refused("ann 2")

    play(limits(running=10, caller_running=1), scene)


def test_a_quota_that_grew_lets_waiting_runs_go_in_their_order() -> None:
    async def scene(crowd: Crowd) -> None:
        for n in range(4):
            crowd.send(f"ann {n}", ANN)
        await settled()
        crowd.send("ann 4", ANN, quota=Quota(running=3, waiting=2))
        await settled()
        assert crowd.order == ["ann 0", "ann 1", "ann 2"]
        assert not crowd.refused("ann 4")

    play(limits(running=10, caller_running=1), scene)


def test_a_run_that_waited_too_long_is_refused_and_forgotten() -> None:
    async def scene(crowd: Crowd) -> None:
        crowd.send("a", ANN)
        crowd.send("b", BEN)
        await settled()
        error = await crowd.refusal("b")
        assert "waited 0.01 s" in error.message
        assert crowd.admission.counts() == Counts(running=1, waiting=0, callers={ANN: Counts(running=1, waiting=0)})

    play(limits(wait_s=0.01), scene)


def test_a_run_given_up_takes_nothing_from_one_of_its_caller_that_came_in_the_same_moment() -> None:
    async def scene(crowd: Crowd) -> None:
        async def come_late() -> None:
            await asyncio.sleep(0.3)
            await crowd.run("c", BEN, "n", None)

        crowd.send("a", ANN)
        crowd.tasks["c"] = asyncio.ensure_future(come_late())
        crowd.send("b", BEN)
        await settled()
        time.sleep(0.5)  # both timers are due when the loop goes on
        await crowd.refusal("b")
        assert crowd.admission.counts().callers[BEN] == Counts(running=0, waiting=1)
        await crowd.end("a")
        assert crowd.order == ["a", "c"]

    play(limits(wait_s=0.4), scene)


def test_a_cancelled_wait_leaves_no_trace_and_costs_nobody_a_turn() -> None:
    async def scene(crowd: Crowd) -> None:
        for name in ("a", "b", "c"):
            crowd.send(name, ANN)
        await settled()
        crowd.tasks["b"].cancel()
        await settled()
        assert crowd.admission.counts().waiting == 1
        await crowd.end("a")
        assert crowd.order == ["a", "c"]

    play(limits(), scene)


def test_a_slot_granted_to_a_run_that_is_cancelled_before_it_can_use_it_goes_to_the_next() -> None:
    async def scene(crowd: Crowd) -> None:
        for name in ("a", "b", "c"):
            crowd.send(name, ANN)
        await settled()
        crowd.holding["a"].set()
        while crowd.admission.counts().waiting == 2:
            await asyncio.sleep(0)
        assert crowd.order == ["a"]  # granted to b, whose task did not go on yet
        crowd.tasks["b"].cancel()
        await settled()
        assert crowd.order == ["a", "c"]
        assert crowd.tasks["b"].cancelled()

    play(limits(), scene)


def test_a_run_cancelled_in_the_moment_a_slot_comes_back_does_not_take_it_along() -> None:
    async def scene(crowd: Crowd) -> None:
        for name in ("a", "b", "c"):
            crowd.send(name, ANN)
        await settled()
        crowd.tasks["a"].cancel()
        crowd.tasks["b"].cancel()
        await settled()
        assert crowd.order == ["a", "c"]

    play(limits(), scene)


def test_a_block_that_fails_gives_its_slot_back() -> None:
    async def scene(crowd: Crowd) -> None:
        with pytest.raises(ZeroDivisionError):
            async with crowd.admission.slot(ANN, "n"):
                _ = 1 / 0
        assert crowd.admission.counts().running == 0

    play(limits(), scene)


async def advise(*, waiting: int, gap_s: float, moves: int, stuck_s: float = 0) -> object:
    """Return the advice of a queue of that length, after slots came back every `gap_s`."""
    crowd = Crowd(limits(waiting=waiting, caller_waiting=waiting + 1))
    for n in range(moves + waiting + 1):
        crowd.send(f"{n}", ANN)
        await settled()
        if n >= waiting and n < moves + waiting:
            crowd.clock.now += gap_s
            await crowd.end(crowd.order[-1])
    crowd.clock.now += stuck_s
    crowd.send("late", BEN)
    error = await crowd.refusal("late")
    await crowd.end_all()
    return error.facts["retry_after_s"]


@pytest.mark.parametrize(
    ("waiting", "gap_s", "moves", "stuck_s", "advised"),
    [
        (4, 2, 5, 0, 8),  # four wait, one leaves every two seconds
        (4, 0.001, 5, 0, 1),
        (50, 10, 5, 0, 60),
        (4, 0.001, 5, 5, 20),  # nothing came back for five seconds: it isn't as fast as it was
        (4, 0, 0, 0, 1),  # nothing is known yet
    ],
)
def test_a_refusal_advises_when_to_try_again(
    waiting: int, gap_s: float, moves: int, stuck_s: float, advised: int
) -> None:
    assert asyncio.run(advise(waiting=waiting, gap_s=gap_s, moves=moves, stuck_s=stuck_s)) == advised


def test_draining_refuses_those_who_wait_and_those_who_come_but_lets_runs_end() -> None:
    async def scene(crowd: Crowd) -> None:
        crowd.send("a", ANN)
        crowd.send("b", BEN)
        await settled()
        crowd.admission.drain()
        assert crowd.admission.counts().waiting == 0
        crowd.send("c", CAT)
        for name in ("b", "c"):
            with pytest.raises(EngineUnavailable, match="stopping") as caught:
                await crowd.tasks[name]
            assert "try again" in caught.value.hint
        assert not await crowd.admission.wait_empty(0.01)
        waiting = asyncio.ensure_future(crowd.admission.wait_empty(20))
        await settled()
        await crowd.end("a")
        assert await waiting
        assert crowd.order == ["a"]

    play(limits(), scene)


def test_an_admission_that_nobody_uses_is_empty() -> None:
    async def scene(crowd: Crowd) -> None:
        assert await crowd.admission.wait_empty(20)

    play(limits(), scene)


# What a generated schedule does: a caller's node sends a run; the n-th of those that hold a slot ends; the n-th of
# those that wait is cancelled; both in the same moment; the queue comes to rest.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.sampled_from(["end", "cancel", "end and cancel"]), st.integers(0, 50), st.integers(0, 50)),
    ),
    max_size=60,
)
LIMITS = st.builds(
    limits,
    running=st.integers(1, 4),
    waiting=st.integers(0, 12),
    caller_running=st.integers(1, 4),
    caller_waiting=st.integers(0, 8),
)


class Observed(Crowd):
    """A crowd whose turns are counted: how often each other caller, or node, got a slot since one could have had it."""

    def __init__(self, bounds: AdmissionLimits) -> None:
        super().__init__(bounds)
        self.bounds = bounds
        self.place: dict[str, tuple[int, str]] = {}
        self.seen = 0
        self.passed: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self.passed_nodes: defaultdict[tuple[int, str], Counter[str]] = defaultdict(Counter)

    def waiting(self) -> list[str]:
        """Return who waits, in the order of arrival."""
        return [name for name, task in self.tasks.items() if not task.done() and name not in self.order]

    def able(self) -> set[int]:
        """Return the callers that have a run waiting and would be let run if it were their turn."""
        held = Counter(self.place[name][0] for name in self.holding)
        return {
            caller
            for caller in {self.place[name][0] for name in self.waiting()}
            if held[caller] < self.bounds.per_caller_running
        }

    async def step(self, number: int, action: str, one: int, other: int) -> None:
        waiting, holding = self.waiting(), list(self.holding)
        if action == "send":
            name = f"{number}"
            self.place[name] = one, f"node {other}"
            self.send(name, one, f"node {other}")
        if action in ("end", "end and cancel") and holding:
            self.holding[holding[one % len(holding)]].set()
        if action in ("cancel", "end and cancel") and waiting:
            for _ in range(other % 4):  # before, while or after the slot that comes back is given on
                await asyncio.sleep(0)
            self.tasks[waiting[one % len(waiting)]].cancel()
        await settled()

    def check(self) -> None:
        """Check what holds whenever the queue is at rest."""
        waiting, counts = self.waiting(), self.admission.counts()
        held = Counter(self.place[name][0] for name in self.holding)
        queued = Counter(self.place[name][0] for name in waiting)
        assert (counts.running, counts.waiting) == (len(self.holding), len(waiting))
        assert counts.callers == {
            caller: Counts(running=held[caller], waiting=queued[caller]) for caller in {*held, *queued}
        }
        assert counts.running <= self.bounds.running
        assert counts.waiting <= self.bounds.waiting
        assert max(held.values(), default=0) <= self.bounds.per_caller_running
        assert max(queued.values(), default=0) <= self.bounds.per_caller_waiting
        assert counts.running == self.bounds.running or not self.able(), "a free slot, and a run for it"

    def check_turns(self, able: set[int], waiting: list[str]) -> None:
        """Check who got a slot since the last look against who could have had it then."""
        for name in self.order[self.seen :]:
            caller, node = self.place[name]
            for other in able - {caller}:
                self.passed[other][caller] += 1
            for rival in {self.place[one][1] for one in waiting if self.place[one][0] == caller} - {node}:
                self.passed_nodes[caller, rival][node] += 1
            self.forget(caller, node)
        self.seen = len(self.order)
        for name in waiting:
            if self.tasks[name].done():  # a run that is cancelled with the slot granted has had the turn
                self.forget(*self.place[name])
        for gone in set(self.passed) - self.able():
            del self.passed[gone]
        for place in set(self.passed_nodes) - {self.place[name] for name in self.waiting()}:
            del self.passed_nodes[place]
        rivals: list[Counter[int] | Counter[str]] = [*self.passed.values(), *self.passed_nodes.values()]
        turns = [count for rival in rivals for count in rival.values()]
        assert max(turns, default=0) <= 1, "one had two turns while another waited for its first"

    def forget(self, caller: int, node: str) -> None:
        self.passed.pop(caller, None)
        self.passed_nodes.pop((caller, node), None)


@given(LIMITS, STEPS)
def test_whatever_comes_ends_or_is_cancelled_caps_hold_turns_are_fair_and_no_slot_is_lost(
    bounds: AdmissionLimits, steps: list[tuple[str, int, int]]
) -> None:
    async def act() -> None:
        crowd = Observed(bounds)
        for number, (action, one, other) in enumerate(steps):
            able, waiting = crowd.able(), crowd.waiting()
            await crowd.step(number, action, one, other)
            crowd.check()
            crowd.check_turns(able, waiting)
        for place in set(crowd.place.values()):  # within a node: in the order of arrival
            of_node = [int(name) for name in crowd.order if crowd.place[name] == place]
            assert of_node == sorted(of_node)
        while crowd.holding:
            await crowd.end(next(iter(crowd.holding)))
            crowd.check()
        assert crowd.admission.counts() == Counts(running=0, waiting=0)
        assert all(task.done() for task in crowd.tasks.values())
        await asyncio.gather(*crowd.tasks.values(), return_exceptions=True)

    asyncio.run(act())
