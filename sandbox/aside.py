"""Work on much data, done beside the event loop so that everything else goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Handing work to a thread takes longer than copying or hashing less than this.
LARGE_BYTES = 1 << 18
Result = TypeVar("Result")


async def aside(size_bytes: int, work: Callable[[], Result]) -> Result:
    """Return what `work` on so many bytes gives; where they are many, a thread does it."""
    return await asyncio.to_thread(work) if size_bytes > LARGE_BYTES else work()


def copied(data: Buffer) -> bytes:
    """Return a copy that is made while other threads run: `join` lets them (https://bugs.python.org/issue36051), `bytes` does not."""
    view = memoryview(data)
    middle = len(view) // 2
    return b"".join((view[:middle], view[middle:]))
