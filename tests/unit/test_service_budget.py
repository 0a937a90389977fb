"""The budget of what is held for clients: fair between callers, and always with room for one more."""

from __future__ import annotations

import pytest

from sandbox.errors import QueueFull
from sandbox.service.intake.budget import Budget

ONE, TWO, THREE = 1001, 1002, 1003


def filled(budget: Budget, uid: int, *, step: int = 1) -> int:
    """Take parts for a caller until one is refused; return what it got."""
    got = 0
    while True:
        try:
            budget.part(uid).grow(step)
        except QueueFull:
            return got
        got += step


def test_a_caller_gets_as_much_as_it_leaves_free_so_that_there_is_room_for_the_next() -> None:
    budget = Budget(1200)
    assert [filled(budget, uid) for uid in (ONE, TWO, THREE)] == [600, 300, 150]


def test_a_caller_that_holds_nothing_is_taken_however_much_the_others_hold() -> None:
    budget = Budget(100)
    budget.part(ONE).grow(1000)
    budget.part(TWO).grow(1000)
    with pytest.raises(QueueFull, match="0 MiB") as refused:
        budget.part(TWO).grow(1)
    assert refused.value.facts == {"retry_after_s": 1}


def test_what_is_checked_is_not_held_and_what_is_given_back_is_free() -> None:
    budget = Budget(100)
    first, second = budget.part(ONE), budget.part(ONE)
    first.grow(40)
    for _ in range(10):
        second.check(10)
    with pytest.raises(QueueFull):
        second.check(11)
    first.count(0)
    second.grow(1000)


def test_who_was_taken_goes_on_though_others_came_until_it_holds_more_than_it_ever_may() -> None:
    budget = Budget(100)
    first, second = budget.part(ONE), budget.part(ONE)
    first.grow(25)
    second.grow(25)
    budget.part(TWO).grow(25)
    second.check_most()
    first.count(26)
    with pytest.raises(QueueFull):
        second.check_most()
    second.count(0)
    first.count(1000)
    first.check_most()


def test_what_is_there_already_is_counted_and_keeps_the_next_out() -> None:
    budget = Budget(100)
    budget.part(ONE).count(500)
    with pytest.raises(QueueFull):
        budget.part(ONE).grow(1)
    budget.part(TWO).grow(1)
