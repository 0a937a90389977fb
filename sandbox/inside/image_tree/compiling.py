"""Compiles modules to byte code that is the same in every build."""

from __future__ import annotations

import os
import py_compile
import sys
from pathlib import Path

UNUSED_MODULES = frozenset(
    {"__phello__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "tkinter", "turtledemo"}
)


def compile_below(directories: list[str], *, strict: bool) -> None:
    """Compile every module below `directories`. With `strict`, one that can't be compiled ends the program.

    Each file is compiled in a fresh fork of one process: what marshal writes depends on the objects that happen to be
    alive, and this way they are the same whatever came before.
    """
    running = 0
    for path in _modules(directories):
        if running >= (os.cpu_count() or 1):
            _finish(strict=strict)
            running -= 1
        if os.fork() == 0:
            status = 1
            try:
                mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
                py_compile.compile(path, doraise=True, invalidation_mode=mode)
                status = 0
            except py_compile.PyCompileError:
                pass
            finally:
                os._exit(status)
        running += 1
    for _ in range(running):
        _finish(strict=strict)


def _modules(directories: list[str]) -> list[str]:
    files = []
    for top in directories:
        for directory, names, found in os.walk(top):
            names[:] = sorted(name for name in names if name not in UNUSED_MODULES and name != "__pycache__")
            files += [f"{directory}/{name}" for name in sorted(found) if name.endswith(".py")]
    return files


def _finish(*, strict: bool) -> None:
    if os.wait()[1] and strict:
        sys.exit("a module of the standard library could not be compiled")


if __name__ == "__main__":
    compile_below([str(Path(os.__file__).parent)], strict=True)
    compile_below(sys.argv[1:], strict=False)
