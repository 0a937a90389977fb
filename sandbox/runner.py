"""The runner: takes one run from request to result, and leaves nothing behind.

Read `Runner._run` from top to bottom for the path of a run: policy, syntax, image, libraries; `sandbox.execution` goes on
from there: specification, sandbox, program, outcome, receipt.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox import image, spec
from sandbox.engine import Engine
from sandbox.errors import SandboxError
from sandbox.execution import Egress, Execution, OnOutput, Places, Prepared
from sandbox.host import HostFacts
from sandbox.models import Outcome, RunRequest, RunResult
from sandbox.places import private_directory
from sandbox.policy import LoadedPolicy, load_policy
from sandbox.policy_model import Policy
from sandbox.progress import OnProgress, Progress
from sandbox.request import check_request, newer_than_ours, syntax_error

if TYPE_CHECKING:
    from sandbox.environment import Environments
    from sandbox.environment_identity import Environment, Wanted
    from sandbox.lock import Lock

__all__ = ["Places", "Runner"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request comes down to before any container: policy, base image, and a doubt about its syntax."""

    loaded: LoadedPolicy
    policy: Policy
    reference: str
    doubt: SandboxError | None = None


class Runner:
    """Runs requests on one engine. Many runs may go on at once."""

    def __init__(self, engine: Callable[[], Engine], facts: HostFacts, places: Places) -> None:
        """Take `engine` as a function, so that requests that can't run never start one."""
        self._engine = engine
        self._facts = facts
        self._places = places

    async def run(
        self,
        request: RunRequest,
        *,
        on_output: OnOutput | None = None,
        on_progress: OnProgress | None = None,
        cancel: asyncio.Event | None = None,
    ) -> RunResult:
        """Run one request; a failing program is a result. Raises a `SandboxError` for everything else.

        `on_output` gets ("stdout" | "stderr" | "log", bytes) as they come. Setting `cancel` ends the run at once.
        """
        cancel = cancel or asyncio.Event()
        run_id = uuid.uuid4().hex
        program = asyncio.Event()
        task = asyncio.ensure_future(
            self._run(request, run_id, on_output, on_progress or (lambda _: None), cancel, program)
        )
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
            return RunResult(run_id=run_id, outcome=Outcome.CANCELLED, explanation=explanation)
        finally:
            stop.cancel()

    async def _run(
        self,
        request: RunRequest,
        run_id: str,
        on_output: OnOutput | None,
        on_progress: OnProgress,
        cancel: asyncio.Event,
        program: asyncio.Event,
    ) -> RunResult:
        asked = await self._asked(request)
        engine = self._engine()
        on_progress(Progress(step="image", text=asked.reference))
        admitted = await asyncio.to_thread(self._admit, engine, asked)
        async with contextlib.AsyncExitStack() as used:
            environment = None
            if request.requirements:
                libraries = self.environments().using(wanted(request, asked, admitted), on_progress)
                environment = await used.enter_async_context(libraries)
            on_progress(Progress(step="starting"))
            execution = self._execution(
                prepared(
                    request, asked, environment.image if environment else admitted, environment, run_id, on_output
                ),
                cancel,
            )

            def started() -> None:
                on_progress(Progress(step="running"))
                program.set()

            return await execution.run(on_program=started)

    async def lock(self, request: RunRequest, on_progress: OnProgress, *, upgrade: bool = False) -> Lock:
        """Return the lock of a request's libraries; `upgrade` resolves them anew. Raises as `run` does."""
        asked = await self._asked(request)
        admitted = await asyncio.to_thread(self._admit, self._engine(), asked)
        return await self.environments().lock(wanted(request, asked, admitted), on_progress, upgrade=upgrade)

    async def build(self, request: RunRequest, on_progress: OnProgress, *, lock: Lock | None = None) -> Environment:
        """Return the environment of a request's libraries, or of `lock`; built when it isn't there."""
        asked = await self._asked(request)
        admitted = await asyncio.to_thread(self._admit, self._engine(), asked)
        async with self.environments().using(wanted(request, asked, admitted), on_progress, lock=lock) as environment:
            return environment

    async def pull(self, request: RunRequest, reference: str) -> Environment:
        """Return the environment `reference` of a registry, for the request's base image and policy."""
        asked = await self._asked(request)
        admitted = await asyncio.to_thread(self._admit, self._engine(), asked)
        return await self.environments().pull(reference, wanted(request, asked, admitted))

    def environments(self) -> Environments:
        """Return the environments of this user."""
        from sandbox.environment import Environments  # late: most runs need none

        async def execute(step: Prepared) -> RunResult:
            return await self._execution(step, asyncio.Event()).run()

        places = self._places
        return Environments(self._engine(), execute, cache_dir=places.cache_dir, data_dir=places.data_dir)

    def _execution(self, step: Prepared, cancel: asyncio.Event) -> Execution:
        return Execution(step, engine=self._engine(), facts=self._facts, places=self._places, cancel=cancel)

    async def _asked(self, request: RunRequest) -> Asked:
        """Check everything that needs no container. Raises what keeps the request from running."""
        loaded = load_policy(request.policy, directories=self._places.policy_dirs)
        policy = loaded.policy.tightened(request.limits)
        check_request(request, policy)
        spec.plan_caps(policy, self._facts)
        reference = image.resolve(request.image or policy.images.default)
        policy.image_allowed(reference)
        doubt = await asyncio.to_thread(syntax_error, request)
        if doubt is not None and not request.image:
            raise doubt
        return Asked(loaded=loaded, policy=policy, reference=reference, doubt=doubt)

    def _admit(self, engine: Engine, asked: Asked) -> image.AdmittedImage:
        record = image.ensure(engine, asked.reference, policy_pull=asked.policy.images.pull)
        admitted = image.admit(engine, record, cache_dir=private_directory(self._places.cache_dir / "images"))
        if asked.doubt is not None and not newer_than_ours(admitted.python_version):
            raise asked.doubt
        return admitted


def wanted(request: RunRequest, asked: Asked, base: image.AdmittedImage) -> Wanted:
    """Return the environment that a request asks for."""
    from sandbox.environment_identity import Wanted

    return Wanted(
        requirements=request.requirements,
        base_name=asked.reference,
        base=base,
        policy=asked.policy,
        seccomp=asked.loaded.seccomp,
    )


def prepared(
    request: RunRequest,
    asked: Asked,
    admitted: image.AdmittedImage,
    environment: Environment | None,
    run_id: str,
    on_output: OnOutput | None,
) -> Prepared:
    """Return the run as it is carried out."""
    return Prepared(
        request=request, run_id=run_id, policy=asked.policy, seccomp=asked.loaded.seccomp,
        image=environment.name if environment else asked.reference, admitted=admitted, egress=egress_of(asked.policy),
        environment=environment.id if environment else None, lock_hash=environment.lock.hash if environment else None,
        on_output=on_output,
    )  # fmt: skip


def egress_of(policy: Policy) -> Egress | None:
    """Return the way out that a policy allows its runs, or None."""
    network = policy.network
    if network.mode == "none":
        return None
    from sandbox.egress.proxy import EgressCaps
    from sandbox.egress.rules import Allowlist, parse_rule
    from sandbox.index import host_certificates
    from sandbox.installation import networks

    return Egress(
        allow=Allowlist(tuple(map(parse_rule, network.allow)), networks(network.allow_addresses)),
        caps=EgressCaps(transfer_bytes=network.transfer_mib << 20, connections=network.connections),
        certificates=host_certificates(),
    )
