"""The directory of the harness: what lies there is ours, and a program is to find none of it."""

from __future__ import annotations

import os
import sys

DIRECTORY = os.path.dirname((lambda: 0).__code__.co_filename)


def is_ours(filename: object) -> bool:
    """Tell whether a file is one of the harness's own."""
    return isinstance(filename, str) and filename.startswith(f"{DIRECTORY}/")


def leave_path() -> None:
    """Let nobody import from the directory any more."""
    sys.path[:] = [entry for entry in sys.path if entry not in (DIRECTORY, "")]


def forget_harness() -> None:
    """Leave the name of the harness to whoever else has it."""
    if is_ours(getattr(sys.modules.get("harness"), "__file__", None)):
        del sys.modules["harness"]
