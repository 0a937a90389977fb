"""The names of modules that may be asked of a sandbox: their form, and how many. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sandbox.errors import InvalidRequest

MAX_MODULES = 32
MAX_MODULE_CHARS = 100
MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


def check_modules(names: Iterable[str]) -> None:
    """Raise `InvalidRequest` unless these are few and short names of modules."""
    names = tuple(names)
    if len(names) > MAX_MODULES:
        raise InvalidRequest(
            f"{len(names)} modules are to be preloaded, at most {MAX_MODULES} can be", hint="name fewer"
        )
    for name in names:
        if len(name) > MAX_MODULE_CHARS or not MODULE.fullmatch(name):
            raise InvalidRequest(
                f"{name[:MAX_MODULE_CHARS]!r} can't be preloaded: it is not the name of a module",
                hint=f"letters, digits, '_' and '.', at most {MAX_MODULE_CHARS} characters, such as sklearn.cluster",
            )
