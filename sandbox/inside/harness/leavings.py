"""What a program leaves in its working directory: it is told of that, or all of it is handed over."""

from __future__ import annotations

import os

from sandbox.inside.harness.channel import ShortenedError
from sandbox.inside.harness.text import clean, name_problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.inside.harness.program_functions import Helpers

    States = dict[str, tuple[int, int, int] | None]


MAX_LOOKED_AT = 200  # files and directories, for a warning
MAX_HANDED_OVER = 10_000  # of which the run's own limits let far fewer through
SHOWN_LEFT = 5
PASSING = (".pyc", ".tmp", ".lock", "-journal", "-wal", "-shm")
COMPILED = "__pycache__"


class Leavings:
    """The files of a program's working directory that were not there when it began, or are not as they were."""

    def __init__(self, top: str, own: str, before: States | None = None, *, handed_over: bool) -> None:
        """Look at what is there, if not what was there `before` is known; `own` is the program's own file."""
        self._top = top
        self._own = own
        self._handed_over = handed_over
        if before is None:
            before = self._states() if handed_over else dict.fromkeys(os.listdir(top))
        self.before = before

    def _states(self, missed: dict[str, str] | None = None) -> States:
        return dict(_files_below(self._top, MAX_HANDED_OVER, {} if missed is None else missed))

    def hand_over(self, helpers: Helpers) -> list[str]:
        """Save every new or changed file, if that was asked for; return warnings.

        A hidden file is a program's own (HOME is here), and one that was saved is not saved again.
        """
        if not self._handed_over:
            return []
        taken = set(helpers.saved)
        missed: dict[str, str] = {}
        found = sorted(self._states(missed).items(), key=lambda item: (item[0].count("/"), item))
        warnings = [
            f"the files in {clean(repr(place), 100) if place else self._top} were not saved: {why}"
            for place, why in sorted(missed.items())
        ]
        for path, state in found:
            if path == self._own or path in helpers.saved or self.before.get(path) == state:
                continue
            name = path.replace("/", "_")
            while name in taken:
                name = f"_{name}"
            try:
                if name_problem(name):
                    raise OSError(0, f"its name {name_problem(name)}")
                helpers.send_existing(name, os.path.join(self._top, path))
                taken.add(name)
            except ShortenedError as error:
                taken.add(name)
                warnings.append(f"the file {clean(repr(path), 100)} was not saved whole: {error}")
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                warnings.append(f"the file {clean(repr(path), 100)} was not saved: {why}")
        return warnings

    def warning(self, helpers: Helpers) -> list[str]:
        """Return a warning of files that the program wrote and did not save, if it never saved any."""
        if self._handed_over or helpers.saved:
            return []
        try:
            found = sorted(path for path, _ in _files_below(self._top, MAX_LOOKED_AT, {}) if self._is_news(path))
        except Exception:
            return []
        if not found:
            return []
        content = f", read_file({found[0]!r}, binary=True)" if "/" in found[0] else ""
        advice = f"save_file({os.path.basename(found[0])!r}{content}) hands one over, --save-new DIR all"
        more = ", ..." if len(found) > SHOWN_LEFT else ""
        return [f"files end with the run unless they are saved: {advice} (left: {', '.join(found[:SHOWN_LEFT])}{more})"]

    def _is_news(self, path: str) -> bool:
        top = path.partition("/")[0]
        own = path == self._own or top in self.before
        return not (own or f"/{path}".find("/_") >= 0 or path.endswith(PASSING) or not path.isprintable())


def _files_below(top: str, most: int, missed: dict[str, str]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yield the files below `top` that are not hidden, among the first that are there, each with what changes with it.

    No link is followed. A directory that can't be read is `missed`, with the reason, and costs no other one its files.
    """
    looked = 0
    directories = [""]
    while directories:
        directory = directories.pop()
        try:
            with os.scandir(os.path.join(top, directory)) as entries:
                for entry in entries:
                    looked += 1
                    if looked > most:
                        return
                    path = os.path.join(directory, entry.name)
                    if entry.name.startswith(".") or entry.name == COMPILED:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(path)
                    elif entry.is_file(follow_symlinks=False) and (state := _state(entry)):
                        yield path, state
        except OSError as error:
            missed[directory] = error.strerror or str(error)


def _state(entry: os.DirEntry[str]) -> tuple[int, int, int] | None:
    """Return what changes with a file, or None for one that another process has removed."""
    try:
        state = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
