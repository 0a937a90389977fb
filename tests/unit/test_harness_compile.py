"""Top-level `return` and `await`, line numbers, and syntax errors, in the library the host uses too."""

from __future__ import annotations

import contextlib
import random
import re
import sys
import textwrap
import traceback
from collections.abc import Callable
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
        ("try:\n    return 1\nfinally:\n    return", UNSET),
        ("for a in '1':\n    try:\n        return 1\n    finally:\n        break\nresult = 5", 5),
        ("for a in '12':\n    try:\n        return a\n    finally:\n        continue\nresult = 5", 5),
        (
            "for a in '1':\n    try:\n        return 1\n    finally:\n        for b in '':\n            return 2\nresult = 0",
            1,
        ),
        ("try:\n    try:\n        return 1\n    finally:\n        1 / 0\nexcept ZeroDivisionError:\n    result = 3", 3),
        ("for a in '1':\n    for b in '1':\n        return 1\n    else:\n        result = 2\nelse:\n    result = 3", 1),
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


@pytest.mark.parametrize("head", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
@pytest.mark.parametrize(
    "source",
    [
        "exec('factor = 3')\nanswer = factor",
        "station = 1\nanswer = 'station' in locals() and 'station' in vars() and locals() is globals()",
        "globals()['late'] = 5\nanswer = late",
        "locals()['late'] = 6\nanswer = late",
        "answer = eval('[n + base for n in range(3)]', {'base': 1}) + [eval('1 + 1')]",
        "base = 2\nanswer = eval('[n + base for n in range(3)]')",
        "exec('def f(): return base')\nbase = 3\nanswer = f()",
        "class Shape:\n    exec('sides = 4')\n    twice = 2 * sides\n    all = sorted(n for n in locals() if n[0] != '_')\nanswer = Shape.all",
        "n = 7\nsquares = [n * n for n in range(3)]\nlocals()\nanswer = [n, squares, [sorted(k for k in vars() if k == 'n') for i in '1']]",
        "total = 0\nanswer = [total := total + n for n in range(4)] + [total]",
        "answer = [(lambda: 0).__qualname__, (i for i in '').__qualname__]",
        "def f():\n    def g(): pass\n    return g\nclass A:\n    class B: pass\nanswer = [f().__qualname__, A.B.__qualname__]",
        "import sys\nanswer = [sys._getframe().f_locals is globals(), sys._getframe().f_code.co_name]",
        "from math import *\nanswer = 'floor' in globals()",
        "x = 5\ndel x\ntry:\n    x\nexcept NameError as error:\n    answer = str(error)",
        "try:\n    print(missing)\nexcept NameError as error:\n    answer = type(error).__name__\nelse:\n    answer = 0",
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int = 1\nanswer = P.__annotations__['x'].__name__",
        "answer = sorted(k for k in globals() if not k.startswith('__'))",
        "x: int = 1\ny: 'str'\ntry:\n    answer = __annotations__\nexcept NameError:\n    answer = 'later, since Python 3.14'",
        "x: [].pop() = 1\nanswer = 0"
        if sys.version_info >= (3, 14)
        else "try:\n    x: [].pop() = 1\nexcept IndexError:\n    answer = 1",
    ],
)
def test_what_looks_at_names_sees_the_same_beside_a_return(source: str, head: str) -> None:
    assert value_of(f"{head}{source}\nreturn answer") == value_of(f"{head}{source}\nresult = answer")


def test_a_return_leaves_no_name_behind() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    execute(compile_program("for i in range(3):\n    while True:\n        return i", "script.py"), namespace)
    assert sorted(namespace) == ["__builtins__", "__name__", "i", "result"]


@pytest.mark.parametrize("source", ["break", "continue", "if x:\n    break", "for i in x: pass\nelse:\n    continue"])
def test_a_break_outside_a_loop_stays_an_error_beside_a_return(source: str) -> None:
    with pytest.raises(SyntaxError, match="loop") as raised:
        compile_program(f"{source}\nreturn 1", "script.py")
    with pytest.raises(SyntaxError) as without:
        compile_program(f"{source}\nresult = 1", "script.py")
    assert (raised.value.msg, raised.value.lineno) == (without.value.msg, without.value.lineno)


def test_a_warning_about_the_program_is_given_once() -> None:
    with pytest.warns(SyntaxWarning) as given:
        compile_program("x = 1\nif x is 'a':\n    return 1\ny = x is 'b'", "script.py")
    assert [warning.lineno for warning in given] == [2, 4]


class Programs:
    """Makes programs of nested loops, `try`, `with` and ways to leave them, from random numbers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def block(self, depth: int, *, loop: bool) -> list[str]:
        return ["    " + line for _ in range(self.random.randint(1, 3)) for line in self.statement(depth, loop=loop)]

    def statement(self, depth: int, *, loop: bool) -> list[str]:
        number = self.random.randint(0, 99)
        simple = [f"note({number})", f"return note({number})", f"return note({number})", "return", "1 / 0"]
        simple += ["break", "continue"] if loop else []
        kind = self.random.randint(0, 5) if depth else 0
        if kind == 0:
            return [self.random.choice(simple)]
        if kind == 1:
            return [
                f"if note({number}) % 3:",
                *self.block(depth - 1, loop=loop),
                *self.maybe("else:", depth, loop=loop),
            ]
        if kind in (2, 3):
            head = f"for _ in range({number % 4}):" if kind == 2 else f"while more({number}):"
            return [head, *self.block(depth - 1, loop=True), *self.maybe("else:", depth, loop=loop)]
        if kind == 4:
            return [f"with door({number % 2}):", *self.block(depth - 1, loop=loop)]
        handler = self.random.choice(["except:", "except BaseException:", "except ZeroDivisionError as error:"])
        handlers = [handler, *self.block(depth - 1, loop=loop), *self.maybe("else:", depth, loop=loop)]
        last = ["finally:", *self.block(depth - 1, loop=loop)]
        return ["try:", *self.block(depth - 1, loop=loop), *self.random.choice([handlers, last, handlers + last])]

    def maybe(self, head: str, depth: int, *, loop: bool) -> list[str]:
        return [head, *self.block(depth - 1, loop=loop)] if self.random.random() < 0.4 else []


def names_of(trace: list[Any]) -> dict[str, Any]:
    """Return the functions that made programs call, which note everything that happens, and end what runs for ever."""

    class Enough(BaseException):
        pass

    def note(value: Any) -> Any:
        trace.append(value)
        if len(trace) > 200:
            raise Enough
        return value

    class Door:
        def __init__(self, swallows: int) -> None:
            self.swallows = swallows

        def __enter__(self) -> None:
            note("in")

        def __exit__(self, kind: type | None, *_: object) -> bool:
            note(["out", kind and kind.__name__])
            return bool(self.swallows) and kind is ZeroDivisionError

    return {"note": note, "door": Door, "more": lambda number: (note(number) + len(trace)) % 4 != 0}


def told(work: Callable[[], Any]) -> list[Any]:
    """Return what came of it: the value, or the error and the lines of it."""
    try:
        return ["value", work()]
    except BaseException as error:  # noqa: BLE001 - `Enough`, too
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "script.py"]
        return [type(error).__name__, lines]


def test_a_top_level_return_leaves_as_one_of_a_function_does() -> None:
    compared = 0
    for seed in range(400):
        lines = ["if True:", *Programs(seed).block(3, loop=False), "return note('last')"]
        function = "def f():\n" + "\n".join(
            "    " + re.sub(r"return (note\(.*\))", r"return (\1,)", line) for line in lines
        )
        traces: tuple[list[Any], list[Any]] = ([], [])
        names = names_of(traces[1])
        try:
            exec(compile(function, "script.py", "exec"), names)
        except SyntaxError:  # two bare handlers in a row, and the like
            continue
        expected = told(lambda names=names: names["f"]())  # type: ignore[misc]
        namespace = names_of(traces[0])
        code = compile_program("\n" + "\n".join(lines), "script.py")
        got = told(lambda code=code, namespace=namespace: execute(code, namespace))  # type: ignore[misc]
        if got[0] == "value":
            got[1] = (namespace["result"],) if "result" in namespace else None
        assert (got, traces[0]) == (expected, traces[1]), "\n".join(lines)
        compared += 1
    assert compared > 350
