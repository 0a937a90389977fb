"""The program that checks code without running it. It runs as an ordinary script *inside* a sandbox.

The runner sends this file as a run's code, with the code to check as `payload["code"]`. Standard library only, Python
3.8+. Nothing of the checked code is executed and no library imported: it is compiled by the harness's own function, and
libraries are looked for by their top-level names. The answer in `result`::

    {"python": "3.11.2", "problem": {"line", "column", "message", "text"} or None,
     "missing": [{"module", "line"}], "imports": [top-level names]}

Lines and columns count from 1. Code with a problem has no `missing` and no `imports`.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType
    from typing import Any

    payload: dict[str, Any]

HARNESS = "/run/sandbox/lib/harness.py"
# So little that an answer always fits into the smallest `limits.result_mib`; no name of a file is longer.
MAX_IMPORTS = 500
MAX_MISSING = 100
MAX_NAME_CHARS = 100
MAX_TEXT_CHARS = 200
ABSENT = {"ImportError", "ModuleNotFoundError"}
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")


def harness_of_this_sandbox() -> ModuleType:
    """Return the harness as a module. The names that programs may import stay as they are."""
    spec = importlib.util.spec_from_file_location("harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(source: str, harness: ModuleType) -> dict[str, Any]:
    """Return the answer for a program's text, which is compiled as the harness would."""
    source = source[1:] if source.startswith("\ufeff") else source
    answer: dict[str, Any] = {"python": ".".join(map(str, sys.version_info[:3])), "problem": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run prints them; here nobody would read them
        answer["problem"] = problem_of(source, harness)
        tree = tree_of(source) if answer["problem"] is None else None
    imports = Imports(tree) if tree else None
    return {
        **answer,
        "missing": imports.missing if imports else [],
        "imports": imports.names if imports else [],
    }


# ---------------------------------------------------------------- compiling


def problem_of(source: str, harness: ModuleType) -> dict[str, Any] | None:
    """Return why a program does not compile, or None when it does."""
    try:
        harness.compile_program(source, "<checked>")
    except SyntaxError as error:
        line, column, message = max(1, error.lineno or 1), max(1, error.offset or 1), error.msg
        text = line_of(source, line)
    except (ValueError, OverflowError, SystemError) as error:
        line, column, message, text = 1, 1, str(error) or type(error).__name__, ""
    else:
        return None
    return {
        "line": line,
        "column": column,
        "message": harness.clean(message, MAX_TEXT_CHARS),
        "text": harness.clean(text, MAX_TEXT_CHARS),
    }


def line_of(source: str, number: int) -> str:
    """Return a line of a program as Python counts them: form feeds and the like end none."""
    lines = re.split(r"\r\n|\r|\n", source)
    return lines[number - 1] if number <= len(lines) else ""


def tree_of(source: str) -> ast.Module | None:
    """Return the tree of a program that compiles; None where it is nested too deeply or imports nothing."""
    if "import" not in source:  # a tree takes several times the memory of compiling
        return None
    try:
        return ast.parse(source)
    except (RecursionError, MemoryError):
        return None


# ---------------------------------------------------------------- what it imports


class Imports:
    """What a program imports, in the order of its text: the first `MAX_IMPORTS` names, and which are nowhere.

    Not `missing` is what the program expects to be absent: an import whose failure it catches, or one for a type
    checker alone. An import in the `except` of another one counts when that one fails.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.missing: list[dict[str, Any]] = []
        self._there: dict[str, bool] = {}
        self._told: set[str] = set()
        pending: list[Iterator[tuple[ast.AST, bool]]] = [iter([(tree, True)])]
        while pending:
            step = next(pending[-1], None)
            if step is None:
                pending.pop()
                continue
            statement, needed = step
            for name in imported(statement):
                self._take(name, getattr(statement, "lineno", 1), needed=needed)
            pending.append(self._inside(statement, needed=needed))

    @property
    def names(self) -> list[str]:
        """The top-level names; what is relative to the program has none."""
        return [name[:MAX_NAME_CHARS] for name in self._there if not name.startswith(".")]

    def _take(self, name: str, line: int, *, needed: bool) -> None:
        if self._is_there(name) or not needed or name in self._told or len(self.missing) >= MAX_MISSING:
            return
        self._told.add(name)
        self.missing.append({"module": name[:MAX_NAME_CHARS], "line": line})

    def _is_there(self, name: str) -> bool:
        if name not in self._there:
            if len(self._there) >= MAX_IMPORTS:
                return True  # not looked for
            self._there[name] = is_there(name)
        return self._there[name]

    def _inside(self, statement: ast.AST, *, needed: bool) -> Iterator[tuple[ast.AST, bool]]:
        """Yield the statements directly inside another, in order, and whether what they import is needed."""
        optional = expects_absence(statement)
        for block in BLOCKS:
            inside = getattr(statement, block, None)
            if isinstance(inside, list):  # the body of a lambda is an expression
                spared = optional and block == "handlers" and self._all_there(statement)
                for child in inside:
                    spare = spared and catches_absence(child)
                    yield child, needed and not spare and not (optional and block == "body")

    def _all_there(self, statement: ast.AST) -> bool:
        """Tell whether everything is there that the body of a `try` imports."""
        body: Sequence[ast.AST] = getattr(statement, "body", ())
        return all(self._is_there(name) for child in body for node in ast.walk(child) for name in imported(node))


def imported(node: ast.AST) -> list[str]:
    """Return the top-level names that a statement imports; a relative one keeps its dots."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return ["." * node.level + module if node.level else module.partition(".")[0]]
    return []


def expects_absence(node: ast.AST) -> bool:
    """Tell whether a statement's body may fail to import: it is caught, suppressed, or for a type checker alone."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in names_in(node.test)
    if isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        return any("suppress" in names_in(call.func) and ABSENT & names_of(call.args) for call in calls)
    return any(map(catches_absence, getattr(node, "handlers", ())))


def catches_absence(node: ast.AST) -> bool:
    """Tell whether this is an `except` for imports that fail, by name: one for every error is no sign of it."""
    if not isinstance(node, ast.ExceptHandler) or node.type is None:
        return False
    return bool(ABSENT & names_of(node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]))


def names_of(expressions: Sequence[ast.AST]) -> set[str]:
    """Return the last name of each expression that is a name, with or without a module in front."""
    return {name for expression in expressions for name in names_in(expression)}


def names_in(expression: ast.AST) -> set[str]:
    """Return the last name of an expression that is one: `c` of `a.b.c`."""
    name = getattr(expression, "attr", None) or getattr(expression, "id", None)
    return {name} if name else set()


def is_there(name: str) -> bool:
    """Tell whether an import would find a top-level name. Nothing is imported."""
    if name.startswith("."):
        return False  # a program is in no package
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
    except ValueError:  # it is loaded and has no specification, as `__main__`
        return True


if __name__ == "__main__":
    result = check(payload["code"], harness_of_this_sandbox())  # noqa: F821 - comes from the harness
