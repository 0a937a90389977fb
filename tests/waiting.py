"""Waiting for what another thread, process or the kernel does: the test looks again until it is so, up to a deadline.

Looking once is a race, and sleeping first is a slower one. A test that waits for nothing to happen can't use this:
it needs something that happens afterwards, such as the end of what it watches.
"""

from __future__ import annotations

import asyncio
import inspect
import linecache
import os
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

SLOWER = float(os.environ.get("SANDBOX_TESTS_SLOWER") or 1)
WAIT_S = 30.0 * SLOWER  # far more than anything takes: it only bounds a failure
PAUSE_S = 0.01


def until(look: Callable[[], T], wanted: object = bool, *, within_s: float = WAIT_S) -> T:
    """Look until what is seen is `wanted`, a value or a condition of what is seen, and return it.

    Otherwise the failure shows the line that waited, and what it saw last.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + within_s
    while not _is_so(seen := look(), wanted):
        if time.monotonic() > deadline:
            raise AssertionError(_never(sys._getframe(1), within_s, seen))
        time.sleep(PAUSE_S)
    return seen


async def until_async(look: Callable[[], object], wanted: object = bool, *, within_s: float = WAIT_S) -> None:
    """Do the same in an event loop. `look` may be a coroutine function."""
    __tracebackhide__ = True
    deadline = time.monotonic() + within_s
    while True:
        seen = look()
        if inspect.isawaitable(seen):
            seen = await seen
        if _is_so(seen, wanted):
            return
        if time.monotonic() > deadline:
            raise AssertionError(_never(sys._getframe(1), within_s, seen))
        await asyncio.sleep(PAUSE_S)


def _is_so(seen: object, wanted: object) -> bool:
    return bool(wanted(seen) if callable(wanted) else seen == wanted)


def _never(caller: FrameType, within_s: float, seen: object) -> str:
    """Say what was awaited, in the words of the code that did."""
    info = inspect.getframeinfo(caller)
    positions = getattr(info, "positions", None)  # from Python 3.11 on
    last = positions.end_lineno if positions is not None and positions.end_lineno else info.lineno
    lines = linecache.getlines(info.filename)[info.lineno - 1 : last]
    return f"not so within {within_s:g} s: {' '.join(line.strip() for line in lines)}\nlast seen: {seen!r}"
