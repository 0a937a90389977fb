"""The runner: takes one run from request to result, and leaves nothing behind.

Read `Runner._run` from top to bottom for the path of a run: policy, syntax, image, specification, sandbox,
program, outcome, receipt.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sandbox import image, spec, workspace
from sandbox.container import Sandbox
from sandbox.engine import Engine
from sandbox.errors import Internal
from sandbox.host import HostFacts
from sandbox.library import harness_directory, seccomp_file
from sandbox.models import Durations, Outcome, Receipt, RunRequest, RunResult
from sandbox.oom import killed_for_memory
from sandbox.outcome import Evidence, decide
from sandbox.places import private_directory
from sandbox.policy import load_policy
from sandbox.policy_model import Policy
from sandbox.request import check_request, newer_than_ours, syntax_error
from sandbox.watchdog import Watchdog
from sandbox.wire import CANCEL, Collector, Limits, ProtocolViolation, job_frames

START_TIMEOUT_S = 60.0
LAST_WORDS_S = 0.4
CHANNEL_CLOSE_S = 2.0
OnOutput = Callable[[str, bytes], None]
OnProgress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a runner keeps things: runtime files, cache, and the policy search path."""

    runtime_dir: Path
    cache_dir: Path
    policy_dirs: Sequence[Path]


