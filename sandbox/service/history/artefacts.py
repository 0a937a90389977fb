"""Files that programs saved, kept for a while so that their callers can fetch them later.

On the disk a file's name is a number: what a program calls it never becomes a path.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox.models import SavedFile
from sandbox.service.history.keeping import Keeping, taken_by

NAMES = "names.json"


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One file that is kept."""

    name: str
    size_bytes: int


class Artefacts:
    """Saved files of runs, within the bounds of `Keeping`."""

    def __init__(self, keeping: Keeping) -> None:
        self._keeping = keeping
        self.prune = keeping.prune

    def keep(self, run_id: str, owner: int, files: Sequence[SavedFile]) -> bool:
        """Keep a run's files for its caller; return False if they are too large, or the disk is full."""

        def write(place: Path) -> None:
            place.mkdir(mode=0o700)
            for number, file in enumerate(files):
                (place / str(number)).write_bytes(file.content)
            (place / NAMES).write_text(json.dumps([file.name for file in files]))

        return bool(files) and self._keeping.keep(
            run_id, owner, sum(taken_by(len(file.content)) for file in files), write
        )

    def list(self, run_id: str, owner: int | None) -> tuple[Artefact, ...]:
        """Return what is kept of a run, for a caller only of its own; nothing where nothing is."""
        place = self._keeping.find(run_id, owner)
        try:
            names = json.loads((place / NAMES).read_text()) if place else []
            return tuple(
                Artefact(name=name, size_bytes=(place / str(number)).stat().st_size)
                for number, name in enumerate(names)
                if place
            )
        except (OSError, ValueError):
            return ()

    def get(self, run_id: str, owner: int | None, name: str) -> bytes | None:
        """Return one file likewise, or None where it isn't there any more, or too old."""
        place = self._keeping.find(run_id, owner)
        try:
            return (place / str(json.loads((place / NAMES).read_text()).index(name))).read_bytes() if place else None
        except (OSError, ValueError):
            return None
