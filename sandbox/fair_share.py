"""What goes when there is no room for everything that is kept for several owners: nobody pushes out what others have. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key")


class Piece(NamedTuple, Generic[Key]):
    """One thing that is kept for its owner, and how much room it takes."""

    key: Key
    owner: int
    size: int


def going(oldest_first: Iterable[Piece[Key]], room: int) -> list[Key]:
    """Return what goes until the rest fits: each time the oldest of whoever has the most."""
    kept: dict[int, deque[Piece[Key]]] = defaultdict(deque)
    taken: dict[int, int] = defaultdict(int)
    for piece in oldest_first:
        kept[piece.owner].append(piece)
        taken[piece.owner] += piece.size
    total = sum(taken.values())
    gone: list[Key] = []
    while total > room and (owners := [owner for owner in kept if kept[owner]]):
        largest = max(owners, key=lambda owner: taken[owner])
        piece = kept[largest].popleft()
        taken[largest] -= piece.size
        total -= piece.size
        gone.append(piece.key)
    return gone
