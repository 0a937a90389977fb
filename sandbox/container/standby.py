"""A ready sandbox: started, read back and verified, with a waiting harness. It has received nothing yet.

What is decided of a sandbox before its job is a `Setting`; any number of sandboxes may be started for one, ahead of
need or when a run asks. Each is used for one run and disposed of.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sandbox.channel.modules import check_modules
from sandbox.container import spec, workspace
from sandbox.container.container import Container
from sandbox.container.harness_files import harness_directory, seccomp_file
from sandbox.container.isolation_row import in_container
from sandbox.container.preload import PreloadFailed, at_rest, preload
from sandbox.container.sandbox import READY_TIMEOUT_S, Sandbox
from sandbox.engine.protocol import Engine
from sandbox.host.facts import HostFacts
from sandbox.image.admission import AdmittedImage
from sandbox.kernel.family import family, fields
from sandbox.policy.model import Policy
from sandbox.policy.seccomp import SeccompProfile

if TYPE_CHECKING:
    from sandbox.egress.proxy import EgressCaps, EgressProxy
    from sandbox.egress.rules import Allowlist
    from sandbox.egress.upstream import Upstream


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a runner keeps things: runtime files, cache, what is worth keeping, and the policy search path."""

    runtime_dir: Path
    cache_dir: Path
    data_dir: Path
    policy_dirs: Sequence[Path]


