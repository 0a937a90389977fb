"""Answers, results and errors, of runs that nobody waited for, kept for a while for their callers to fetch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.service.history.keeping import Keeping

HEAD_BYTES = 4  # the status, and a line break


@dataclass(frozen=True, kw_only=True)
class KeptAnswer:
    """An answer that is kept: its HTTP status, and how large its body is."""

    status: int
    size_bytes: int
    place: Path = field(repr=False)

    def body(self) -> bytes | None:
        """Return the body, or None where it is not there any more."""
        try:
            with self.place.open("rb") as file:
                file.seek(HEAD_BYTES)
                return file.read()
        except OSError:
            return None


class Results:
    """Answers of runs, within the bounds of `Keeping`."""

    def __init__(self, keeping: Keeping) -> None:
        self._keeping = keeping
        self.prune = keeping.prune

    def keep(self, run_id: str, owner: int, status: int, pieces: Sequence[bytes]) -> bool:
        """Keep an answer for its caller; tell whether it is kept: it may be too large, or the disk full."""

        def write(place: Path) -> None:
            place.touch(mode=0o600, exist_ok=False)
            with place.open("wb") as file:
                file.write(b"%03d\n" % status)
                file.writelines(pieces)

        return self._keeping.keep(run_id, owner, HEAD_BYTES + sum(map(len, pieces)), write)

    def find(self, run_id: str, owner: int | None) -> KeptAnswer | None:
        """Return an answer, for a caller only of its own; None where there is none, or none any more."""
        place = self._keeping.find(run_id, owner)
        try:
            if place is None:
                return None
            with place.open("rb") as file:
                status = int(file.read(HEAD_BYTES))
            return KeptAnswer(status=status, size_bytes=place.stat().st_size - HEAD_BYTES, place=place)
        except (OSError, ValueError):
            return None
