"""One thing at a time, and callers take turns, whoever goes away."""

from __future__ import annotations

import asyncio
import random

import pytest

from sandbox.service.intake.turns import Turns


async def order_of(turns: Turns, uids: list[int]) -> list[int]:
    """Return in which order callers get their turns, who all ask while somebody has one."""
    had: list[int] = []

    async def ask(uid: int) -> None:
        async with turns.turn(uid):
            had.append(uid)

    async with turns.turn(0):
        asking = [asyncio.create_task(ask(uid)) for uid in uids]
        await asyncio.sleep(0)
    await asyncio.gather(*asking)
    return had


def test_callers_take_turns() -> None:
    assert asyncio.run(order_of(Turns(), [1, 1, 1, 1, 2, 2, 3])) == [1, 2, 3, 1, 2, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_whoever_goes_away_at_whatever_moment_nobody_shares_a_turn_and_none_is_lost(seed: int) -> None:
    chance = random.Random(seed)
    turns, inside = Turns(), 0

    async def ask(uid: int) -> None:
        nonlocal inside
        async with turns.turn(uid):
            inside += 1
            assert inside == 1
            try:
                await asyncio.sleep(0)
            finally:
                inside -= 1

    async def scene() -> None:
        asking = [asyncio.create_task(ask(chance.randrange(4))) for _ in range(60)]
        for task in chance.sample(asking, 40):
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
        ended = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 10)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in ended)
        assert await order_of(turns, [1, 2]) == [1, 2]
        assert not turns._lines
        assert not turns._taken

    asyncio.run(scene())


def test_who_goes_away_as_the_turn_comes_passes_it_on() -> None:
    async def scene() -> None:
        turns = Turns()

        async def ask() -> None:
            async with turns.turn(1):
                pass

        async with turns.turn(0):
            gone, next_one = (asyncio.create_task(ask()) for _ in range(2))
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait_for(next_one, 1)
        assert gone.cancelled()

    asyncio.run(scene())
