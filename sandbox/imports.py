"""Which modules a program imports, as its text tells. Pure: nothing is imported or executed.

What a run imports is known before it runs, so that the next sandbox of its kind can have it imported already.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import warnings
from collections.abc import Iterable, Iterator

from sandbox.errors import InvalidRequest

MAX_MODULES = 32
MAX_MODULE_CHARS = 100
MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
IMPORTABLE = re.compile(r"[^.]+\.(?:.+\.)?(?:py|pyc|so)")


def imports_of(code: str) -> tuple[str, ...]:
    """Return the top-level modules that a program imports anywhere, without those of the standard library.

    In the order of the text, each once, at most `MAX_MODULES`. A program that can't be parsed imports nothing.
    """
    return _bounded(name.partition(".")[0] for name in _imported(code))


@functools.lru_cache(maxsize=256)
def modules_of(code: str) -> tuple[str, ...]:
    """Return the same in full: `sklearn.cluster` for `from sklearn.cluster import KMeans`.

    That is what to preload: many packages load little by themselves, and their parts are what takes the time.
    """
    return _bounded(_imported(code))


def check_modules(names: Iterable[str]) -> None:
    """Raise `InvalidRequest` unless these are few and short names of modules."""
    names = tuple(names)
    if len(names) > MAX_MODULES:
        raise InvalidRequest(f"{len(names)} modules are to be preloaded, at most {MAX_MODULES} can be", hint="name fewer")
    for name in names:
        if len(name) > MAX_MODULE_CHARS or not MODULE.fullmatch(name):
            raise InvalidRequest(
                f"{name[:MAX_MODULE_CHARS]!r} can't be preloaded: it is not the name of a module",
                hint=f"letters, digits, '_' and '.', at most {MAX_MODULE_CHARS} characters, such as sklearn.cluster",
            )


def brings_modules(files: Iterable[str]) -> bool:
    """Tell whether one of these files, in the working directory, could be imported.

    It then comes before any library of that name, which a preloaded library would ignore.
    """
    return any(IMPORTABLE.fullmatch(name) for name in files)


def _bounded(names: Iterable[str]) -> tuple[str, ...]:
    known: dict[str, None] = {}
    for name in names:
        if len(known) == MAX_MODULES:
            break
        if len(name) <= MAX_MODULE_CHARS and MODULE.fullmatch(name):
            known[name] = None
    return tuple(known)


def _imported(code: str) -> Iterator[str]:
    """Yield the full names of the modules in the order of the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the program's text, which is not ours
            tree = ast.parse(code.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    statements = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in sorted(statements, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module] if node.module and not node.level else []
        for name in names:
            root = name.partition(".")[0]
            if root not in sys.stdlib_module_names and root != "__main__":
                yield name
