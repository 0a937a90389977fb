"""Modules that the harness imports before it gets its job: what a program has of it, and what it must not notice."""

from __future__ import annotations

import json
import socket
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox.channel.collector import Collector
from sandbox.channel.frames import HEADER, preload_frame
from tests.unit.test_harness_driver import LIMITS, Run, run, started_harness

Library = Callable[..., None]

# What a program can see of the process that it runs in, apart from the modules that are there.
STATE = """
import os, signal, sys, threading, traceback, warnings, logging

def text_of_a_traceback():
    try:
        import not_there_at_all
    except ImportError:
        return traceback.format_exc()

def stream(which):
    return [repr(which), which.encoding, which.errors, which.line_buffering, which.seekable(), which.isatty(), which.fileno()]

result = {
    "path": sys.path, "environ": dict(os.environ), "argv": sys.argv, "orig_argv": len(getattr(sys, "orig_argv", [])),
    "main": sorted(vars(sys.modules["__main__"])), "is main": vars(sys.modules["__main__"]) is globals(),
    "file": __file__, "name": __name__, "traceback": text_of_a_traceback(),
    "recursion": sys.getrecursionlimit(),
    "signals": {int(n): str(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals()},
    "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
    "descriptors": sorted(os.listdir("/proc/self/fd")), "threads": threading.active_count(),
    "tasks": len(os.listdir("/proc/self/task")), "main thread": threading.current_thread() is threading.main_thread(),
    "umask": os.umask(0o22), "cwd": os.getcwd(), "files": os.listdir("."),
    "streams": [stream(s) for s in (sys.stdin, sys.stdout, sys.stderr)],
    "same streams": [sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, sys.stdin is sys.__stdin__],
    "warnings": [str(f) for f in warnings.filters], "loggers": logging.getLogger().handlers, "hook": sys.excepthook is sys.__excepthook__,
    "trace": [sys.gettrace(), sys.getprofile()], "harness": "harness" in sys.modules, "finders": len(sys.meta_path),
}
result["environ"] = {k: v for k, v in result["environ"].items() if k != "PYTEST_CURRENT_TEST"}
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Give a function that writes modules where the harness finds them, by name or by path (`parts/one`)."""
    place = tmp_path / "libraries"
    place.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(place))

    def write(parts: dict[str, str] | None = None, **modules: str) -> None:
        for name, text in {**modules, **(parts or {})}.items():
            path = place / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    return write


def next_frame(connection: socket.socket) -> tuple[str, bytes]:
    kind, size = HEADER.unpack(connection.recv(HEADER.size, socket.MSG_WAITALL))
    return kind.decode(), connection.recv(size, socket.MSG_WAITALL) if size else b""


def run_preloaded(code: str, *modules: str, **fields: Any) -> Run:
    """Run one program in a harness that has preloaded modules; `ready` is what it said afterwards."""
    collector = Collector(LIMITS)
    with started_harness() as process:
        assert next_frame(process.connection)[0] == "R"
        process.connection.sendall(preload_frame(modules))
        collector.feed(*next_frame(process.connection))
        process.send_job(code, **fields)
        while collector.quit is None:
            collector.feed(*next_frame(process.connection))
        stderr, status = process.finish()
        return Run(collector, stderr, status, process.app)


def test_a_preloaded_module_is_there_before_the_first_line(library: Library) -> None:
    library({"parts/one": "", "parts/two": "VALUE = 2"}, tables="DATA = 7")
    done = run_preloaded(
        """
        import sys
        result = [name in sys.modules for name in ("tables", "parts.two", "parts.one")]
        import tables, parts.two
        result += [tables.DATA, parts.two.VALUE, __import__("sys").modules["__main__"].__file__]
        """,
        "tables",
        "parts.two",
    )
    assert done.ready.preloaded == ["tables", "parts.two"]
    assert done.ready.unfit is None
    assert done.result == [True, True, False, 7, 2, str(done.app / "script.py")]
    assert (done.harness_stderr, done.harness_status) == ("", 0)


def test_without_a_word_of_it_nothing_is_preloaded(library: Library) -> None:
    library(tables="")
    done = run("import sys; result = 'tables' in sys.modules")
    assert done.result is False
    assert done.ready.preloaded == []


