"""Boundary: no program runs longer than its policy allows, whatever it does with the time."""

from __future__ import annotations

import asyncio
import time

import pytest

from sandbox.models import Outcome, RunResult
from sandbox.run.decision import Follow, Run
from tests.escape.bench import UNCONFINED, Bench, tightening
from tests.waiting import SLOWER

SLACK_S = 4.0 * SLOWER

ATTACKS = {
    "spinning": "while True:\n    pass\n",
    "sleeping": "import time\ntime.sleep(3600)\n",
    "waiting for input": "import sys, select\nselect.select([], [], [])\n",
    "spinning in C": "x = 7 ** 10 ** 8\n",
    "at exit": "import atexit, time\natexit.register(time.sleep, 3600)\nresult = 1\n",
    "in a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,)).start()\nresult = 1\n",
    "in a result that never ends": (
        "class Slow(list):\n    def __iter__(self):\n        import time; time.sleep(3600)\nresult = (x for x in"
        " Slow())\n"
    ),
    "in a loop of exceptions": (
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass\n"
    ),
    "opening a pipe": "import os\nos.mkfifo('/app/p')\nopen('/app/p')\n",
    "in a command": "run_command('while :; do :; done')\n",
    "in a terminal's queue": "import os\nleader, follower = os.openpty()\nos.read(leader, 1)\n",
}


@pytest.mark.host_only  # it is the runner's own clock
@pytest.mark.parametrize("name", ATTACKS)
def test_a_program_that_goes_on_is_timed_out(bench: Bench, name: str) -> None:
    began = time.monotonic()
    ended = bench.run(ATTACKS[name], limits=tightening(timeout_s=0.7))
    assert ended.outcome is Outcome.TIMED_OUT, ended
    assert ended.result_json is None
    assert 0.7 <= time.monotonic() - began < 0.7 + SLACK_S
    assert 700 <= ended.durations.program_ms < 700 + SLACK_S * 1000


@pytest.mark.host_only  # the runner's own clock again
def test_with_more_time_the_same_program_ends_by_itself(bench: Bench) -> None:
    text = "import time\ntime.sleep(1.2)\nresult = 1"
    assert bench.run(text, limits=tightening(timeout_s=0.7)).outcome is Outcome.TIMED_OUT
    assert bench.value(text) == 1


def test_a_program_can_not_take_more_cpu_than_its_share(bench: Bench) -> None:
    # Many processes spin for a second of wall time; together they may use what the policy gives, and a little more.
    text = """
        import os, time
        began = time.monotonic()
        children = []
        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                while time.monotonic() - began < 1.5:
                    pass
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        used = os.times()
        result = (used.children_user + used.children_system) / (time.monotonic() - began)
    """
    assert bench.value(text) <= bench.policy().limits.cpus * 1.25


# Libraries ask for cores, so that the answer is "done" (docs/policies.md), but no core is won or lost.
CORES = {
    "python": "os.sched_setaffinity(0, range(os.cpu_count()))",
    "another process": "os.sched_setaffinity(1, range(os.cpu_count()))",
    "a thread of its own": "libc.pthread_setaffinity_np(ctypes.c_void_p(libc.pthread_self()), 128, b'\\xff' * 128)",
    "a child": (
        "subprocess.run([sys.executable, '-c', 'import os; os.sched_setaffinity(os.getppid(), range(os.cpu_count()))'],"
        " check=True)"
    ),
}


def asking_for_cores(way: str) -> str:
    return f"""
        import ctypes, os, subprocess, sys, threading
        libc = ctypes.CDLL(None)
        libc.pthread_self.restype = ctypes.c_ulong

        def cores():
            return [sorted(os.sched_getaffinity(task)) for task in (0, 1)]

        before = cores()
        {CORES[way]}
        found = []
        thread = threading.Thread(target=lambda: found.extend(sorted(os.sched_getaffinity(0))))
        thread.start()
        thread.join()
        result = [cores() == before, found == before[0]]
    """


@pytest.mark.parametrize("way", CORES)
def test_the_cores_that_hold_the_share_can_not_be_changed(bench: Bench, way: str) -> None:
    assert bench.value(asking_for_cores(way)) == [True, True]


@pytest.mark.host_only
@pytest.mark.control
@pytest.mark.parametrize("way", ["python", "a thread of its own"])
def test_without_the_filter_the_cores_are_changed(bench: Bench, way: str) -> None:
    assert bench.run_weakened(asking_for_cores(way), UNCONFINED).value == [False, False]


@pytest.mark.host_only  # where no cgroup holds the share
def test_half_a_cpu_that_is_used_up_reads_as_timed_out(bench: Bench) -> None:
    # Where affinity and a CPU-time limit hold the share, one process reaches the latter before the wall clock does.
    policy = bench.policy_with(limits__cpus=0.25, limits__timeout_s=6)
    ended = bench.run("while True:\n    pass\n", policy=policy)
    assert ended.outcome is Outcome.TIMED_OUT, ended.explanation


@pytest.mark.host_only  # the runner's own clock again
def test_cancelling_ends_any_program_within_a_second(bench: Bench) -> None:
    async def cancelled() -> tuple[RunResult, float]:
        cancel = asyncio.Event()
        text = (
            "import signal\nfor n in range(1, 30):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError:"
            " pass\nprint('on')\nwhile True: pass"
        )
        moments: list[float] = []

        def on_output(kind: str, data: bytes) -> None:
            moments.append(time.monotonic())
            cancel.set()

        run = Run(request=bench.request(text), follow=Follow(output=on_output))
        result = await bench.runner().run(run, cancel=cancel)
        return result, time.monotonic() - moments[0]

    ended, took_s = asyncio.run(cancelled())
    assert ended.outcome is Outcome.CANCELLED
    assert took_s < 1.5 * SLOWER
