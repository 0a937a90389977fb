"""Environments: one admitted base image plus locked libraries, installed in sandboxes, kept as an image, used offline.

`Environments.using` is the path: requirements -> lock -> (wheels -> trees -> image) -> environment. The same base,
lock and [build] section give the same environment; whoever comes second, in whatever process, waits and finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from sandbox.engine.protocol import Engine, ImageRecord
from sandbox.environment import layers as environment_image
from sandbox.environment.build_directory import workplace
from sandbox.environment.build_output import Fetched, PackageTree
from sandbox.environment.identity import (
    LABEL_BASE,
    LABEL_BUILD,
    LABEL_ENVIRONMENT,
    EnvironmentPlan,
    InstalledEnvironment,
    Wanted,
    check_lock,
    package_of,
    tree_limits,
)
from sandbox.environment.installation import Execute, Installer
from sandbox.environment.lock import Lock
from sandbox.environment.locked_package import LockedPackage
from sandbox.environment.removal import Removal
from sandbox.environment.resolution_failure import named
from sandbox.environment.sharing import LOCK_FILE, lock_tree, unpack
from sandbox.environment.store import CACHED_FILES, EnvironmentRecord, Store
from sandbox.environment.wheel_cache import FileCache, Incoming, room_for
from sandbox.errors import BuildFailed, ImageUnavailable, InvalidRequest, NotFound, SandboxError
from sandbox.image.base.layer import epoch, sha256_of
from sandbox.index.files import discover_file_hosts
from sandbox.index.pip_config import Index, read_index
from sandbox.places import home, private_directory
from sandbox.policy.model import Policy
from sandbox.progress import Progress
from sandbox.renewing_cache import RenewingCache

# An index may serve packages from several hosts; it is asked about so many of those requested.
MAX_ASKED = 6
# Fetching comes seconds after resolving.
FILE_HOSTS_S = 60.0


class Environments:
    """The environments of one user. `execute` carries out one decided run."""

    def __init__(self, engine: Engine, execute: Execute, *, cache_dir: Path, data_dir: Path) -> None:
        self._engine = engine
        self._execute = execute
        self._builds = cache_dir / "builds"
        self._wheels = FileCache(cache_dir / "wheels", ".whl")
        self._trees = FileCache(cache_dir / "trees", ".tree")
        self._file_hosts: RenewingCache[tuple[Index, str], tuple[str, ...]] = RenewingCache(FILE_HOSTS_S)
        self.store = Store(data_dir)
        self.removal = Removal(engine, self.store, (self._wheels, self._trees))

    # ---- the path

    @contextlib.asynccontextmanager
    async def using(self, wanted: Wanted, *, lock: Lock | None = None) -> AsyncIterator[InstalledEnvironment]:
        """Give the environment, from the cache or built now, and keep it from being removed meanwhile.

        Raises `BuildFailed`, `PolicyDenied`.
        """
        plan = EnvironmentPlan(wanted=wanted, lock=lock or await self.lock(wanted))
        async with self.store.in_use(plan.id):
            found = await asyncio.to_thread(self._find, plan)
            yield found or await self._built(plan)

    async def _built(self, plan: EnvironmentPlan) -> InstalledEnvironment:
        """Build it, unless somebody else has done so meanwhile."""
        async with self.store.alone(plan.id):
            found = await asyncio.to_thread(self._find, plan)
            if found is None:
                found = await self._build(plan)
                self.store.keep_egress(plan.id, plan.wanted.key)
            return found

    async def lock(self, wanted: Wanted, *, upgrade: bool = False) -> Lock:
        """Return the lock of a request: the first one it ever got, unless `upgrade`."""
        if not upgrade and (lock := self._known_lock(wanted.key)):
            return lock
        async with self.store.alone(wanted.key):
            if not upgrade and (lock := self._known_lock(wanted.key)):
                return lock
            installer = await self._installer(wanted, wanted.requirements)
            lock = await installer.resolve()
            check_lock(lock, wanted)
            self.store.write_lock(wanted.key, lock.as_toml())
            return lock

    def _known_lock(self, key: str) -> Lock | None:
        text = self.store.read_lock(key)
        if text is None:
            return None
        try:
            return Lock.from_toml(text)
        except BuildFailed as error:
            raise BuildFailed(
                f"{self.store.lock_path(key)}: {error.message}",
                hint="the lock was edited or damaged; sandbox env lock --upgrade makes a new one",
                **error.facts,
            ) from None

    def _find(self, plan: EnvironmentPlan) -> InstalledEnvironment | None:
        """Return an environment that is there."""
        known = self.store.record(plan.id)
        try:
            record = self._engine.image(plan.name)
        except ImageUnavailable:
            return None
        # Names and labels can be anybody's: an archive that was loaded brings its own.
        if known is None or record.id != known.image_id:
            return None
        return plan.built(record)

    # ---- building

    async def _installer(self, wanted: Wanted, requirements: Sequence[str]) -> Installer:
        """Return an installer that may reach the index and the hosts that serve the first of these packages."""
        index = read_index(os.environ, home())
        names = dict.fromkeys(package_of(requirement) for requirement in requirements)
        asked = [
            self._file_hosts.get((index, name), partial(asyncio.to_thread, discover_file_hosts, index, name))
            for name in list(names)[:MAX_ASKED]
        ]
        hosts = tuple(dict.fromkeys(host for found in await asyncio.gather(*asked) for host in found))
        on_egress = partial(self.store.note_egress, wanted.key)
        return Installer(wanted, self._execute, on_egress, index=index, file_hosts=hosts)

    async def _build(self, plan: EnvironmentPlan) -> InstalledEnvironment:
        await asyncio.to_thread(self.removal.sweep)
        async with self.store.in_use(CACHED_FILES):
            missing = self._trees.missing(plan.tree_keys.values())
            needed = [package for package in plan.lock.packages if plan.tree_keys[package.name] in missing]
            with room_for(named(plan.lock.requirements), self._builds), workplace(self._builds) as work:
                if needed:
                    await self._install(plan, needed, work)
                plan.wanted.permitted.run.on_progress(Progress(step="storing", text=plan.name))
                return await asyncio.to_thread(self._compose, plan, work)

    async def _install(self, plan: EnvironmentPlan, needed: Sequence[LockedPackage], work: Path) -> None:
        """Get the missing trees: fetch the wheels that are not cached, then install."""
        wheels = private_directory(work / "wheels")
        wheels.chmod(0o755)
        groups = self._to_fetch(needed)
        # The index is only asked when something is to come from it.
        installer = await self._installer(plan.wanted, plan.lock.requirements if groups else ())
        built = await self._fetch(installer, groups, wheels, work)
        rows = []
        for number, package in enumerate(needed):
            name = built.get(package.name, package.file.name)
            if package.file.kind == "wheel":
                link(self._wheels.path(package.file.sha256), wheels / name)
            rows.append(
                {
                    "n": number,
                    "file": name,
                    "name": package.name,
                    "version": package.version,
                    "size_bytes": (wheels / name).stat().st_size,
                    "sha256": package.file.sha256 if package.file.kind == "wheel" else sha256_of(wheels / name),
                }
            )
        limits = tree_limits(plan.wanted.policy)
        expected = {f"{row['n']}.tree": package for row, package in zip(rows, needed, strict=True)}

        def receive(name: str, _size: int) -> Incoming:
            package = expected.pop(name, None)
            if package is None:
                raise BuildFailed(f"the sandbox handed over a file {name!r} that was not requested", hint="report this")
            return self._trees.receive(
                plan.tree_keys[package.name],
                PackageTree(limits, package),
                work,
                name=f"{package.name} {package.version}",
            )

        await installer.install(rows, wheels, receive)
        if missing := self._trees.missing(plan.tree_keys[package.name] for package in needed):
            names = [package.name for package in needed if plan.tree_keys[package.name] in missing]
            raise BuildFailed(f"{names[0]} was not handed over", hint="report this")

    def _to_fetch(self, needed: Sequence[LockedPackage]) -> list[list[LockedPackage]]:
        """Return the packages whose files are not cached, by the sandbox that fetches them.

        A source archive has one to itself: its build runs its code, which could change what is built beside it.
        """
        absent = [p for p in needed if p.file.kind == "wheel" and self._wheels.find(p.file.sha256) is None]
        return [group for group in (absent, *([p] for p in needed if p.file.kind == "sdist")) if group]

    async def _fetch(
        self, installer: Installer, groups: Sequence[Sequence[LockedPackage]], wheels: Path, work: Path
    ) -> dict[str, str]:
        """Get the files of each group; return the names of the wheels that were built, by package."""
        built: dict[str, str] = {}
        for group in groups:
            receiver = Fetched(self._wheels, group, wheels=wheels, work=work)
            await installer.fetch(group, receiver.open)
            receiver.check_complete()
            built |= receiver.built
        return built

    def _compose(self, plan: EnvironmentPlan, work: Path) -> InstalledEnvironment:
        """Make the image: the base's layers and ours, and record it."""
        policy = plan.wanted.policy
        trees = [(package.name, self._trees.path(plan.tree_keys[package.name])) for package in plan.lock.packages]
        check_size(trees, policy)
        carried = work / "lock.tree"
        carried.write_bytes(lock_tree(plan.lock))
        # Of two files with one path the later name's is taken, and no package's name comes after a tilde.
        written = self._written(plan, [*trees, (f"~{LOCK_FILE}", carried)], work)
        check_count(written.files_count, policy)
        return self._keep(plan, written)

    def _written(
        self, plan: EnvironmentPlan, trees: Sequence[tuple[str, Path]], work: Path
    ) -> environment_image.WrittenImage:
        """Write the image of these trees; the same inputs give the same bytes on every machine."""
        record = self._engine.image(plan.wanted.base.id)
        return environment_image.write_image(
            private_directory(work / "image") / "image.tar",
            environment_image.BaseImage(diff_ids=record.layers, architecture=record.architecture),
            trees,
            name=plan.name,
            labels=plan.labels,
            created=datetime.fromtimestamp(epoch(), tz=timezone.utc),
            allow_pth=plan.wanted.policy.build.allow_pth,
        )

    def _keep(self, plan: EnvironmentPlan, written: environment_image.WrittenImage) -> InstalledEnvironment:
        """Have Podman add the image, and record the environment: both, or neither."""
        # First, so that what a killed process leaves is known: a lock without a record.
        self.store.write_environment_lock(plan.id, plan.lock.as_toml())
        try:
            with storing(plan.lock):
                record = environment_image.add(self._engine, written)
            self.store.keep(record_of(plan, written, image_id=record.id, now=time.time()))
        except BaseException:
            with contextlib.suppress(SandboxError):  # the next sweep tries again
                self.removal.discard(plan.id)
            raise
        return plan.built(record)

    # ---- sharing

    async def push(self, record: EnvironmentRecord, destination: str) -> str:
        """Send an environment to a registry; return its digest there. Raises `ImageUnavailable`."""
        with workplace(self._builds) as work:
            return await asyncio.to_thread(self._engine.push, record.image, destination, work_dir=work)

    async def pull(self, reference: str, wanted: Wanted) -> InstalledEnvironment:
        """Take an environment from a registry, for this base image and policy. `wanted.requirements` don't count.

        Raises `BuildFailed` unless it is, bit for bit, what a build here would have composed of the same files.
        """
        with workplace(self._builds) as work:
            there = await asyncio.to_thread(self._has, reference)
            parcel = await asyncio.to_thread(self._engine.pull, reference)
            try:
                tree = work / "pulled.tree"
                lock = await asyncio.to_thread(unpack, self._engine, parcel, tree, tree_limits(wanted.policy))
                plan = EnvironmentPlan(wanted=wanted, lock=lock)
                async with self.store.in_use(plan.id), self.store.alone(plan.id):
                    return await asyncio.to_thread(self._accepted, parcel, plan, tree, work)
            finally:
                if not there:
                    await asyncio.to_thread(self._engine.remove_image, reference)

    def _has(self, reference: str) -> bool:
        try:
            self._engine.image(reference)
        except ImageUnavailable:
            return False
        return True

    def _accepted(self, parcel: ImageRecord, plan: EnvironmentPlan, tree: Path, work: Path) -> InstalledEnvironment:
        """Keep the environment that came as `parcel`.

        Raises `BuildFailed` unless it is what a build would have made.
        """
        if parcel.labels.get(LABEL_ENVIRONMENT) != plan.id:
            raise BuildFailed(
                "the image was built on another base image or under another build policy than this host has",
                hint=(
                    f"it says base {parcel.labels.get(LABEL_BASE, '?')[:80]}, build policy"
                    f" {parcel.labels.get(LABEL_BUILD, '?')[:80]}; here: {plan.labels[LABEL_BASE]},"
                    f" {plan.labels[LABEL_BUILD]} (--image and --policy choose others)"
                ),
            )
        written = self._written(plan, [("pulled", tree)], work)
        found = self._find(plan)
        known = found.image.id.removeprefix("sha256:") if found else written.id
        if (parcel.id.removeprefix("sha256:"), parcel.layers) != (written.id, written.layers) or written.id != known:
            raise BuildFailed(
                "the image is not what a build would have composed of its files", hint="don't use it; ask who pushed it"
            )
        return found or self._keep(plan, written)

    # ---- looking

    def find(self, text: str) -> EnvironmentRecord:
        """Return the environment whose id begins with `text`. Raises `NotFound`, or `InvalidRequest` for several."""
        found = [record for record in self.store.records() if record.id.startswith(text)] if text else []
        if not found:
            raise NotFound(f"there is no environment {text!r}", hint="sandbox env list shows them")
        if len(found) > 1:
            raise InvalidRequest(
                f"{len(found)} environments begin with {text!r}", hint="give more characters of the id"
            )
        return found[0]

    def lock_of(self, record: EnvironmentRecord) -> Lock:
        """Return the lock that an environment was made of."""
        text = self.store.environment_lock(record.id)
        if text is None:
            raise NotFound(f"the lock of {record.id[:12]} is gone", hint="build the environment again")
        return Lock.from_toml(text)