@pytest.mark.parametrize(
    "text",
    [
        "raise ValueError('no')",
        "raise SystemExit(3)",
        "raise KeyboardInterrupt",
        "import not_there",
        "1 +",
        "raise MemoryError",
        "class Odd(BaseException):\n    def __str__(self): raise self\nraise Odd",
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n1/0",
    ],
)
def test_what_a_failing_import_raises_keeps_nothing_from_being_ready(library: Library, text: str) -> None:
    library(good="", bad=text)
    done = run_preloaded("import sys; result = [n in sys.modules for n in ('good', 'bad')]", "bad", "absent", "good")
    assert done.ready.preloaded == ["good"]
    assert done.result == [True, False]
    assert done.ended == "exited"


def test_a_package_that_fails_is_imported_from_the_start_by_the_program(library: Library) -> None:
    begins = "import fine, half.part, half.inner.deep\nraise RuntimeError('half')"
    library({"half/__init__": begins, "half/part": "", "half/inner/__init__": "", "half/inner/deep": ""}, fine="")
    code = """
        import sys
        result = sorted(name for name in sys.modules if name.partition(".")[0] in ("half", "fine"))
        import half
    """
    done = run_preloaded(code.replace("import half", ""), "half")
    assert done.result == ["fine"]
    assert done.ready.preloaded == []
    failed = run_preloaded(code, "half").error
    assert (failed.type, failed.message, failed.line) == ("RuntimeError", "half", 4)


def test_a_part_that_is_not_there_costs_its_package_nothing(library: Library) -> None:
    library({"parts/__init__": "import parts.one\nLOADED = parts.one", "parts/one": ""})
    code = "import sys, parts; result = [parts.LOADED is sys.modules['parts.one'], 'parts.two' in sys.modules]"
    done = run_preloaded(code, "parts.two")
    assert done.ready.preloaded == []
    assert done.result == [True, False]


def test_the_program_sees_the_same_process_as_without_preloading(library: Library) -> None:
    library(
        rude="""
        import os, resource, signal, sys, tempfile, threading, asyncio, logging, random, multiprocessing, subprocess
        subprocess.run(["true"], check=True)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, lambda *_: os._exit(9))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        os.umask(0)
        os.chdir("/")
        worker = threading.Thread(target=print)
        worker.start()
        worker.join()
        """
    )
    ordinary = run(STATE, env={"A": "1"}).result
    preloaded = run_preloaded(STATE, "rude", "not_there", env={"A": "1"})
    assert preloaded.ready.preloaded == ["rude"]
    here = str(preloaded.app)
    seen = json.loads(json.dumps(preloaded.result).replace(here, "/app"))
    expected = json.loads(json.dumps(ordinary).replace(ordinary["cwd"], "/app"))
    assert seen == expected


def test_what_imports_write_reaches_nobody_and_blocks_nothing(library: Library) -> None:
    library(
        chatty="""
        import ctypes, os, sys
        print("printed"); print("not flushed", end="")
        sys.stderr.write("to stderr"); os.write(1, b"x" * 300_000); os.write(2, b"y" * 300_000)
        ctypes.CDLL(None).puts(b"by C")
        sys.__stdout__.write("behind")
        """
    )
    code = "import ctypes\nprint('mine')\nctypes.CDLL(None).fflush(None)\nresult = __import__('sys').stdin.read()"
    done = run_preloaded(code, "chatty")
    assert done.ready.preloaded == ["chatty"]
    assert (done.stdout, done.stderr, done.harness_stderr) == (b"mine\n", b"", "")
    assert done.result == ""


def test_a_module_that_keeps_the_streams_the_arguments_or_main_keeps_the_programs(library: Library) -> None:
    library(
        keeps="""
        import __main__ as main, logging
        from sys import argv, stdout
        logging.basicConfig()
        def say(text, to=stdout): to.write(text)
        """
    )
    code = """
        import keeps, logging, sys
        print("one"); keeps.say("two\\nthree"); print("four", end="")
        logging.warning("warned")
        result = [keeps.stdout is sys.stdout, vars(keeps.main) is globals(), keeps.argv]
    """
    done = run_preloaded(code, "keeps", filename="mine.py")
    assert done.result == [True, True, ["mine.py"]]
    assert done.stdout == b"one\ntwo\nthreefour"
    assert done.stderr == b"WARNING:root:warned\n"


