"""Process 1 inside the sandbox: receives one job, runs it in a child, streams what it does.

One file, standard library only, Python 3.8+, and it imports nothing of this project: it is bind-mounted
into images that know nothing of us and started with::

    python3 -s -B -c "import sys; sys.path[0] = '/run/sandbox/lib'; import harness; harness.main(...)"

Only what is needed to say "ready" is imported at the top (`_socket` rather than `socket`, no `typing`):
start-up time is part of every cold run. The rest is imported while the runner checks the sandbox. Before the job,
but after that check, the runner may ask to prepare for it and name modules to preload: the program's process is then
forked ahead of the job, has those modules, and waits.

Two roles, one fork apart. The *supervisor* (process 1, non-dumpable) owns the job socket, enforces the caps
and reports. The *program* (its child) runs the user's code and is hostile from the supervisor's point of
view from then on: all it has is its own output pipes and one end of a packet socket, the *channel*. Its job comes
over another socket, the *inbox*, which is closed before the user's first line. A packet of the channel is one type byte
and at most 64 KiB:

    L log JSON    F 8-byte size + file name    f file data    V result JSON in chunks    A additional data
    M meta JSON (commits the result)    X error JSON    Z the result is certain to exceed its cap

The host uses this module as a library for `compile_program`, `name_problem` and `as_json_text`.
"""

from __future__ import annotations

