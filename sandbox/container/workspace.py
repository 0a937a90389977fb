"""The host side of one sandbox: a private directory that is also the lease of a container user id.

A workspace is `runs/UID/` in the runtime directory, locked by the process that owns it. A process that dies, also
by SIGKILL, drops its lock; `sweep()` then removes what it left: containers first, then the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox.container.spec import OWNER_LABEL, PLACE_LABEL, UID_FIRST, UID_LAST, runs_id
from sandbox.engine.conmon import kill_left_over
from sandbox.engine.protocol import EXPORT_LABEL, Engine
from sandbox.errors import EngineUnavailable
from sandbox.places import private_directory


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """One leased directory. `lock_fd` holds the lease; `release()` gives it back."""

    uid: int
    directory: Path
    lock_fd: int

    @property
    def job_dir(self) -> Path:
        """Return the directory that the sandbox sees read-only."""
        return self.directory / "job"

    @property
    def egress_dir(self) -> Path:
        """Return the directory for the egress proxy's socket; its name is short, as the path of a socket must be."""
        return self.directory / "out"

    def release(self) -> None:
        """Remove the directory and give the user id back."""
        remove(self.directory)
        with contextlib.suppress(OSError):
            os.close(self.lock_fd)


@contextlib.contextmanager
def registry_lock(runs: Path) -> Iterator[None]:
    """Hold the lock under which workspaces are made and swept."""
    fd = os.open(runs / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def remove(directory: Path) -> None:
    """Remove a workspace whose lock we hold. Nobody finds a half of it: whoever looks for its lock waits meanwhile."""
    with contextlib.suppress(OSError), registry_lock(directory.parent):
        shutil.rmtree(directory, ignore_errors=True)


def runs_dir(runtime_dir: Path) -> Path:
    """Return the directory of all workspaces."""
    return private_directory(runtime_dir / "runs")


def acquire(runtime_dir: Path) -> Workspace:
    """Lease a workspace with a user id that no other live sandbox of this user has."""
    runs = runs_dir(runtime_dir)
    try:
        with registry_lock(runs):
            taken = {entry.name for entry in runs.iterdir()}
            if len(taken) > (UID_LAST - UID_FIRST) // 2:
                raise EngineUnavailable("too many sandboxes are alive at once", hint="run `sandbox doctor`")
            uid = random.randint(UID_FIRST, UID_LAST)  # noqa: S311 - any free number does
            while str(uid) in taken:
                uid = random.randint(UID_FIRST, UID_LAST)  # noqa: S311 - as above
            directory = runs / str(uid)
            directory.mkdir(mode=0o700)
            for name in ("job", "out"):
                (directory / name).mkdir()
                (directory / name).chmod(0o711)
            fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise EngineUnavailable(
            f"no workspace can be made in {runs}: {error.strerror}", hint="free some space there, then try again"
        ) from None
    return Workspace(uid=uid, directory=directory, lock_fd=fd)


def abandoned(runtime_dir: Path) -> list[Path]:
    """Return the workspaces whose owner is dead; cheap, no engine needed."""
    with taken_over(runtime_dir) as directories:
        return directories


@contextlib.contextmanager
def taken_over(runtime_dir: Path) -> Iterator[list[Path]]:
    """Give the workspaces whose owner is dead, and hold their locks for the block: they are nobody else's to remove.

    While they are there, no new sandbox gets a user id of theirs.
    """
    runs = runtime_dir / "runs"
    left = []
    with contextlib.ExitStack() as held:
        if runs.is_dir():
            with registry_lock(runs):
                for directory in runs.iterdir():
                    if directory.is_dir() and (fd := taken_from_the_dead(directory)) is not None:
                        held.callback(os.close, fd)
                        left.append(directory)
        yield left


def is_abandoned(directory: Path) -> bool:
    """Tell whether nobody holds the lock of this workspace."""
    fd = taken_from_the_dead(directory)
    if fd is not None:
        os.close(fd)
    return fd is not None


def taken_from_the_dead(directory: Path) -> int | None:
    """Return the lock of a workspace, held by us now; None where its owner lives, or where nobody can tell."""
    try:
        # Made anew where its owner died before it had a lock; without descriptors left, say, everybody would seem dead.
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def sweep(runtime_dir: Path, engine: Engine, *, everything: bool = False) -> int:
    """Remove what dead owners left; return how many sandboxes that were.

    `everything` also removes containers of this runtime directory that have no workspace: after a reboot, or where
    Podman was so slow to create one that nobody waited for it any longer.
    """
    with taken_over(runtime_dir) as directories:
        return _swept(runtime_dir, engine, directories, everything=everything)


def _swept(runtime_dir: Path, engine: Engine, directories: list[Path], *, everything: bool) -> int:
    removed = 0
    if everything:
        here = f"{PLACE_LABEL}={runs_id(runs_dir(runtime_dir))}"
        # Listed first: one that comes meanwhile has a workspace, and is not among these.
        containers = engine.containers(here)
        alive = {entry.name for entry in runs_dir(runtime_dir).iterdir()} - {entry.name for entry in directories}
        for container in containers:
            if container.labels.get(OWNER_LABEL) not in alive:
                engine.remove(container.id)
                removed += 1
        for container in engine.containers(EXPORT_LABEL):
            if not Path("/proc", container.labels[EXPORT_LABEL]).exists():
                engine.remove(container.id)
    for directory in directories:
        for container in engine.containers(f"{OWNER_LABEL}={directory.name}"):
            if container.labels.get(PLACE_LABEL) == runs_id(runs_dir(runtime_dir)):
                engine.remove(container.id)
                kill_left_over(container.id)
        remove(directory)
        removed += 1
    return removed
