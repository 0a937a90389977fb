"""A program's own `sys.excepthook` hears of the error that ends it."""

from __future__ import annotations

import textwrap

import pytest

from tests.unit.test_harness_driver import run
from tests.unit.test_harness_preload import run_preloaded


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
