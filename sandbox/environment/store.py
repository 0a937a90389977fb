"""What is kept of environments besides their images: locks by request, a record for each, leases, and what to prune.

All of it lies in the data directory of the user, in files that are replaced as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sandbox.environment import build_egress
from sandbox.errors import BuildFailed
from sandbox.image.admission import ENVIRONMENT_CHARS
from sandbox.places import private_directory

if TYPE_CHECKING:
    from sandbox.models import EgressRecord

POLL_S = 0.05
# The lease of the cached files: a build holds it from its first look at them to its end.
CACHED_FILES = "cached-files"


@dataclass(frozen=True, kw_only=True)
class EnvironmentRecord:
    """One environment. Times are seconds since 1970; `size_bytes` is what its libraries add to the base image.

    `left_out` are the start-up files of packages that are not looked for, each with what is lost so.
    """

    id: str
    image: str
    image_id: str
    base: str
    base_digest: str
    lock_hash: str
    build_hash: str
    packages: tuple[str, ...]
    requirements: tuple[str, ...]
    size_bytes: int
    created: float
    last_used: float
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PruneLimits:
    """What `env prune` keeps: None sets no limit. Ages are seconds."""

    unused_s: float | None = None
    older_s: float | None = None
    budget_bytes: int | None = None


class Prunable(Protocol):
    """What takes room until it is pruned: an environment or a cached file. Times are seconds since 1970."""

    @property
    def id(self) -> str:
        """Its name among all of them."""

    @property
    def size_bytes(self) -> int:
        """The room that it takes."""

    @property
    def created(self) -> float:
        """When it was made."""

    @property
    def last_used(self) -> float:
        """When it was used last."""


Item = TypeVar("Item", bound=Prunable)


def prunable(items: Sequence[Item], limits: PruneLimits, *, now: float, in_use: frozenset[str]) -> list[Item]:
    """Choose what to remove: too old, too long unused, then the least recently used until all take at most the budget.

    Never one that is in use.
    """
    free = [item for item in items if item.id not in in_use]
    going = {
        item.id: item
        for item in free
        if (limits.unused_s is not None and now - item.last_used > limits.unused_s)
        or (limits.older_s is not None and now - item.created > limits.older_s)
    }
    if limits.budget_bytes is not None:
        total = sum(item.size_bytes for item in items if item.id not in going)
        for item in sorted((item for item in free if item.id not in going), key=lambda item: item.last_used):
            if total <= limits.budget_bytes:
                break
            going[item.id] = item
            total -= item.size_bytes
    return list(going.values())


def lease_key(environment_id: str) -> str:
    """Return what the lease of an environment is known by: as much of its id as its image's name has."""
    return environment_id[:ENVIRONMENT_CHARS]