import gc
import os
import select
import struct
import sys
import time
from _socket import (
    AF_INET,
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SHUT_WR,
    SO_REUSEADDR,
    SOCK_DGRAM,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
    socketpair,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType, FrameType, TracebackType
    from typing import Any, NoReturn

__all__ = ["as_json_text", "compile_program", "main", "name_problem"]

PROTOCOL = 1
CHUNK_BYTES = 65_536
MAX_BODY_BYTES = 1_048_576
MAX_PART_BYTES = 4 << 30
MAX_RECORD_BYTES = 60_000  # a JSON record of ours (log, error, meta), so that it fits one packet
MAX_TRACEBACK_BYTES = 32_768
MAX_MESSAGE_CHARS = 8_192
MAX_TOPIC_CHARS = 2_048
MAX_WARNINGS = 20
MAX_WARNING_CHARS = 300
MAX_LOOKED_AT = 200  # files and directories that a program may have left
SHOWN_LEFT = 5
PASSING = (".pyc", ".tmp", ".lock", "-journal", "-wal", "-shm")
MAX_DEPTH = 100
MAX_ITERATOR_ITEMS = 1_000_000
MAX_EXACT_INT = 2**53
MAX_INT_BITS = 14_000  # a little below Python's own limit of 4300 digits
BATCH_ITEMS = 512
HIGH_WATER_BYTES = 262_144
DRAIN_S = 1.0
LAST_THREAD_S = 0.2
FAREWELL_S = 5.0
EXIT_BROKEN = 70
LIBRARIES = "/opt/environment"
RELAYED_BYTES = 262_144
MAX_RELAYED = 64
RESERVE_BYTES = 8 << 20
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
CO_COROUTINE = 0x80
BODY = "<module>"  # not an identifier, so no name of the user's can collide
MAKE_CELL = b"K\0\0\0\0"  # a frame without a body, which comes with the cell's channel
LEVELS = ("debug", "info", "warning", "error")
HERE = (lambda: 0).__code__.co_filename
NOWHERE = "/dev/null/script"  # below what is no directory, so that no file can have this name
MAX_SOURCE_BYTES = 8 << 20


# ---------------------------------------------------------------- text and names


def clean(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """Return `text` without lone surrogates and cut to `limit` characters, marked where it was cut."""
    if len(text) > limit:
        text = text[:limit] + " [truncated]"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def name_problem(name: object) -> str | None:
    """Return what keeps `name` from being a flat file name, in words, or None when it is one."""
    if not isinstance(name, str):
        return f"must be text, not {type(name).__name__}"
    if name in ("", ".", ".."):
        return "must not be empty, '.' or '..'"
    if "/" in name:
        return "must not contain '/': files live directly in the working directory"
    if not name.isprintable():  # control characters, NUL, lone surrogates, direction overrides
        return "must not contain control or invisible characters"
    if len(name.encode("utf-8")) > 255:
        return "must not be longer than 255 bytes"
    return None


def _record(fields: dict[str, Any], shrinkable: tuple[str, ...]) -> bytes:
    """Encode a JSON record, halving the `shrinkable` texts until it fits one packet."""
    encode = json_encoder()
    while True:
        body = encode(fields).encode("utf-8", "replace")
        if len(body) <= MAX_RECORD_BYTES:
            return body
        for key in shrinkable:
            text = fields[key]
            if len(text) > 200:
                fields[key] = text[: len(text) // 2] + " [truncated]"


# ---------------------------------------------------------------- compiling


def compile_program(source: str, filename: str) -> CodeType:
    """Compile a user's program in which top-level `return` and `await` work.

    Line numbers stay the user's own. `execute` runs the code that this gives. Raises SyntaxError, and
    nothing else, for text that is no program. `filename` is only what errors and tracebacks call it: to show a line of a
    program that does not compile, Python opens the file of the name that it was given, whatever that is.
    """
    import _imp
    import warnings

    code: CodeType
    kind, problem = SyntaxError, ""
    place: tuple[Any, ...] = (1, 1, "")
    with warnings.catch_warnings(record=True) as given:
        try:
            code = _compiled(source)
        except (RecursionError, MemoryError):
            problem = "the program is nested too deeply to compile"
        except UnicodeError:
            problem = "the program contains a character that is not valid Unicode text"
        except SyntaxError as error:
            kind, problem, place = type(error), error.msg, _place(error, source)
    if problem:
        raise kind(problem, (filename, *place))
    _imp._fix_co_filename(code, filename)  # type: ignore[attr-defined] # as importlib does with a cached module that was moved
    for warning in given:
        warnings.warn_explicit(warning.message, warning.category, filename, warning.lineno)
    return code


def _compiled(source: str) -> CodeType:
    """Compile a program under a name that no file has. Raises SyntaxError, and what the compiler can't cope with."""
    from _ast import PyCF_ALLOW_TOP_LEVEL_AWAIT as top_level_await

    if "\0" in source:  # Python before 3.12 raises ValueError, later ones don't say where
        line = source.split("\0", 1)[0].count("\n") + 1
        raise SyntaxError("source code cannot contain null bytes", (NOWHERE, line, 1, ""))
    try:
        code: CodeType = compile(source, NOWHERE, "exec", top_level_await, dont_inherit=True)
    except SyntaxError:
        tree = _with_return(source)
        if tree is None:
            raise
        code = compile(tree, NOWHERE, "exec", dont_inherit=True)
    return code


def _place(error: SyntaxError, source: str) -> tuple[Any, ...]:
    """Return where a program is wrong as SyntaxError takes it: line, column, that line's text, and the end where Python knows it."""
    line, end = error.lineno or 1, getattr(error, "end_lineno", None)
    columns = [error.offset or 1, getattr(error, "end_offset", None) or 0]
    text = error.text
    if text is None:  # found after parsing, where Python has no text left and counts the bytes of a line
        text = "".join(source_lines(source)[line - 1 : line])
        data = text.encode(errors="replace")
        columns = [len(data[: column - 1].decode(errors="ignore")) + 1 if column > 0 else column for column in columns]
    return (line, columns[0], text, end, columns[1]) if end else (line, columns[0], text)


def source_lines(source: str) -> list[str]:
    """Return the lines of a program as Python counts them: form feeds and the like end none."""
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line + "\n" for line in lines]


def _with_return(source: str) -> ast.Module | None:
    """Return the program with its body in a function, or None when it has no top-level `return`."""
    import ast
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first attempt has already given them
        tree = ast.parse(source, NOWHERE)
    scope = list(_scope(tree.body))
    if not any(isinstance(node, ast.Return) for node in scope):
        return None
    for node in scope:
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            # In the wrapping function it would silently turn the program into a generator.
            raise SyntaxError("'yield' outside function", (NOWHERE, node.lineno, node.col_offset + 1, None))
    head, body = _split_head(tree.body)
    names = sorted({name for node in scope for name in _bound_names(node)})
    prefix = "async " if any(_awaits(node) for node in scope) else ""
    wrapper = ast.parse(f"{prefix}def body(): pass").body[0]
    assert isinstance(wrapper, (ast.FunctionDef, ast.AsyncFunctionDef))
    wrapper.name = BODY
    rewritten = [_rewriter().visit(statement) for statement in body]
    wrapper.body = [*([ast.Global(names)] if names else []), *rewritten]
    tree.body = [*head, wrapper]
    return ast.fix_missing_locations(tree)


def _scope(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the nodes of this scope, leaving out the bodies of functions, lambdas and classes."""
    import ast

    stack = list(statements)
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            stack += [*node.decorator_list, node.args, *([node.returns] if node.returns else [])]
        elif isinstance(node, ast.ClassDef):
            stack += [*node.decorator_list, *node.bases, *node.keywords]
        elif isinstance(node, ast.Lambda):
            stack.append(node.args)
        else:
            stack += ast.iter_child_nodes(node)


def _bound_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that `node` binds or deletes in its scope."""
    import ast

    kind = type(node).__name__
    name: str | None = None
    if isinstance(node, ast.Name):
        name = None if isinstance(node.ctx, ast.Load) else node.id
    elif isinstance(node, ast.alias):
        name = node.asname or node.name.split(".")[0]
    elif kind in ("FunctionDef", "AsyncFunctionDef", "ClassDef", "ExceptHandler", "MatchAs", "MatchStar"):
        name = getattr(node, "name", None)
    elif kind == "MatchMapping":
        name = getattr(node, "rest", None)
    if name is not None and name != "*":
        yield name


def _awaits(node: ast.AST) -> bool:
    import ast

    return isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)) or bool(getattr(node, "is_async", 0))


def _split_head(body: list[ast.stmt]) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Split off what must stay at the top of a module: the docstring and `from __future__` imports."""
    import ast

    end = 0
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        end = 1
    while end < len(body):
        statement = body[end]
        if not (isinstance(statement, ast.ImportFrom) and statement.module == "__future__"):
            break
        end += 1
    return body[:end], body[end:]


def _rewriter() -> ast.NodeTransformer:
    """Return the transformer that makes top-level statements mean the same inside a function."""
    import ast

    class Rewriter(ast.NodeTransformer):
        def nested(self, node: ast.AST) -> ast.AST:
            return node

        visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = nested  # noqa: N815

        def visit_Return(self, node: ast.Return) -> ast.AST:
            # `return X` gives (X,), so that a bare `return` (None) is told apart from `return None`.
            if node.value is not None:
                boxed = ast.Tuple([node.value], ast.Load())
                node.value = ast.copy_location(boxed, node.value)
            return node

        def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
            if not isinstance(node.target, ast.Name):
                return node
            # An annotated name can't be declared global.
            plain = ast.Assign([node.target], node.value, lineno=node.lineno) if node.value else ast.Pass()
            return ast.copy_location(plain, node)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
            if node.names[0].name != "*":
                return node
            # `import *` is allowed at module level only: execute it there.
            statement = f"from {'.' * node.level}{node.module or ''} import *"
            call = ast.parse(f"__import__('builtins').exec({statement!r}, globals())").body[0]
            for child in ast.walk(call):
                if hasattr(child, "lineno"):
                    ast.copy_location(child, node)
            return call

    return Rewriter()


def execute(code: CodeType, namespace: dict[str, Any]) -> None:
    """Run what `compile_program` gave; a top-level `return X` sets `result` in `namespace`."""
    if code.co_flags & CO_COROUTINE:
        import asyncio

        asyncio.run(eval(code, namespace))  # noqa: S307 - a code object with a top-level await
        return
    exec(code, namespace)
    function = namespace.pop(BODY, None)
    if function is None:
        return
    value = function()
    if function.__code__.co_flags & CO_COROUTINE:
        import asyncio

        value = asyncio.run(value)
    if value is not None:
        namespace["result"] = value[0]


# ---------------------------------------------------------------- values to JSON


class ResultTooLargeError(Exception):
    """The JSON text of a value is certain to be longer than its cap."""


def _is(value: object, module: str, name: str) -> bool:
    """Tell whether `value` is an instance of a class of a module that may not even be imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _is_plain(value: object, *, depth: int, max_bytes: int) -> bool:
    """Tell whether the JSON encoder can take `value` as it is, with nothing to convert or to warn of.

    Level by level, with the loops in C: as fast as encoding, where a walk in Python would cost five times
    as much. A cycle shows as excess depth. Raises ResultTooLargeError.
    """
    from itertools import chain
    from math import isfinite

    level = [value]
    size = 0
    for _ in range(depth):
        kinds = set(map(type, level))
        if not kinds <= {str, int, float, bool, type(None), list, dict, tuple}:
            return False
        if int in kinds:
            integers = [item for item in level if type(item) is int]
            if max(integers) > MAX_EXACT_INT or min(integers) < -MAX_EXACT_INT:
                return False
        if float in kinds and not all(map(isfinite, [item for item in level if type(item) is float])):
            return False
        if str in kinds:
            size += sum(map(len, [item for item in level if type(item) is str]))
        containers: list[Any] = [item for item in level if type(item) in (list, dict, tuple)]
        # Counted before the next level is built: a few shared lists can stand for billions of items.
        size += sum(map(len, containers))
        if size > max_bytes:
            raise ResultTooLargeError
        if not containers:
            return True
        keys = chain.from_iterable([item for item in containers if type(item) is dict])
        if not set(map(type, keys)) <= {str}:
            return False
        level = gc.get_referents(*containers)
    return False


class Converter:
    """Turns Python values into plain JSON values, collecting warnings about what JSON cannot say.

    Converts dates, `Decimal`, sets, dataclasses, enums, named tuples (to objects), bytes (to Node Buffers),
    NumPy and pandas values; the last two by what they offer, without importing either.
    """

    def __init__(self, root: str, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.path: list[object] = []
        self.active: set[int] = set()
        self.size = 0
        self.counts: dict[str, tuple[int, str]] = {}

    def warnings(self) -> list[str]:
        """Return one sentence for each kind of surprise: how often, and where first."""
        return [
            f"{text} ({count} times, first at {where})" if count > 1 else f"{text} (at {where})"
            for text, (count, where) in self.counts.items()
        ]

    def convert(self, value: Any) -> Any:
        """Return `value` as plain data. Raises TypeError or ValueError, which name the place."""
        if _is_plain(value, depth=MAX_DEPTH, max_bytes=self.max_bytes):
            return value
        return self._plain(value)

    def _where(self) -> str:
        keys = self.path if len(self.path) <= 8 else [*self.path[:4], ..., *self.path[-3:]]
        parts = ["[...]" if key is ... else f"[{clean(repr(key), 80)}]" for key in keys]
        return self.root + "".join(parts)

    def _warn(self, text: str) -> None:
        count, where = self.counts.get(text, (0, ""))
        self.counts[text] = (count + 1, where or self._where())

    def _grow(self, size: int) -> None:
        self.size += size
        if self.size > self.max_bytes:
            raise ResultTooLargeError

    def _plain(self, value: Any) -> Any:
        self._grow(1)
        if value is None or value is True or value is False:
            return value
        kind = type(value)
        if kind is str:
            self._grow(len(value))
            return value
        if kind is int:
            return self._integer(value)
        if kind is float:
            return self._float(value)
        if kind in (list, tuple, dict):
            if len(value) > 1000 and _is_plain(
                value, depth=MAX_DEPTH - len(self.path), max_bytes=self.max_bytes - self.size
            ):
                return value
            return self._object(value) if kind is dict else self._array(value)
        return self._converted(value)

    def _integer(self, value: int) -> int:
        if not -MAX_EXACT_INT <= value <= MAX_EXACT_INT:
            if value.bit_length() > MAX_INT_BITS:
                raise ValueError(f"{self._where()} is an integer of over 4,200 digits: turn it into text")
            self._warn("an integer beyond 2**53 loses digits in JavaScript; send it as text")
            self._grow(value.bit_length() // 4)
        return value

    def _float(self, value: float) -> float | None:
        if value - value == 0:
            return value
        self._warn("NaN or infinity became null: JSON has no such number")
        return None

    def _inside(self, value: object, levels: int = 1) -> None:
        if id(value) in self.active:
            raise ValueError(f"{self._where()} contains itself: JSON cannot express a cycle")
        if len(self.path) + levels > MAX_DEPTH:
            raise ValueError(f"{self._where()} is nested more than {MAX_DEPTH} levels deep")

    def _array(self, values: Iterable[Any], owner: object = None) -> list[Any]:
        marker = id(values if owner is None else owner)
        self._inside(values if owner is None else owner)
        self.active.add(marker)
        self.path.append(0)
        converted = []
        for index, item in enumerate(values):
            self.path[-1] = index
            converted.append(self._plain(item))
        self.path.pop()
        self.active.discard(marker)
        return converted

    def _object(self, value: Any) -> dict[str, Any]:
        self._inside(value)
        self.active.add(id(value))
        self.path.append(None)
        converted: dict[str, Any] = {}
        for key, item in value.items():
            self.path[-1] = key
            name = key if type(key) is str else self._key(key)
            self._grow(len(name))
            if name in converted:
                self._warn("two keys became the same text; the later one was kept")
            converted[name] = self._plain(item)
        self.path.pop()
        self.active.discard(id(value))
        return converted

    def _key(self, key: Any) -> str:
        """Return the text of a key of an object; numbers as JSON writes them."""
        if isinstance(key, str):
            return str.__str__(key)
        if isinstance(key, (bytes, bytearray)):
            return key.decode("utf-8", "backslashreplace")
        if isinstance(key, tuple):
            self._warn("a tuple used as a key became text")
            return str(key)
        if isinstance(key, float):
            return float.__repr__(key)
        plain = self._converted(key) if key is not None and type(key) not in (bool, int) else key
        if isinstance(plain, str):
            return plain
        if plain is None or isinstance(plain, bool):
            return {None: "null", True: "true", False: "false"}[plain]
        if isinstance(plain, (int, float)):
            return str(self._integer(plain)) if isinstance(plain, int) else repr(plain)
        raise TypeError(f"{self._where()}: a {_type_name(key)} cannot be a key of a JSON object")

    def _converted(self, value: Any) -> Any:
        """Convert a value of any type other than the plain ones."""
        if _is(value, "enum", "Enum"):
            return self._plain(value.value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._buffer(bytes(value))
        if isinstance(value, str):
            return self._plain(str.__str__(value))
        if isinstance(value, int):
            return self._plain(int.__int__(value))
        if isinstance(value, float):
            return self._plain(float.__float__(value))
        if isinstance(value, dict):
            return self._object(value)
        if isinstance(value, tuple):
            fields = getattr(value, "_fields", None)
            return self._array(value) if fields is None else self._object(dict(zip(fields, value)))  # noqa: B905
        if isinstance(value, list):
            return self._array(value)
        if isinstance(value, complex):
            return self._object({"real": value.real, "imag": value.imag})
        if isinstance(value, (set, frozenset)):
            return self._array(_in_order(value), value)
        if _type_name(value).endswith("NAType"):
            return None
        for convert in (self._of_library, self._of_duck, self._of_iterable):
            done, converted = convert(value)
            if done:
                return converted
        raise TypeError(
            f"{self._where()} is a {_type_name(value)}, which has no JSON form: "
            "turn it into text, numbers, lists or dicts first"
        )

    def _buffer(self, value: bytes) -> dict[str, Any]:
        self._grow(2 * len(value))
        self._inside(value, levels=2)
        return {"type": "Buffer", "data": list(value)}

    def _of_library(self, value: Any) -> tuple[bool, Any]:
        """Convert values of the standard library."""
        if _is(value, "datetime", "datetime"):
            if value != value:  # pandas' NaT
                return True, None
            return True, value.isoformat()
        if _is(value, "datetime", "date") or _is(value, "datetime", "time"):
            return True, value.isoformat()
        if _is(value, "datetime", "timedelta"):
            seconds = value.total_seconds()
            return True, self._float(seconds)
        if _is(value, "decimal", "Decimal"):
            return True, self._decimal(value)
        if _is(value, "fractions", "Fraction"):
            try:
                return True, float(value)
            except OverflowError:
                return True, str(value)
        if _is(value, "uuid", "UUID") or type(value).__module__ == "ipaddress":
            return True, str(value)
        if isinstance(value, os.PathLike):
            return True, self._plain(os.fsdecode(os.fspath(value)))
        names = getattr(type(value), "__dataclass_fields__", None)
        if names is not None:
            return True, self._object({name: getattr(value, name) for name in names if hasattr(value, name)})
        return False, None

    def _decimal(self, value: Any) -> Any:
        if not value.is_finite():
            return self._float(float("nan"))
        if abs(value) <= MAX_EXACT_INT and value == value.to_integral_value():
            return int(value)
        number = float(value)
        return number if type(value)(repr(number)) == value else str(value)

    def _of_duck(self, value: Any) -> tuple[bool, Any]:
        """Convert NumPy, pandas and the like by the methods they offer."""
        if isinstance(value, type):
            return False, None
        if hasattr(value, "columns") and callable(getattr(value, "to_dict", None)):
            return True, self._plain(value.to_dict("records"))
        if callable(getattr(value, "to_dicts", None)):  # Polars
            return True, self._plain(value.to_dicts())
        if not callable(getattr(value, "tolist", None)):
            return False, None
        kind = getattr(getattr(value, "dtype", None), "kind", "")
        if kind in ("M", "m") and not hasattr(value, "array"):  # NumPy; pandas gives Timestamps by itself
            value = value.astype("datetime64[us]" if kind == "M" else "timedelta64[us]")
        listed = value.tolist()
        if type(listed) is type(value):  # a long double has no Python equivalent
            return True, self._float(float(value))
        return True, self._plain(listed)

    def _of_iterable(self, value: Any) -> tuple[bool, Any]:
        """Convert mappings, ranges, generators and other one-pass iterables, bounded."""
        from collections import abc

        if isinstance(value, abc.Mapping):
            return True, self._object(dict(value.items()))
        known = (abc.Sequence, abc.Set, abc.ValuesView, abc.Generator)
        lazy = (map, filter, zip, enumerate, reversed)
        module = type(value).__module__
        if not isinstance(value, (*known, *lazy)) and module not in ("itertools", "collections"):
            return False, None
        if not isinstance(value, abc.Iterable):
            return False, None
        return True, self._array(self._bounded(value), value)

    def _bounded(self, values: Iterable[Any]) -> Iterator[Any]:
        for count, item in enumerate(values):
            if count >= MAX_ITERATOR_ITEMS:
                raise ValueError(f"{self._where()} gives more than {MAX_ITERATOR_ITEMS:,} items")
            yield item


def _type_name(value: object) -> str:
    kind = type(value)
    module = kind.__module__
    return kind.__qualname__ if module in ("builtins", "__main__") else f"{module}.{kind.__qualname__}"


def _in_order(values: Iterable[Any]) -> list[Any]:
    try:
        return sorted(values)
    except Exception:
        return list(values)


def _texts(value: Any, encode: Callable[[Any], str], level: int = 0) -> Iterator[str]:
    """Yield the JSON text of plain data in pieces, so that a large one never exists twice in memory."""
    from itertools import islice

    if type(value) in (list, tuple) and len(value) > BATCH_ITEMS:
        for start in range(0, len(value), BATCH_ITEMS):
            yield ("," if start else "[") + encode(value[start : start + BATCH_ITEMS])[1:-1]
        yield "]"
    elif type(value) is dict and len(value) > BATCH_ITEMS:
        items = iter(value.items())
        for start in range(0, len(value), BATCH_ITEMS):
            yield ("," if start else "{") + encode(dict(islice(items, BATCH_ITEMS)))[1:-1]
        yield "}"
    elif level < 2 and value and type(value) is dict:
        for index, (key, item) in enumerate(value.items()):
            yield ("," if index else "{") + encode(key) + ":"
            yield from _texts(item, encode, level + 1)
        yield "}"
    elif level < 2 and value and type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield "," if index else "["
            yield from _texts(item, encode, level + 1)
        yield "]"
    else:
        yield encode(value)


def _encoded(texts: Iterable[str], converter: Converter) -> Iterator[bytes]:
    """Yield UTF-8 of a few dozen KiB at a time; lone surrogates become U+FFFD, with a warning."""
    pending: list[str] = []
    size = 0
    for text in texts:
        pending.append(text)
        size += len(text)
        if size >= CHUNK_BYTES // 2:
            yield _utf8_of_json("".join(pending), converter)
            pending, size = [], 0
    yield _utf8_of_json("".join(pending), converter)


def _utf8_of_json(text: str, converter: Converter) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        replaced = "text that is not valid Unicode (a lone surrogate) had characters replaced"
        converter.counts[replaced] = (1, converter.root)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


def json_chunks(value: Any, converter: Converter) -> Iterator[bytes]:
    """Yield the strict JSON (UTF-8) of any convertible value. Raises as `Converter.convert` does."""
    return _encoded(_texts(converter.convert(value), json_encoder()), converter)


def as_json_text(value: Any, *, max_bytes: int = 1 << 30) -> tuple[bytes, list[str]]:
    """Return the JSON (UTF-8) that a result of `value` would travel as, and the warnings about it."""
    converter = Converter("result", max_bytes)
    text = b"".join(json_chunks(value, converter))
    return text, converter.warnings()


def from_json(text: bytes | bytearray) -> Any:
    """Parse JSON, turning Node Buffers (`{"type": "Buffer", "data": [...]}`) into bytes."""
    # Node never escapes these letters: a text without the word holds no Buffer and parses at full speed.
    return json_value(text, _unbuffered if b'"Buffer"' in text else None)


def json_encoder() -> Callable[[Any], str]:
    """Return a function from plain data to JSON text.

    This and `json_value` use the compiled part of `json` alone: the package around it imports `re` and `enum`,
    which takes longer than all the rest of the harness.
    """
    try:
        from _json import encode_basestring, make_encoder

        encode = make_encoder(
            None, _no_json, encode_basestring, None, ":", ",", sort_keys=False, skipkeys=False, allow_nan=False
        )
    except (ImportError, TypeError):  # another Python, or one that changed them
        import json

        return json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode
    return lambda value: "".join(encode(value, 0))


def _no_json(value: object) -> NoReturn:
    raise TypeError(f"{_type_name(value)} is not plain data")


class _Scanning:
    """What the compiled scanner asks of a decoder."""

    strict = True
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float

    def __init__(self, hook: Callable[[dict[str, Any]], Any] | None) -> None:
        self.object_hook = hook
        self.memo: dict[str, str] = {}


def json_value(text: bytes | bytearray, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse JSON (UTF-8). Raises ValueError as `json.loads` does, and RecursionError."""
    try:
        from _json import make_scanner

        content = text.decode("utf-8")
        start = len(content) - len(content.lstrip(" \t\n\r"))
        value, end = make_scanner(_Scanning(hook))(  # type: ignore[arg-type] # it only reads these attributes
            content, start
        )
        if not content[end:].strip(" \t\n\r"):
            return value
    except (ImportError, TypeError, StopIteration, ValueError, SystemError):
        # Not JSON: the package says what is wrong and where. (Without it the scanner can't make its own
        # exception, hence SystemError.)
        pass
    import json

    return json.loads(text, object_hook=hook)


def _unbuffered(value: dict[str, Any]) -> Any:
    data = value.get("data")
    if len(value) != 2 or value.get("type") != "Buffer" or not isinstance(data, list):
        return value
    try:
        return bytes(data)
    except (TypeError, ValueError):
        return value


# ---------------------------------------------------------------- errors of the program


def _type_and_message(error: BaseException) -> tuple[str, str]:
    try:
        message = str(error)
    except Exception:
        message = "[the exception's own text could not be made]"
    return clean(_type_name(error), 200), clean(message)


def _location(error: BaseException, filename: str) -> tuple[int | None, int | None]:
    """Return the 1-based line and column of the innermost frame in the user's own file."""
    found: TracebackType | None = None
    tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code.co_filename == filename:
            found = tb
        tb = tb.tb_next
    if found is None:
        if isinstance(error, SyntaxError) and error.filename == filename:
            return _number(error.lineno), _number(error.offset)
        return None, None
    code = found.tb_frame.f_code
    positions = getattr(code, "co_positions", None)
    if positions is None:
        return found.tb_lineno, None
    from itertools import islice

    span = next(islice(positions(), found.tb_lasti // 2, None), (None, None, None, None))
    return found.tb_lineno, None if span[2] is None or span[0] != found.tb_lineno else span[2] + 1


def _number(value: object) -> int | None:
    """Return a line or a column that a program may have set itself, or None where it is none."""
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def _traceback_text(error: BaseException, filename: str) -> str:
    """Return the traceback without frames of ours, bounded in its middle."""
    import traceback

    report = traceback.TracebackException(type(error), error, error.__traceback__, lookup_lines=False)
    _drop_our_frames(report, filename, set())
    lines = []
    size = 0
    for line in report.format():
        lines.append(clean(line, MAX_TRACEBACK_BYTES))
        size += len(line)
        if size > 64 * MAX_TRACEBACK_BYTES:
            break
    text = "".join(lines).encode("utf-8")
    if len(text) > MAX_TRACEBACK_BYTES:
        third = MAX_TRACEBACK_BYTES // 3
        text = text[:third] + b"\n  [truncated]\n" + text[-2 * third :]
    return text.decode("utf-8", "ignore")


def _drop_our_frames(report: Any, filename: str, seen: set[int]) -> None:
    if report is None or id(report) in seen:
        return
    seen.add(id(report))
    frames = [frame for frame in report.stack if frame.filename != HERE]
    users = [index for index, frame in enumerate(frames) if frame.filename == filename]
    # What comes before the user's first frame is the event loop that runs a top-level await.
    report.stack[:] = frames[users[0] :] if users else frames
    for frame in report.stack:
        _read_source_only(frame.filename)
    for other in (report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())):
        _drop_our_frames(other, filename, seen)


def _read_source_only(name: str) -> None:
    """Have the report open no file but a Python source of a sensible size: code of the program's making has any name it likes."""
    import linecache
    import stat

    if len(linecache.cache.get(name, ())) > 1:
        return
    try:
        there = os.stat(name)
        fine = name.endswith(".py") and stat.S_ISREG(there.st_mode) and there.st_size <= MAX_SOURCE_BYTES
    except (OSError, ValueError):
        fine = False
    if not fine:
        linecache.cache[name] = (0, None, [], name)


def _cause(error: BaseException) -> str | None:
    """Return which cap of the sandbox explains the exception: memory, processes, or None."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "processes"
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    import errno

    if error.errno == errno.ENOMEM:
        return "memory"
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    if error.errno != errno.EAGAIN or tb is None:
        return None
    starters = {"fork", "forkpty", "fork_exec", "_fork_exec", "posix_spawn", "posix_spawnp"}
    return "processes" if starters.intersection(tb.tb_frame.f_code.co_names) else None


def error_record(error: BaseException, filename: str) -> bytes:
    """Return the JSON body of an X frame for an exception of the program."""
    kind, message = _type_and_message(error)
    cause = _cause(error)
    try:
        line, column = _location(error, filename)
        text = _traceback_text(error, filename)
    except Exception:  # out of memory once more, or an exception that fights back
        line, column, text = None, None, f"{kind}: {message}\n"
    fields = {"type": kind, "message": message, "line": line, "column": column}
    fields.update(traceback=text, cause=cause)
    return _record(fields, ("traceback", "message"))


# ---------------------------------------------------------------- the program's side


class Channel:
    """The program's end of the packet socket to the supervisor; shared by its threads and its forks."""

    def __init__(self, end: socket) -> None:
        from _thread import allocate_lock

        self._socket = end
        self._lock = allocate_lock()
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        from _thread import allocate_lock

        self._lock = allocate_lock()  # a thread that held it doesn't exist in the copy

    def send(self, kind: bytes, body: bytes | memoryview = b"") -> None:
        """Send one packet; packets of several threads and processes never mix."""
        self._socket.send(b"".join((kind, body)))

    def send_file(self, name: str, size: int, read: Callable[[int], bytes | memoryview]) -> None:
        """Send a file in one piece, one file at a time over all threads and forked processes.

        `read` gives the next bytes, at most as many as it is asked for.
        """
        import fcntl

        with self._lock:
            fcntl.lockf(self._socket.fileno(), fcntl.LOCK_EX)
            try:
                self.send(b"F", struct.pack(">Q", size) + name.encode("utf-8"))
                missing = size
                while missing:
                    chunk = read(min(CHUNK_BYTES, missing))
                    if not chunk:
                        raise OSError(f"save_file: {name!r} became shorter while it was sent")
                    self.send(b"f", chunk)
                    missing -= len(chunk)
            finally:
                fcntl.lockf(self._socket.fileno(), fcntl.LOCK_UN)

    def send_json(self, kind: bytes, chunks: Iterable[bytes]) -> None:
        """Send JSON text in packets."""
        for chunk in chunks:
            for start in range(0, len(chunk), CHUNK_BYTES):
                self.send(kind, chunk[start : start + CHUNK_BYTES])


class Helpers:
    """The functions that a program finds in its namespace."""

    def __init__(self, channel: Channel, app_dir: str, started: float) -> None:
        self._channel = channel
        self._app_dir = app_dir
        self._started = started
        self.saved = False

    def log(self, message: object, level: str = "info") -> None:
        """Add a record to the run's log; levels are debug, info, warning and error."""
        text = str(message)
        known = str(level).lower()
        known = "warning" if known == "warn" else known
        if known not in LEVELS:
            known, text = "info", f"[{level}] {text}"
        elapsed = round(time.monotonic() - self._started, 6)
        record = {"level": known, "message": clean(text, MAX_RECORD_BYTES), "elapsed_s": elapsed}
        self._channel.send(b"L", _record(record, ("message",)))

    def save_file(self, name: str, content: str | bytes | bytearray | memoryview | None = None) -> str:
        """Write a file and hand it to the caller of the run; return its path.

        Without content, the file of that name in the working directory is handed over as it is.
        """
        problem = name_problem(name)
        if problem:
            raise ValueError(f"save_file: the name {clean(repr(name), 80)} {problem}")
        self.saved = True
        path = os.path.join(self._app_dir, name)
        if content is None:
            self._send_existing(name, path)
            return path
        if isinstance(content, str):
            view = memoryview(content.encode("utf-8", "backslashreplace"))
        elif isinstance(content, (bytes, bytearray, memoryview)):
            view = memoryview(bytes(content))
        else:
            kind = _type_name(content)
            raise TypeError(f"save_file: the content must be str or bytes, not {kind}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
        try:
            written = 0
            while written < len(view):
                written += os.write(descriptor, view[written : written + (1 << 20)])
        finally:
            os.close(descriptor)
        sent = 0

        def read(size: int) -> memoryview:
            nonlocal sent
            sent += size
            return view[sent - size : sent]

        self._channel.send_file(name, len(view), read)
        return path

    def _send_existing(self, name: str, path: str) -> None:
        import stat

        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"save_file: {name!r} is not a regular file")
            self._channel.send_file(name, status.st_size, lambda size: os.read(descriptor, size))
        finally:
            os.close(descriptor)

    def read_file(self, name: str, binary: bool = False) -> str | bytes | None:  # noqa: FBT001, FBT002
        """Return a file of the working directory as text, or as bytes; None when there is none."""
        path = os.path.normpath(os.path.join(self._app_dir, name))
        if "\0" in name or not path.startswith(self._app_dir.rstrip("/") + "/"):
            raise ValueError(f"read_file: {clean(repr(name), 80)} is not below {self._app_dir}")
        try:
            if binary:
                with open(path, "rb") as file:
                    return file.read()
            with open(path, encoding="utf-8") as text:
                return text.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError:
            raise ValueError(
                f"read_file: {name!r} is not UTF-8 text; read_file({name!r}, binary=True) gives its bytes"
            ) from None

    def run_command(self, cmd: str | list[str], timeout: float | None = None) -> dict[str, Any]:
        """Run a command (text through /bin/sh, a list directly); never raises for one that fails.

        Returns `{"returncode", "stdout", "stderr"}`; 127 when it could not start, 124 when it timed out.
        """
        import signal
        import subprocess

        if not isinstance(cmd, (str, list, tuple)):
            raise TypeError(f"run_command: the command must be text or a list, not {_type_name(cmd)}")
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                cmd,
                shell=isinstance(cmd, str),
                stdin=null,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return {"returncode": 127, "stdout": "", "stderr": f"could not start: {error}"}
        with process:
            try:
                out, err = process.communicate(timeout=timeout)
                status, reason = process.returncode, ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                status, reason = 124, f"timed out after {timeout} seconds"
        shown = [part.decode("utf-8", "backslashreplace") for part in (out, err)]
        return {"returncode": status, "stdout": shown[0], "stderr": shown[1] + reason}


def shown_name(name: str, app_dir: str) -> str:
    """Return what tracebacks call a program of this name: one that has a file of its own in the sandbox is told from that."""
    try:
        taken = os.path.lexists(os.path.join(app_dir, name))
    except ValueError:  # a null byte
        taken = True
    return f"<{name}>" if taken else name


def show_own_lines(source: str, *names: str) -> None:
    """Have every traceback and warning show lines of this text for code of these names, and look into no file for them."""
    import linecache

    lines = source_lines(source)
    for name in names:
        linecache.cache[name] = (len(source), None, lines, name)


class SourceLoader:
    """Gives the program's text to `inspect` through the module's `__loader__`."""

    def __init__(self, source: str) -> None:
        self._source = source

    def get_source(self, _name: str) -> str:
        """Return the program's text."""
        return self._source


class Program:
    """One run of the user's code in the child process."""

    def __init__(
        self, job: dict[str, Any], parts: dict[str, bytes | bytearray], channel: Channel, app_dir: str
    ) -> None:
        self.job = job
        self.parts = parts
        self.channel = channel
        self.app_dir = app_dir
        self.filename = shown_name(job["filename"], app_dir)
        self.pid = os.getpid()
        self.given = set(os.listdir(app_dir))
        self.helpers: Helpers | None = None
        # Address space to give back when memory runs out, so that the error can still be told.
        self.reserve = _address_space(RESERVE_BYTES)

    def run(self, started: float) -> NoReturn:
        """Run the program, report, and leave this process; never returns."""
        status = 1
        try:
            status = self._run(started)
        except BaseException as error:
            # Reporting itself failed: a closed channel, or no memory left.
            self._complain(error)
        finally:
            _leave(status)

    def _run(self, started: float) -> int:
        error: BaseException | None = None
        status = 0
        namespace: dict[str, Any] = {}
        try:
            try:
                namespace = self._namespace(started)
                source = self._source(namespace)
                execute(compile_program(source, self.filename), namespace)
            finally:
                self.reserve = None
        except SystemExit as leaving:
            status = _exit_status(leaving.code)
            error = leaving if status else None
        except BaseException as raised:
            error, status = raised, 1
        if os.getpid() != self.pid:
            # A forked copy fell off the end of the program: it has no result to give.
            if error is not None and not isinstance(error, SystemExit):
                self._complain(error)
            return status
        _wait_for_threads()
        if error is not None:
            self._send_error(error)
            return status
        return self._send_result(namespace)

    def _complain(self, error: BaseException) -> None:
        try:
            # Importing `traceback` costs some MB, which a fork bomb would multiply into an end for want of memory.
            if "traceback" in sys.modules:
                text = _traceback_text(error, self.filename)
            else:
                kind, message = _type_and_message(error)
                text = f"{kind}: {message} (line {_location(error, self.filename)[0]}, in a forked process)\n"
            os.write(2, text.encode("utf-8", "backslashreplace"))
        except BaseException:  # nobody is left to tell
            return

    def _source(self, namespace: dict[str, Any]) -> str:
        source = bytes(self.parts.pop("code", b"")).decode("utf-8", "surrogateescape")
        source = source[1:] if source.startswith("\ufeff") else source
        namespace["__loader__"] = SourceLoader(source)
        show_own_lines(source, self.filename, namespace["__file__"])
        return source

    def _namespace(self, started: float) -> dict[str, Any]:
        job = self.job
        payload = self._parsed("payload", b"null")
        message = self._parsed("message", b"{}")
        if not isinstance(message, dict):
            raise TypeError(f"the message must be a JSON object, not {_type_name(message)}")
        message["payload"] = payload
        message.setdefault("topic", job["topic"])
        helpers = self.helpers = Helpers(self.channel, self.app_dir, started)
        # Preloaded modules may hold on to the main module that they have seen.
        module = sys.modules["__main__"] if job["preloaded"] else type(sys)("__main__")
        module.__dict__.update(
            __builtins__=__builtins__,
            __file__=os.path.join(self.app_dir, os.path.basename(self.filename)),
            payload=payload,
            topic=job["topic"],
            timestamp=job["timestamp"],
            previous_result=payload,
            execution_id=job["run_id"],
            node_id=job["node_id"],
            original_message=message,
            msg=dict(message),
            log=helpers.log,
            save_file=helpers.save_file,
            read_file=helpers.read_file,
            run_command=helpers.run_command,
        )
        sys.modules["__main__"] = module
        return module.__dict__

    def _parsed(self, part: str, absent: bytes) -> Any:
        try:
            return from_json(self.parts.pop(part, b"") or absent)
        except ValueError as error:
            raise ValueError(f"the {part} is not valid JSON: {error}") from None

    def _left_behind(self) -> list[str]:
        """Return a warning of files that the program wrote and did not save, if it never saved any."""
        if self.helpers is None or self.helpers.saved:
            return []
        try:
            found = sorted(_files_below(self.app_dir, self.given))
        except Exception:
            return []
        if not found:
            return []
        content = f", read_file({found[0]!r}, binary=True)" if "/" in found[0] else ""
        advice = f"save_file({os.path.basename(found[0])!r}{content}) hands one over"
        more = ", ..." if len(found) > SHOWN_LEFT else ""
        return [f"files end with the run unless they are saved: {advice} (left: {', '.join(found[:SHOWN_LEFT])}{more})"]

    def _send_error(self, error: BaseException) -> None:
        self.channel.send(b"X", error_record(error, self.filename))

    def _send_result(self, namespace: dict[str, Any]) -> int:
        """Convert and send the result; M comes last and makes it count."""
        max_bytes = self.job["limits"]["result_bytes"]
        warnings: list[str] = []
        try:
            for kind, name in ((b"V", "result"), (b"A", "additional_data")):
                value = namespace.get(name)
                if name in namespace and (kind == b"V" or value is not None):
                    converter = Converter(name, max_bytes)
                    self.channel.send_json(kind, json_chunks(value, converter))
                    warnings += converter.warnings()
            meta: dict[str, Any] = {}
            topic = namespace.get("output_topic")
            if topic is not None:
                if not isinstance(topic, str):
                    warnings.append(f"output_topic is a {_type_name(topic)} and became text")
                meta["output_topic"] = clean(str(topic), MAX_TOPIC_CHARS)
            warnings += self._left_behind()
            meta["warnings"] = [clean(text, MAX_WARNING_CHARS) for text in warnings[:MAX_WARNINGS]]
            self.channel.send(b"M", _record(meta, ()))
        except ResultTooLargeError:
            self.channel.send(b"Z")
            return 1
        except BaseException as error:
            self._send_error(error)
            return 1
        return 0


def _files_below(top: str, given: set[str]) -> Iterator[str]:
    """Yield the files below `top` that may be meant for somebody, among the first that are there. No link is followed."""
    looked = 0
    directories = [""]
    while directories:
        directory = directories.pop()
        with os.scandir(os.path.join(top, directory)) as entries:
            for entry in entries:
                looked += 1
                if looked > MAX_LOOKED_AT:
                    return
                name = os.path.join(directory, entry.name)
                if name in given or entry.name.startswith((".", "_")) or not name.isprintable():
                    continue
                if entry.is_dir(follow_symlinks=False):
                    directories.append(name)
                elif entry.is_file(follow_symlinks=False) and not name.endswith(PASSING):
                    yield name


def _address_space(size: int) -> Any:
    """Map memory without touching it: it costs no time and no page, only room under RLIMIT_AS."""
    try:
        import mmap

        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (ImportError, OSError):
        return None


def _exit_status(code: object) -> int:
    """Return the exit status that Python would leave with for `SystemExit(code)`."""
    if code is None:
        return 0
    return int(code) & 0xFF if isinstance(code, int) else 1


def _wait_for_threads() -> None:
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()


def _leave(status: int) -> NoReturn:
    """End the process as Python would, with exit functions and flushed output, but without teardown."""
    try:
        import atexit

        atexit._run_exitfuncs()
    except BaseException:  # noqa: S110 - Python prints it and goes on, too
        pass
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: S112 - closed or replaced by the program
            continue
    os._exit(status)


def _set_limits(limits: dict[str, int]) -> None:
    """Apply the resource limits that the job names, soft and hard."""
    import resource

    kinds = {
        "as_bytes": resource.RLIMIT_AS,
        "fsize_bytes": resource.RLIMIT_FSIZE,
        "nofile": resource.RLIMIT_NOFILE,
        "nproc": resource.RLIMIT_NPROC,
    }
    for name, kind in kinds.items():
        if limits.get(name) is not None:
            resource.setrlimit(kind, (limits[name], limits[name]))
    if limits.get("cpu_s") is not None:
        # One second apart: at the soft limit SIGXCPU says why, the hard one is a plain SIGKILL.
        resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _open_streams() -> None:
    """Give the program text streams that flush each line and never fail on bad text."""
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc] # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, **options)  # type: ignore[misc] # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, **options)  # type: ignore[misc] # noqa: SIM115


def _become_program(out: int, err: int, app_dir: str, *, preloaded: bool) -> None:
    """Turn the forked child into a process of its own, with nothing of the supervisor's, as far as no job is needed."""
    import _signal as signal  # type: ignore[import-not-found] # the package `signal` imports enum

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
        os.close(source)
    _set_dumpable(1)  # or /dev/stdout and /proc/self/fd would be out of its own reach
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # when memory runs out, the program dies and the supervisor reports it
    except OSError:  # a read-only /proc costs only the better report
        pass
    _add_libraries(LIBRARIES)
    sys.path.insert(0, app_dir)
    _forget_harness()
    if not preloaded:
        # Preloaded modules hold on to the streams they have seen, and stay out of the collector's way: it would look at
        # every object of theirs, and so copy the pages that the two processes share.
        _open_streams()
        gc.unfreeze()


def _take_on(job: dict[str, Any]) -> None:
    """Make the program's process what the job asks for."""
    os.environ.update(job["env"])
    _set_limits(job["limits"])
    sys.argv[:] = [job["filename"]]  # in place: preloaded modules may hold on to the list
    _add_libraries(LIBRARIES)  # once more: the job may have brought variables of its own
    _report_by_traceback()
    if job["preloaded"]:
        _reseed()


def _report_by_traceback() -> None:
    """Have `traceback` report what nobody catches, in threads and finalizers, too: the interpreter's own report opens files."""
    import _thread

    def report(text: str, error: BaseException | None) -> None:
        import traceback

        if sys.stderr is not None and error is not None:
            lines = traceback.format_exception(type(error), error, error.__traceback__)
            sys.stderr.write(text + "".join(lines))

    def in_thread(found: Any) -> None:
        if found.exc_type is not SystemExit:
            name = found.thread.name if found.thread else _thread.get_ident()
            report(f"Exception in thread {name}:\n", found.exc_value)

    sys.excepthook = lambda _kind, error, _tb: report("", error)
    sys.unraisablehook = lambda found: report(
        f"{found.err_msg or 'Exception ignored in'}: {found.object!r}\n", found.exc_value
    )
    setattr(_thread, "_excepthook", in_thread)  # noqa: B010 - where `threading` takes it from
    if "threading" in sys.modules:
        setattr(sys.modules["threading"], "excepthook", in_thread)  # noqa: B010


class _Nobody:
    """A channel that nobody listens to."""

    def send(self, _kind: bytes, _body: bytes | memoryview = b"") -> None:
        """Drop a packet."""

    def send_json(self, _kind: bytes, chunks: Iterable[bytes]) -> None:
        """Make the text, and drop it."""
        for _ in chunks:
            continue


def _rehearse(app_dir: str) -> None:
    """Run a program of nothing: what first uses cost (imports, caches, pages to copy) is paid before the job.

    The program finds no trace of it but a few compiled modules of the standard library, imported already.
    """
    import atexit  # noqa: F401 - for the end
    import fcntl  # noqa: F401 - for save_file()
    import resource  # noqa: F401 - for the limits

    main_module = sys.modules["__main__"]
    job: dict[str, Any] = dict.fromkeys(("topic", "timestamp", "run_id", "node_id"), "")
    job.update(filename="script.py", limits={"result_bytes": CHUNK_BYTES}, preloaded=False)
    parts: dict[str, bytes | bytearray] = {
        "code": b"result = payload",
        "payload": b'{"a": [1, 2.5, "b"]}',
        "message": b'{"topic": ""}',
    }
    program = Program(job, parts, _Nobody(), app_dir)  # type: ignore[arg-type]
    namespace = program._namespace(0.0)
    execute(compile_program(program._source(namespace), program.filename), namespace)
    program._send_result(namespace)
    sys.modules["__main__"] = main_module
    sys.modules["linecache"].clearcache()


def _add_libraries(directory: str) -> None:
    """Let the program import an environment's libraries: behind the standard library, before what the image has.

    A second call changes nothing but what was changed since.
    """
    if not os.path.isdir(directory):
        return
    if directory not in sys.path:
        import site

        own = list(sys.path)
        site.addsitedir(directory)
        added = [entry for entry in sys.path if entry not in own]
        places = (n for n, entry in enumerate(own) if entry.endswith(("site-packages", "dist-packages")))
        behind = next(places, len(own))
        sys.path[:] = [*own[:behind], *added, *own[behind:]]
    os.environ["PYTHONPATH"] = directory  # for the Python programs that it starts
    if not os.environ["PATH"].startswith(f"{directory}/bin:"):
        os.environ["PATH"] = f"{directory}/bin:{os.environ['PATH']}"


def _forget_harness() -> None:
    """Leave the name of this module to whoever else has it."""
    if getattr(sys.modules.get("harness"), "main", None) is main:
        del sys.modules["harness"]


# ---------------------------------------------------------------- modules imported ahead of the job


def preload(names: list[str], app_dir: str) -> tuple[list[str], str | None]:
    """Import modules in process 1, so that the program has them; return those that could be imported.

    Also returns the module, or None, whose import left a thread or a process running. Such a sandbox is of no use: in
    the program, a fork, they would be missing. What an import does to this process, and not to modules, is undone.
    """
    own = os.getpid()
    restore_signals = _signals()
    umask = os.umask(0o077)
    os.umask(umask)
    outputs = _silence()
    _forget_harness()
    _add_libraries(LIBRARIES)
    sys.argv = ["script.py"]
    module = sys.modules["__main__"] = type(sys)("__main__")
    module.__dict__.update(__builtins__=__builtins__, __file__=os.path.join(app_dir, sys.argv[0]))
    loaded, unfit = [], None
    for name in names:
        if _imported(name):
            loaded.append(name)
        if os.getpid() != own:  # an import that forks, and comes back twice
            os._exit(EXIT_BROKEN)
        restore_signals()
        if _left_running():
            unfit = name
            break
    _speak_again(outputs)
    os.umask(umask)
    os.chdir(app_dir)
    _hide()
    gc.freeze()
    return loaded, unfit


def _signals() -> Callable[[], None]:
    """Return a function that makes this process answer signals as it does now."""
    import _signal as signal

    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def restore() -> None:
        for number, handler in handlers.items():
            try:
                signal.signal(number, handler)
            except (OSError, TypeError):  # SIGKILL and SIGSTOP; one that Python has not set
                continue
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return restore


def _imported(name: str) -> bool:
    """Import a module, whatever that raises. A failure leaves no module behind whose package is missing."""
    known = set(sys.modules)
    try:
        __import__(name)
    except BaseException:
        for module in sorted(set(sys.modules) - known):
            package = module.rpartition(".")[0]
            if package and package not in sys.modules:
                del sys.modules[module]
        return False
    return True


def _left_running() -> bool:
    """Tell whether an import has left a process or a thread of Python running, which a fork would be without.

    Threads that a library's own code has started, such as those of a memory allocator, are the library's business: it
    must expect to be forked once it is imported.
    """
    from _thread import _count as threads

    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
        return True
    except ChildProcessError:
        pass
    deadline = time.monotonic() + LAST_THREAD_S
    while threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    return threads() > 0


def _silence() -> tuple[int, int]:
    """Open the program's streams, lead them nowhere, and return where output went before."""
    outputs = os.dup(1), os.dup(2)
    reading, writing = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (writing, 1), (writing, 2)):
        os.dup2(source, target)
    _open_streams()  # on a pipe, as the program's will be: a stream remembers whether it can seek
    for target in (1, 2):
        os.dup2(null, target)
    for descriptor in (reading, writing, null):
        os.close(descriptor)
    return outputs


def _speak_again(outputs: tuple[int, int]) -> None:
    """Drop what imports have written but not flushed, and lead output back: a fork must not inherit it."""
    import ctypes

    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr] # None is caught as well
        except BaseException:  # noqa: S112 - closed or replaced by a library
            continue
    ctypes.CDLL(None).fflush(None)
    for source, target in zip(outputs, (1, 2)):  # noqa: B905 - Python 3.8
        os.dup2(source, target)
        os.close(source)


def _reseed() -> None:
    """Give the program random numbers of its own. `random` sees to itself after a fork, NumPy does not."""
    module = sys.modules.get("numpy.random")
    if module is not None:
        module.seed()


# ---------------------------------------------------------------- the way out


class Relay:
    """Carries bytes between connections to a loopback port and the runner's egress proxy, blindly.

    It runs in a process of its own. Whatever is decided is decided by the proxy, outside.
    """

    def __init__(self, listener: socket, target: str) -> None:
        self.listener = listener
        self.target = target
        self.ends: dict[int, tuple[socket, socket]] = {}  # descriptor to itself and the other end
        self.waiting: dict[int, bytes] = {}  # what an end has not taken yet
        self.finished: set[int] = set()  # ends that will send no more

    def serve(self) -> NoReturn:
        """Relay until killed; never returns."""
        while True:
            poll = select.poll()
            if len(self.ends) < 2 * MAX_RELAYED:
                poll.register(self.listener.fileno(), select.POLLIN)
            for descriptor, (_, other) in self.ends.items():
                idle = descriptor in self.finished or other.fileno() in self.waiting
                events = (0 if idle else select.POLLIN) | (select.POLLOUT if descriptor in self.waiting else 0)
                if events:  # poll tells of a hang-up even unasked, and what waits must still be delivered
                    poll.register(descriptor, events)
            for descriptor, events in poll.poll():
                if descriptor == self.listener.fileno():
                    self._accept()
                elif descriptor in self.ends:
                    self._move(descriptor, events)

    def _accept(self) -> None:
        try:
            inner = socket(fileno=self.listener._accept()[0])  # type: ignore[attr-defined] # of the C type
        except OSError:
            time.sleep(0.01)  # no descriptor left: some will be closed
            return
        outer = socket(AF_UNIX, SOCK_STREAM)
        try:
            outer.connect(self.target)
        except OSError:  # the runner is gone, or too busy
            outer.close()
            inner.close()
            return
        for end, other in ((inner, outer), (outer, inner)):
            end.setblocking(False)  # noqa: FBT003
            self.ends[end.fileno()] = (end, other)

    def _move(self, descriptor: int, events: int) -> None:
        end, other = self.ends[descriptor]
        try:
            if events & select.POLLOUT:
                self._send(end, self.waiting.pop(descriptor, b""))
            else:
                data = end.recv(RELAYED_BYTES)
                if data:
                    self._send(other, data)
                else:
                    self.finished.add(descriptor)
                    self._pass_end(other)
            if {descriptor, other.fileno()} <= self.finished and not self.waiting.keys() & {descriptor, other.fileno()}:
                self._close(descriptor)
        except BlockingIOError:
            return
        except OSError:
            self._close(descriptor)

    def _send(self, end: socket, data: bytes) -> None:
        try:
            sent = end.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.waiting[end.fileno()] = data[sent:]
        else:
            self._pass_end(end)

    def _pass_end(self, end: socket) -> None:
        """Tell `end` that nothing more comes, once it has taken everything."""
        other = self.ends[end.fileno()][1]
        if other.fileno() in self.finished and end.fileno() not in self.waiting:
            end.shutdown(SHUT_WR)

    def _close(self, descriptor: int) -> None:
        for end in self.ends[descriptor]:
            number = end.fileno()
            self.ends.pop(number)
            self.waiting.pop(number, None)
            self.finished.discard(number)
            end.close()


def _start_relay(port: int, target: str, not_its: Iterable[Connection | Child]) -> int:
    """Fork the relay of `127.0.0.1:port`, which closes what is `not_its`; return its process id. Raises OSError."""
    listener = socket(AF_INET, SOCK_STREAM)
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    pid = os.fork()
    if pid == 0:
        try:
            for other in not_its:
                other.close()
            Relay(listener, target).serve()
        finally:
            os._exit(EXIT_BROKEN)
    listener.close()
    return pid


# ---------------------------------------------------------------- the supervisor's side


class HarnessError(Exception):
    """The supervisor cannot go on: the connection is gone or what came over it makes no sense."""


def _exactly(source: socket, size: int) -> bytearray:
    """Return the next `size` bytes that come. Raises HarnessError at the end of the connection."""
    data = bytearray(size)
    view = memoryview(data)
    received = 0
    while received < size:
        count = source.recv_into(view[received:], min(size - received, MAX_BODY_BYTES))
        if count == 0:
            raise HarnessError("the runner is gone")
        received += count
    return data


class Connection:
    """The job socket: exact reads before the program starts, bounded buffered writes after."""

    def __init__(self, opened: socket) -> None:
        self._socket = opened
        self.fd = self._socket.fileno()
        self._out = bytearray()

    def close(self) -> None:
        """Close it in this process."""
        self._socket.close()

    def next_channel(self) -> socket | None:
        """Return the channel of the next cell, passed on unread; None when the runner is gone. Raises HarnessError."""
        head, rights, _, _ = self._socket.recvmsg(len(MAKE_CELL), CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
        if not head:
            return None
        if head != MAKE_CELL or len(rights) != 1 or rights[0][:2] != (SOL_SOCKET, SCM_RIGHTS):
            raise HarnessError("expected the order to make a cell")
        return socket(AF_UNIX, SOCK_STREAM, 0, int.from_bytes(rights[0][2], sys.byteorder))

    def read(self) -> tuple[bytes, bytearray]:
        """Return the next frame's type and body. Raises HarnessError."""
        head = _exactly(self._socket, 5)
        size = int.from_bytes(head[1:], "big")
        if size > MAX_BODY_BYTES:
            raise HarnessError(f"a frame of {size} bytes is too large")
        return bytes(head[:1]), _exactly(self._socket, size)

    def nonblocking(self) -> None:
        """Switch to buffered writes, for the time in which the program runs."""
        self._socket.setblocking(False)  # noqa: FBT003

    @property
    def pending(self) -> int:
        """Bytes not yet sent."""
        return len(self._out)

    def put(self, kind: bytes, body: bytes) -> None:
        """Queue a frame and send what the socket takes now. Raises HarnessError when the runner is gone."""
        self._out += kind
        self._out += len(body).to_bytes(4, "big")
        self._out += body
        self.flush()

    def put_json(self, kind: bytes, fields: dict[str, Any]) -> None:
        """Queue a frame with a JSON body."""
        self.put(kind, json_encoder()(fields).encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Send what the socket takes now. Raises HarnessError when the runner is gone."""
        while self._out:
            try:
                with memoryview(self._out) as view:
                    sent = self._socket.send(view[:CHUNK_BYTES])
            except BlockingIOError:
                return
            except OSError:
                raise HarnessError("the runner is gone") from None
            del self._out[:sent]

    def receive(self) -> bytes:
        """Return what came while the program runs: b"" at the end of the connection."""
        try:
            return self._socket.recv(4096)
        except BlockingIOError:
            return b"?"
        except OSError:
            return b""

    def settle(self, timeout_s: float) -> None:
        """Send everything queued, then wait for the runner to close, for at most `timeout_s`."""
        self.nonblocking()
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        while time.monotonic() < deadline:
            poll.register(self.fd, select.POLLIN | (select.POLLOUT if self._out else 0))
            poll.poll(max(1, int(1000 * (deadline - time.monotonic()))))
            self.flush()
            if not self.receive():
                return


class Child:
    """The program's process before it has its job, from the supervisor's side: its id, and our ends of what leads to it."""

    def __init__(
        self, connection: Connection, app_dir: str, *, preloaded: bool, ahead: bool, rehearsed: bool = False
    ) -> None:
        """Fork it; `ahead` of its job it gets as ready as can be first, unless its parent has `rehearsed` already.

        Raises OSError when the fork is refused.
        """
        self._inbox, inbox = socketpair(AF_UNIX, SOCK_STREAM)
        self.channel, channel = socketpair(AF_UNIX, SOCK_SEQPACKET)
        out, err = os.pipe(), os.pipe()
        self.out, self.err = out[0], err[0]
        self._unsent = bytearray()
        gc.freeze()
        self.pid = os.fork()
        if self.pid == 0:
            _run_child((connection, self), inbox, channel, (out[1], err[1]), (app_dir, preloaded, ahead, rehearsed))
        inbox.close()
        channel.close()
        os.close(out[1])
        os.close(err[1])

    def close(self) -> None:
        """Close our ends in this process."""
        self._inbox.close()
        self.channel.close()
        os.close(self.out)
        os.close(self.err)

    def settled(self) -> bool:
        """Wait until it is ready for its job; return whether it is."""
        try:
            return self._inbox.recv(1) != b""
        except OSError:
            return False

    def lives(self) -> bool:
        """Tell whether it still waits; when it has ended, nothing is left of it."""
        if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            return True
        self.close()
        return False

    def cpu_s(self) -> float:
        """Return the processor time that it has used, and what other children had that are gone."""
        import resource

        gone = resource.getrusage(resource.RUSAGE_CHILDREN)
        # How Linux numbers the clock of another process: clock_getcpuclockid(3).
        return gone.ru_utime + gone.ru_stime + time.clock_gettime(~self.pid << 3 | 2)

    def give(self, data: bytes | bytearray) -> None:
        """Pass a piece of the job on. Pieces travel together: waking a process costs more than a small job is long."""
        self._unsent += data
        if len(self._unsent) >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what has been given."""
        data, self._unsent = self._unsent, bytearray()
        try:
            self._inbox.sendall(data)
        except OSError:
            return  # it has ended, for want of memory or killed: its status will say so

    def begin(self) -> None:
        """Let the program begin: the job is complete."""
        self.give(b"G")
        self.flush()
        self._inbox.close()


class Supervisor:
    """Watches the program: relays its output, counts against the caps, kills it, reports its end."""

    def __init__(self, connection: Connection, limits: dict[str, int], child: Child) -> None:
        self.connection = connection
        self.limits = limits
        self.channel = child.channel
        self.channel.setblocking(False)  # noqa: FBT003
        # Descriptor to frame type; the channel's is b"".
        self.sources: dict[int, bytes] = {child.out: b"O", child.err: b"E", self.channel.fileno(): b""}
        self.pid = child.pid
        self.relay = 0
        self.wake = 0
        self.status: int | None = None
        self.ended: str | None = None
        self.output_bytes = 0
        self.result_bytes = 0
        self.files_bytes = 0
        self.files_count = 0
        self.log_records = 0
        self.file_missing = 0
        self.stage = b""  # the last of V, A, M, X that came

    # ---- what the program sends

    def _limit(self, ended: str) -> None:
        self.ended = self.ended or ended

    def _output(self, kind: bytes, data: bytes) -> None:
        room = self.limits["output_bytes"] - self.output_bytes
        if len(data) > room:
            self._limit("output_limit")
            data = data[: max(room, 0)]
        if data:
            self.output_bytes += len(data)
            self.connection.put(kind, data)

    def _packet(self, kind: bytes, body: bytes) -> None:
        """Relay one packet of the channel, or end the run where it breaks the rules."""
        handlers = {
            b"L": self._log,
            b"F": self._file,
            b"f": self._file_data,
            b"V": self._result,
            b"A": self._result,
            b"M": self._final,
            b"X": self._final,
        }
        if kind == b"Z" and not body and self.stage not in (b"M", b"X"):
            self._limit("result_limit")
        elif kind not in handlers or not body or len(body) > CHUNK_BYTES:
            self._limit("channel")
        else:
            handlers[kind](kind, body)

    def _log(self, kind: bytes, body: bytes) -> None:
        if self.log_records >= self.limits["log_records"]:
            self._limit("log_limit")
        elif self.output_bytes + len(body) > self.limits["output_bytes"]:
            self._limit("output_limit")
        else:
            self.log_records += 1
            self.output_bytes += len(body)
            self.connection.put(kind, body)

    def _file(self, kind: bytes, body: bytes) -> None:
        try:
            name = body[8:].decode("utf-8")
        except UnicodeDecodeError:
            name = ""
        size = int.from_bytes(body[:8], "big")
        if self.file_missing or name_problem(name):
            self._limit("channel")
        elif self.files_count >= self.limits["files_count"] or self.files_bytes + size > self.limits["files_bytes"]:
            self._limit("files_limit")
        else:
            self.files_count += 1
            self.files_bytes += size
            self.file_missing = size
            self.connection.put_json(kind, {"name": name, "size": size})

    def _file_data(self, kind: bytes, body: bytes) -> None:
        if len(body) > self.file_missing:
            self._limit("channel")
        else:
            self.file_missing -= len(body)
            self.connection.put(kind, body)

    def _result(self, kind: bytes, body: bytes) -> None:
        if self.stage not in (b"", b"V", kind):
            self._limit("channel")
            return
        self.stage = kind
        self.result_bytes += len(body)
        if self.result_bytes > self.limits["result_bytes"]:
            self._limit("result_limit")
        else:
            self.connection.put(kind, body)

    def _final(self, kind: bytes, body: bytes) -> None:
        if self.stage in (b"M", b"X"):
            self._limit("channel")
        else:
            self.stage = kind
            self.connection.put(kind, body)

    # ---- the event loop

    def _read(self, source: int) -> None:
        kind = self.sources[source]
        try:
            # Of a packet, one byte more than is allowed shows that it is too large.
            data = os.read(source, CHUNK_BYTES) if kind else self.channel.recv(CHUNK_BYTES + 2)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(source)
        elif kind:
            self._output(kind, data)
        elif self.ended is None:
            self._packet(data[:1], data[1:])

    def _close(self, source: int) -> None:
        if self.sources.pop(source):
            os.close(source)
        else:
            self.channel.close()

    def _commands(self) -> None:
        data = self.connection.receive()
        if not data:
            raise HarnessError("the runner is gone")
        if data[:1] == b"C":
            self._limit("cancelled")

    def _step(self, timeout_s: float) -> bool:
        """Handle what is ready within `timeout_s`; return whether anything was."""
        poll = select.poll()
        blocked = self.connection.pending > 0
        poll.register(self.connection.fd, select.POLLIN | (select.POLLOUT if blocked else 0))
        poll.register(self.wake, select.POLLIN)
        if self.connection.pending < HIGH_WATER_BYTES:
            for source in self.sources:
                poll.register(source, select.POLLIN)
        ready = poll.poll(int(timeout_s * 1000))
        for descriptor, events in ready:
            if descriptor == self.connection.fd:
                if events & select.POLLOUT:
                    self.connection.flush()
                if events & ~select.POLLOUT:
                    self._commands()
            elif descriptor == self.wake:
                os.read(self.wake, 4096)
            elif descriptor in self.sources:
                self._read(descriptor)
        return bool(ready)

    def _reap(self) -> bool:
        """Collect every dead process; return whether any child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.status = status

    def kill(self) -> None:
        """Kill the program and, as process 1, everything else in the sandbox."""
        import _signal as signal

        if os.getpid() == 1:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                return
        elif self.pid:  # in a test on a host, where -1 would mean everybody
            for kill, pid in ((os.killpg, self.pid), (os.kill, self.pid), (os.kill, self.relay)):
                try:
                    if pid:
                        kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue

    def watch(self) -> None:
        """Relay until the program is dead, then everything it left behind. Raises HarnessError."""
        killed = False
        while self.status is None:
            if self.ended and not killed:
                self.kill()
                killed = True
            self._step(1.0)
            self._reap()
        self.kill()
        self._drain()
        deadline = time.monotonic() + DRAIN_S
        while self._reap() and os.getpid() == 1 and time.monotonic() < deadline:
            self.kill()
            time.sleep(0.001)

    def _drain(self) -> None:
        """Relay what the dead left in the pipes. Waiting for a slow runner doesn't count as time."""
        deadline = time.monotonic() + DRAIN_S
        while self.sources:
            if self.connection.pending >= HIGH_WATER_BYTES:
                self._step(1.0)
                deadline = time.monotonic() + DRAIN_S
            elif time.monotonic() > deadline or not self._step(0.05):
                return


def _report(
    connection: Connection, ended: str, *, status: int | None = None, wall_s: float = 0.0, earlier_s: float = 0.0
) -> None:
    """Queue the final frame; `status` is what `waitpid` said of the program, `earlier_s` processor time before it."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    exit_code, signal_name = None, None
    if status is not None and os.WIFEXITED(status):
        exit_code = os.WEXITSTATUS(status)
    elif status is not None:
        signal_name = _signal_name(os.WTERMSIG(status))
    fields = {
        "exit_code": exit_code,
        "signal": signal_name,
        "ended": ended,
        "max_rss_kib": usage.ru_maxrss,
        "cpu_s": round(max(0.0, usage.ru_utime + usage.ru_stime - earlier_s), 6),
        "wall_s": round(wall_s, 6),
    }
    connection.put_json(b"Q", fields)


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _set_dumpable(value: int) -> None:
    """Set whether /proc shows this process to its own user. Raises OSError unless it took effect."""
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    arguments = [ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3]
    if prctl(PR_SET_DUMPABLE, *arguments) != 0 or prctl(PR_GET_DUMPABLE) != value:
        raise OSError(ctypes.get_errno(), f"prctl(PR_SET_DUMPABLE, {value}) failed")


def _hide() -> None:
    """Make process 1 opaque to the program and deaf to its signals, and import what is needed later.

    All this happens after "ready" was sent, while the runner checks the sandbox.
    """
    import _signal as signal

    _set_dumpable(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _parsed_job(body: bytearray) -> dict[str, Any]:
    job: dict[str, Any] = json_value(body)
    if job["protocol"] != PROTOCOL:
        raise HarnessError(f"this harness speaks protocol {PROTOCOL}, the runner {job['protocol']!r}")
    return job


def _pass_on(connection: Connection, job: dict[str, Any], child: Child, app_dir: str) -> bool:
    """Receive the parts of a job; write its files, and give the rest to the child as it comes; False when cancelled.

    Raises HarnessError, OSError.
    """
    body = bytearray()
    for part in job["parts"]:
        if part["size"] > MAX_PART_BYTES:
            raise HarnessError("a part is too large")
        content = bytearray()
        missing = part["size"]
        while missing:
            if not body:
                kind, body = connection.read()
                if kind == b"C":
                    return False
                if kind != b"D" or not body:
                    raise HarnessError(f"expected data, got {kind!r}")
            piece = body[:missing] if len(body) > missing else body
            body = body[missing:]
            missing -= len(piece)
            if part["kind"] == "file":
                content += piece
            else:
                child.give(piece)
        if part["kind"] == "file":
            _write_input(app_dir, part["name"], content)
    kind, rest = connection.read()
    if kind == b"C":
        return False
    if kind != b"G" or rest or body:
        raise HarnessError(f"expected the word to go, got {kind!r}")
    return True


def _received_job(inbox: socket) -> tuple[dict[str, Any], dict[str, bytes | bytearray]]:
    """Return the job and its parts, as the supervisor passes them on. Raises HarnessError when there is to be none."""
    job = json_value(_exactly(inbox, int.from_bytes(_exactly(inbox, 4), "big")))
    parts: dict[str, bytes | bytearray] = {}
    for part in job["parts"]:
        if part["kind"] != "file":
            parts[part["kind"]] = _exactly(inbox, part["size"])
    _exactly(inbox, 1)  # the word to go
    return job, parts


def _write_input(app_dir: str, name: str, content: bytearray) -> None:
    problem = name_problem(name)
    if problem:
        raise HarnessError(f"an input file's name {problem}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(os.path.join(app_dir, name), flags, 0o644)
    with open(descriptor, "wb") as file:
        file.write(content)


def _start(connection: Connection, job: dict[str, Any], child: Child) -> Supervisor:
    """Let the program begin; return its supervisor. Raises OSError when the relay can't be started."""
    import _signal as signal

    relay = job.get("relay")
    relay_pid = _start_relay(relay["port"], relay["target"], (connection, child)) if relay else 0
    supervisor = Supervisor(connection, job["limits"], child)
    supervisor.relay = relay_pid
    supervisor.wake, woken = os.pipe()
    for descriptor in (supervisor.wake, woken):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, _wake_up)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    child.begin()
    return supervisor


def _wake_up(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: a handler must exist for the wake-up descriptor to be written."""


def _run_child(
    not_its: tuple[Connection, Child],
    inbox: socket,
    end: socket,
    outputs: tuple[int, int],
    setting: tuple[str, bool, bool, bool],
) -> NoReturn:
    """Live the child's life: get ready, wait for the job, run it; never returns."""
    app_dir, preloaded, ahead, rehearsed = setting
    status = EXIT_BROKEN
    try:
        for other in not_its:
            other.close()
        channel = Channel(end)
        try:
            _become_program(*outputs, app_dir, preloaded=preloaded)
            if ahead:
                if not rehearsed:
                    _rehearse(app_dir)
                inbox.send(b"R")
            job, parts = _received_job(inbox)
            inbox.close()
            started = time.monotonic()
            job["preloaded"] = preloaded
            _take_on(job)
        except HarnessError:  # cancelled, or the supervisor is gone
            os._exit(status)
        except BaseException as error:
            _, message = _type_and_message(error)
            cause = _cause(error) or "channel"
            channel.send(b"X", _broken(f"the sandbox could not prepare the program: {message}", cause=cause))
            os._exit(status)
        Program(job, parts, channel, app_dir).run(started)
    finally:
        os._exit(status)


def _broken(message: str, *, kind: str = "SandboxSetupError", cause: str | None = "channel") -> bytes:
    fields = {"type": kind, "message": clean(message), "line": None, "column": None}
    fields.update(traceback="", cause=cause)
    return _record(fields, ("message",))


def _say_ready(connection: Connection, more: str = "") -> None:
    version = ",".join(map(str, sys.version_info[:3]))
    ready = f'{{"protocol":{PROTOCOL},"python":[{version}],"implementation":"{sys.implementation.name}"{more}}}'
    connection.put(b"R", ready.encode())


def _close_project_ids() -> None:
    """Where /proc can be written, write the one map of the user namespace that anyone may write, once. It is read back."""
    try:  # noqa: SIM105 - an import more
        _write("/proc/self/projid_map", "0 0 1")
    except OSError:
        pass  # read-only, or written already


def _prepared(connection: Connection, app_dir: str) -> tuple[bool, Child | None, bytes, bytearray]:
    """Say ready, and again after preparing where that is asked for.

    Return whether modules were preloaded, the program's process if it was forked, and the next frame. A process that is
    to make cells does so, and never returns.
    """
    _close_project_ids()
    _say_ready(connection)
    _hide()
    kind, body = connection.read()
    if kind != b"P":
        return False, None, kind, body
    import resource  # noqa: F401 - for the report

    order = json_value(body)
    names, makes_cells = order["modules"], order.get("cell")
    modules, unfit = preload(names, app_dir) if names or makes_cells else ([], None)
    encode = json_encoder()
    said = f',"preloaded":{encode(modules)},"unfit":{encode(unfit)}'
    if makes_cells:
        maker = Maker(connection, app_dir, makes_cells)
        _say_ready(connection, said)
        maker.make_cells()
    child = Child(connection, app_dir, preloaded=bool(names), ahead=True)
    if not child.settled():
        raise HarnessError("the program's process did not get ready")
    _say_ready(connection, said)
    return (bool(names), child, *connection.read())


def _refuse(connection: Connection, message: str, cause: str | None) -> None:
    """Report why the program can't begin."""
    connection.put(b"X", _broken(message, kind="OSError", cause=cause))
    _report(connection, "exited")


def _serve(
    connection: Connection,
    app_dir: str,
    preloaded: bool,  # noqa: FBT001
    child: Child | None,
    kind: bytes,
    body: bytearray,
) -> None:
    """Take one job, whose first frame has come, from there to quit. Raises HarnessError."""
    if kind == b"C":
        _report(connection, "cancelled")
        return
    if kind != b"J":
        raise HarnessError(f"expected a job, got {kind!r}")
    job = _parsed_job(body)
    refused = "the program's process could not start"
    earlier_s = 0.0
    try:
        if child is not None and child.lives():
            earlier_s = child.cpu_s()
        else:
            child = Child(connection, app_dir, preloaded=preloaded, ahead=False)
    except OSError as error:
        _refuse(connection, f"{refused}: {error}", "processes")
        return
    child.give(len(body).to_bytes(4, "big") + body)
    try:
        complete = _pass_on(connection, job, child, app_dir)
    except OSError as error:
        _refuse(connection, f"an input file could not be written: {error.strerror}", None)
        return
    if not complete:
        _report(connection, "cancelled")
        return
    connection.nonblocking()
    started = time.monotonic()
    try:
        supervisor = _start(connection, job, child)
    except OSError as error:
        _refuse(connection, f"{refused}: {error}", "processes")
        return
    try:
        connection.put(b"S", b"")
        supervisor.watch()
    except HarnessError:
        supervisor.kill()
        raise
    wall_s = time.monotonic() - started
    ended = supervisor.ended or "exited"
    _report(connection, ended, status=supervisor.status, wall_s=wall_s, earlier_s=earlier_s)


# ---------------------------------------------------------------- cells


class CellError(Exception):
    """A cell can't be made here, in words for the receipt."""


class Maker:
    """Process 1 of a warm container: makes a cell for each run, and never reads a message nor runs a line of a user's code.

    A cell is a fork of this process in user, pid, mount, ipc, net and uts namespaces of its own, with writable places of
    its own, no capability and the filter that a container's program has. Its process 1 then is what process 1 of a
    container is, on a channel of its own. Source: user_namespaces(7), mount_namespaces(7), seccomp(2).
    """

    # unshare(2): CLONE_NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
    NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
    MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
    PR_CAPBSET_DROP, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 24, 22, 2
    CAPABILITY_VERSION = 0x20080522
    SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

    def __init__(self, connection: Connection, app_dir: str, order: dict[str, Any]) -> None:
        """Take `order`: the filter as base64 of its instructions, the limits, the writable places, what is to be covered, terminals."""
        import _signal as signal
        import ctypes
        import resource  # noqa: F401 - for the limits and the report
        from binascii import a2b_base64
        from fcntl import ioctl

        self.connection = connection
        self.app_dir = app_dir
        self.places: list[tuple[str, int, bool]] = [tuple(place) for place in order["places"]]
        self.limits: dict[str, int] = order["limits"]
        self.terminals: str = order["terminals"]
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.errno = ctypes.get_errno
        self.ioctl = ioctl
        instructions = a2b_base64(order["filter"])
        self._instructions = ctypes.create_string_buffer(instructions, len(instructions))
        address = ctypes.cast(self._instructions, ctypes.c_void_p).value or 0
        self.filter = struct.pack("HxxxxxxP", len(instructions) // 8, address)  # struct sock_fprog
        with open("/proc/sys/kernel/cap_last_cap") as file:
            self.last_capability = int(file.read())
        self.user, self.group = os.getuid(), os.getgid()
        self.devices = [place for place in order["devices"] if os.path.ismount(place)]
        self.directories = [place for place in order["covered"] if os.path.isdir(place)]
        self.files = [place for place in order["covered"] if os.path.exists(place) and not os.path.isdir(place)]
        _rehearse(app_dir)
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for cells: the runner sees their end

    def make_cells(self) -> NoReturn:
        """Make a cell for every channel that comes, until the runner is gone."""
        while True:
            channel = self.connection.next_channel()
            if channel is None:
                os._exit(0)
            try:
                pid = os.fork()
            except OSError:
                pid = -1  # the channel's end tells the runner
            if pid == 0:
                _live(lambda: self._become_cell(Connection(channel)))  # noqa: B023 - called at once
            channel.close()

    def _become_cell(self, connection: Connection) -> None:
        """Move into a cell and take its one job there."""
        self.connection.close()
        try:
            self._unshare()
            if os.fork():
                os._exit(0)
            self._furnish()
            self._surrender()
        except (CellError, OSError) as error:
            connection.put(b"X", _broken(clean(str(error)), kind="CellError", cause=None))
            os._exit(EXIT_BROKEN)
        child = Child(connection, self.app_dir, preloaded=True, ahead=True, rehearsed=True)
        if not child.settled():
            raise HarnessError("the program's process did not get ready")
        _say_ready(connection)
        _serve(connection, self.app_dir, True, child, *connection.read())  # noqa: FBT003 - preloaded, as the parameter says
        connection.settle(FAREWELL_S)

    def _check(self, answer: int, what: str) -> None:
        if answer != 0:
            number = self.errno()
            raise CellError(f"{what}: {os.strerror(number)}")

    def _unshare(self) -> None:
        """Leave every namespace of the container; the next fork is process 1 of a new one."""
        import _signal as signal

        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # no group of processes goes beyond the cell
        # The kernel gives /proc files of a process that hides to root, who isn't here: its maps could not be written.
        _set_dumpable(1)
        _write("/proc/self/oom_score_adj", "500")  # when memory runs out, a cell dies, and not its maker
        self._check(self.libc.unshare(self.NAMESPACES), "new namespaces")
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{self.user} {self.user} 1")
        _write("/proc/self/gid_map", f"{self.group} {self.group} 1")

    def _mount(self, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        answer = self.libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode())
        self._check(answer, f"mounting {target}")

    def _furnish(self) -> None:
        """Give the cell writable places of its own, and cover what it would share with others."""
        safe = self.MS_NOSUID | self.MS_NODEV
        for target, size_mib, executable in self.places:
            flags = safe | (0 if executable else self.MS_NOEXEC)
            self._mount("tmpfs", target, "tmpfs", flags, f"size={size_mib}m,mode=0700")
        # The container's would show the maker, and every other cell.
        self._mount("proc", "/proc", "proc", safe | self.MS_NOEXEC | self.MS_RDONLY)
        empty = self.directories[0]  # one for all: a file system for each place takes longer to make
        self._mount("tmpfs", empty, "tmpfs", safe | self.MS_NOEXEC | self.MS_RDONLY, "size=4k,mode=0555")
        for place in self.directories[1:]:
            self._mount(empty, place, "", self.MS_BIND)
        for place in self.files:
            self._mount("/dev/null", place, "", self.MS_BIND)
        if os.path.isdir("/dev/pts"):
            self._mount("devpts", "/dev/pts", "devpts", self.MS_NOSUID | self.MS_NOEXEC, self.terminals)
        for device in self.devices:  # the host's own: writing to them is no change, but setting their times is
            self._mount(
                "", device, "", self.MS_REMOUNT | self.MS_BIND | self.MS_RDONLY | self.MS_NOSUID | self.MS_NOEXEC
            )
        os.chdir(self.app_dir)
        self._loopback()

    def _loopback(self) -> None:
        """Bring the loopback interface up, as a container has it. Source: netdevice(7)."""
        control = socket(AF_INET, SOCK_DGRAM)
        request = bytearray(struct.pack("16sh22x", b"lo", 0))
        self.ioctl(control.fileno(), self.SIOCGIFFLAGS, request, True)  # noqa: FBT003 - changes `request`
        flags = struct.unpack_from("h", request, 16)[0]
        struct.pack_into("h", request, 16, flags | self.IFF_UP)
        self.ioctl(control.fileno(), self.SIOCSIFFLAGS, bytes(request))
        control.close()

    def _surrender(self) -> None:
        """Take on the limits, give up every capability, then take on the filter; nothing can undo any of it."""
        _set_limits(self.limits)
        for number in range(self.last_capability + 1):
            self._check(self.libc.prctl(self.PR_CAPBSET_DROP, number, 0, 0, 0), "dropping a capability")
        header, data = struct.pack("Ii", self.CAPABILITY_VERSION, 0), bytes(24)
        self._check(self.libc.capset(header, data), "giving up capabilities")
        _set_dumpable(0)
        self._check(
            self.libc.prctl(self.PR_SET_SECCOMP, self.SECCOMP_MODE_FILTER, self.filter, 0, 0), "installing the filter"
        )


def _write(path: str, text: str) -> None:
    """Write to a file of the kernel, in one call."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _live(life: Callable[[], None]) -> NoReturn:
    """Be process 1 of a sandbox, and exit with what came of it; never returns."""
    status = EXIT_BROKEN
    try:
        life()
        status = 0
    except HarnessError as error:
        os.write(2, f"harness: {error}\n".encode())
    except BaseException as error:
        os.write(2, clean(f"harness: {_type_name(error)}: {error}\n").encode())
    finally:
        os._exit(status)


def main(socket_path: str, app_dir: str = "/app") -> NoReturn:
    """Run one job over the socket, in the working directory `app_dir`, and exit; never returns."""

    def life() -> None:
        here = os.path.dirname(HERE)
        sys.path[:] = [entry for entry in sys.path if entry not in (here, "")]
        os.chdir(app_dir)
        opened = socket(AF_UNIX, SOCK_STREAM)
        opened.connect(socket_path)
        connection = Connection(opened)
        _serve(connection, app_dir, *_prepared(connection, app_dir))
        connection.settle(FAREWELL_S)

    _live(life)
