from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sandbox.artefacts import Artefacts
from sandbox.models import SavedFile

ONE, TWO, THREE = ("1" * 32, "2" * 32, "3" * 32)


@pytest.fixture
def kept(tmp_path: Path) -> Artefacts:
    return Artefacts(tmp_path / "files", max_bytes=1000, age_s=100)


def saved(name: str, size: int = 10) -> SavedFile:
    return SavedFile(name=name, content=name.encode()[:1] * size)


def test_files_come_back_by_run_and_name(kept: Artefacts) -> None:
    assert kept.keep(ONE, [saved("a.txt"), saved("b", 3)])
    assert kept.get(ONE, "a.txt") == b"a" * 10
    assert kept.get(ONE, "b") == b"bbb"
    assert kept.get(ONE, "c") is None
    assert kept.get(TWO, "a.txt") is None


@pytest.mark.parametrize("name", ["../../x", "names.json", "/etc/passwd", "0", "\0", "é" * 200])
def test_a_name_is_never_a_path(kept: Artefacts, tmp_path: Path, name: str) -> None:
    assert kept.get(ONE, name) is None
    assert kept.keep(ONE, [saved(name)])
    assert kept.get(ONE, name) is not None
    assert {path.name for path in (tmp_path / "files" / ONE).iterdir()} == {"0", "names.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"files"}


@pytest.mark.parametrize("run_id", ["", "..", "../" + "1" * 29, "x" * 32, "1" * 31 + "/"])
def test_a_run_id_is_never_a_path(kept: Artefacts, run_id: str) -> None:
    assert not kept.keep(run_id, [saved("a")])
    assert kept.get(run_id, "a") is None


def test_the_oldest_runs_go_when_there_is_no_room(kept: Artefacts, tmp_path: Path) -> None:
    for age, run_id in ((30, ONE), (20, TWO)):
        assert kept.keep(run_id, [saved("a", 400)])
        os.utime(tmp_path / "files" / run_id, (time.time() - age,) * 2)
    assert kept.keep(THREE, [saved("a", 400)])
    assert [kept.get(run_id, "a") is not None for run_id in (ONE, TWO, THREE)] == [False, True, True]
    assert not kept.keep("4" * 32, [saved("a", 1001)]), "larger than all the room"
    assert kept.get(THREE, "a") is not None, "and nothing went for it"


def test_what_is_too_old_goes(kept: Artefacts, tmp_path: Path) -> None:
    kept.keep(ONE, [saved("a")])
    kept.keep(TWO, [saved("a")])
    os.utime(tmp_path / "files" / ONE, (time.time() - 101,) * 2)
    assert kept.prune() == 1
    assert kept.get(ONE, "a") is None
    assert kept.get(TWO, "a") is not None


def test_what_is_too_old_is_not_given_out_before_it_goes_either(kept: Artefacts, tmp_path: Path) -> None:
    kept.keep(ONE, [saved("a")])
    os.utime(tmp_path / "files" / ONE, (time.time() - 90,) * 2)
    assert kept.get(ONE, "a") is not None
    os.utime(tmp_path / "files" / ONE, (time.time() - 101,) * 2)
    assert kept.get(ONE, "a") is None
    assert (tmp_path / "files" / ONE).exists(), "only the clean-up removes it"


def test_a_place_that_can_not_be_written_keeps_nothing_and_harms_nothing(tmp_path: Path) -> None:
    kept = Artefacts(tmp_path / "files", max_bytes=1000, age_s=100)
    (tmp_path / "files" / ONE).write_text("in the way")
    assert not kept.keep(ONE, [saved("a")])
