"""What to remove when several owners keep too much: no owner pushes out what others have. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key")


class Piece(NamedTuple, Generic[Key]):
    """One thing that is kept for its owner, and how much room it takes."""

    key: Key
    owner: int
    size: int


def going(oldest_first: Iterable[Piece[Key]], room: int) -> list[Key]:
    """Return what goes until the rest fits: each time the oldest of whoever has the most."""
    kept: dict[int, dict[Key, int]] = defaultdict(dict)
    taken: dict[int, int] = defaultdict(int)
    for piece in oldest_first:
        kept[piece.owner][piece.key] = piece.size
        taken[piece.owner] += piece.size
    return first_out(kept, taken, room)


def first_out(kept: Mapping[int, Mapping[Key, int]], taken: Mapping[int, int], room: int) -> list[Key]:
    """Return the same of what is in order already: each owner's sizes by key, oldest first, and their sums.

    What stays is not looked at.
    """
    left = dict(taken)
    oldest = {owner: iter(pieces.items()) for owner, pieces in kept.items()}
    total = sum(left.values())
    gone: list[Key] = []
    while total > room and (largest := max(left, key=left.__getitem__, default=None)) is not None and left[largest] > 0:
        key, size = next(oldest[largest])
        left[largest] -= size
        total -= size
        gone.append(key)
    return gone
