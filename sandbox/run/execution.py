"""One decided run in one sandbox: program, output, outcome, receipt.

`Runner` decides what is run, in which image and under which policy; here it happens. Installing libraries is such a
run, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Any

from sandbox.channel.collector import Collector, FileInMemory
from sandbox.channel.frames import CANCEL, ProtocolViolation, RunCaps, job_frames
from sandbox.container import spec
from sandbox.container.sandbox import Sandbox
from sandbox.container.standby import AcquiredSandbox, Egress, Source
from sandbox.container.watchdog import Watchdog, full_places
from sandbox.errors import Internal
from sandbox.host.facts import HostFacts
from sandbox.kernel.oom import killed_for_memory
from sandbox.models import Durations, EgressRecord, Outcome, Receipt, RunResult
from sandbox.off_loop import run_off_loop
from sandbox.policy.model import Policy
from sandbox.run.decision import DecidedRun, Follow
from sandbox.run.outcome import Evidence, decide

START_TIMEOUT_S = 60.0
LAST_WORDS_S = 0.4
LAST_WORDS_BYTES = 4_000
CHANNEL_CLOSE_S = 2.0
HARDEST = 8  # so many times as long as copying it may it take to bring JSON into its form
PROXY = f"http://127.0.0.1:{spec.EGRESS_PORT}"


class Execution:
    """One run, from its decision to its result; everything is removed on every path."""

    def __init__(self, decided: DecidedRun, source: Source, *, facts: HostFacts, cancel: asyncio.Event) -> None:
        self.decided = decided
        self.cancel = cancel
        self.collector = collector_for(decided.run.follow, decided.setting.policy)
        self.started_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._source = source
        self._facts = facts
        self._ready: AcquiredSandbox
        self._watchdog: Watchdog | None = None
        self._sandbox_asked = 0.0
        self._sandbox_got = 0.0
        self._program_began = 0.0
        self._program_ended = 0.0
        self._timed_out = False
        self._cancelled = False
        self._violation = ""
        self._full: tuple[str, ...] = ()
        self._result_json: bytes | None = None
        self._additional_data_json: bytes | None = None

    async def run(self, *, on_program: Callable[[], None] = lambda: None) -> RunResult:
        """Run it; `on_program` is called when the sandbox stands and the program is about to get its job."""
        self._sandbox_asked = time.monotonic()
        async with self._source(self.decided.setting, self.decided.run.id) as self._ready:
            self._sandbox_got = time.monotonic()
            on_program()
            await self._drive(self._ready.sandbox)
        removed = time.monotonic()
        size_bytes = self.collector.size_bytes + len(self.decided.run.request.payload_json)
        return await run_off_loop(size_bytes, partial(self._result, self._ready.sandbox, removed=removed))

    async def _drive(self, sandbox: Sandbox) -> None:
        """Hand over the job and follow the program to its end, its deadline, its cap or its cancellation."""
        sandbox.count_kills()
        capped = asyncio.ensure_future(self._watch(sandbox))
        reading = asyncio.ensure_future(self._read(sandbox))
        pieces: list[asyncio.Future[Any]] = [capped, reading]
        try:
            sending = asyncio.ensure_future(sandbox.send(self._job()))
            stop = asyncio.ensure_future(self.cancel.wait())
            pieces += [sending, stop]
            if not await first_of({reading, stop}, until={sending}, timeout_s=START_TIMEOUT_S):
                raise Internal("the harness did not take the job in time", hint="try again; report this if it repeats")
            if sending.done():
                sending.result()
            self._program_began = time.monotonic()
            await first_of({reading}, until={stop, capped}, timeout_s=self.decided.setting.policy.limits.timeout_s)
            self._cancelled = stop.done() and not reading.done()
            self._timed_out = not (reading.done() or self._cancelled or capped.done())
            if capped.done():
                capped.result()  # a watch that broke is an error of ours
            if not reading.done():
                await sandbox.send([CANCEL])
                await asyncio.wait({reading}, timeout=LAST_WORDS_S)
            if not reading.done():
                sandbox.kill()
                await asyncio.wait({reading}, timeout=CHANNEL_CLOSE_S)
            if reading.done():
                reading.result()
                await self._take_results(sandbox)
            self._program_ended = time.monotonic()
        finally:
            for piece in pieces:
                piece.cancel()
            await asyncio.gather(*pieces, return_exceptions=True)

    async def _watch(self, sandbox: Sandbox) -> None:
        """Return when the sandbox has reached its memory cap: the kernel has killed, or the watchdog has."""
        by_cgroup = sandbox.spec.cap("memory").mechanism == "cgroup" and sandbox.cgroup is not None
        places = tuple(mount.destination for mount in sandbox.spec.tmpfs)
        self._watchdog = Watchdog(
            sandbox.pid, cap_bytes=sandbox.spec.memory_bytes, places=places, kill=sandbox.kill, cgroup=by_cgroup
        )
        if not by_cgroup or sandbox.cgroup is None:
            await self._watchdog.watch()
            return
        watching = [asyncio.ensure_future(each) for each in (self._watchdog.watch(), killed_for_memory(sandbox.cgroup))]
        try:
            ended, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                each.result()  # a watch that broke is an error of ours
        finally:
            for each in watching:
                each.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        sandbox.keep_events()

    async def _read(self, sandbox: Sandbox) -> None:
        """Take frames until the harness says its last or the channel closes."""
        self.collector.feed(*sandbox.ready)
        try:
            async for kind, body in sandbox.read_all():
                self.collector.feed(kind, body)
                if self.collector.quit is not None:
                    break
        except ProtocolViolation as violation:
            self._broken(sandbox, violation)
        # Process 1 stays until we close the channel, so that its cgroup can still be read, and its file systems.
        sandbox.keep_events()
        if self.collector.quit is not None:
            places = tuple(mount.destination for mount in sandbox.spec.tmpfs)
            self._full = full_places(sandbox.pid, places)

    async def _take_results(self, sandbox: Sandbox) -> None:
        """Take what the program gave, if it is JSON; looking at it takes nothing of its time."""
        collector = self.collector
        try:
            if not self._violation:
                costs = collector.json_bytes * HARDEST
                self._result_json = await run_off_loop(costs, collector.result_json)
                self._additional_data_json = await run_off_loop(costs, collector.additional_data_json)
        except ProtocolViolation as violation:
            self._broken(sandbox, violation)

    def _broken(self, sandbox: Sandbox, violation: ProtocolViolation) -> None:
        """End a sandbox that broke the protocol. Raises what it was before the program began: a defect of ours."""
        if not self.collector.started:
            raise violation
        # From here on it is the program that lies, through the harness or in its place.
        self._violation = violation.message
        sandbox.kill()

    def _job(self) -> Iterator[bytes]:
        """Return the frames that hand the job over. Secrets appear here and nowhere else."""
        run, setting = self.decided.run, self.decided.setting
        request, egress = run.request, setting.egress
        way_out = proxy_variables(egress) if egress else {}
        return job_frames(
            run_id=run.id,
            node_id=request.node_id,
            topic=request.topic,
            timestamp=self.started_at,
            filename=request.filename,
            env={**request.env, **way_out, **request.secrets},
            limits=wire_limits(setting.policy),
            code=request.code.encode(errors="surrogatepass"),
            payload_json=request.payload_json,
            message_json=request.message_json,
            files=request.files,
            save_new=request.save_new,
            relay={"port": spec.EGRESS_PORT, "target": spec.EGRESS_SOCKET} if egress else None,
        )

    # ---- what came of it

    def _evidence(self, sandbox: Sandbox) -> Evidence:
        said = self.collector.quit
        tasks = self._watchdog.peak.tasks if self._watchdog else 0
        events = sandbox.events
        return Evidence(
            cancelled=self._cancelled,
            timed_out=self._timed_out,
            memory_exceeded=bool((self._watchdog and self._watchdog.exceeded) or (events and events.oom_kills)),
            memory_excess=self._watchdog.excess if self._watchdog else "",
            processes_exceeded=(
                tasks >= sandbox.spec.processes + sandbox.spec.own_processes or bool(events and events.fork_failures)
            ),
            ended="channel" if self._violation else said.ended if said else None,
            violation=self._violation,
            exit_code=said.exit_code if said else None,
            signal_name=said.signal if said else None,
            error=self.collector.error,
            cause=self.collector.cause,
            has_result=self._result_json is not None,
            last_words=self.collector.stderr[-LAST_WORDS_BYTES:].decode(errors="replace"),
            full=self._full,
            address_space_mib=(sandbox.spec.address_space_bytes or 0) // spec.MIB or None,
        )

    def _result(self, sandbox: Sandbox, *, removed: float) -> RunResult:
        collector, said = self.collector, self.collector.quit
        outcome, explanation = decide(self._evidence(sandbox), self.decided.setting.policy)
        succeeded = outcome is Outcome.SUCCEEDED
        durations = self._durations(removed)
        return RunResult(
            run_id=self.decided.run.id,
            outcome=outcome,
            explanation=explanation,
            result_json=self._result_json if succeeded else None,
            output_topic=collector.meta.output_topic if succeeded else None,
            additional_data_json=self._additional_data_json if succeeded else None,
            stdout=collector.stdout,
            stderr=collector.stderr,
            logs=tuple(collector.logs),
            files=collector.files,
            warnings=(*(self.decided.run.request.warnings or ()), *collector.warnings),
            error=collector.error,
            exit_code=said.exit_code if said else None,
            signal=self._signal(),
            peak_memory_mib=self._peak_mib(sandbox),
            cpu_s=said.cpu_s if said else None,
            durations=durations,
            egress=self._egress(),
            receipt=self._receipt(sandbox, outcome, durations),
        )

    def _signal(self) -> str | None:
        """Return the name of the signal that ended the program: the harness says it, where it still could."""
        if self.collector.quit is not None:
            return self.collector.quit.signal
        return signal.SIGKILL.name if self._timed_out or self._cancelled else None

    def _peak_mib(self, sandbox: Sandbox) -> float | None:
        if sandbox.events and sandbox.events.peak_bytes is not None:
            return round(sandbox.events.peak_bytes / spec.MIB, 1)
        sampled = self._watchdog.peak.memory_bytes if self._watchdog else 0
        said = self.collector.quit
        return round(max(sampled, said.max_rss_kib << 10 if said else 0) / spec.MIB, 1) or None

    def _egress(self) -> tuple[EgressRecord, ...]:
        return tuple(self._ready.proxy.records) if self._ready.proxy else ()

    def _receipt(self, sandbox: Sandbox, outcome: Outcome, durations: Durations) -> Receipt:
        info, decided = self._facts.engine, self.decided
        run, policy, admitted = decided.run, decided.setting.policy, decided.setting.admitted
        return Receipt(
            run_id=run.id,
            started_at=self.started_at,
            policy=policy.name,
            policy_hash=policy.hash,
            image=decided.image,
            image_digest=admitted.digest,
            environment=admitted.environment,
            lock_hash=admitted.lock_hash,
            code_hash=digest(run.request.code.encode(errors="surrogatepass")),
            payload_hash=digest(run.request.payload_json),
            engine=f"podman {'.'.join(map(str, info.version))}",
            runtime=info.runtime_version,
            kernel=self._facts.kernel,
            controls=sandbox.evidence,
            outcome=outcome,
            durations=durations,
        )

    def _durations(self, removed: float) -> Durations:
        """Return where the time went, from the moments that were noted."""
        run, environment_s, marks = self.decided.run, self.decided.environment_s, self._ready.sandbox.marks
        warm = self._ready.asked < self._sandbox_asked

        def between(first: float, last: float) -> float:
            return round((last - first) * 1000, 1)

        def own(first: str, last: str) -> float:
            """Return what making the sandbox took; a warm one's making is no part of this run."""
            return 0.0 if warm else between(marks[first], marks[last])

        return Durations(
            warm=warm,
            queue_ms=between(0, run.queued_s),
            prepare_ms=between(run.began + environment_s, self._sandbox_asked),
            environment_ms=between(0, environment_s),
            sandbox_ms=between(self._sandbox_asked, self._sandbox_got),
            create_ms=own("begin", "created"),
            start_ms=own("created", "started"),
            ready_ms=own("started", "ready"),
            verify_ms=own("ready", "verified"),
            program_ms=between(self._program_began, self._program_ended),
            remove_ms=between(self._program_ended, removed),
            total_ms=between(run.began - run.queued_s, removed),
        )


