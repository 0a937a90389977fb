"""What may be removed, and how: environments with their images, cached files, and leftovers of interrupted builds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sandbox.engine.protocol import Engine
from sandbox.environment.identity import image_name
from sandbox.environment.store import CACHED_FILES, EnvironmentRecord, Prunable, PruneLimits, Store, lease_key, prunable
from sandbox.environment.wheel_cache import CachedFile, FileCache
from sandbox.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class PruneSet:
    """What pruning takes: environments, and files of the caches."""

    environments: tuple[EnvironmentRecord, ...]
    files: tuple[CachedFile, ...]

    @property
    def files_bytes(self) -> int:
        """Return the size of the files."""
        return sum(file.size_bytes for file in self.files)


class Removal:
    """Removes what belongs to environments, unless a lease of ours or anybody's container uses it."""

    def __init__(self, engine: Engine, store: Store, caches: Sequence[FileCache]) -> None:
        self._engine = engine
        self._store = store
        self._caches = caches

    def remove(self, record: EnvironmentRecord) -> None:
        """Remove an environment and its image. Raises `InvalidRequest` for one that is in use."""
        if not self.try_remove(record):
            raise InvalidRequest(
                f"{record.id[:12]} is in use",
                hint=(
                    "try again when its runs have ended, and the service, if one is running, keeps none ready; "
                    f"podman ps --all --filter ancestor={record.image} shows its containers"
                ),
            )

    def try_remove(self, record: EnvironmentRecord) -> bool:
        """Remove an environment and its image unless it is in use; return whether it went."""
        with self._store.unused(record.id) as free:
            gone = free and self._engine.remove_image(record.image)
            if gone:
                self._store.forget(record.id)
            return gone

    def prunable(self, limits: PruneLimits, *, also_used: bool = False) -> PruneSet:
        """Return what pruning would remove; `also_used` as if nothing were in use.

        The budget holds for environments and cached files together.
        """
        records, used = self._store.records(), frozenset[str]() if also_used else self._store.used_now()
        files = [file for cache in self._caches for file in cache.files()]
        in_use = {record.id for record in records if lease_key(record.id) in used}
        if CACHED_FILES in used:
            in_use |= {file.id for file in files}
        now = time.time()
        both: list[Prunable] = [*records, *files]
        going = {one.id for one in prunable(both, limits, now=now, in_use=frozenset(in_use))}
        return PruneSet(
            environments=tuple(record for record in records if record.id in going),
            files=tuple(file for file in files if file.id in going),
        )

    def prune(self, limits: PruneLimits) -> PruneSet:
        """Remove what is `prunable`; return what went."""
        self.sweep()
        chosen = self.prunable(limits)
        gone = tuple(record for record in chosen.environments if self.try_remove(record))
        with self._store.unused(CACHED_FILES) as free:
            files = chosen.files if free else ()
            for file in files:
                file.path.unlink(missing_ok=True)
        return PruneSet(environments=gone, files=files)

    def sweep(self) -> None:
        """Remove the images of builds that ended between Podman's taking the image and our record of it."""
        for identity in self._store.unfinished():
            with self._store.unused(identity) as free:
                # Looked at again under the lease: the build may have come to its end meanwhile.
                if free and identity in self._store.unfinished():
                    self.discard(identity)

    def discard(self, identity: str) -> None:
        """Remove an image that is not recorded, and the trace of its build; a container that uses it keeps both."""
        if self._engine.remove_image(image_name(identity)):
            self._store.forget(identity)
