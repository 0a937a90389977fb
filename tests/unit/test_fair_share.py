from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sandbox.fair_share import Piece, going

PIECES = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 50)), max_size=40)


@given(PIECES, st.integers(0, 400))
def test_the_rest_fits_and_nobody_within_a_fair_share_loses_anything(kept: list[tuple[int, int]], room: int) -> None:
    pieces = [Piece(number, owner, size) for number, (owner, size) in enumerate(kept)]
    gone = set(going(pieces, room))
    rest = [piece for piece in pieces if piece.key not in gone]
    assert sum(piece.size for piece in rest) <= room
    had = Counter[int]()
    for piece in pieces:
        had[piece.owner] += piece.size
    for owner, size in had.items():
        own = [piece.key for piece in pieces if piece.owner == owner]
        assert size * len(had) > room or not gone & set(own), "within its share"
        lost = [key for key in own if key in gone]
        assert lost == own[: len(lost)], "the oldest go first"


@given(PIECES)
def test_where_there_is_room_everything_stays(kept: list[tuple[int, int]]) -> None:
    pieces = [Piece(number, owner, size) for number, (owner, size) in enumerate(kept)]
    assert going(pieces, sum(piece.size for piece in pieces)) == []
