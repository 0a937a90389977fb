"""Bodies that come at the same time: callers take turns.

One that makes room for another is refused in words, and never taken for an empty one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from sandbox.errors import QueueFull
from sandbox.service.intake.reading import Intake

OWNER = 1001


class Coming:
    """A body whose pieces come when they are told to."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.request = cast("web.Request", SimpleNamespace(body_exists=True, content_length=None, content=self))

    def say(self, piece: bytes) -> None:
        """Let a piece come; an empty one is the end."""
        self._pieces.put_nowait(piece)

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Give the pieces."""
        while piece := await self._pieces.get():
            yield piece


async def taken(intake: Intake, coming: Coming) -> bytes:
    async with intake.body(coming.request, OWNER) as body:
        return bytes(body.spool.data)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_body_that_came_whole_and_then_lost_its_room_is_refused_and_not_empty() -> None:
    async def scene() -> list[Any]:
        intake = Intake(largest_bytes=lambda: 1_000, budget_bytes=100)
        first, second = Coming(), Coming()
        tasks = [asyncio.create_task(taken(intake, coming)) for coming in (first, second)]
        first.say(b"1" * 10)
        await settled()
        second.say(b"2" * 40)
        await settled()
        first.say(b"1" * 60)
        await settled()
        for coming in (first, second):
            coming.say(b"")
        return await asyncio.gather(*tasks, return_exceptions=True)

    one, other = asyncio.run(scene())
    assert one == b"1" * 70
    with pytest.raises(QueueFull, match="does not fit"):
        raise other


def request_in(pieces: int) -> web.Request:
    """Return a request whose body is there, in so many pieces."""

    async def iter_any() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield b"x"

    return cast(
        "web.Request",
        SimpleNamespace(body_exists=True, content_length=pieces, content=SimpleNamespace(iter_any=iter_any)),
    )


def test_a_body_does_not_wait_for_all_bodies_that_another_caller_sends() -> None:
    ended: list[int] = []

    async def take(intake: Intake, pieces: int, uid: int) -> None:
        async with intake.body(request_in(pieces), uid) as body:
            assert body.spool.size_bytes == pieces
        ended.append(uid)

    async def scene() -> None:
        intake = Intake(largest_bytes=lambda: 1 << 20, budget_bytes=1 << 20)
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(take(intake, 10, 1)) for _ in range(50)]
        await asyncio.gather(*tasks, asyncio.create_task(take(intake, 100, 2)))

    asyncio.run(scene())
    assert ended.index(2) < 20  # one in ten of the pieces would make it the last
