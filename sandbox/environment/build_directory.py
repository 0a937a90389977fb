"""The directory of one build, removed with it; also that of a build that was killed, by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sandbox.places import private_directory


@contextlib.contextmanager
def workplace(builds: Path) -> Iterator[Path]:
    """Give a directory below `builds`, removed on every path; those of builds that were killed go, too."""
    private_directory(builds)
    with alone_in(builds):
        sweep_builds(builds)
        work = Path(tempfile.mkdtemp(dir=builds))
        fd = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(fd)


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Hold the lock under which directories of builds are made and swept; both take a moment."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def sweep_builds(builds: Path) -> None:
    """Remove the directories of builds whose process is dead: nobody holds their lock."""
    for directory in builds.iterdir():
        try:
            fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            shutil.rmtree(directory, ignore_errors=True)
            continue
        except OSError:  # without descriptors left, say, nobody can tell
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
