"""What tracebacks, warnings and `inspect` show of the program's text."""

from __future__ import annotations

import os

from sandbox.inside.harness.compiling import source_lines


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
