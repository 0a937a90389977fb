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
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox import build_egress
from sandbox.errors import BuildFailed
from sandbox.places import private_directory

if TYPE_CHECKING:
    from sandbox.models import EgressRecord

POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Record:
    """One environment. Times are seconds since 1970; `size_bytes` is what its libraries add to the base image."""

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


@dataclass(frozen=True, kw_only=True)
class PruneLimits:
    """What `env prune` keeps: None sets no limit. Ages are seconds."""

    unused_s: float | None = None
    older_s: float | None = None
    budget_bytes: int | None = None


def prunable(records: Iterable[Record], limits: PruneLimits, *, now: float, in_use: frozenset[str]) -> list[Record]:
    """Choose what to remove: too old, too long unused, then the least recently used until the budget holds.

    Never one that is in use.
    """
    free = [record for record in records if record.id not in in_use]
    old = [
        record
        for record in free
        if (limits.unused_s is not None and now - record.last_used > limits.unused_s)
        or (limits.older_s is not None and now - record.created > limits.older_s)
    ]
    if limits.budget_bytes is not None:
        total = sum(record.size_bytes for record in records if record not in old)
        for record in sorted((record for record in free if record not in old), key=lambda record: record.last_used):
            if total <= limits.budget_bytes:
                break
            old.append(record)
            total -= record.size_bytes
    return old


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

    def records(self) -> list[Record]:
        """Return every environment, the most recently used first; a broken record is left out."""
        found = []
        for path in self._records.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                found.append(self._parsed(path))
        return sorted(found, key=lambda record: -record.last_used)

    def record(self, environment_id: str) -> Record | None:
        """Return one environment, or None."""
        try:
            return self._parsed(self._record_path(environment_id))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, record: Record) -> None:
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
        """Note that an environment is used now."""
        with contextlib.suppress(OSError):
            os.utime(self._record_path(environment_id))

    def forget(self, environment_id: str) -> None:
        """Remove a record, its lock, and what was asked for to make it."""
        self._record_path(environment_id).unlink(missing_ok=True)
        (self._records / f"{environment_id}.toml").unlink(missing_ok=True)
        (self._egress / f"{environment_id}.json").unlink(missing_ok=True)

    def _record_path(self, environment_id: str) -> Path:
        return self._records / f"{environment_id}.json"

    def _parsed(self, path: Path) -> Record:
        values = json.loads(path.read_text())
        values.update(
            packages=tuple(values["packages"]),
            requirements=tuple(values["requirements"]),
            last_used=path.stat().st_mtime,
        )
        return Record(**values)

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
        """Keep an environment from being removed; the kernel drops the lease of a process that dies."""
        fd = os.open(self._leases / f"{environment_id}.use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not taken(fd, fcntl.LOCK_SH):  # it is being removed at this moment
                await asyncio.sleep(POLL_S)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def unused(self, environment_id: str) -> Iterator[bool]:
        """Keep others from using an environment meanwhile; tells False when somebody does."""
        fd = os.open(self._leases / f"{environment_id}.use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield taken(fd, fcntl.LOCK_EX)
        finally:
            os.close(fd)

    def used_now(self) -> frozenset[str]:
        """Return the ids of the environments that some process uses."""
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
