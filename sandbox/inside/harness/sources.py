"""What tracebacks, warnings and `inspect` show of the program's text."""

from __future__ import annotations

import os

from sandbox.inside.harness.compiling import source_lines
from sandbox.inside.harness.text import name_problem

FALLBACK = "script.py"


def own_name(name: str, app_dir: str) -> str:
    """Return under which name a program lies in its directory, and is compiled: the last part of its name.

    Where a file of that name is there already, or a module of that name could be meant by an `import`, it stands in
    angle brackets.
    """
    name = os.path.basename(name)
    name = FALLBACK if name_problem(name) else name
    stem, dot, _ = name.partition(".")
    taken = os.path.lexists(os.path.join(app_dir, name)) or (dot and _is_module(stem, app_dir))
    return f"<{name}>" if taken else name


def _is_module(name: str, app_dir: str) -> bool:
    """Tell whether a module of that name is found elsewhere than in `app_dir`."""
    import sys

    if not name.isidentifier() or name == "__main__":
        return False
    if name in sys.builtin_module_names:
        return True
    places = [place for place in sys.path if place != app_dir]
    for finder in sys.meta_path:
        try:
            if finder.find_spec(name, places) is not None:
                return True
        except Exception:  # noqa: S112 - a library's own finder
            continue
    return False


def write_own(path: str, code: bytes | bytearray) -> None:
    """Write the program's text where it is to lie. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb") as file:
        file.write(code)


def show_own_lines(source: str, *names: str) -> None:
    """Have tracebacks and warnings take the lines of code with these names from this text, and open no file."""
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
