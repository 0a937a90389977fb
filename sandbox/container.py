"""One sandbox from start to end: create, start, handshake, verify, run one job, dispose.

The job channel is a Unix socket in a directory that the sandbox sees read-only. The runner accepts one connection,
from process 1 of that very container and no other, and removes the socket before a byte is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from sandbox import kernel, verify
from sandbox.conmon import kill_left_over
from sandbox.engine import Engine
from sandbox.errors import EngineUnavailable, Internal, NotEnforceable, SandboxError
from sandbox.models import ControlEvidence
from sandbox.spec import JOB_SOCKET, ContainerSpec
from sandbox.wire import FrameReader

READY_TIMEOUT_S = 60.0


Result = TypeVar("Result")


async def settled(work: Callable[[], Result]) -> Result:
    """Run a blocking call in a thread and let it finish even when cancelled: half a creation can't be cleaned up."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(SandboxError):
            await task
        raise


class Sandbox:
    """One container for one run; an asynchronous context manager that leaves nothing behind.

    On entering, the container runs, is verified, and its harness waits for a job. `marks` holds the moments
    (monotonic seconds) of: begin, created, started, ready, verified; `ready` is the harness's first frame.
    """

    def __init__(self, engine: Engine, spec: ContainerSpec) -> None:
        self._engine = engine
        self.spec = spec
        self.container_id = ""
        self.pid = 0
        self.evidence: tuple[ControlEvidence, ...] = ()
        self.cgroup: kernel.CgroupLimits | None = None
        self.marks: dict[str, float] = {}
        self.ready: tuple[str, bytes] = ("", b"")
        self._pidfd = -1
        self._writer: asyncio.StreamWriter | None = None
        self._frames: FrameReader | None = None
        self._disposed = False

    async def __aenter__(self) -> Sandbox:
        """Start and verify. Raises a `SandboxError`, with everything removed, when either fails."""
        try:
            await self._start()
        except BaseException:
            await self.dispose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Destroy the container, whatever happened."""
        await self.dispose()

    def _mark(self, name: str) -> None:
        self.marks[name] = time.monotonic()

    async def _start(self) -> None:
        self._mark("begin")
        path = self.spec.place.job_dir / Path(JOB_SOCKET).name
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as listener:
            listener.bind(str(path))
            path.chmod(0o666)  # the sandbox's user has another uid; the directory above is ours alone
            listener.listen(1)
            listener.settimeout(0)
            warnings = await settled(self._create)
            self._mark("created")
            if warnings:
                # Podman's way to say that it dropped a setting; on cgroup v1 that is every resource limit.
                raise NotEnforceable(
                    f"Podman would not hold the policy: {'; '.join(warnings)}", hint="run `sandbox doctor`"
                )
            connection = await self._start_and_accept(listener)
            path.unlink()
        reader, self._writer = await asyncio.open_connection(sock=connection)
        self._frames = FrameReader(reader)
        await self._handshake()
        self._mark("ready")
        self._confine()
        self._verify()
        self._mark("verified")

    def _create(self) -> tuple[str, ...]:
        try:
            self.container_id, warnings = self._engine.create(self.spec.podman)
        except EngineUnavailable:
            # Podman may have made it and only the answer got lost: dispose of it by its name.
            self.container_id = self.spec.podman["name"]
            raise
        return warnings

    async def _start_and_accept(self, listener: socket.socket) -> socket.socket:
        loop = asyncio.get_running_loop()
        accepting = loop.create_task(loop.sock_accept(listener))
        try:
            await settled(lambda: self._engine.start(self.container_id))
            self._mark("started")
            self.pid = self._read_pid() or 0
            ended = loop.create_task(self.wait_end())
            try:
                await asyncio.wait({accepting, ended}, timeout=READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
            if not accepting.done():
                raise Internal(
                    "the sandbox ended or hung before its harness reported",
                    hint="the image's python3 may be broken; try `sandbox image check` or another --image",
                )
            connection, _ = accepting.result()
        finally:
            if not accepting.done():
                accepting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await accepting
        try:
            self._check_peer(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _read_pid(self) -> int | None:
        """Return the host's id of process 1 and hold it by a pidfd, so that it can't be mistaken later."""
        info = self._engine.info()
        pidfile = info.run_root / f"{info.storage_driver}-containers" / self.container_id / "userdata/pidfile"
        try:
            pid = int(pidfile.read_text())
        except (OSError, ValueError):
            pid = self._engine.inspect(self.container_id).pid
        if not pid:
            return None
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)
        return pid

    def _check_peer(self, connection: socket.socket) -> None:
        """Refuse a connection from anyone but process 1 of this container."""
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        if uid != self.spec.host_uid or pid != self.pid:
            raise NotEnforceable(
                f"the job channel was opened by process {pid} of user {uid}, expected {self.pid} of {self.spec.host_uid}",
                hint="no code was handed over; run `sandbox doctor`",
            )

    async def _handshake(self) -> None:
        try:
            frame = await asyncio.wait_for(self.frames().read(), READY_TIMEOUT_S)
        except asyncio.TimeoutError:
            frame = None
        if frame is None:
            raise Internal("the harness did not report that it is ready", hint="try another --image")
        self.ready = frame

    def _confine(self) -> None:
        """Apply from outside what the runtime can't: children inherit it, and seccomp denies undoing it."""
        spec = self.spec
        try:
            if spec.cpu_ids is not None:
                os.sched_setaffinity(self.pid, spec.cpu_ids)
            if spec.address_space_bytes is not None:
                resource.prlimit(self.pid, resource.RLIMIT_AS, (spec.address_space_bytes, spec.address_space_bytes))
            # Not through the runtime: its own set-up still runs under this user's id, where every process of the user
            # counts, and a busy host then fails to start sandboxes at random.
            resource.prlimit(self.pid, resource.RLIMIT_NPROC, (spec.nproc, spec.nproc))
            if spec.cpu_time_s is not None:
                # At the soft limit the kernel sends SIGXCPU, which says why; at the hard one a plain SIGKILL.
                resource.prlimit(self.pid, resource.RLIMIT_CPU, (spec.cpu_time_s, spec.cpu_time_s + 1))
        except OSError as error:
            raise NotEnforceable(
                f"a fallback limit can't be set on the sandbox: {error.strerror}", hint="run `sandbox doctor`"
            ) from None

    def _verify(self) -> None:
        info = self._engine.info()
        path = info.graph_root / f"{info.storage_driver}-containers" / self.container_id / "userdata/config.json"
        try:
            oci: dict[str, Any] = json.loads(path.read_text())
            process = kernel.read_process(self.pid)
        except (OSError, ValueError, KeyError) as error:
            raise NotEnforceable(
                f"the sandbox can't be read back: {error}", hint="no code was handed over; run `sandbox doctor`"
            ) from None
        self.cgroup = process.cgroup
        seen = verify.Observed(process=process, own_namespaces=kernel.read_namespaces("self"), oci=oci)
        self.evidence = verify.compare(self.spec, seen)

    def frames(self) -> FrameReader:
        """Return the reader of the job channel."""
        if self._frames is None:
            raise Internal("the sandbox has not started")
        return self._frames

    async def send(self, chunks: Iterable[bytes]) -> None:
        """Send frames, no faster than the harness takes them. A vanished harness is noticed by the reader."""
        if self._writer is None:
            raise Internal("the sandbox has not started")
        with contextlib.suppress(ConnectionError):
            for chunk in chunks:
                self._writer.write(chunk)
                await self._writer.drain()

    async def read_all(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield frames until the channel closes."""
        while True:
            try:
                frame = await self.frames().read()
            except ConnectionError:
                return
            if frame is None:
                return
            yield frame

    async def wait_end(self) -> None:
        """Return when process 1 has ended. Podman's own wait polls every 250 ms; a pidfd tells at once."""
        if self._pidfd < 0:
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.add_reader(self._pidfd, lambda: None if ended.done() else ended.set_result(None))
        try:
            await ended
        finally:
            loop.remove_reader(self._pidfd)

    def alive(self) -> bool:
        """Tell whether process 1 still lives: a pidfd becomes readable when its process ends."""
        if self._pidfd < 0 or self._disposed:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def keep_events(self) -> None:
        """Keep what the cgroup has counted so far: systemd removes it with its last process, and the reason with it."""
        if self.cgroup is not None:
            self.cgroup = dataclasses.replace(self.cgroup, seen=kernel.read_cgroup_events(self.cgroup))

    @property
    def events(self) -> kernel.CgroupEvents | None:
        """Return what was kept of the cgroup's counters; None without cgroup v2."""
        return self.cgroup.seen if self.cgroup is not None else None

    def kill(self) -> None:
        """Kill process 1, and with it, by the kernel, every process of the sandbox."""
        self.keep_events()
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _remove(self) -> None:
        try:
            self._engine.remove(self.container_id)
        finally:
            if not self.pid:  # Podman may have died while it started it
                kill_left_over(self.container_id)

    async def dispose(self) -> None:
        """Kill and remove; never raises for a sandbox that is already gone, also when cancelled meanwhile."""
        if self._disposed:
            return
        self._disposed = True
        self.kill()
        if self._writer is not None:
            self._writer.close()
        try:
            if self.container_id:
                await settled(self._remove)
        except EngineUnavailable:
            # A dead engine can't remove anything: the container ends by itself, the next sweep looks for it.
            if self.pid:
                raise
        finally:
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
