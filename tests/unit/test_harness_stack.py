"""What looks up the stack finds the program at its end, as with plain Python, and nothing of the harness."""

from __future__ import annotations

import opcode
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sandbox.inside.harness import unseen
from sandbox.inside.harness.unseen import instructions
from tests.unit.test_harness_driver import PYTHON, run
from tests.unit.test_harness_preload import run_preloaded

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 shows every frame")

LOOKS_UP = {
    "print_stack": "traceback.print_stack(file=sys.stdout)",
    "inspect.stack": "print([(frame.filename, frame.function, frame.lineno) for frame in inspect.stack()])",
    "_getframe": """
        frame, names = sys._getframe(), []
        while frame:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        print(names)""",
    "logging": "logging.warning('now', stack_info=True)",
    "warnings": "warnings.warn('old', stacklevel=50)",
    "format_exc": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc(file=sys.stdout)",
    "signal": """
        signal.signal(signal.SIGUSR1, lambda _number, frame: print(traceback.extract_stack(frame)))
        os.kill(os.getpid(), signal.SIGUSR1)""",
    "not deep enough": "try:\n    print(sys._getframe(2).f_code.co_name)\nexcept ValueError as error:\n    print(error)",
    "last error": "print(sys.exc_info(), hasattr(sys, 'last_type'), sys.excepthook is sys.__excepthook__)",
}
HEAD = (
    "import inspect, logging, os, signal, sys, traceback, warnings\n"
    "logging.basicConfig(stream=sys.stdout, format='%(filename)s %(funcName)s %(lineno)d %(message)s')\n"
    "sys.stderr = sys.stdout\n"
)
ENDS = {"plain": "\nlook()\n", "return": "\nif True:\n    return look()\n", "class body": "\nclass A:\n    look()\n"}


def test_the_instructions_are_those_of_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    named = opcode.opmap["RESUME"], opcode.opmap["NOP"]
    assert instructions() == named
    monkeypatch.setattr(unseen, "INSTRUCTIONS", {})
    assert instructions() == named


def looking(words: str) -> str:
    return f"{HEAD}def look():\n{textwrap.indent(textwrap.dedent(words).strip(), '    ')}\n"


def plain(code: str, directory: Path) -> str:
    """Return what plain Python prints for the same program, with paths as a sandbox shows them."""
    (directory / "script.py").write_text(code)
    done = subprocess.run([PYTHON, "script.py"], capture_output=True, text=True, cwd=directory, check=True)
    return done.stdout.replace(f"{directory}/", "")


@pytest.mark.parametrize("end", ["plain", "class body"])
@pytest.mark.parametrize("kind", [kind for kind in LOOKS_UP if kind != "last error"])
def test_the_stack_is_that_of_plain_python(kind: str, end: str, tmp_path: Path) -> None:
    code = looking(LOOKS_UP[kind]) + ENDS[end]
    assert run(code).stdout.decode() == plain(code, tmp_path)


def test_no_error_of_ours_is_the_last_one() -> None:
    assert run(looking(LOOKS_UP["last error"]) + ENDS["plain"]).stdout.decode().startswith("(None, None, None) False")


def test_a_return_at_top_level_changes_nothing_of_it(tmp_path: Path) -> None:
    look = looking(LOOKS_UP["_getframe"])
    assert (
        run(look + ENDS["return"]).stdout.decode() == plain(look + ENDS["plain"], tmp_path) == "['look', '<module>']\n"
    )


def test_below_a_top_level_await_is_its_event_loop_alone() -> None:
    found = run(
        "import inspect\nresult = [frame.filename for frame in inspect.stack()]\nawait __import__('asyncio').sleep(0)"
    )
    assert found.result[0] == "script.py"
    assert not [name for name in found.result if "harness" in name], found.result


def test_the_same_after_a_preload() -> None:
    found = run_preloaded(looking(LOOKS_UP["_getframe"]) + ENDS["plain"], "json")
    assert found.stdout.decode() == "['look', '<module>']\n"


def test_the_same_in_a_process_that_the_program_starts() -> None:
    code = """
        import multiprocessing, sys
        def look(_number):
            frame, names = sys._getframe(), []
            while frame:
                names.append(frame.f_code.co_filename)
                frame = frame.f_back
            return names
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(1) as pool:
                result = pool.map(look, [1])[0]
    """
    assert not [name for name in run(code).result if "harness" in name]


@pytest.mark.parametrize("way", ["plain", "return", "await", "preloaded"])
def test_a_programs_own_excepthook_is_called_and_the_run_still_fails_with_the_error(way: str) -> None:
    code = """
        import sys, traceback
        def hook(kind, error, tb):
            print("own:", kind.__name__, error, [frame.name for frame in traceback.extract_tb(tb)])
        sys.excepthook = hook
        def f(): raise ValueError("boom")
    """
    code = textwrap.dedent(code) + {"return": "return f()", "await": "await f()"}.get(way, "f()")
    done = run_preloaded(code, "json") if way == "preloaded" else run(code)
    assert done.stdout.decode().startswith("own: ValueError boom [")
    assert "harness" not in done.stdout.decode()
    assert done.error is not None
    assert done.error.type == "ValueError"


def test_an_excepthook_that_fails_or_leaves_is_told_as_by_python() -> None:
    failing = run("import sys\ndef hook(*_): 1 / 0\nsys.excepthook = hook\nraise ValueError('boom')")
    assert b"Error in sys.excepthook:\nTraceback" in failing.stderr
    assert failing.error is not None
    assert failing.error.type == "ValueError"
    leaving = run("import sys\nsys.excepthook = lambda *_: sys.exit(7)\nraise ValueError('boom')")
    assert leaving.error is not None
    assert leaving.error.type == "SystemExit"
