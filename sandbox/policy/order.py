"""Which of two values is the tighter one: the order of every key, in one table.

A policy may set any value at least as tight as its parent's. An order may say no to a value that is as tight
(two patterns can be hard to compare), never yes to one that is looser.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from ipaddress import IPv6Network, ip_network
from typing import Any

from sandbox.policy.model import ANY, KEYS, range_of

Order = Callable[[Any, Any], bool]


def _lower(value: float, ceiling: float) -> bool:
    return value <= ceiling


def _off(value: bool, ceiling: bool) -> bool:  # noqa: FBT001
    return ceiling or not value


def _fewer_names(value: tuple[str, ...], ceiling: tuple[str, ...]) -> bool:
    return ANY in ceiling or set(value) <= set(ceiling)


def _subset(value: tuple[str, ...], ceiling: tuple[str, ...]) -> bool:
    return set(value) <= set(ceiling)


def _fewer_addresses(value: tuple[str, ...], ceiling: tuple[str, ...]) -> bool:
    return all(any(_within(narrow, wide) for wide in ceiling) for narrow in value)


def _within(narrow: str, wide: str) -> bool:
    """Tell whether every address of one network is in the other."""
    inner, outer = ip_network(narrow), ip_network(wide)
    if isinstance(inner, IPv6Network):
        return isinstance(outer, IPv6Network) and inner.subnet_of(outer)
    return not isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def _fewer_patterns(value: tuple[str, ...], ceiling: tuple[str, ...]) -> bool:
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
    **{key: _lower for key in KEYS if range_of(key) != (None, None)},
    "isolation.per_run": _ranked("container", "auto", "cell"),
    "isolation.preload": _anything,  # imported now or later, under the same limits
    "filesystem.exec": _off,
    "network.mode": _ranked("none", "allowlist"),
    "network.allow": _subset,
    "network.allow_addresses": _fewer_addresses,
    "network.resolver": _ranked("host", "proxy"),
    "seccomp.profile": _same,
    "variables.allow": _fewer_names,
    "secrets.allow": _fewer_names,
    "images.default": _anything,  # what is allowed is decided by images.allow
    "images.allow": _fewer_patterns,
    "images.pull": _ranked("never", "missing"),
    "build.libraries": _fewer_patterns,
    "build.allow": _subset,  # "@index" is an entry like any other: a list of hosts is never within it
    "build.allow_addresses": _fewer_addresses,
    "build.resolver": _ranked("host", "proxy"),
    "build.allow_sdists": _off,
    "build.allow_pth": _off,
    "history.output": _ranked("none", "failed", "all"),
    "history.payloads": _off,
    "enforcement.on_unenforceable": _ranked("refuse", "fallback"),
}
