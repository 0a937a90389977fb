"""Every cap that a receipt calls proven stands in the cgroup's own files, and the kernel keeps it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from sandbox.container.spec import MIB, OWN_PROCESSES
from sandbox.models import Outcome, RunResult
from sandbox.policy.model import Policy
from tests.escape.bench import Bench
from tests.kernel.group import Group, observe

HELD_MIB = 70


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One run: the policy, what the cgroup's files said while it went on, and what came of it."""

    policy: Policy
    files: dict[str, str]
    peak_bytes: int
    result: RunResult


@pytest.fixture(scope="module")
def name(bench: Bench) -> str:
    return bench.policy_with(
        limits__memory_mib=128,
        limits__cpus=0.75,
        limits__processes=24,
        limits__timeout_s=20,
        enforcement__on_unenforceable="refuse",
    )


@pytest.fixture(scope="module")
def seen(bench: Bench, name: str, broken: str) -> Seen:
    del broken  # it only says that this is looked at anew with each cap that is left out
    program = """
        import time
        held = bytearray(b"x") * (payload << 20)
        del held
        print("held", flush=True)
        time.sleep(600)
    """

    def look(group: Group) -> tuple[dict[str, str], int]:
        return {
            "memory.max": group.tightest("memory.max"),
            "memory.swap.max": group.tightest("memory.swap.max"),
            "cpu.max": group.text("cpu.max"),
            "pids.max": group.tightest("pids.max"),
        }, int(group.text("memory.peak"))

    result, (files, peak_bytes) = asyncio.run(observe(bench, program, look, policy=name, payload=HELD_MIB))
    return Seen(policy=bench.policy(name), files=files, peak_bytes=peak_bytes, result=result)


@pytest.mark.holds("memory")
def test_memory_max_is_the_policy_s(seen: Seen) -> None:
    assert seen.files["memory.max"] == str(seen.policy.limits.memory_mib * MIB)


@pytest.mark.holds("memory")
def test_there_is_no_swap(seen: Seen) -> None:
    assert seen.files["memory.swap.max"] == "0"


@pytest.mark.holds("cpus")
def test_cpu_max_is_the_policy_s(seen: Seen) -> None:
    quota, period = map(int, seen.files["cpu.max"].split())
    assert quota / period == pytest.approx(seen.policy.limits.cpus)


@pytest.mark.holds("processes")
def test_pids_max_is_the_policy_s_and_one_for_the_harness(seen: Seen) -> None:
    assert seen.files["pids.max"] == str(seen.policy.limits.processes + OWN_PROCESSES)


@pytest.mark.parametrize("control", ["memory", "cpus", "processes"])
def test_the_receipt_calls_it_proven_by_cgroup(seen: Seen, control: str) -> None:
    assert seen.result.receipt is not None
    (row,) = (row for row in seen.result.receipt.controls if row.control == control)
    assert (row.status, row.mechanism) == ("proven", "cgroup")


def test_peak_memory_in_the_result_is_the_cgroup_s(seen: Seen) -> None:
    # What was freed again counts: only the kernel's own high-water mark knows it for certain.
    assert seen.result.peak_memory_mib is not None
    assert HELD_MIB <= seen.peak_bytes / MIB < seen.policy.limits.memory_mib
    assert seen.result.peak_memory_mib == pytest.approx(seen.peak_bytes / MIB, rel=0.05)


# ---------------------------------------------------------------- CPUs

SPIN = """
    import os
    for _ in range(payload - 1):
        if os.fork() == 0:
            while True:
                pass
    print("spinning", flush=True)
    while True:
        pass
"""
PERIODS = 30


@pytest.mark.holds("cpus")
@pytest.mark.parametrize(("cpus", "spinners"), [(0.5, 4), (1.5, 4)])
def test_spinning_processes_use_up_their_share_and_get_no_more(bench: Bench, cpus: float, spinners: int) -> None:
    # Counted in the scheduler's own periods, not by a clock: a busy machine stretches both in the same way.
    policy = bench.policy_with(limits__cpus=cpus, limits__timeout_s=30)

    def look(group: Group) -> tuple[float, float]:
        quota, period_us = group.text("cpu.max").split()
        assert quota != "max", "no limit is set"
        before = after = group.counters("cpu.stat")
        while after["nr_periods"] < before["nr_periods"] + PERIODS:
            time.sleep(0.1)  # the processors are for the sandbox
            after = group.counters("cpu.stat")
        used_us = after["usage_usec"] - before["usage_usec"]
        periods = after["nr_periods"] - before["nr_periods"]
        return used_us / (periods * int(period_us)), (after["nr_throttled"] - before["nr_throttled"]) / periods

    _, (share, throttled) = asyncio.run(observe(bench, SPIN, look, policy=policy, payload=spinners))
    assert share <= 1.1 * cpus
    # A period in which the kernel stopped it is one in which it had all that it may have; in others, somebody else had
    # the processors.
    assert throttled > 0
    assert share >= 0.9 * throttled * cpus


# ---------------------------------------------------------------- processes

FORK = """
    import os, time
    made = 0
    try:
        while made < payload:
            if os.fork() == 0:
                time.sleep(600)
            made += 1
    except OSError as error:
        result = [made, error.errno]
    else:
        result = [made, 0]
"""
THREADS = """
    import threading, time
    made = 0
    try:
        while made < payload:
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            made += 1
    except RuntimeError:
        pass
    result = [made, 11 if made < payload else 0]
"""
EAGAIN = 11


@pytest.mark.holds("processes")
@pytest.mark.parametrize("program", [FORK, THREADS], ids=["processes", "threads"])
def test_the_last_one_is_the_one_that_the_policy_counts(bench: Bench, program: str) -> None:
    policy = bench.policy_with(limits__processes=20, limits__timeout_s=20)
    # The program itself is one of them.
    assert bench.value(program, policy=policy, payload=60) == [19, EAGAIN]


@pytest.mark.holds("processes")
def test_the_kernel_counts_the_forks_that_it_refused(bench: Bench) -> None:
    policy = bench.policy_with(limits__processes=20, limits__timeout_s=20)
    program = FORK.replace("result = [made, error.errno]", "print('full', flush=True); time.sleep(600)")

    def look(group: Group) -> int:
        return max(group.counters(file)["max"] for file in group.levels("pids.events"))

    _, refused = asyncio.run(observe(bench, program, look, policy=policy, payload=60))
    assert refused >= 1


@pytest.mark.holds("processes")
def test_a_fork_bomb_is_told_as_one(bench: Bench) -> None:
    policy = bench.policy_with(limits__processes=20, limits__timeout_s=1)
    program = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    ended = bench.run(program, policy=policy)
    assert ended.outcome is Outcome.TOO_MANY_PROCESSES, ended.explanation
