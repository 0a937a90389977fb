from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.models import SavedFile
from sandbox.service.history.artefacts import Artefact, Artefacts
from sandbox.service.history.keeping import LEAST_BYTES, Keeping

ANN, BEN = 1001, 1002
ONE, TWO, THREE, FOUR = ("1" * 32, "2" * 32, "3" * 32, "4" * 32)
ROOM = 10 * LEAST_BYTES


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(tmp_path: Path, clock: Clock, room: int = ROOM) -> Artefacts:
    return Artefacts(Keeping(tmp_path / "files", max_bytes=room, age_s=100, clock=clock))


@pytest.fixture
def kept(tmp_path: Path, clock: Clock) -> Artefacts:
    return opened(tmp_path, clock)


def saved(name: str, size: int = 10) -> SavedFile:
    return SavedFile(name=name, content=name.encode()[:1] * size)


def test_files_come_back_by_run_and_name(kept: Artefacts) -> None:
    assert kept.keep(ONE, ANN, [saved("a.txt"), saved("b", 3)])
    assert kept.get(ONE, ANN, "a.txt") == b"a" * 10
    assert kept.get(ONE, None, "b") == b"bbb"
    assert kept.get(ONE, ANN, "c") is None
    assert kept.get(TWO, ANN, "a.txt") is None
    assert kept.list(ONE, ANN) == (Artefact(name="a.txt", size_bytes=10), Artefact(name="b", size_bytes=3))


def test_they_are_their_caller_s_alone(kept: Artefacts) -> None:
    kept.keep(ONE, ANN, [saved("a")])
    assert (kept.get(ONE, BEN, "a"), kept.list(ONE, BEN)) == (None, ())


@pytest.mark.parametrize("name", ["../../x", "names.json", "/etc/passwd", "0", "\0", "é" * 200])
def test_a_name_is_never_a_path(kept: Artefacts, tmp_path: Path, name: str) -> None:
    assert kept.get(ONE, ANN, name) is None
    assert kept.keep(ONE, ANN, [saved(name)])
    assert kept.get(ONE, ANN, name) is not None
    assert {path.name for path in (tmp_path / "files" / f"{ANN}-{ONE}").iterdir()} == {"0", "names.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"files"}


@pytest.mark.parametrize("run_id", ["", "..", "../" + "1" * 29, "x" * 32, "1" * 31 + "/"])
def test_a_run_id_is_never_a_path(kept: Artefacts, run_id: str) -> None:
    assert not kept.keep(run_id, ANN, [saved("a")])
    assert kept.get(run_id, ANN, "a") is None
    assert kept.list(run_id, None) == ()


def test_the_oldest_runs_go_when_there_is_no_room(kept: Artefacts) -> None:
    for run_id in (ONE, TWO, THREE):
        assert kept.keep(run_id, ANN, [saved("a", 4 * LEAST_BYTES)])
    assert [kept.get(run_id, ANN, "a") is not None for run_id in (ONE, TWO, THREE)] == [False, True, True]
    assert not kept.keep(FOUR, ANN, [saved("a", ROOM + 1)]), "larger than all the room"
    assert kept.get(THREE, ANN, "a") is not None, "and nothing went for it"


def test_nobody_pushes_out_what_another_has(kept: Artefacts) -> None:
    assert kept.keep(ONE, BEN, [saved("a", 4 * LEAST_BYTES)])
    for number in range(20):
        assert kept.keep(f"{number:032x}", ANN, [saved("a", 2 * LEAST_BYTES)])
    assert not kept.keep(TWO, ANN, [saved("a", 8 * LEAST_BYTES)]), "it would need what the other has"
    assert kept.get(ONE, BEN, "a") is not None
    assert kept.keep(THREE, BEN, [saved("a", LEAST_BYTES)]), "who has less gets room from who has more"


def test_many_that_are_empty_are_not_free(kept: Artefacts) -> None:
    for number in range(100):
        assert kept.keep(f"{number:032x}", ANN, [saved("a", 0)])
    assert sum(kept.get(f"{number:032x}", ANN, "a") is not None for number in range(100)) == ROOM // LEAST_BYTES


def test_many_small_files_of_one_run_are_not_free(kept: Artefacts, tmp_path: Path, clock: Clock) -> None:
    assert not kept.keep(ONE, ANN, [saved(f"{number}", 1) for number in range(11)])
    assert kept.keep(ONE, ANN, [saved(f"{number}", 1) for number in range(9)])
    again = opened(tmp_path, clock, room=9 * LEAST_BYTES)
    assert again.list(ONE, ANN) == (), "nor for the next service, which counts the list of their names, too"


def test_what_is_too_old_is_not_given_out_and_goes(kept: Artefacts, clock: Clock, tmp_path: Path) -> None:
    kept.keep(ONE, ANN, [saved("a")])
    clock.now += 60
    kept.keep(TWO, ANN, [saved("a")])
    clock.now += 41
    assert kept.get(ONE, ANN, "a") is None
    assert (tmp_path / "files" / f"{ANN}-{ONE}").exists(), "only the clean-up removes it"
    assert kept.prune() == 1
    assert not (tmp_path / "files" / f"{ANN}-{ONE}").exists()
    assert kept.get(TWO, ANN, "a") is not None


def test_the_next_service_has_what_is_there_and_not_what_was_unfinished(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path / "files", max_bytes=ROOM, age_s=100)
    Artefacts(keeping).keep(ONE, ANN, [saved("a", LEAST_BYTES)])
    (tmp_path / "files" / f"{TWO}.part").mkdir()
    (tmp_path / "files" / THREE).mkdir()  # of a version that kept no caller
    again = Artefacts(Keeping(tmp_path / "files", max_bytes=ROOM, age_s=100))
    assert again.get(ONE, ANN, "a") is not None
    assert again.get(ONE, BEN, "a") is None
    assert [path.name for path in (tmp_path / "files").iterdir()] == [f"{ANN}-{ONE}"]
    Artefacts(Keeping(tmp_path / "files", max_bytes=0, age_s=100))
    assert list((tmp_path / "files").iterdir()) == [], "with less room, as much as fits"


def test_a_place_that_can_not_be_written_keeps_nothing_and_harms_nothing(kept: Artefacts, tmp_path: Path) -> None:
    (tmp_path / "files" / f"{ONE}.part").write_text("in the way")
    assert not kept.keep(ONE, ANN, [saved("a")])
    assert kept.get(ONE, ANN, "a") is None
    assert kept.keep(ONE, ANN, [saved("a")]), "what was in the way has gone with the attempt"


def test_what_loses_its_room_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path / "files", max_bytes=2 * LEAST_BYTES, age_s=100)

    def slowly(place: Path) -> None:
        place.write_bytes(b"1")
        for run_id in (TWO, THREE):
            assert keeping.keep(run_id, ANN, 1, Path.touch)

    assert not keeping.keep(ONE, ANN, 1, slowly)
    assert keeping.find(ONE, ANN) is None
    assert {path.name for path in (tmp_path / "files").iterdir()} == {f"{ANN}-{TWO}", f"{ANN}-{THREE}"}


def test_a_defect_while_something_is_written_takes_no_room(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path / "files", max_bytes=LEAST_BYTES, age_s=100)

    def broken(place: Path) -> None:
        place.touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        keeping.keep(ONE, ANN, 1, broken)
    assert list((tmp_path / "files").iterdir()) == []
    assert keeping.keep(ONE, ANN, 1, Path.touch)