class Store:
    """The files of one user's environments."""

    def __init__(self, data_dir: Path) -> None:
        self._records = private_directory(data_dir / "environments")
        self._locks = private_directory(data_dir / "locks")
        self._leases = private_directory(data_dir / "leases")
        self._egress = private_directory(data_dir / "egress")

    # ---- locks

    def lock_path(self, request_key: str) -> Path:
        """Return where the lock of a request lies."""
        return self._locks / f"{request_key}.toml"

    def read_lock(self, request_key: str) -> str | None:
        """Return the text of a request's lock, or None when it was never resolved."""
        try:
            return self.lock_path(request_key).read_text()
        except OSError:
            return None

    def write_lock(self, request_key: str, text: str) -> None:
        """Keep the lock of a request."""
        replace(self.lock_path(request_key), text)

    # ---- what was asked of the egress proxy

    def note_egress(self, request_key: str, step: str, records: Sequence[EgressRecord]) -> None:
        """Add to what the builds of a request have asked for, also those that fail."""
        build_egress.note(self._egress / f"{request_key}.json", step, records)

    def keep_egress(self, environment_id: str, request_key: str) -> None:
        """Keep with an environment what was asked for until now to make it."""
        rows = build_egress.read(self._egress / f"{request_key}.json")
        replace(self._egress / f"{environment_id}.json", json.dumps(rows))

    def egress(self, environment_id: str) -> list[dict[str, Any]]:
        """Return what was asked for to make an environment, as `build_egress.summed` gives it."""
        return build_egress.read(self._egress / f"{environment_id}.json")

    # ---- records

    def records(self) -> list[EnvironmentRecord]:
        """Return every environment, the most recently used first; a broken record is left out."""
        found = []
        for path in self._records.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                found.append(self._parsed(path))
        return sorted(found, key=lambda record: -record.last_used)

    def record(self, environment_id: str) -> EnvironmentRecord | None:
        """Return one environment, or None."""
        try:
            return self._parsed(self._record_path(environment_id))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, record: EnvironmentRecord) -> None:
        """Write a record."""
        replace(self._record_path(record.id), json.dumps(asdict(record), indent=1))

    def write_environment_lock(self, environment_id: str, text: str) -> None:
        """Keep the lock that an environment was made of."""
        replace(self._records / f"{environment_id}.toml", text)

    def environment_lock(self, environment_id: str) -> str | None:
        """Return the text of the lock that an environment was made of."""
        try:
            return (self._records / f"{environment_id}.toml").read_text()
        except OSError:
            return None

    def touch(self, environment_id: str) -> None:
        """Note that an environment is used now; the beginning of its id is enough."""
        for path in self._records.glob(f"{lease_key(environment_id)}*.json"):
            with contextlib.suppress(OSError):
                os.utime(path)

    def unfinished(self) -> list[str]:
        """Return the ids of environments with a lock but no record: a lock is kept before the image is made."""
        found = [path.stem for path in self._records.glob("*.toml")]
        return [one for one in found if not self._record_path(one).exists()]

    def forget(self, environment_id: str) -> None:
        """Remove a record, its lock, and what was asked for to make it."""
        self._record_path(environment_id).unlink(missing_ok=True)
        (self._records / f"{environment_id}.toml").unlink(missing_ok=True)
        (self._egress / f"{environment_id}.json").unlink(missing_ok=True)

    def _record_path(self, environment_id: str) -> Path:
        return self._records / f"{environment_id}.json"

    def _parsed(self, path: Path) -> EnvironmentRecord:
        values = json.loads(path.read_text())
        values.update(
            packages=tuple(values["packages"]),
            requirements=tuple(values["requirements"]),
            left_out=tuple(values.get("left_out", ())),
            last_used=path.stat().st_mtime,
        )
        return EnvironmentRecord(**values)

    # ---- leases

    @contextlib.asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """Be the only one, over all processes of this user, who works on `key`; wait for that."""
        fd = os.open(self._leases / f"{key}.work", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not taken(fd, fcntl.LOCK_EX):
                await asyncio.sleep(POLL_S)
            yield
        finally:
            os.close(fd)

    @contextlib.asynccontextmanager
    async def in_use(self, environment_id: str) -> AsyncIterator[None]:
        """Keep an environment from being removed, and note its use; the kernel drops the lease of a process that dies.

        The beginning of its id, as it is in its image's name, is enough.
        """
        fd = self._lease(environment_id)
        try:
            while not taken(fd, fcntl.LOCK_SH):  # it is being removed at this moment
                await asyncio.sleep(POLL_S)
            self.touch(environment_id)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def unused(self, environment_id: str) -> Iterator[bool]:
        """Keep others from using an environment meanwhile; tells False when somebody does."""
        fd = self._lease(environment_id)
        try:
            yield taken(fd, fcntl.LOCK_EX)
        finally:
            os.close(fd)

    def _lease(self, environment_id: str) -> int:
        return os.open(self._leases / f"{lease_key(environment_id)}.use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def used_now(self) -> frozenset[str]:
        """Return the keys of the leases that some process holds, as `lease_key` gives them."""
        found = set()
        for path in self._leases.glob("*.use"):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if not taken(fd, fcntl.LOCK_EX):
                    found.add(path.stem)
            finally:
                os.close(fd)
        return frozenset(found)


def taken(fd: int, kind: int) -> bool:
    """Try to lock an open file; return whether it worked."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def replace(path: Path, text: str) -> None:
    """Write a file as a whole, or not at all. Raises `BuildFailed`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        temporary.write_text(text)
        temporary.chmod(0o600)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BuildFailed(f"{path} can't be written: {error.strerror}", hint="free some space there") from None
