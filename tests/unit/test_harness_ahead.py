"""The program's process, forked ahead of its job: it waits, is no other for it, and never outlives its purpose."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from sandbox.channel.collector import Collector
from sandbox.channel.frames import CANCEL, job_frames, preload_frame
from sandbox.kernel.family import children, fields
from tests.unit.test_harness_driver import LIMITS, Harness, Run, job, run, separate, started_harness
from tests.unit.test_harness_hostile import gone
from tests.unit.test_harness_preload import STATE, Library, library, next_frame, run_preloaded
from tests.waiting import until

__all__ = ["library"]  # a fixture


@contextmanager
def prepared(*modules: str) -> Iterator[tuple[Harness, int]]:
    """Start a harness that has prepared for its job; also give the process that waits to become the program."""
    with started_harness() as process:
        assert next_frame(process.connection)[0] == "R"
        process.connection.sendall(preload_frame(modules))
        assert next_frame(process.connection)[0] == "R"
        (waiting,) = children(process.process.pid)
        yield process, waiting


def unread(process: Harness) -> int:
    """Return how many bytes sent to the harness it has not read."""
    return int.from_bytes(fcntl.ioctl(process.connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def told(process: Harness) -> Run:
    """Return what the rest of a run's frames amount to."""
    collector = Collector(LIMITS)
    collector.feed("R", b'{"protocol":1,"python":[3,8,0],"implementation":"cpython"}')
    while collector.quit is None:
        collector.feed(*next_frame(process.connection))
    stderr, status = process.finish()
    return Run(collector, stderr, status, process.app)


def test_the_process_that_waits_becomes_the_program() -> None:
    with prepared() as (process, waiting):
        process.send_job("import os; result = [os.getpid(), payload]", payload="p")
        done = told(process)
    assert done.result == [waiting, "p"]
    assert (done.ended, done.harness_status, done.harness_stderr) == ("exited", 0, "")


def test_the_process_that_waits_holds_nothing_of_the_supervisors() -> None:
    with prepared() as (_, waiting):
        held = [os.readlink(f"/proc/{waiting}/fd/{entry}") for entry in os.listdir(f"/proc/{waiting}/fd")]
        assert len([name for name in held if name.startswith("socket")]) == 2  # inbox and channel, one end of each
        assert held.count("/dev/null") == 1
        assert len([name for name in held if name.startswith("pipe")]) == 2
        assert len(held) == 5


def test_a_program_that_was_forked_ahead_has_the_same_modules_apart_from_compiled_ones() -> None:
    code = "import sys; result = sorted(sys.modules)"
    more = set(run_preloaded(code).result) - set(run(code).result)
    assert more <= {"_json", "atexit", "fcntl", "itertools", "math"}


def test_a_program_that_was_forked_ahead_sees_the_same_process() -> None:
    ordinary = run(STATE, env={"A": "1"}).result
    ahead = run_preloaded(STATE, env={"A": "1"})
    seen = json.loads(json.dumps(ahead.result).replace(str(ahead.app), "/app"))
    assert seen == json.loads(json.dumps(ordinary).replace(ordinary["cwd"], "/app"))


def test_the_rehearsal_leaves_no_names_behind(library: Library) -> None:
    library(main="import sys\nMAIN = sys.modules['__main__']")
    code = "import sys; result = sorted(vars(sys.modules['__main__']))"
    expected = run(code).result
    assert run_preloaded(code).result == expected
    assert run_preloaded(code, "main").result == expected


def test_a_process_that_died_while_it_waited_is_replaced(library: Library) -> None:
    library(tables="DATA = 7")
    with prepared("tables") as (process, waiting):
        os.kill(waiting, signal.SIGKILL)
        until(lambda: gone(waiting))
        process.send_job("import os, sys; result = [os.getpid(), 'tables' in sys.modules, payload]", payload=3)
        done = told(process)
    pid, loaded, payload = done.result
    assert pid != waiting
    assert (loaded, payload) == (True, 3)
    assert (done.quit.exit_code, done.quit.signal, done.harness_status) == (0, None, 0)


def test_a_process_that_dies_while_it_gets_its_job_is_told_as_killed() -> None:
    frames = separate(job_frames(**job("result = 1", payload="x" * 1_000_000)))
    with prepared() as (process, waiting):
        for frame in frames[:3]:
            process.connection.sendall(frame)
        until(lambda: unread(process), 0)
        os.kill(waiting, signal.SIGKILL)
        for frame in frames[3:]:
            process.connection.sendall(frame)
        done = told(process)
    assert done.quit.signal == "SIGKILL"
    assert done.result_json() is None
    assert done.harness_status == 0


def test_cancelling_before_the_job_is_complete_means_that_nothing_runs() -> None:
    # All of it reaches the waiting process but the word to go: large pieces are passed on at once.
    frames = separate(job_frames(**job("open('ran', 'w')", message={"text": "x" * 200_000})))
    for sent in range(len(frames)):
        with prepared() as (process, waiting):
            for frame in frames[:sent]:
                process.connection.sendall(frame)
            process.connection.sendall(CANCEL)
            assert told(process).ended == "cancelled"
            until(partial(gone, waiting))
            assert not (process.app / "ran").exists()


@pytest.mark.parametrize("sent", [0, 2])
def test_a_runner_that_goes_away_takes_the_waiting_process_with_it(sent: int) -> None:
    with prepared() as (process, waiting):
        for frame in separate(job_frames(**job("open('ran', 'w')", payload="x" * 1_000_000)))[:sent]:
            process.connection.sendall(frame)
        process.connection.close()
        assert process.process.wait(timeout=5) == 70
        until(lambda: gone(waiting))
        assert not (process.app / "ran").exists()


def test_a_supervisor_that_dies_takes_the_waiting_process_with_it() -> None:
    with prepared() as (process, waiting):
        process.process.kill()
        until(lambda: gone(waiting))


def test_the_supervisor_never_holds_a_payload() -> None:
    payload = b'"' + b"x" * 80_000_000 + b'"'
    with prepared() as (process, _):
        before = fields(f"/proc/{process.process.pid}/status", b"VmHWM")[b"VmHWM"]
        process.send_job("result = len(payload)", raw_payload=payload)
        peaks: list[int] = []
        while True:
            kind, body = next_frame(process.connection)
            if kind == "V":
                assert body == b"80000000"
            peaks.append(fields(f"/proc/{process.process.pid}/status", b"VmHWM")[b"VmHWM"])
            if kind == "Q":
                break
        assert peaks[-1] - before < 10_000  # KiB


def test_a_job_that_does_not_fit_into_memory_is_told_as_such() -> None:
    with prepared() as (process, waiting):
        cap = 64 << 20
        used = fields(f"/proc/{waiting}/status", b"VmSize")[b"VmSize"] << 10
        resource.prlimit(waiting, resource.RLIMIT_AS, (used + cap, used + cap))
        process.send_job("result = len(payload)", raw_payload=b'"' + b"x" * 2 * cap + b'"')
        done = told(process)
    assert done.cause == "memory"
    assert done.quit.exit_code == 70


def test_what_getting_ready_took_is_not_the_programs_processor_time(library: Library) -> None:
    library(busy="import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'sum(range(80_000_000))'], check=True)")
    assert run_preloaded("result = 1", "busy").quit.cpu_s < 0.1
    assert run_preloaded("import busy; result = 1").quit.cpu_s > 0.1
