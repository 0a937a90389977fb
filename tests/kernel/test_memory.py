"""Memory bombs end at the kernel's hand, and nobody else notices."""

from __future__ import annotations

import asyncio

import pytest

from sandbox.kernel import memory as kernel_memory
from sandbox.models import Outcome, RunResult
from sandbox.run.decision import Follow, Run
from tests.escape.bench import Bench, value_of
from tests.escape.test_file_locks import LOCKING
from tests.escape.test_memory import AT_ONCE, ATTACKS, CAP_MIB
from tests.kernel.group import observe, own_service
from tests.waiting import SLOWER

# Each asks for `payload` MiB in all, and is content when it gets them: with the cap left out it ends well.
BOMBS = {
    "one process": AT_ONCE + ATTACKS["one process"],
    "shared memory": AT_ONCE + ATTACKS["shared and anonymous"],
    "a child whose parent goes on": AT_ONCE + ATTACKS["a child that outgrows its parent"],
    "many processes": (
        """
        import os, time
        each = 24
        reading, writing = os.pipe()
        for _ in range(payload // each):
            if os.fork() == 0:
                held = bytearray(b"x") * (each << 20)
                os.write(writing, b"x")
                time.sleep(600)
        got = 0
        while got < payload // each:
            got += len(os.read(reading, 64))
        result = got * each
    """
    ),
    "files in the three places": (
        """
        for place, mib in (("/app", 40), ("/tmp", 40), ("/dev/shm", 10)):
            with open(place + "/filler", "wb") as file:
                for _ in range(mib):
                    file.write(b"x" * (1 << 20))
        held = bytearray(b"x") * ((payload - 90) << 20)
        result = payload
    """
    ),
    "files alone, every process small": (
        """
        for place, mib in (("/app", 40), ("/tmp", 40), ("/dev/shm", 13)):
            with open(place + "/filler", "wb") as file:
                for _ in range(mib):
                    file.write(b"x" * (1 << 20))
        result = payload
    """
    ),
}
NEIGHBOUR = """
    import time
    held = bytearray(b"x") * (40 << 20)
    print("on", flush=True)
    for _ in range(10):
        time.sleep(payload / 10)
        held[::4096] = held[::4096]
    result = sum(held[::4096]) // 120
"""


@pytest.fixture(scope="module")
def tight(bench: Bench) -> str:
    return bench.policy_with(
        limits__memory_mib=CAP_MIB,
        limits__timeout_s=20,
        limits__open_files=1024,
        filesystem__app_mib=41,
        filesystem__tmp_mib=41,
        filesystem__shm_mib=14,
    )


@pytest.fixture(scope="module")
def roomy(bench: Bench) -> str:
    return bench.policy_with(
        limits__memory_mib=512,
        limits__timeout_s=20,
        limits__open_files=1024,
        filesystem__app_mib=41,
        filesystem__tmp_mib=41,
        filesystem__shm_mib=14,
    )


@pytest.mark.holds("memory")
@pytest.mark.parametrize("name", BOMBS)
def test_a_memory_bomb_is_ended_by_the_kernel(bench: Bench, tight: str, name: str) -> None:
    kills = own_service().counters("memory.events")["oom_kill"]
    ended = bench.run(BOMBS[name], policy=tight, payload=2 * CAP_MIB)
    assert ended.outcome is Outcome.OUT_OF_MEMORY, (ended.outcome, ended.explanation, ended.error)
    assert f"{CAP_MIB} MiB (limits.memory_mib)" in ended.explanation
    assert own_service().counters("memory.events")["oom_kill"] > kills, "it was not the kernel"
    assert ended.peak_memory_mib is not None
    assert ended.peak_memory_mib <= CAP_MIB + 1
    # Also where only one of many was killed: nobody waits for the time to be over.
    assert ended.durations.program_ms < bench.policy(tight).limits.timeout_s * 1000 / 2


@pytest.mark.parametrize("name", BOMBS)
def test_under_a_larger_cap_the_same_program_succeeds(bench: Bench, roomy: str, name: str) -> None:
    assert bench.value(BOMBS[name], policy=roomy, payload=2 * CAP_MIB) == 2 * CAP_MIB


@pytest.mark.holds("memory")
def test_neighbours_and_engine_do_not_notice(bench: Bench, tight: str) -> None:
    async def side_by_side() -> tuple[RunResult, RunResult]:
        runner, on = bench.runner(), asyncio.Event()
        request = bench.request(NEIGHBOUR, policy=tight, payload=3 * SLOWER)
        quiet = asyncio.ensure_future(
            runner.run(Run(request=request, follow=Follow(output=lambda kind, data: on.set())))
        )
        await on.wait()
        bomb_request = bench.request(BOMBS["many processes"], policy=tight, payload=2 * CAP_MIB)
        bomb = await runner.run(Run(request=bomb_request))
        assert not quiet.done(), "they were not there at the same time"
        return await quiet, bomb

    quiet, bomb = asyncio.run(side_by_side())
    assert bomb.outcome is Outcome.OUT_OF_MEMORY, bomb.explanation
    assert value_of(quiet) == 40 * 256
    # The engine's own processes lie beside the sandboxes, not in them.
    assert bench.value("result = 1", policy=tight) == 1


# ---------------------------------------------------------------- locks of files

LOCK = f"""{LOCKING}
lock(payload, "all", files=100)
print("locked", flush=True)
time.sleep(600)
"""
MANY_LOCKS = 60_000  # 11 MiB of the kernel's memory


def test_the_kernel_charges_nobody_for_locks_of_files(
    bench: Bench, tight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where this fails, Linux counts them again, and nobody else needs to.
    monkeypatch.setattr(kernel_memory, "MAX_LOCKS", 1 << 30)

    def charged(locks: int) -> int:
        look = observe(bench, LOCK, lambda group: int(group.text("memory.current")), policy=tight, payload=locks)
        return asyncio.run(look)[1]

    assert charged(MANY_LOCKS) - charged(100) < MANY_LOCKS * kernel_memory.LOCK_BYTES / 4


def test_so_a_watchdog_counts_locks(bench: Bench, tight: str) -> None:
    ended = bench.run(LOCK, policy=tight, payload=MANY_LOCKS)
    assert ended.outcome is Outcome.OUT_OF_MEMORY, (ended.outcome, ended.explanation, ended.error)
    assert "file locks" in ended.explanation
    assert ended.receipt is not None
    (row,) = (row for row in ended.receipt.controls if row.control == "memory")
    assert row.mechanism == "cgroup"
    assert "counted by a watchdog" in row.evidence
