"""Boundary: processes are counted, every one of them ends with the run, and none steers the harness."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sandbox.models import Outcome
from tests.escape.bench import Bench, tightening, without_rlimit
from tests.waiting import SLOWER

SLACK_S = 4.0 * SLOWER  # from the policy's timeout to the answer, on a machine that does other things as well


def cmdlines() -> set[str]:
    """Return the command lines of all processes of this host that can be read."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.add((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found


def test_a_fork_bomb_ends_as_too_many_processes(bench: Bench) -> None:
    ended = bench.run("import os\nwhile True:\n    os.fork()\n")
    assert ended.outcome is Outcome.TOO_MANY_PROCESSES
    assert str(bench.policy().limits.processes) in ended.explanation


def test_a_fork_bomb_that_swallows_its_errors_ends_as_too_many_processes(bench: Bench) -> None:
    text = """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """
    began = time.monotonic()
    ended = bench.run(text, limits=tightening(timeout_s=2))
    assert ended.outcome is Outcome.TOO_MANY_PROCESSES
    assert time.monotonic() - began < 2 + SLACK_S


def test_a_fork_bomb_whose_parents_leave_ends_within_the_timeout(bench: Bench) -> None:
    # Each process starts two and ends: nothing stays long enough to be listed, process 1 inherits them all.
    text = """
        import os
        def bomb():
            while True:
                try:
                    if os.fork() == 0:
                        os.setsid()
                        if os.fork():
                            os._exit(0)
                except OSError:
                    pass
        bomb()
    """
    began = time.monotonic()
    ended = bench.run(text, limits=tightening(timeout_s=2))
    assert ended.outcome in (Outcome.TOO_MANY_PROCESSES, Outcome.TIMED_OUT)
    assert time.monotonic() - began < 2 + SLACK_S


def test_a_thread_bomb_ends_as_too_many_processes(bench: Bench) -> None:
    text = """
        import threading, time
        while True:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    """
    ended = bench.run(text)
    assert ended.outcome is Outcome.TOO_MANY_PROCESSES


COUNT = """
import os, signal
children = []
try:
    for _ in range(payload):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except OSError:
    pass
for pid in children:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
result = len(children)
"""


def test_exactly_as_many_processes_run_as_the_policy_says(bench: Bench) -> None:
    allowed = bench.policy().limits.processes
    assert bench.value(COUNT, payload=allowed + 20) == allowed - 1  # the program itself is one


@pytest.mark.host_only  # the runner and the harness do this, wherever they are
def test_a_request_may_ask_for_fewer_processes(bench: Bench) -> None:
    assert bench.value(COUNT, payload=40, limits=tightening(processes=10)) == 9


@pytest.mark.host_only
@pytest.mark.control
def test_without_the_limit_the_same_program_starts_more(bench: Bench) -> None:
    more = bench.policy().limits.processes + 20
    weak = bench.run_weakened(COUNT, without_rlimit("nproc", "processes"), payload=more)
    assert weak.value == more
    assert weak.noticed == {"processes"}


DAEMON = """
import os, time
marker = payload["marker"]
def daemonise():
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    import signal
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    if payload["close"]:
        os.closerange(0, 256)
    os.execv("/bin/sh", ["sh", "-c", "while :; do sleep 1; done", marker])
def words(pid):
    try:
        return open(f"/proc/{pid}/cmdline").read()
    except OSError:  # it has ended since
        return ""
def daemons():
    return sum(marker in words(pid) for pid in os.listdir("/proc") if pid.isdigit())
daemonise()
while not daemons():
    time.sleep(0.05)
time.sleep(0.5)
result = daemons()
"""


@pytest.mark.parametrize("close", [False, True], ids=["holding the output", "with everything closed"])
def test_a_daemon_ends_with_the_run(bench: Bench, close: bool) -> None:
    marker = f"daemon-of-test-{os.getpid()}-{close}"
    began = time.monotonic()
    assert bench.value(DAEMON, payload={"marker": marker, "close": close}) == 1
    assert time.monotonic() - began < bench.policy().limits.timeout_s, "the run waited for the daemon"
    assert not any(marker in line for line in cmdlines())


