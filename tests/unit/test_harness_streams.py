"""What a program wrote is there however it ends: by itself, by a signal, or by the supervisor, in C and in children."""

from __future__ import annotations

import os
import textwrap
import threading
from typing import Any

import pytest

from sandbox.channel.collector import Collector
from sandbox.channel.frames import CANCEL
from sandbox.inside.harness.streams import AT_ONCE
from sandbox.inside.harness.supervisor import with_the_rest
from tests.unit.test_harness_driver import LIMITS, Run, run, started_harness
from tests.unit.test_harness_preload import Library, library, run_preloaded
from tests.waiting import WAIT_S

__all__ = ["library"]  # a fixture

MANY = f"for n in range({AT_ONCE}):\n    print(n, end=' ')\n"  # more writes than are sent one by one
HANGS = "log('now')\ntime.sleep(600)"
WRITES = """
import codecs, ctypes, sys
print("one", 1, end=" ")
sys.stdout.write("two"); sys.stdout.write(" 2 ")
sys.stdout.buffer.write(b"three 3 ")
codecs.getwriter("utf-8")(sys.stdout.buffer).write("four 4 ")
ctypes.CDLL(None).printf(b"five %d ", 5)
print("six 6", end=" ", file=sys.stderr)
"""
C = "import ctypes\nlibc = ctypes.CDLL(None)\n"


def cancelled(code: str, **fields: Any) -> Run:
    """Run a program, and cancel it when it logs."""
    collector = Collector(fields.get("limits", LIMITS))
    with started_harness() as process:
        process.send_job("import os, sys, time\n" + textwrap.dedent(code), **fields)
        for kind, body in process.frames_until_quit():
            collector.feed(kind, body)
            if kind == "L":
                process.connection.sendall(CANCEL)
        stderr, status = process.finish()
        return Run(collector, stderr, status, process.app)


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "1 / 0",
        "sys.exit(3)",
        "os._exit(0)",
        "os.abort()",
        "os.kill(os.getpid(), 9)",
        "os.kill(os.getpid(), 15)",
        "signal.raise_signal(11)",
        "os.execv('/bin/true', ['true'])",
        "raise MemoryError",
        "threading.Thread(target=os._exit, args=[1]).start(); time.sleep(600)",
    ],
)
def test_a_line_without_its_end_is_there_whatever_ends_the_program(end: str) -> None:
    done = run(f"{WRITES}\nimport os, signal, threading, time\n{end}\n")
    assert done.stdout == b"one 1 two 2 three 3 four 4 five 5 "
    assert done.stderr.startswith(b"six 6 ")


@pytest.mark.parametrize(
    "main",
    [
        HANGS,
        "log('now')\nwhile True: pass",
        "import threading\nlock = threading.Lock()\nlock.acquire()\nlog('now')\nlock.acquire()",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nthreading.Thread(target=time.sleep, args=[600]).start()\nlog('now')",
    ],
)
@pytest.mark.parametrize("before", ["", MANY])
def test_a_line_without_its_end_is_there_when_the_run_is_cancelled(before: str, main: str) -> None:
    own = "mine = open(1, 'w', closefd=False)\nmine.write('seven 7 ')"  # with a buffer of the program's making
    done = cancelled(f"import signal, threading\n{before}{WRITES}\n{own}\n{main}")
    assert done.stdout.endswith(b"seven 7 ")
    assert [word in done.stdout for word in (b"one 1 ", b"two 2 ", b"three 3 ", b"four 4 ", b"five 5 ")] == [True] * 5
    assert done.stderr == b"six 6 "
    assert (done.ended, done.quit.signal) == ("cancelled", "SIGKILL")


def test_a_program_that_does_not_listen_is_killed_all_the_same() -> None:
    done = cancelled("import signal\nsignal.signal(64, signal.SIG_IGN)\nprint('loading', end=' ')\n" + HANGS)
    assert (done.stdout, done.ended, done.quit.signal) == (b"loading ", "cancelled", "SIGKILL")