def proxy_variables(egress: Egress) -> dict[str, str]:
    """Return the variables by which programs find the egress proxy and trust what the host trusts.

    Both spellings: curl and requests read the lower-case one, others the upper-case one. The sandbox's own loopback is
    reached directly, unless the policy means the host's.
    """
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), PROXY)
    allowed = {rule.host for rule in egress.allow.rules}
    own = ("localhost", "127.0.0.1", "::1", spec.HOSTNAME)
    direct = ",".join(host for host in own if not {host, f"[{host}]"} & allowed)
    trusted = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT") if egress.certificates else ()
    return {
        **proxies,
        **dict.fromkeys(("no_proxy", "NO_PROXY"), direct),
        **dict.fromkeys(trusted, spec.CERTIFICATES),
    }


def wire_limits(policy: Policy) -> RunCaps:
    """Return the caps that harness and collector both enforce."""
    limits = policy.limits
    return RunCaps(
        output_bytes=limits.output_mib * spec.MIB,
        result_bytes=limits.result_mib * spec.MIB,
        files_bytes=limits.files_mib * spec.MIB,
        files_count=limits.files_count,
        log_records=limits.log_records,
    )


def collector_for(follow: Follow, policy: Policy) -> Collector:
    """Return a collector that passes on output, log records and files as they come."""
    open_file = follow.open_file or (followed(follow.file) if follow.file else None)
    return Collector(wire_limits(policy), on_output=follow.output, on_log=follow.log, open_file=open_file)


def followed(on_file: Callable[[str, bytearray], None]) -> Callable[[str, int], FileInMemory]:
    """Return what keeps each saved file in memory, and tells of it when it is complete."""

    class FollowedFile(FileInMemory):
        name = ""

        def close(self) -> None:
            on_file(self.name, self)

    def open_file(name: str, _size: int) -> FileInMemory:
        file = FollowedFile()
        file.name = name
        return file

    return open_file


async def first_of(ends: set[asyncio.Future[Any]], *, until: set[asyncio.Future[Any]], timeout_s: float) -> bool:
    """Wait for the first of all these; return False when none came within `timeout_s`."""
    done, _ = await asyncio.wait(ends | until, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


def digest(data: bytes) -> str:
    """Return a labelled SHA-256."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
