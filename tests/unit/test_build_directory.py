"""Directories of builds: those of the living stay, whatever happens to who looks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.environment.build_directory import sweep_builds, workplace


def test_what_a_killed_build_left_goes_with_the_next_and_a_live_one_s_stays(tmp_path: Path) -> None:
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / "lock").touch()
    (tmp_path / "early").mkdir()
    with workplace(tmp_path) as one, workplace(tmp_path) as other:
        assert {path.name for path in tmp_path.iterdir()} == {one.name, other.name}


def test_who_has_no_descriptors_left_takes_no_build_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = os.open

    def full(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if str(path).endswith("lock"):
            raise OSError(24, "Too many open files")
        return opens(path, flags, mode, dir_fd=dir_fd)

    with workplace(tmp_path) as one:
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", full)
            sweep_builds(tmp_path)
        assert one.is_dir()
