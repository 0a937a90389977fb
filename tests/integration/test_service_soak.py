"""The short version of scripts/soak: what many runs leave, and what they make grow."""

from __future__ import annotations

from tests.soak import soak


def test_many_runs_leave_nothing_and_make_nothing_grow() -> None:
    assert soak(80, 3) == []


def test_many_messages_in_cells_leave_nothing_and_grow_nothing() -> None:
    assert soak(160, 3, policy="cells") == []