@dataclass(frozen=True, kw_only=True)
class Egress:
    """A way out of a sandbox: what is allowed, how much, which way on from here, and who is told of every byte.

    `certificates` is the host's bundle of certificate authorities, which the sandbox is shown.
    """

    allow: Allowlist
    caps: EgressCaps
    upstream: Upstream
    certificates: Path | None = None
    on_bytes: Callable[[int], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What decides a sandbox, apart from the job that it gets.

    `binds` are what it sees besides its own; `lease` keeps its environment from being removed while it stands. `owner`
    is whose runs share a warm container, where the policy lets any: a caller, and a node of theirs.
    """

    policy: Policy
    seccomp: SeccompProfile
    admitted: AdmittedImage
    binds: tuple[spec.Bind, ...] = ()
    egress: Egress | None = None
    preload: tuple[str, ...] = ()
    owner: str = ""
    lease: Callable[[], AbstractAsyncContextManager[None]] | None = field(default=None, compare=False)

    @cached_property
    def kind(self) -> str:
        """What two sandboxes have in common that can stand in for each other; a run asks for it several times."""
        return repr((self.policy.hash, self.admitted.id, self.admitted.python_path, self.binds, self.preload))


class AcquiredSandbox(Protocol):
    """What a run needs of the sandbox that it gets."""

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox itself."""

    @property
    def proxy(self) -> EgressProxy | None:
        """Its way out."""

    @property
    def asked(self) -> float:
        """When it was asked for (monotonic)."""


class ReadySandbox:
    """One sandbox that waits for its job; `proxy` is its way out, if it has one.

    `asked` is when it was asked for (monotonic).

    `preloaded` are the modules that were imported in it: of those that its setting names, the ones that can be.
    """

    def __init__(self, setting: Setting, *, engine: Engine, facts: HostFacts, places: Places) -> None:
        self.setting = setting
        self.asked = time.monotonic()
        self.sandbox: Container
        self.proxy: EgressProxy | None = None
        self.preloaded: tuple[str, ...] = ()
        self._engine = engine
        self._facts = facts
        self._places = places
        self._held = AsyncExitStack()

    async def start(self, sandbox_id: str, *, idle_s: float = 0.0, ahead: bool = False) -> None:
        """Start and verify it; it may wait `idle_s` for its job. Raises a `SandboxError`, with everything removed.

        One that is started `ahead` of need does all that it can before its job: no run waits for it now. So does one
        that has modules to preload.
        """
        check_modules(self.setting.preload)
        modules = self.setting.preload
        try:
            await self._start(sandbox_id, idle_s, modules if modules or ahead else None)
        except PreloadFailed:
            # Preloading saves time, and is nothing that a run could fail of: the program imports what it needs.
            await self._start(sandbox_id, idle_s, None)

    async def _start(self, sandbox_id: str, idle_s: float, modules: tuple[str, ...] | None) -> None:
        """Start it; unless `modules` is None, prepare it and preload them."""
        async with AsyncExitStack() as held:
            if self.setting.lease is not None:
                await held.enter_async_context(self.setting.lease())
            place = workspace.acquire(self._places.runtime_dir)
            held.callback(place.release)
            decided = self._decided(place, sandbox_id, idle_s + (0.0 if modules is None else READY_TIMEOUT_S))
            self.proxy = await held.enter_async_context(way_out(self.setting.egress, decided))
            self.sandbox = await held.enter_async_context(Container(self._engine, decided))
            if modules is not None:
                self.preloaded = await self._prepare(modules)
            self._held = held.pop_all()

    async def _prepare(self, modules: tuple[str, ...]) -> tuple[str, ...]:
        """Have it do ahead of its job what it can; return the modules that it has imported."""
        return await preload(self.sandbox, modules)

    async def dispose(self) -> None:
        """Destroy it, whatever happened in it; nothing of it is left. A second call does nothing."""
        await self._held.aclose()

    def fit(self) -> bool:
        """Tell whether it can still be given a job: it lives, and what was preloaded does nothing by itself."""
        return self.sandbox.alive() and (not self.preloaded or at_rest(self.sandbox))

    def memory_mib(self) -> float:
        """Return the memory that is its own, not shared with other sandboxes of the same image."""
        # Pages that its processes share count once.
        own = (fields(f"/proc/{pid}/smaps_rollup", b"Pss_Anon")[b"Pss_Anon"] for pid in family(self.sandbox.pid))
        return sum(own) / 1024

    def _decided(self, place: workspace.Workspace, sandbox_id: str, idle_s: float) -> spec.ContainerSpec:
        setting, cache = self.setting, self._places.cache_dir
        return spec.build(
            setting.policy,
            image_id=setting.admitted.id,
            python_path=setting.admitted.python_path,
            facts=self._facts,
            seccomp=setting.seccomp,
            binds=binds_of(setting),
            idle_s=idle_s,
            place=spec.Place(
                sandbox_id=sandbox_id,
                uid=place.uid,
                job_dir=place.job_dir,
                lib_dir=harness_directory(cache),
                seccomp_path=seccomp_file(setting.seccomp, cache),
                egress_dir=place.egress_dir if setting.egress else None,
            ),
        )


# Where a run gets its sandbox from, and whom it gives it back to; the name is the run's.
Source = Callable[[Setting, str], AbstractAsyncContextManager[AcquiredSandbox]]


def fresh(
    engine: Engine, facts: HostFacts, places: Places
) -> Callable[[Setting, str], AbstractAsyncContextManager[ReadySandbox]]:
    """Return the source that starts a sandbox when a run asks for it, and removes it before it goes on."""

    @contextlib.asynccontextmanager
    async def source(setting: Setting, run_id: str) -> AsyncIterator[ReadySandbox]:
        ready = ReadySandbox(setting, engine=engine, facts=facts, places=places)
        await ready.start(run_id)
        try:
            yield ready
        finally:
            await ready.dispose()

    return source


def alone(engine: Engine, facts: HostFacts, places: Places) -> Source:
    """Return the source for a process that ends after one run: nothing stays warm in it, so it has no cells."""
    containers = fresh(engine, facts, places)

    @contextlib.asynccontextmanager
    async def source(setting: Setting, run_id: str) -> AsyncIterator[ReadySandbox]:
        async with containers(setting, run_id) as ready:
            if (per_run := setting.policy.isolation.per_run) != "container":
                ready.sandbox.evidence += (
                    in_container(per_run, "without the service there is no warm one to make a cell in"),
                )
            yield ready

    return source


def binds_of(setting: Setting) -> tuple[spec.Bind, ...]:
    """Return what the sandbox sees besides its own; with a way out, the host's certificates too."""
    certificates = setting.egress.certificates if setting.egress else None
    if certificates is None:
        return setting.binds
    return (*setting.binds, spec.Bind(source=certificates, destination=spec.CERTIFICATES))


@contextlib.asynccontextmanager
async def way_out(egress: Egress | None, decided: spec.ContainerSpec) -> AsyncIterator[EgressProxy | None]:
    """Serve a sandbox's egress proxy while it lives."""
    directory = decided.place.egress_dir
    if egress is None or directory is None:
        yield None
        return
    from sandbox.egress.proxy import EgressProxy  # late: most runs have no way out

    async with EgressProxy(
        socket_path=directory / Path(spec.EGRESS_SOCKET).name,
        peer_uid=decided.host_uid,
        allow=egress.allow,
        caps=egress.caps,
        on_bytes=egress.on_bytes,
        upstream=egress.upstream,
    ) as proxy:
        yield proxy
