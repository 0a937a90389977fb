"""Files that programs saved, kept for a while so that their callers can fetch them later.

On the disk a file's name is a number: what a program calls it never becomes a path.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox.models import SavedFile
from sandbox.places import private_directory

RUN_ID = re.compile(r"[0-9a-f]{32}")
NAMES = "names.json"


class Artefacts:
    """Saved files of runs below `directory`, at most `max_bytes` together and `age_s` old; the oldest runs go first."""

    def __init__(self, directory: Path, *, max_bytes: int, age_s: float) -> None:
        self._directory = private_directory(directory)
        self._max_bytes = max_bytes
        self._age_s = age_s

    def keep(self, run_id: str, files: Sequence[SavedFile]) -> bool:
        """Keep the files of a run; tell whether they are kept: they may be too large, or the disk full."""
        size = sum(len(file.content) for file in files)
        if not files or size > self._max_bytes or not RUN_ID.fullmatch(run_id):
            return False
        self.prune(self._max_bytes - size)
        place = self._directory / run_id
        try:
            place.mkdir(mode=0o700)
            for number, file in enumerate(files):
                (place / str(number)).write_bytes(file.content)
            (place / NAMES).write_text(json.dumps([file.name for file in files]))
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            return False
        return True

    def get(self, run_id: str, name: str) -> bytes | None:
        """Return one file, or None where it isn't there any more, or too old."""
        if not RUN_ID.fullmatch(run_id):
            return None
        place = self._directory / run_id
        try:
            if self._too_old(place.stat().st_mtime):
                return None
            return (place / str(json.loads((place / NAMES).read_text()).index(name))).read_bytes()
        except (OSError, ValueError):
            return None

    def prune(self, room_bytes: int | None = None) -> int:
        """Remove what is too old, and the oldest until the rest fits into `room_bytes`; return how many runs' files."""
        left = self._max_bytes if room_bytes is None else room_bytes
        runs = []
        with contextlib.suppress(OSError):
            runs = [(entry.stat().st_mtime, entry.path) for entry in os.scandir(self._directory) if entry.is_dir()]
        gone = 0
        for modified, path in sorted(runs, reverse=True):  # newest first: they stay while there is room
            with contextlib.suppress(OSError):
                left -= sum(entry.stat().st_size for entry in os.scandir(path))
            if left < 0 or self._too_old(modified):
                shutil.rmtree(path, ignore_errors=True)
                gone += 1
        return gone

    def _too_old(self, modified: float) -> bool:
        return time.time() - modified > self._age_s
