"""What is kept of runs on the disk for a while, for their callers: it is bounded in size and age.

Nobody pushes out what others have. Below the directory, each run has one place, a file or a directory of its own. What
lies there is read once, at the start: the directory is one service's alone (`sandbox.service.sole_service`).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sandbox.places import private_directory
from sandbox.service.history.fair_share import first_out

RUN_ID = re.compile(r"[0-9a-f]{32}")
PLACE = re.compile(r"([0-9]{1,10})-([0-9a-f]{32})")
# What a file takes at least: thousands of empty ones are not free.
LEAST_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """One run's place."""

    owner: int
    size_bytes: int
    since: float


class Keeping:
    """Places below `directory`, at most `max_bytes` together and `age_s` old. For any thread."""

    def __init__(
        self, directory: Path, *, max_bytes: int, age_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._directory = private_directory(directory)
        self._max_bytes = max_bytes
        self._age_s = age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._sizes: dict[int, dict[str, int]] = {}  # of each owner's places by run, oldest first
        self._taken: dict[int, int] = {}  # and their sums
        self._read()

    def keep(self, run_id: str, owner: int, size_bytes: int, write: Callable[[Path], None]) -> bool:
        """Have `write` make a run's place; tell whether it is kept: it may be too large, or the disk full.

        A place that its owner's share has no room for takes nobody else's.
        """
        kept = _Kept(owner=owner, size_bytes=taken_by(size_bytes), since=self._clock())
        if not RUN_ID.fullmatch(run_id) or not self._reserve(run_id, kept):
            return False
        unfinished = self._directory / f"{run_id}.part"
        done = False
        try:
            with contextlib.suppress(OSError):
                write(unfinished)
                done = self._settled(run_id, kept, unfinished)
        finally:
            if not done:
                _remove(unfinished)
                self._drop([run_id])
        return done

    def find(self, run_id: str, owner: int | None) -> Path | None:
        """Return a run's place, for an owner only one of its own; None where there is none any more."""
        with self._lock:
            kept = self._kept.get(run_id)
        if kept is None or owner not in (None, kept.owner) or self._too_old(kept):
            return None
        place = self._place(run_id, kept.owner)
        return place if place.exists() else None  # not yet, while it is being written

    def prune(self) -> int:
        """Remove what is too old; return of how many runs."""
        with self._lock:
            old = [run_id for run_id, kept in self._kept.items() if self._too_old(kept)]
        self._drop(old)
        return len(old)

    def _reserve(self, run_id: str, kept: _Kept) -> bool:
        with self._lock:
            if run_id in self._kept:
                return False
            self._add(run_id, kept)
            gone = first_out(self._sizes, self._taken, self._max_bytes)
            places = self._forget([run_id] if run_id in gone else gone)
        if run_id not in gone:
            _remove_all(places)
        return run_id not in gone

    def _settled(self, run_id: str, kept: _Kept, unfinished: Path) -> bool:
        """Give what is written its place, unless others have got its room meanwhile."""
        with self._lock:
            if self._kept.get(run_id) is not kept:
                return False
            unfinished.rename(self._place(run_id, kept.owner))
            return True

    def _add(self, run_id: str, kept: _Kept) -> None:
        self._kept[run_id] = kept
        self._sizes.setdefault(kept.owner, {})[run_id] = kept.size_bytes
        self._taken[kept.owner] = self._taken.get(kept.owner, 0) + kept.size_bytes

    def _forget(self, run_ids: Iterable[str]) -> list[Path]:
        """Take runs out, and return their places, which are to be removed."""
        places = []
        for run_id in run_ids:
            if (kept := self._kept.pop(run_id, None)) is None:
                continue
            del self._sizes[kept.owner][run_id]
            self._taken[kept.owner] -= kept.size_bytes
            if not self._sizes[kept.owner]:
                del self._sizes[kept.owner], self._taken[kept.owner]
            places.append(self._place(run_id, kept.owner))
        return places

    def _drop(self, run_ids: Iterable[str]) -> None:
        with self._lock:
            places = self._forget(run_ids)
        _remove_all(places)

    def _read(self) -> None:
        found: dict[str, _Kept] = {}
        for path in self._directory.iterdir():
            if match := PLACE.fullmatch(path.name):
                size_bytes = sum(
                    taken_by(part.lstat().st_size) for part in (path.iterdir() if path.is_dir() else (path,))
                )
                found[match[2]] = _Kept(
                    owner=int(match[1]), size_bytes=taken_by(size_bytes), since=path.lstat().st_mtime
                )
            else:  # unfinished, or of an earlier version
                _remove(path)
        for run_id, kept in sorted(found.items(), key=lambda one: one[1].since):
            self._add(run_id, kept)
        self._drop(first_out(self._sizes, self._taken, self._max_bytes))

    def _place(self, run_id: str, owner: int) -> Path:
        return self._directory / f"{owner}-{run_id}"

    def _too_old(self, kept: _Kept) -> bool:
        return self._clock() - kept.since > self._age_s


def taken_by(size_bytes: int) -> int:
    """Return what a file of so many bytes takes of the disk."""
    return max(size_bytes, LEAST_BYTES)


def _remove_all(paths: Iterable[Path]) -> None:
    for path in paths:
        _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
