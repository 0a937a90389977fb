"""Work on much data, done beside the event loop so that everything else goes on meanwhile."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Handing work to a thread takes longer than copying or hashing less than this.
LARGE_BYTES = 1 << 18
PIECE_BYTES = 1 << 20
Result = TypeVar("Result")


async def run_off_loop(size_bytes: int, work: Callable[[], Result]) -> Result:
    """Return what `work` on so many bytes gives; where they are many, a thread does it."""
    return await asyncio.to_thread(work) if size_bytes > LARGE_BYTES else work()


def copied(data: Buffer) -> bytes:
    """Return a copy that is made in pieces.

    Other threads run between the pieces; neither `bytes` nor `join` lets them meanwhile.
    """
    view = memoryview(data)
    copy = io.BytesIO()
    for start in range(0, len(view), PIECE_BYTES):
        copy.write(view[start : start + PIECE_BYTES])
    return copy.getvalue()  # the block itself
