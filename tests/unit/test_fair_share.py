from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from sandbox.service.history.fair_share import Piece, first_out, going

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


def test_what_stays_is_not_looked_at() -> None:
    looked: list[int] = []

    class Counted(dict[int, int]):
        def items(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
            for piece in super().items():
                looked.append(piece[0])
                yield piece

    kept = {owner: Counted({10_000 * owner + number: 1 for number in range(10_000)}) for owner in (1, 2)}
    assert first_out(kept, {1: 10_000, 2: 10_000}, 19_997) == [10_000, 20_000, 10_001]
    assert sorted(looked) == [10_000, 10_001, 20_000]
