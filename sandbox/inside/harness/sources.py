"""What tracebacks, warnings and `inspect` show of the program's text."""

from __future__ import annotations

import os

from sandbox.inside.harness.compiling import source_lines


def shown_name(name: str, app_dir: str) -> str:
    """Return what tracebacks call a program: its name, told apart from a file with that name in the sandbox."""
    try:
        taken = os.path.lexists(os.path.join(app_dir, name))
    except ValueError:  # a null byte
        taken = True
    return f"<{name}>" if taken else name


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