@pytest.mark.parametrize(
    "work",
    [
        "import threading\nthreading.Thread(target=print, args=['from a thread'], kwargs={'end': ' '}).start()",
        "if os.fork() == 0:\n    print('from a fork', end=' ')\n    os._exit(0)\nos.wait()",
        "if os.fork() == 0:\n    print('from a fork', end=' ')\n    log('now')\n    time.sleep(600)",
        "import subprocess\nsubprocess.run([sys.executable, '-c', 'import os; print(1, end=\" \"); os._exit(0)'])",
        "import subprocess\nsubprocess.run([sys.executable, '-c', 'import os; print(1); os.kill(os.getpid(), 9)'])",
        "import multiprocessing\np = multiprocessing.get_context('fork').Process(target=print, args=[1], kwargs={'end': ' '})\n"
        "p.start(); p.join()",
    ],
)
def test_threads_and_children_lose_nothing_either(work: str) -> None:
    done = cancelled(f"{work}\n{HANGS}")
    assert done.stdout.strip() in (b"from a thread", b"from a fork", b"1")


def test_what_python_and_c_print_keeps_its_order() -> None:
    done = run(C + "for n in range(3):\n    print('python', n)\n    libc.printf(b'c %d\\n', n)")
    assert done.stdout == b"python 0\nc 0\npython 1\nc 1\npython 2\nc 2\n"


def test_a_fork_repeats_no_line_of_its_parent() -> None:
    done = run(C + "import os\nprint('a', end=' ')\nlibc.printf(b'b ')\nif os.fork():\n    os.wait()\n")
    assert done.stdout == b"a b "


@pytest.mark.parametrize(
    "text",
    [
        "import atexit\natexit.register(print, 'kept', end=' ')",
        "kept = open(1, 'w', closefd=False); kept.write('kept ')",
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'utf-8'); print('kept', end=' ')",
        C + "f = libc.fdopen; f.restype = ctypes.c_void_p; libc.fputs(b'kept ', ctypes.c_void_p(f(1, b'w')))",
    ],
)
def test_what_only_the_end_of_python_writes_is_written(text: str) -> None:
    assert run(f"{text}\nresult = 1").stdout == b"kept "


def test_a_program_that_writes_much_gets_all_of_it_in_order_by_lines() -> None:
    limits = type(LIMITS)(**{**LIMITS.__dict__, "output_bytes": 8 << 20})
    count = 3 * AT_ONCE
    done = run(f"for n in range({count}):\n    print('line', n)\nimport os\nos._exit(0)", limits=limits)
    assert done.stdout == b"".join(b"line %d\n" % n for n in range(count))


def test_a_program_that_writes_much_has_streams_of_c_alone_again() -> None:
    code = (
        "import sys\nbefore = sys.stdout.buffer.write\n"
        + MANY
        + "result = [type(f).__name__ for f in (before, sys.stdout.buffer.write)]"
    )
    assert run(code).result == ["function", "builtin_function_or_method"]


def test_a_program_that_writes_slowly_is_never_taken_for_one_that_writes_much() -> None:
    code = "import itertools, sys, time\ntime.monotonic = itertools.count(time.monotonic() + 60, 60).__next__\n"
    done = run(code + MANY + "result = type(sys.stdout.buffer.write).__name__")
    assert done.result == "function"


def test_streams_that_preloaded_modules_hold_lose_nothing(library: Library) -> None:
    library(holds="import ctypes, sys\nlibc = ctypes.CDLL(None)\nout = sys.stdout\nlibc.puts(b'silent')\n")
    done = run_preloaded("import holds, os\nholds.libc.printf(b'c ')\nholds.out.write('p ')\nos._exit(0)", "holds")
    assert done.stdout == b"c p "


def test_a_line_that_is_written_in_two_pieces_is_told_as_one() -> None:
    ours, its = os.pipe()
    rest = threading.Timer(0.01, os.write, (its, b" line\n"))
    rest.start()
    assert with_the_rest(ours, b"one", within_s=WAIT_S) == b"one line\n"
    assert with_the_rest(ours, b"a whole line\n", within_s=WAIT_S) == b"a whole line\n"
    assert with_the_rest(ours, b"half", within_s=0.001) == b"half"
    os.close(its)
    assert with_the_rest(ours, b"the last", within_s=WAIT_S) == b"the last"
    os.close(ours)
    rest.join()