@dataclass(kw_only=True)
class Live:
    """What one run has come to know while it goes on."""

    request: RunRequest
    run_id: str
    policy: Policy
    collector: Collector
    cancel: asyncio.Event
    image: str = ""
    began: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
    watchdog: Watchdog | None = None
    program_began: float = 0.0
    program_ended: float = 0.0
    timed_out: bool = False
    cancelled: bool = False
    violation: str = ""
    result_json: bytes | None = None
    additional_data_json: bytes | None = None


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
            # In the program phase `_drive` sees the event itself, and still collects the last output.
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
        began = time.monotonic()
        loaded = load_policy(request.policy, directories=self._places.policy_dirs)
        policy = loaded.policy.tightened(request.limits)
        check_request(request, policy)
        spec.plan_caps(policy, self._facts)
        reference = image.resolve(request.image or policy.images.default)
        policy.image_allowed(reference)
        doubtful = await asyncio.to_thread(syntax_error, request)
        if doubtful is not None and not request.image:
            raise doubtful
        engine = self._engine()
        on_progress("looking for the image")
        admitted = await asyncio.to_thread(self._admit, engine, reference, policy)
        if doubtful is not None and not newer_than_ours(admitted.python_version):
            raise doubtful
        live = Live(request=request, run_id=run_id, policy=policy, cancel=cancel, image=reference, began=began,
                    collector=collector_for(policy, on_output))  # fmt: skip
        on_progress("starting the sandbox")
        place = workspace.acquire(self._places.runtime_dir)
        try:
            decided = spec.build(
                policy, image_id=admitted.id, python_path=admitted.python_path, facts=self._facts, seccomp=loaded.seccomp,
                place=spec.Place(run_id=run_id, uid=place.uid, job_dir=place.job_dir,
                                 lib_dir=harness_directory(self._places.cache_dir),
                                 seccomp_path=seccomp_file(loaded.seccomp, self._places.cache_dir)),
            )  # fmt: skip
            sandbox = Sandbox(engine, decided)
            async with sandbox:
                on_progress("running")
                program.set()
                await self._drive(sandbox, live)
            return self._result(sandbox, live, admitted, removed=time.monotonic())
        finally:
            place.release()

    def _admit(self, engine: Engine, reference: str, policy: Policy) -> image.AdmittedImage:
        record = image.ensure(engine, reference, policy_pull=policy.images.pull)
        return image.admit(engine, record, cache_dir=private_directory(self._places.cache_dir / "images"))

    async def _drive(self, sandbox: Sandbox, live: Live) -> None:
        """Hand over the job and follow the program to its end, its deadline, its cap or its cancellation."""
        capped = asyncio.ensure_future(self._watch(sandbox, live))
        reading = asyncio.ensure_future(self._read(sandbox, live))
        pieces: list[asyncio.Future[Any]] = [capped, reading]
        try:
            sending = asyncio.ensure_future(sandbox.send(job_of(live)))
            stop = asyncio.ensure_future(live.cancel.wait())
            pieces += [sending, stop]
            if not await first_of({reading, stop}, until={sending}, timeout_s=START_TIMEOUT_S):
                raise Internal("the harness did not take the job in time", hint="try again; report this if it repeats")
            if sending.done():
                sending.result()
            live.program_began = time.monotonic()
            await first_of({reading}, until={stop, capped}, timeout_s=live.policy.limits.timeout_s)
            live.cancelled = stop.done() and not reading.done()
            live.timed_out = not (reading.done() or live.cancelled or capped.done())
            if capped.done():
                capped.result()  # a watch that broke is an error of ours
            if not reading.done():
                await sandbox.send([CANCEL])
                await asyncio.wait({reading}, timeout=LAST_WORDS_S)
            if not reading.done():
                sandbox.kill()
                await asyncio.wait({reading}, timeout=CHANNEL_CLOSE_S)
            live.program_ended = time.monotonic()
            if reading.done():
                reading.result()
        finally:
            for piece in pieces:
                piece.cancel()
            await asyncio.gather(*pieces, return_exceptions=True)

    async def _watch(self, sandbox: Sandbox, live: Live) -> None:
        """Return when the sandbox has reached its memory cap: the kernel has killed, or the fallback has."""
        if sandbox.spec.cap("memory").mechanism == "cgroup" and sandbox.cgroup is not None:
            await killed_for_memory(sandbox.cgroup)
            sandbox.keep_events()
            return
        places = tuple(mount.destination for mount in sandbox.spec.tmpfs)
        live.watchdog = Watchdog(sandbox.pid, cap_bytes=sandbox.spec.memory_bytes, places=places, kill=sandbox.kill)
        await live.watchdog.watch()

    async def _read(self, sandbox: Sandbox, live: Live) -> None:
        """Take frames until the harness says its last or the channel closes."""
        live.collector.feed(*sandbox.ready)
        try:
            async for kind, body in sandbox.read_all():
                live.collector.feed(kind, body)
                if live.collector.quit is not None:
                    break
            live.result_json = live.collector.result_json()
            live.additional_data_json = live.collector.additional_data_json()
        except ProtocolViolation as violation:
            if not live.collector.started:
                raise
            # From here on it is the program that lies, through the harness or in its place.
            live.violation = violation.message
            sandbox.kill()
        # Process 1 stays until we close the channel, so that its cgroup can still be read.
        sandbox.keep_events()

    def _evidence(self, sandbox: Sandbox, live: Live) -> Evidence:
        said = live.collector.quit
        tasks = live.watchdog.peak.tasks if live.watchdog else 0
        events = sandbox.events
        return Evidence(
            cancelled=live.cancelled,
            timed_out=live.timed_out,
            memory_exceeded=bool((live.watchdog and live.watchdog.exceeded) or (events and events.oom_kills)),
            processes_exceeded=tasks > sandbox.spec.processes or bool(events and events.fork_failures),
            ended="channel" if live.violation else said.ended if said else None,
            exit_code=said.exit_code if said else None,
            signal_name=said.signal if said else None,
            error=live.collector.error,
            cause=live.collector.cause,
            has_result=live.result_json is not None,
        )

    def _result(self, sandbox: Sandbox, live: Live, admitted: image.AdmittedImage, *, removed: float) -> RunResult:
        collector, said = live.collector, live.collector.quit
        outcome, explanation = decide(self._evidence(sandbox, live), live.policy)
        succeeded = outcome is Outcome.SUCCEEDED
        return RunResult(
            run_id=live.run_id, outcome=outcome, explanation=explanation,
            result_json=live.result_json if succeeded else None,
            output_topic=collector.meta.output_topic if succeeded else None,
            additional_data_json=live.additional_data_json if succeeded else None,
            stdout=collector.stdout, stderr=collector.stderr, logs=tuple(collector.logs), files=collector.files,
            warnings=tuple(collector.meta.warnings), error=collector.error,
            exit_code=said.exit_code if said else None, signal=said.signal if said else None,
            peak_memory_mib=self._peak_mib(sandbox, live), cpu_s=said.cpu_s if said else None,
            durations=durations(sandbox.marks, live, removed),
            receipt=self._receipt(sandbox, live, admitted, outcome),
        )  # fmt: skip

    def _peak_mib(self, sandbox: Sandbox, live: Live) -> float | None:
        if sandbox.events and sandbox.events.peak_bytes is not None:
            return round(sandbox.events.peak_bytes / spec.MIB, 1)
        sampled = live.watchdog.peak.memory_bytes if live.watchdog else 0
        said = live.collector.quit
        return round(max(sampled, said.max_rss_kib << 10 if said else 0) / spec.MIB, 1) or None

    def _receipt(self, sandbox: Sandbox, live: Live, admitted: image.AdmittedImage, outcome: Outcome) -> Receipt:
        info = self._facts.engine
        return Receipt(
            run_id=live.run_id, started_at=live.started_at,
            policy=live.policy.name, policy_hash=live.policy.hash,
            image=live.image, image_digest=admitted.digest,
            code_hash=digest(live.request.code.encode(errors="surrogatepass")),
            payload_hash=digest(live.request.payload_json),
            engine=f"podman {'.'.join(map(str, info.version))}", runtime=info.runtime_version, kernel=self._facts.kernel,
            controls=sandbox.evidence, outcome=outcome,
        )  # fmt: skip


