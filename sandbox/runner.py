"""The runner: takes one run from request to result, and leaves nothing behind.

Read `Runner._run` from top to bottom for the path of a run: policy, image, libraries; `sandbox.run.execution` goes on
from there: specification, sandbox, program, outcome, receipt.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

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
from sandbox.run.execution import NOBODY, Execution, Follow, Prepared
from sandbox.run.imports import brings_modules, modules_of
from sandbox.run.request import check_request
from sandbox.wire.answers import CodeCheck

if TYPE_CHECKING:
    from sandbox.environment.environments import Environments
    from sandbox.environment.identity import InstalledEnvironment, Wanted
    from sandbox.environment.lock import Lock

__all__ = ["Places", "Runner"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request comes down to before any container: policy, base image, and the Pythons that it is for."""

    loaded: LoadedPolicy
    policy: Policy
    reference: str
    requires_python: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One request on its way; `began` is when it came (monotonic), `queued_s` how long it has waited for its turn."""

    request: RunRequest
    id: str
    caller: str
    follow: Follow
    on_progress: OnProgress
    began: float
    queued_s: float


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
        """Take `engine` as a function, so that requests that can't run never start one.

        `source` is where runs get their sandboxes from (a fresh one each), `policies` finds a policy by its name (in the
        files, each time). What an image's name stands for is believed for `images_s` before it is looked up again.
        """
        self._engine = engine
        self._facts = facts
        self._places = places
        self._source = source
        self._policies = policies or (lambda name: load_policy(name, directories=places.policy_dirs))
        self._images: RenewingCache[tuple[str, str], image.AdmittedImage] = RenewingCache(images_s)
        self._environments: Environments | None = None

    async def run(
        self,
        request: RunRequest,
        *,
        run_id: str | None = None,
        caller: str = "",
        follow: Follow = NOBODY,
        on_progress: OnProgress | None = None,
        cancel: asyncio.Event | None = None,
        queued_s: float = 0.0,
    ) -> RunResult:
        """Run one request; a failing program is a result. Raises a `SandboxError` for everything else.

        `follow` is told of output, log records and files as they come. Setting `cancel` ends the run at once.
        `queued_s` is how long it has waited for its turn. Runs of one `caller` and node may share a warm container, where
        the policy says so.
        """
        cancel = cancel or asyncio.Event()
        program = asyncio.Event()
        run = Run(
            request=request, id=run_id or uuid.uuid4().hex, caller=caller, follow=follow,
            on_progress=on_progress or (lambda _: None), began=time.monotonic() - queued_s, queued_s=queued_s,
        )  # fmt: skip
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
        request, on_progress = run.request, run.on_progress
        asked = await self._asked(request)
        on_progress(Progress(step="image", text=asked.reference))
        async with contextlib.AsyncExitStack() as used:
            admitted = await used.enter_async_context(self._base(asked))
            environment = None
            began = time.monotonic()
            if request.requirements:
                libraries = self.environments().using(wanted(request, asked, admitted), on_progress)
                environment = await used.enter_async_context(libraries)
            environment_s = time.monotonic() - began
            on_progress(Progress(step="starting"))

            def started() -> None:
                on_progress(Progress(step="running"))
                program.set()

            step = self._prepared(run, asked, admitted, environment, environment_s)
            return await self._execution(step, cancel, self._source).run(on_program=started)

    async def lock(self, request: RunRequest, on_progress: OnProgress, *, upgrade: bool = False) -> Lock:
        """Return the lock of a request's libraries; `upgrade` resolves them anew. Raises as `run` does."""
        asked = await self._asked(request)
        async with self._base(asked) as base:
            return await self.environments().lock(wanted(request, asked, base), on_progress, upgrade=upgrade)

    async def build(
        self, request: RunRequest, on_progress: OnProgress, *, lock: Lock | None = None
    ) -> InstalledEnvironment:
        """Return the environment of a request's libraries, or of `lock`; built when it isn't there."""
        asked = await self._asked(request)
        async with contextlib.AsyncExitStack() as used:
            base = await used.enter_async_context(self._base(asked))
            libraries = self.environments().using(wanted(request, asked, base), on_progress, lock=lock)
            return await used.enter_async_context(libraries)

    async def check(self, request: RunRequest) -> CodeCheck:
        """Look at a request's code on the Python and with the libraries that it would run with. Raises as `run` does."""
        from sandbox.run.code_check import check_code

        async def execute(step: Prepared) -> RunResult:
            return await self._execution(step, asyncio.Event(), self._source).run()

        async with self.setting(request.model_copy(update={"preload": ()})) as setting:
            return await check_code(request.code, request.filename, setting=setting, execute=execute)

    @contextlib.asynccontextmanager
    async def setting(self, request: RunRequest) -> AsyncIterator[Setting]:
        """Give what decides the sandbox of such a request, whose libraries stay meanwhile. Raises as `run` does."""
        loaded = self._policies(request.policy)
        asked = Asked(
            loaded=loaded,
            policy=loaded.policy,
            reference=self._reference(request, loaded.policy),
            requires_python=request.requires_python,
        )
        async with contextlib.AsyncExitStack() as used:
            admitted = await used.enter_async_context(self._base(asked))
            environment = None
            if request.requirements:
                libraries = self.environments().using(wanted(request, asked, admitted), lambda _: None)
                environment = await used.enter_async_context(libraries)
            yield self._setting(asked, admitted, environment, self._preload(request, asked.policy))

    async def pull(self, request: RunRequest, reference: str) -> InstalledEnvironment:
        """Return the environment `reference` of a registry, for the request's base image and policy."""
        asked = await self._asked(request)
        async with self._base(asked) as base:
            return await self.environments().pull(reference, wanted(request, asked, base))

    def environments(self) -> Environments:
        """Return the environments of this user."""
        if self._environments is None:
            from sandbox.environment.environments import Environments  # late: most runs need none

            async def execute(step: Prepared) -> RunResult:
                return await self._execution(step, asyncio.Event(), None).run()

            places = self._places
            self._environments = Environments(
                self._engine(), execute, cache_dir=places.cache_dir, data_dir=places.data_dir
            )
        return self._environments

    def _execution(self, step: Prepared, cancel: asyncio.Event, source: Source | None) -> Execution:
        chosen = source or alone(self._engine(), self._facts, self._places)
        return Execution(step, chosen, facts=self._facts, cancel=cancel)

    def _prepared(
        self,
        run: Run,
        asked: Asked,
        admitted: image.AdmittedImage,
        environment: InstalledEnvironment | None,
        environment_s: float,
    ) -> Prepared:
        """Return the run as it is carried out."""
        return Prepared(
            request=run.request, run_id=run.id, image=environment.name if environment else asked.reference,
            setting=replace(
                self._setting(asked, admitted, environment, self._preload(run.request, asked.policy)),
                owner=f"{run.caller}/{run.request.node_id}" if run.caller else "",
            ),
            environment=environment.id if environment else None, lock_hash=environment.lock.hash if environment else None,
            follow=run.follow, began=run.began, queued_s=run.queued_s, environment_s=environment_s,
        )  # fmt: skip

    def _preload(self, request: RunRequest, policy: Policy) -> tuple[str, ...]:
        """Return what the sandbox has imported before the run: nothing, where each is started when a run asks."""
        return preload_of(request, policy) if self._source is not None else ()

    def _setting(
        self,
        asked: Asked,
        admitted: image.AdmittedImage,
        environment: InstalledEnvironment | None,
        preload: tuple[str, ...] = (),
    ) -> Setting:
        """Return what decides the sandbox."""
        used = environment.id if environment else image.environment_of(asked.reference)
        lease = partial(self.environments().store.in_use, used) if used else None
        return Setting(
            policy=asked.policy, seccomp=asked.loaded.seccomp, admitted=environment.image if environment else admitted,
            egress=egress_of(asked.policy), preload=preload, lease=lease,
        )  # fmt: skip

    def _reference(self, request: RunRequest, policy: Policy) -> str:
        reference = image.resolve(request.image or policy.images.default)
        policy.image_allowed(reference)
        return reference

    async def _asked(self, request: RunRequest) -> Asked:
        """Check everything that needs no container. Raises what keeps the request from running."""
        loaded = self._policies(request.policy)
        policy = loaded.policy.tightened(request.limits)
        check_request(request, policy)
        spec.plan_caps(policy, self._facts)
        reference = self._reference(request, policy)
        return Asked(loaded=loaded, policy=policy, reference=reference, requires_python=request.requires_python)

    @contextlib.asynccontextmanager
    async def _base(self, asked: Asked) -> AsyncIterator[image.AdmittedImage]:
        """Give the base image, there and admitted; an environment that is asked for by its image's name stays meanwhile."""
        async with contextlib.AsyncExitStack() as used:
            if environment := image.environment_of(asked.reference):
                await used.enter_async_context(self.environments().store.in_use(environment))
            yield await self._admitted(asked)

    async def _admitted(self, asked: Asked) -> image.AdmittedImage:
        """Return the base image, there and admitted."""
        pull = asked.policy.images.pull

        def admit() -> image.AdmittedImage:
            engine = self._engine()
            record = image.ensure(engine, asked.reference, policy_pull=pull)
            return image.admit(engine, record, cache_dir=private_directory(self._places.cache_dir / "images"))

        admitted = await self._images.get((asked.reference, pull), lambda: asyncio.to_thread(admit))
        if asked.requires_python:
            from sandbox.environment.declared import check_python  # late: most runs say nothing of it

            check_python(asked.requires_python, admitted.python_version, asked.reference)
        return admitted


def wanted(request: RunRequest, asked: Asked, base: image.AdmittedImage) -> Wanted:
    """Return the environment that a request asks for."""
    from sandbox.environment.identity import Wanted

    return Wanted(
        requirements=request.requirements,
        base_name=asked.reference,
        base=base,
        policy=asked.policy,
        seccomp=asked.loaded.seccomp,
    )


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
    from sandbox.index.pip_config import host_certificates

    return Egress(
        allow=Allowlist(tuple(map(parse_rule, network.allow)), networks(network.allow_addresses)),
        caps=EgressCaps(transfer_bytes=network.transfer_mib << 20, connections=network.connections),
        certificates=host_certificates(),
    )
