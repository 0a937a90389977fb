"""A test that waits in vain says what for, and what it saw last."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.waiting import until, until_async


def test_it_looks_until_what_is_seen_is_wanted_and_returns_it() -> None:
    count = itertools.count()
    assert until(lambda: next(count), 3) == 3
    assert until(lambda: next(count), lambda seen: seen > 5) == 6
    assert until(lambda: [next(count)]) == [7]


def test_in_an_event_loop_the_others_go_on_meanwhile() -> None:
    seen: list[str] = []

    async def look() -> list[str]:
        return seen

    async def scene() -> None:
        asyncio.get_running_loop().call_later(0.03, seen.append, "there")
        await until_async(look, ["there"])
        await until_async(lambda: seen)

    asyncio.run(scene())


def test_a_failure_says_what_was_awaited_and_what_was_seen_last() -> None:
    states = ["queued"]
    with pytest.raises(AssertionError) as caught:
        until(lambda: [*states, "of the run"], ["ended"], within_s=0.05)
    assert str(caught.value).splitlines() == [
        'not so within 0.05 s: until(lambda: [*states, "of the run"], ["ended"], within_s=0.05)',
        "last seen: ['queued', 'of the run']",
    ]

    async def scene() -> None:
        await until_async(lambda: states[0], "ended", within_s=0.05)

    with pytest.raises(AssertionError, match=r'await until_async\(lambda: states\[0\], "ended".*\nlast seen: .queued'):
        asyncio.run(scene())
