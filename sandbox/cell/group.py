"""The warm containers that are alike, with what waits for them, and their bounds."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field

from sandbox.cell.cell import Cell, WarmContainer
from sandbox.container.standby import Setting

FIRST_GUESS_MIB = 32.0


@dataclass(frozen=True, kw_only=True)
class CellLimits:
    """How many warm containers there may be, for how long, and how long a run's end may take.

    There are at most `per_node` for one caller's node, and at most `most`, with `memory_mib` of memory, for all of
    them. One that is unused for `idle_s` is retired. The kernel takes milliseconds to end what a run has left, more
    where that has much memory, and never `gone_s`.
    """

    memory_mib: float = 512.0
    most: int = 1_000
    per_node: int = 2
    idle_s: float = 300.0
    gone_s: float = 10.0


@dataclass(eq=False)
class WarmMember:
    """One warm container, and the cell that it has ready or is making."""

    maker: WarmContainer
    born: float
    used: float
    next: asyncio.Task[Cell]
    memory_mib: float = FIRST_GUESS_MIB


@dataclass(eq=False)
class WarmGroup:
    """The warm containers that are alike; `waiting` are runs that wait for one of them to be free.

    Of the `busy` ones, those in `ending` will be as soon as the last run's processes are gone.
    `why_not` is why no cell could be made, and until `not_before` nobody tries again.
    """

    key: tuple[str, str]
    setting: Setting
    idle: list[WarmMember] = field(default_factory=list)
    busy: set[WarmMember] = field(default_factory=set)
    ending: set[WarmMember] = field(default_factory=set)
    starting: int = 0
    waiting: deque[asyncio.Future[WarmMember]] = field(default_factory=deque)
    why_not: str = ""
    not_before: float = -math.inf

    @property
    def all(self) -> list[WarmMember]:
        """Every container that runs."""
        return [*self.idle, *self.busy]

    def fail(self, error: Exception) -> None:
        """Tell everybody who waits that there will be none."""
        while self.waiting:
            if not (turn := self.waiting.popleft()).done():
                turn.set_exception(error)


@dataclass(frozen=True, kw_only=True)
class ReadyCell:
    """A cell that waits for its job, in the terms of `standby.AcquiredSandbox`."""

    sandbox: Cell
    asked: float
    proxy: None = None
