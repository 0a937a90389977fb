"""The wheel cache: archives that the runner has checked against a lock's hash itself, and the trees made of them.

Sandboxes never see the cache: a build is shown a directory of hard links to exactly the wheels that it needs,
read-only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sandbox.errors import BuildFailed


class Stored(Protocol):
    """What becomes of a received file: it raises for one that must not be kept."""

    def feed(self, data: bytes, /) -> None:
        """Look at the next piece."""

    def finish(self) -> None:
        """Judge the whole."""


class HashCheck:
    """Accepts exactly the content that has one SHA-256."""

    def __init__(self, name: str, sha256: str) -> None:
        self._name = name
        self._sha256 = sha256
        self._digest = hashlib.sha256()

    def feed(self, data: bytes, /) -> None:
        """Hash the next piece."""
        self._digest.update(data)

    def finish(self) -> None:
        """Raise `BuildFailed` unless the hash is the one that the lock names."""
        found = self._digest.hexdigest()
        if found != self._sha256:
            raise BuildFailed(
                f"{self._name} has the hash sha256:{found}, the lock says sha256:{self._sha256}",
                hint=(
                    "the index serves another file than the one that was locked, or the lock was edited; "
                    "sandbox env lock --upgrade makes a new one"
                ),
                file=self._name,
                expected=self._sha256,
                found=found,
            )


class Incoming:
    """A file on its way into a cache: written to `work`, moved to its place only when the check agrees.

    `work` is a directory of the same file system that goes with the build: a sandbox can end in the middle of a file.
    `name` is what the file is called in errors. Raises `BuildFailed` where there is no room.
    """

    def __init__(self, target: Path, check: Stored, work: Path, *, name: str) -> None:
        self._target = target
        self._check = check
        self._name = name
        try:
            target.parent.mkdir(
                mode=0o700, parents=True, exist_ok=True
            )  # the one that an installing sandbox reads stays open
            fd, path = tempfile.mkstemp(dir=work, prefix=".incoming-")
        except OSError as error:
            raise no_room(target.parent, error, name) from None
        os.close(fd)
        self._temporary = Path(path)

    def write(self, data: bytes, /) -> None:
        """Take the next piece. Raises `BuildFailed`, with nothing left behind."""
        with self._kept_or_discarded():
            self._check.feed(data)
            # Opened for each piece: nobody tells when no more will come, and nothing must stay open then.
            with self._temporary.open("ab") as stream:
                stream.write(data)

    def close(self) -> None:
        """Keep the file. Raises `BuildFailed`, with nothing left behind."""
        with self._kept_or_discarded():
            self._check.finish()
            self._temporary.chmod(0o444)
            self._temporary.replace(self._target)

    @contextlib.contextmanager
    def _kept_or_discarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.discard()
            raise no_room(self._target.parent, error, self._name) from None
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Drop what came so far."""
        self._temporary.unlink(missing_ok=True)


def no_room(directory: Path, error: OSError, name: str) -> BuildFailed:
    """Return the error of a directory that can't take what is called `name`."""
    return BuildFailed(
        f"{name} can't be kept: {directory} can't be written: {error.strerror}",
        hint="free some space there: sandbox env prune, or df -h",
    )


@dataclass(frozen=True, kw_only=True)
class CachedFile:
    """A file of a cache; `last_used` is in seconds since 1970, and nothing tells when it was made."""

    path: Path
    size_bytes: int
    last_used: float

    @property
    def id(self) -> str:
        """Return its name among everything that can be pruned."""
        return str(self.path)

    @property
    def created(self) -> float:
        """Return the time of its last use."""
        return self.last_used


@contextlib.contextmanager
def room_for(name: str, directory: Path) -> Iterator[None]:
    """Tell of a disk that is full meanwhile what it has no room for. Raises `BuildFailed`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_room(directory, error, name) from None


class FileCache:
    """Files by key in one directory. What is there was checked on its way in, and nobody else may write there."""

    def __init__(self, directory: Path, suffix: str) -> None:
        self._directory = directory
        self._suffix = suffix

    def path(self, key: str) -> Path:
        """Return where a key's file is, or would be."""
        return self._directory / key[:2] / f"{key}{self._suffix}"

    def find(self, key: str) -> Path | None:
        """Return a key's file, noted as used now, or None."""
        path = self.path(key)
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def receive(self, key: str, check: Stored, work: Path, *, name: str) -> Incoming:
        """Return what takes a new file in; it is in `work` until it is complete."""
        return Incoming(self.path(key), check, work, name=name)

    def missing(self, keys: Iterable[str]) -> set[str]:
        """Return the keys that have no file."""
        return {key for key in keys if self.find(key) is None}

    def files(self) -> list[CachedFile]:
        """Return every file, complete ones and what dead builds left."""
        found = []
        for path in self._directory.glob("*/*"):
            with contextlib.suppress(OSError):  # somebody else pruned it
                status = path.stat()
                found.append(CachedFile(path=path, size_bytes=status.st_size, last_used=status.st_mtime))
        return found