def wire_limits(policy: Policy) -> Limits:
    """Return the caps that harness and collector both enforce."""
    limits = policy.limits
    return Limits(
        output_bytes=limits.output_mib * spec.MIB,
        result_bytes=limits.result_mib * spec.MIB,
        files_bytes=limits.files_mib * spec.MIB,
        files_count=limits.files_count,
        log_records=limits.log_records,
    )


def collector_for(policy: Policy, on_output: OnOutput | None) -> Collector:
    """Return a collector that passes on output and log records as they come."""
    if on_output is None:
        return Collector(wire_limits(policy))
    return Collector(
        wire_limits(policy),
        on_output=on_output,
        on_log=lambda record: on_output("log", f"[{record.level}] {record.message}".encode()),
    )


def job_of(live: Live) -> Iterator[bytes]:
    """Return the frames that hand the job over. Secrets appear here and nowhere else."""
    request = live.request
    secrets = {name: secret.get_secret_value() for name, secret in request.secrets.items()}
    return job_frames(
        run_id=live.run_id,
        node_id=request.node_id,
        topic=request.topic,
        timestamp=live.started_at,
        filename=request.filename,
        env={**request.env, **secrets},
        limits=wire_limits(live.policy),
        code=request.code.encode(errors="surrogatepass"),
        payload_json=request.payload_json,
        message_json=request.message_json,
        files=request.files,
    )


async def first_of(ends: set[asyncio.Future[Any]], *, until: set[asyncio.Future[Any]], timeout_s: float) -> bool:
    """Wait for the first of all these; return False when none came within `timeout_s`."""
    done, _ = await asyncio.wait(ends | until, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


def digest(data: bytes) -> str:
    """Return a labelled SHA-256."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def durations(marks: dict[str, float], live: Live, removed: float) -> Durations:
    """Return where the time went, from the moments that were noted."""

    def between(first: float, last: float) -> float:
        return round((last - first) * 1000, 1)

    return Durations(
        prepare_ms=between(live.began, marks["begin"]),
        create_ms=between(marks["begin"], marks["created"]),
        start_ms=between(marks["created"], marks["started"]),
        ready_ms=between(marks["started"], marks["ready"]),
        verify_ms=between(marks["ready"], marks["verified"]),
        program_ms=between(live.program_began, live.program_ended),
        remove_ms=between(live.program_ended, removed),
        total_ms=between(live.began, removed),
    )


__all__ = ["Places", "Runner"]