@pytest.mark.host_only  # the runner and the harness do this, wherever they are
def test_a_program_that_ignores_every_signal_is_killed_at_its_timeout(bench: Bench) -> None:
    text = """
        import os, signal, time
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        print("ready", flush=True)
        while True:
            time.sleep(60)
    """
    began = time.monotonic()
    ended = bench.run(text, limits=tightening(timeout_s=1))
    assert (ended.outcome, ended.stdout) == (Outcome.TIMED_OUT, b"ready\n")
    assert time.monotonic() - began < 1 + SLACK_S


@pytest.mark.host_only  # the runner and the harness do this, wherever they are
def test_a_stopped_program_is_killed_at_its_timeout(bench: Bench) -> None:
    ended = bench.run("import os, signal\nos.kill(0, signal.SIGSTOP)", limits=tightening(timeout_s=1))
    assert ended.outcome is Outcome.TIMED_OUT


def test_a_signal_to_everybody_reaches_the_program_alone(bench: Bench) -> None:
    # kill(-1) spares the caller and process 1, which takes no fatal signal from inside.
    text = """
        import os, signal, time
        if os.fork() == 0:
            time.sleep(60)
        os.kill(-1, signal.SIGKILL)
        result = os.waitstatus_to_exitcode(os.wait()[1])
    """
    assert bench.value(text) == -9


@pytest.mark.host_only  # the runner and the harness do this, wherever they are
def test_no_signal_ends_or_stops_the_harness(bench: Bench) -> None:
    text = """
        import os, signal
        for _ in range(20):
            for number in range(1, 65):
                try:
                    os.kill(1, number)
                except (OSError, ValueError):
                    pass
        result = "still heard"
    """
    assert bench.value(text) == "still heard"


@pytest.mark.host_only  # the runner and the harness do this, wherever they are
def test_a_program_that_kills_itself_is_killed(bench: Bench) -> None:
    ended = bench.run("import os, signal\nresult = 1\nos.kill(os.getpid(), signal.SIGKILL)")
    assert (ended.outcome, ended.signal) == (Outcome.KILLED, "SIGKILL")
    assert ended.result_json is None


def test_a_session_of_its_own_does_not_save_a_child(bench: Bench) -> None:
    marker = f"session-of-test-{os.getpid()}"
    text = """
        import subprocess
        subprocess.Popen(["sh", "-c", "while :; do sleep 1; done", payload], start_new_session=True)
        result = 1
    """
    assert bench.value(text, payload=marker) == 1
    assert not any(marker in line for line in cmdlines())


@pytest.mark.host_only  # the runner and the harness do this, wherever they are
def test_the_priority_of_the_harness_does_not_decide_over_the_timeout(bench: Bench) -> None:
    # A program may lower the priority of every process of its user, the harness among them, and then keep all cores
    # busy.
    text = """
        import os
        try:
            os.setpriority(os.PRIO_USER, 0, 19)
        except OSError:
            pass
        for _ in range(10):
            if os.fork() == 0:
                break
        while True:
            pass
    """
    began = time.monotonic()
    ended = bench.run(text, limits=tightening(timeout_s=1))
    assert ended.outcome is Outcome.TIMED_OUT
    assert time.monotonic() - began < 1 + SLACK_S


@pytest.mark.host_only  # the runner and the harness do this, wherever they are
def test_a_parent_that_leaves_its_child_behind_is_told_apart_from_the_child(bench: Bench) -> None:
    # The forked copy reaches the end of the program, too; its result must not be taken for the program's.
    text = """
        import os
        if os.fork() == 0:
            result = "of the copy"
        else:
            os.wait()
            result = "of the program"
    """
    assert bench.value(text) == "of the program"
