"""Progress, for those who wait: one value for each step, with the number of bytes if it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Step = Literal["image", "resolving", "downloading", "installing", "storing", "starting", "running"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One piece of news; `text` is a short phrase for people."""

    step: Step
    text: str = ""
    done_bytes: int | None = None
    total_bytes: int | None = None


OnProgress = Callable[[Progress], None]
