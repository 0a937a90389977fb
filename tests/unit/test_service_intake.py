"""Bodies come in turns, and callers take turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import web

from sandbox.service.intake import Intake


def request_in(pieces: int) -> web.Request:
    """Return a request whose body is there, in so many pieces."""

    async def iter_any() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield b"x"

    return cast("web.Request", SimpleNamespace(body_exists=True, content_length=pieces, content=SimpleNamespace(iter_any=iter_any)))


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
