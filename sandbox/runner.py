"""The runner: takes one run from request to result, and leaves nothing behind.

`Runner._decided` is the first half of the path, from top to bottom: policy and limits, image, libraries, and which
sandbox. `sandbox.run.decision` has a type for each stage; `sandbox.run.execution` is the second half: sandbox, program,
outcome, receipt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from sandbox.channel.modules import MAX_MODULES
from sandbox.container import spec
from sandbox.container.standby import Egress, Places, Setting, Source, alone
from sandbox.engine.protocol import Engine
from sandbox.host.facts import HostFacts
from sandbox.image import admission as image
from sandbox.models import Outcome, RunRequest, RunResult
from sandbox.places import private_directory
from sandbox.policy.load import LoadedPolicy, load_policy
from sandbox.policy.model import Policy
from sandbox.progress import OnProgress, Progress
from sandbox.renewing_cache import RenewingCache
from sandbox.run.decision import DecidedRun, Permitted, Run
from sandbox.run.execution import Execution
from sandbox.run.imports import brings_modules, modules_of
from sandbox.run.request import check_request, checked
from sandbox.wire.answers import CodeCheck

if TYPE_CHECKING:
    from sandbox.environment.environments import Environments
    from sandbox.environment.identity import InstalledEnvironment, Wanted
    from sandbox.environment.lock import Lock

__all__ = ["Places", "Runner"]


# Finds a policy by its name. Raises `NotFound`, `InvalidRequest`.
Policies = Callable[[str], LoadedPolicy]


class Runner:
    """Runs requests on one engine. Many runs may go on at once."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        facts: HostFacts,
        places: Places,
        *,
        source: Source | None = None,
        policies: Policies | None = None,
        images_s: float = 0.0,
    ) -> None:
        """Take `engine` as a function, so that a request that can't run starts no engine.

        `source` is where runs get their sandboxes from (a fresh one each), `policies` finds a policy by its name (in
        the files, each time). The runner remembers what an image's name stands for, for `images_s` seconds.
        """
        self._engine = engine
        self._facts = facts
        self._places = places
        self._source = source
        self._policies = policies or (lambda name: load_policy(name, directories=places.policy_dirs))
        self._images: RenewingCache[tuple[str, str], image.AdmittedImage] = RenewingCache(images_s)
        self._environments: Environments | None = None

    async def run(self, run: Run, *, cancel: asyncio.Event | None = None) -> RunResult:
        """Carry out one run. A failing program is a result. Raises a `SandboxError` for everything else.

        Setting `cancel` ends the run at once.
        """
        cancel = cancel or asyncio.Event()
        program = asyncio.Event()
        task = asyncio.ensure_future(self._run(run, cancel, program))
        stop = asyncio.ensure_future(cancel.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not program.is_set():
                task.cancel()
            # In the program phase the execution sees the event itself, and still collects the last output.
            return await task
        except asyncio.CancelledError:
            if not cancel.is_set():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                raise
            explanation = "the run was cancelled before the program began"
            return RunResult(run_id=run.id, outcome=Outcome.CANCELLED, explanation=explanation)
        finally:
            stop.cancel()

    async def _run(self, run: Run, cancel: asyncio.Event, program: asyncio.Event) -> RunResult:
        async with contextlib.AsyncExitStack() as used:
            decided = await self._decided(run, used)
            run.on_progress(Progress(step="starting"))

            def started() -> None:
                run.on_progress(Progress(step="running"))
                program.set()

            return await self._execution(decided, cancel, self._source).run(on_program=started)

    # ---- from a request to its decision

    async def _decided(self, run: Run, used: contextlib.AsyncExitStack) -> DecidedRun:
        """Decide a run. What it needs of this host stays until `used` is closed. Raises what keeps it from running."""
        permitted = self._permitted(run)
        run.on_progress(Progress(step="image", text=permitted.image_name))
        admitted, environment_s = await self._base(permitted, used), 0.0
        if permitted.run.request.requirements:
            began = time.monotonic()
            libraries = self.environments().using(libraries_of(permitted, admitted))
            admitted = (await used.enter_async_context(libraries)).image
            environment_s = time.monotonic() - began
        return DecidedRun(permitted=permitted, setting=self._setting(permitted, admitted), environment_s=environment_s)

    def _permitted(self, run: Run) -> Permitted:
        """Check everything that needs no container. Raises what keeps the request from running."""
        request = checked(run.request)
        loaded = self._policies(request.policy)
        policy = loaded.policy.tightened(request.limits)
        check_request(request, policy)
        spec.plan_caps(policy, self._facts)
        reference = image.resolve(request.image or policy.images.default)
        policy.image_allowed(reference)
        return Permitted(run=replace(run, request=request), policy=policy, seccomp=loaded.seccomp, image_name=reference)

    async def _base(self, permitted: Permitted, used: contextlib.AsyncExitStack) -> image.AdmittedImage:
        """Return the admitted base image; an environment that is asked for by its image's name stays meanwhile."""
        reference, pull = permitted.image_name, permitted.policy.images.pull
        if environment := image.environment_of(reference):
            await used.enter_async_context(self.environments().store.in_use(environment))

        def admit() -> image.AdmittedImage:
            engine = self._engine()
            record = image.ensure(engine, reference, policy_pull=pull)
            return image.admit(engine, record, cache_dir=private_directory(self._places.cache_dir / "images"))

        admitted = await self._images.get((reference, pull), lambda: asyncio.to_thread(admit))
        if permitted.run.request.requires_python:
            from sandbox.environment.declared import check_python  # late: most runs say nothing of it

            check_python(permitted.run.request.requires_python, admitted.python_version, reference)
        return admitted

    def _setting(self, permitted: Permitted, admitted: image.AdmittedImage) -> Setting:
        """Decide the sandbox; where each is started when a run asks, it has imported nothing before the run."""
        run, policy = permitted.run, permitted.policy
        environment = admitted.environment or image.environment_of(permitted.image_name)
        return Setting(
            policy=policy,
            seccomp=permitted.seccomp,
            admitted=admitted,
            egress=egress_of(policy),
            owner=run.owner,
            preload=preload_of(run.request, policy) if self._source is not None else (),
            lease=partial(self.environments().store.in_use, environment) if environment else None,
        )

    # ---- what else is made of a request

    @contextlib.asynccontextmanager
    async def setting(self, request: RunRequest) -> AsyncIterator[Setting]:
        """Give what decides the sandbox of such a request, whose libraries stay meanwhile. Raises as `run` does."""
        async with contextlib.AsyncExitStack() as used:
            yield (await self._decided(Run(request=request), used)).setting

    async def check(self, request: RunRequest) -> CodeCheck:
        """Check a request's code with the Python and the libraries that it would run with. Raises as `run` does."""
        from sandbox.run.code_check import check_code

        async def execute(decided: DecidedRun) -> RunResult:
            return await self._execution(decided, asyncio.Event(), self._source).run()

        async with contextlib.AsyncExitStack() as used:
            run = Run(request=msgspec.structs.replace(request, preload=()))
            return await check_code(await self._decided(run, used), execute)

    async def lock(self, request: RunRequest, on_progress: OnProgress, *, upgrade: bool = False) -> Lock:
        """Return the lock of a request's libraries; `upgrade` resolves them again. Raises as `run` does."""
        async with self._wanted(Run(request=request, on_progress=on_progress)) as wanted:
            return await self.environments().lock(wanted, upgrade=upgrade)

    async def build(
        self, request: RunRequest, on_progress: OnProgress, *, lock: Lock | None = None
    ) -> InstalledEnvironment:
        """Return the environment of a request's libraries, or of `lock`. Builds it if it does not exist."""
        run = Run(request=request, on_progress=on_progress)
        async with self._wanted(run) as wanted, self.environments().using(wanted, lock=lock) as environment:
            return environment

    async def pull(self, request: RunRequest, reference: str) -> InstalledEnvironment:
        """Return the environment `reference` of a registry, for the request's base image and policy."""
        async with self._wanted(Run(request=request)) as wanted:
            return await self.environments().pull(reference, wanted)

    @contextlib.asynccontextmanager
    async def _wanted(self, run: Run) -> AsyncIterator[Wanted]:
        async with contextlib.AsyncExitStack() as used:
            permitted = self._permitted(run)
            yield libraries_of(permitted, await self._base(permitted, used))

    def environments(self) -> Environments:
        """Return the environments of this user."""
        if self._environments is None:
            from sandbox.environment.environments import Environments  # late: most runs need none

            async def execute(step: DecidedRun) -> RunResult:
                return await self._execution(step, asyncio.Event(), None).run()

            places = self._places
            self._environments = Environments(
                self._engine(), execute, cache_dir=places.cache_dir, data_dir=places.data_dir
            )
        return self._environments

    def _execution(self, decided: DecidedRun, cancel: asyncio.Event, source: Source | None) -> Execution:
        chosen = source or alone(self._engine(), self._facts, self._places)
        return Execution(decided, chosen, facts=self._facts, cancel=cancel)


def libraries_of(permitted: Permitted, base: image.AdmittedImage) -> Wanted:
    """Return the libraries that a request asks for."""
    from sandbox.environment.identity import Wanted  # late: most runs need none

    return Wanted(permitted=permitted, base=base)


def preload_of(request: RunRequest, policy: Policy) -> tuple[str, ...]:
    """Return what sandboxes made ahead of need for such a request have imported."""
    # Libraries read variables when they are imported, and a file of that name would come before a library.
    if request.env or brings_modules(request.files):
        return ()
    if request.preload is not None:
        return request.preload
    learnt = modules_of(request.code) if request.requirements else ()
    return tuple(dict.fromkeys((*policy.isolation.preload, *learnt)))[:MAX_MODULES]


def egress_of(policy: Policy) -> Egress | None:
    """Return the way out that a policy allows its runs, or None."""
    network = policy.network
    if network.mode == "none":
        return None
    from sandbox.egress.proxy import EgressCaps
    from sandbox.egress.rules import Allowlist, networks, parse_rule
    from sandbox.egress.upstream import Upstream
    from sandbox.index.pip_config import host_certificates
    from sandbox.proxies import read_proxies

    return Egress(
        allow=Allowlist(tuple(map(parse_rule, network.allow)), networks(network.allow_addresses)),
        caps=EgressCaps(transfer_bytes=network.transfer_mib << 20, connections=network.connections),
        upstream=Upstream(proxies=read_proxies(os.environ), resolver=network.resolver),
        certificates=host_certificates(),
    )
