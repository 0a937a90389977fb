"""Which of two values is the tighter one: the order of every key, in one table.

A policy may set any value at least as tight as its parent's. An order may say no to a value that is as tight
(two patterns can be hard to compare), never yes to one that is looser.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from sandbox.policy_model import ANY, KEYS

Order = Callable[[Any, Any], bool]


def _lower(value: float, ceiling: float) -> bool:
    return value <= ceiling


def _off(value: bool, ceiling: bool) -> bool:  # noqa: FBT001
    return ceiling or not value


def _fewer_names(value: tuple[str, ...], ceiling: tuple[str, ...]) -> bool:
    return ANY in ceiling or set(value) <= set(ceiling)


def _fewer_images(value: tuple[str, ...], ceiling: tuple[str, ...]) -> bool:
    return all(any(_covers(wide, narrow) for wide in ceiling) for narrow in value)


def _covers(wide: str, narrow: str) -> bool:
    """Tell whether every reference that `narrow` matches is surely matched by `wide` too."""
    if wide in (narrow, ANY):
        return True
    fixed = re.split(r"[*?]", narrow, maxsplit=1)[0]
    if fixed == narrow:
        return fnmatchcase(narrow, wide)
    prefix = wide.removesuffix(ANY)
    return wide.endswith(ANY) and not re.search(r"[*?]", prefix) and fixed.startswith(prefix)


def _same(value: object, ceiling: object) -> bool:
    return value == ceiling


def _anything(_value: object, _ceiling: object) -> bool:
    return True


def _ranked(*tightest_first: str) -> Order:
    return lambda value, ceiling: tightest_first.index(value) <= tightest_first.index(ceiling)


# For every key: is the first value at least as tight as the second?
ORDER: dict[str, Order] = {
    **{key: _lower for key in KEYS if key.startswith("limits.") or key.endswith("_mib")},
    "isolation.per_run": _same,
    "filesystem.exec": _off,
    "network.mode": _same,
    "seccomp.profile": _same,
    "environment.allow": _fewer_names,
    "secrets.allow": _fewer_names,
    "images.default": _anything,  # what is allowed is decided by images.allow
    "images.allow": _fewer_images,
    "images.pull": _ranked("never", "missing"),
    "enforcement.on_unenforceable": _ranked("refuse", "fallback"),
}
