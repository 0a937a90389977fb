"""Top-level `return` and `await`, line numbers, and syntax errors, in the library the host uses too."""

from __future__ import annotations

import contextlib
import textwrap
import traceback
from typing import Any

import pytest

from sandbox.inside.harness.compiling import compile_program, execute

UNSET = object()


def value_of(source: str, **names: Any) -> Any:
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    execute(compile_program(textwrap.dedent(source), "script.py"), namespace)
    return namespace.get("result", UNSET)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("result = 1", 1),
        ("return 2", 2),
        ("result = 3\nreturn", 3),
        ("result = 4\nreturn None", None),
        ("return", UNSET),
        ("x = 1", UNSET),
        ("if True:\n    return 5\nresult = 0", 5),
        ("if False:\n    return 5\nresult = 6", 6),
        ("for i in range(10):\n    if i == 7:\n        return i", 7),
        ("while True:\n    return 8", 8),
        ("try:\n    return 9\nfinally:\n    seen = True", 9),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    return str(error)", "division by zero"),
        ("try:\n    return 1\nfinally:\n    return 2", 2),
        ("import io\nwith io.StringIO('a') as f:\n    return f.read()", "a"),
        ("return 1, *[2, 3]", (1, 2, 3)),
        ("return (yes := 4) + yes", 8),
        ("return [y := n for n in range(3)] + [y]", [0, 1, 2, 2]),
    ],
)
def test_a_top_level_return_gives_the_result(source: str, expected: Any) -> None:
    assert value_of(source) == expected


@pytest.mark.parametrize("tail", ["return f()", "result = f()"])
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\ndef f(): return x + 1", 2),
        ("x = 1\ndef f():\n    global x\n    x = 5\n    return x", 5),
        ("def f(): return g()\ndef g(): return 'later'", "later"),
        ("class A:\n    y = 3\n    def m(self): return A.y\ndef f(): return A().m()", 3),
        ("import json as j\ndef f(): return j.dumps(1)", "1"),
        ("import os.path\ndef f(): return os.path.sep", "/"),
        ("from math import *\ndef f(): return floor(2.5)", 2),
        ("x: int = 4\ny: str\ndef f(): return x", 4),
        ("for i, (a, *b) in enumerate([(1, 2, 3)]): pass\ndef f(): return [i, a, b]", [0, 1, [2, 3]]),
        ("x = [1, 2]\nx += [3]\ndel x[0]\ndef f(): return x", [2, 3]),
        ("x = 1\ndel x\ndef f(): return 'x' in globals()", False),
        ("global z\nz = 1\ndef f(): return z", 1),
        ("def f(): return globals()['f'] is f", True),
        ("x = 2\nf = lambda: [x * i for i in range(3)]", [0, 2, 4]),
        ('"""Doc."""\nfrom __future__ import annotations\ndef f(a: nowhere = 1): return __doc__', "Doc."),
    ],
)
def test_names_mean_the_same_with_and_without_a_return(source: str, expected: Any, tail: str) -> None:
    assert value_of(f"{source}\n{tail}\n") == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import asyncio\nawait asyncio.sleep(0)\nresult = 1", 1),
        ("import asyncio\nreturn await asyncio.sleep(0, 'r')", "r"),
        ("async def g():\n    yield 1\n    yield 2\nresult = [x async for x in g()]", [1, 2]),
        ("async def g():\n    yield 1\n    yield 2\nreturn [x async for x in g()]", [1, 2]),
        ("async def g():\n    yield 5\nasync for x in g():\n    return x", 5),
        ("import asyncio\nx = 1\nawait asyncio.sleep(0)\ndef f(): return x\nif x: return f()", 1),
        ("import asyncio\nasync def main(): return 3\nresult = asyncio.run(main())", 3),
    ],
)
def test_a_top_level_await_runs(source: str, expected: Any) -> None:
    assert value_of(source) == expected


def test_an_async_with_works_beside_a_return() -> None:
    source = """
        class Door:
            async def __aenter__(self): return "in"
            async def __aexit__(self, *args): pass
        async with Door() as place:
            return place
    """
    assert value_of(source) == "in"


@pytest.mark.parametrize("tail", ["", "\nif False: return 1", "\nimport asyncio\nawait asyncio.sleep(0)"])
def test_a_traceback_shows_the_users_line(tail: str) -> None:
    source = "x = 1\n\ndef f():\n    return x / 0\n\n\nf()" + tail
    with pytest.raises(ZeroDivisionError) as raised:
        value_of(source)
    frames = [(f.lineno, f.name) for f in traceback.extract_tb(raised.tb) if f.filename == "script.py"]
    assert frames == [(7, "<module>"), (4, "f")]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1\nx = = 2", 2),
        ("x = 1\n\nif x\n    pass", 3),
        ("return 1\ndef f(:\n    pass", 2),
        ("x = 1\nreturn x\nyield x", 3),
        ("yield 1", 1),
        ("def f():\n    await x", 2),
        ("return 1\nbreak", 2),
        ("x = 1\ny = 'a\0b'", 2),
        ("x = '\udc80'", 1),
        ("class A:\n    return 1", 2),
        ("return 1\nnonlocal x", 2),
    ],
)
def test_what_is_no_program_is_a_syntax_error_with_its_line(source: str, line: int) -> None:
    with pytest.raises(SyntaxError) as raised:
        compile_program(source, "script.py")
    assert raised.value.lineno is not None
    assert raised.value.filename in ("script.py", None)
    if "\0" not in source and "\udc80" not in source:
        assert raised.value.lineno == line


@pytest.mark.parametrize("source", ["(" * 5000, "x = " + "[" * 150 + "]" * 150, "x = " + "-" * 5000 + "1"])
def test_absurd_nesting_is_a_syntax_error_or_a_program(source: str) -> None:
    with contextlib.suppress(SyntaxError):
        compile_program(source, "script.py")


def test_match_statements_bind_globals_beside_a_return() -> None:
    source = """
        match {"a": [1, 2, 3], "b": 4}:
            case {"a": [first, *others], **rest} as whole:
                def f(): return [first, others, rest, len(whole)]
                return f()
    """
    assert value_of(source) == [1, [2, 3], {"b": 4}, 2]
