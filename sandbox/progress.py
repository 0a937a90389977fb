"""Progress, for those who wait: one value for each step, with the number of bytes if it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what begins a command waits for no types
    from sandbox.wire.events import Step


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One piece of news; `text` is a short phrase for people."""

    step: Step
    text: str = ""
    done_bytes: int | None = None
    total_bytes: int | None = None


OnProgress = Callable[[Progress], None]