def record_of(
    plan: EnvironmentPlan, written: environment_image.WrittenImage, *, image_id: str, now: float
) -> EnvironmentRecord:
    """Return what is kept of an environment that was made now."""
    wanted, lock = plan.wanted, plan.lock
    return EnvironmentRecord(
        id=plan.id,
        image=plan.name,
        image_id=image_id,
        base=wanted.permitted.image_name,
        base_digest=wanted.base.digest,
        lock_hash=plan.lock_hash,
        build_hash=wanted.build_hash,
        packages=tuple(f"{p.name}=={p.version}" for p in lock.packages),
        requirements=lock.requirements,
        left_out=written.left_out,
        size_bytes=written.size_bytes,
        created=now,
        last_used=now,
    )


@contextlib.contextmanager
def storing(lock: Lock) -> Iterator[None]:
    """Have Podman's refusal of an image name the libraries that it has. Raises `BuildFailed`."""
    try:
        yield
    except BuildFailed as error:
        raise BuildFailed(
            f"storing {named(lock.requirements)} failed: {error.message}", hint=error.hint, **error.facts
        ) from None


def check_size(trees: Sequence[tuple[str, Path]], policy: Policy) -> None:
    """Raise `BuildFailed` when all trees together are larger than the policy lets a build be."""
    total = sum(path.stat().st_size for _, path in trees)
    if total > policy.build.installed_mib << 20:
        largest = sorted(((path.stat().st_size, name) for name, path in trees), reverse=True)[:3]
        named = ", ".join(f"{name} {size >> 20} MiB" for size, name in largest)
        raise BuildFailed(
            f"the libraries take {total >> 20} MiB, policy {policy.name!r} lets a build install"
            f" {policy.build.installed_mib} MiB",
            hint=f"raise build.installed_mib in a policy, or ask for less (largest: {named})",
        )


def check_count(files_count: int, policy: Policy) -> None:
    """Raise `BuildFailed` for an image with more files, directories and links than the policy lets a build install."""
    if files_count > policy.build.files_count:
        raise BuildFailed(
            f"the libraries have {files_count:,} files and directories together, policy {policy.name!r} lets a build"
            f" install {policy.build.files_count:,}",
            hint="raise build.files_count in a policy, or ask for less",
        )


def link(source: Path, target: Path) -> None:
    """Give a cached file a second name; both lie in the cache directory."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise BuildFailed(f"{target.name} was removed from the cache meanwhile", hint="try again") from None