@pytest.mark.parametrize(
    "text",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(30,), daemon=True).start()",
        "import subprocess\nsubprocess.Popen(['sleep', '3'])",
        "import os, time\nif not os.fork():\n    time.sleep(3)\n    os._exit(0)",
    ],
    ids=["thread", "command", "fork"],
)
def test_an_import_that_leaves_something_running_is_named(library: Library, text: str) -> None:
    library(good="", leaves=text, never="")
    ready = run_preloaded("result = 1", "good", "leaves", "never").ready
    assert ready.unfit == "leaves"
    assert ready.preloaded == ["good", "leaves"]


def test_an_import_that_forks_comes_back_once(library: Library) -> None:
    library(
        twice="import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)",
        fails="import os\nif not os.fork(): raise OSError\nos.wait()",
    )
    done = run_preloaded("import twice; result = twice.pid > 0", "twice", "fails")
    assert done.ready.preloaded == ["twice", "fails"]
    assert done.result
    assert (done.ended, done.harness_status) == ("exited", 0)


def test_exit_functions_run_once_and_in_the_program_only(library: Library) -> None:
    library(
        ends="""
        import atexit, os, weakref
        class Kept: pass
        kept = Kept()
        def note(word):
            with open("/proc/self/cwd/ended", "a") as file:
                file.write(f"{word} {os.getpid()}\\n")
        atexit.register(note, "atexit")
        weakref.finalize(kept, note, "finalize")
        """
    )
    # The directory goes with the harness: the program's own last act is to hand the file over.
    code = "import atexit, os\nresult = os.getpid()\natexit._run_exitfuncs(); save_file('ended'); os.remove('ended')"
    done = run_preloaded(code, "ends")
    content = next(file.content for file in done.files if file.name == "ended").decode()
    assert sorted(content.splitlines()) == [f"atexit {done.result}", f"finalize {done.result}"]


def test_random_numbers_are_the_programs_own(library: Library) -> None:
    numpy = {"numpy/__init__": "", "numpy/random": "SEEDS = [1]\ndef seed(*given): SEEDS.append(given)"}
    library(numpy, dice="import random\nSTATE = random.getstate()")
    code = """
        import dice, random, numpy.random
        result = [random.getstate() == dice.STATE, numpy.random.SEEDS]
    """
    assert run_preloaded(code, "dice", "numpy.random").result == [False, [1, []]]


def test_process_1_stays_closed_and_deaf_to_the_program(library: Library) -> None:
    library(
        opens="""
        import ctypes, signal
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        """
    )
    code = """
        import os, signal, time
        try:
            os.readlink(f"/proc/{os.getppid()}/fd/0")
            result = "open"
        except PermissionError:
            result = "closed"
        os.kill(os.getppid(), signal.SIGINT)
    """
    done = run_preloaded(code, "opens")
    assert done.result == "closed"
    assert (done.ended, done.harness_status, done.harness_stderr) == ("exited", 0, "")


def test_a_library_that_is_called_as_the_harness_is_found(library: Library) -> None:
    library(harness="WHO = 'theirs'")
    done = run_preloaded("import sys; result = sys.modules['harness'].WHO", "harness")
    assert done.ready.preloaded == ["harness"]
    assert done.result == "theirs"


def test_preloaded_objects_stay_out_of_the_collectors_way(library: Library) -> None:
    library(large="ITEMS = [[] for _ in range(50_000)]")
    code = "import gc; result = len(gc.get_objects())"
    assert run_preloaded(code, "large").result < 50_000 < run("import large\n" + code).result


def test_a_frame_after_preloading_must_be_a_job(library: Library) -> None:
    with started_harness() as process:
        process.connection.sendall(preload_frame(["json"]) + preload_frame(["json"]))
        assert [kind for kind, _ in process.frames()] == ["R", "R"]
        assert process.finish() == ("harness: expected a job, got b'P'\n", 70)
