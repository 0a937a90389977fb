"""One container as a sandbox, from start to end: create, start, handshake, verify, run one job, dispose.

The job channel is a Unix socket in a directory that the sandbox sees read-only. The runner accepts one connection,
from process 1 of that very container and no other, and removes the socket before a byte is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from sandbox.container import verify
from sandbox.container.kernel_files import MASKED_BY_PODMAN, MASKS
from sandbox.container.sandbox import READY_TIMEOUT_S, Sandbox, readable
from sandbox.container.spec import JOB_SOCKET, ContainerSpec
from sandbox.engine.conmon import kill_left_over
from sandbox.engine.protocol import Engine
from sandbox.errors import EngineUnavailable, Internal, NotEnforceable, NotFound, SandboxError
from sandbox.kernel import process as kernel

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


async def accepted(listener: socket.socket) -> socket.socket:
    """Return the first connection to a socket that does not block."""
    await readable(listener.fileno())
    connection, _ = listener.accept()
    connection.setblocking(False)  # noqa: FBT003 - takes it by position alone
    return connection


def not_ready() -> Internal:
    """Return what is wrong with a sandbox whose process 1 never said that it is ready."""
    return Internal(
        "the sandbox ended or hung before its harness reported",
        hint="the image's python3 may be broken; try `sandbox image check` or another --image",
    )


class Container(Sandbox):
    """One container for one run; an asynchronous context manager that leaves nothing behind.

    On entering, the container runs, is verified, and its harness waits for a job. `oci` is what the runtime was told.
    """

    def __init__(self, engine: Engine, spec: ContainerSpec) -> None:
        super().__init__(spec)
        self._engine = engine
        self.container_id = ""
        self.oci: dict[str, Any] = {}
        self._disposed = False

    async def __aenter__(self) -> Container:
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

    async def _start(self) -> None:
        self.mark("begin")
        path = self.spec.place.job_dir / Path(JOB_SOCKET).name
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as listener:
            listener.bind(str(path))
            path.chmod(0o666)  # the sandbox's user has another uid; the directory above is ours alone
            listener.listen(1)
            listener.settimeout(0)
            warnings = await settled(self._create)
            self.mark("created")
            if warnings:
                # Podman's way to say that it dropped a setting; on cgroup v1 that is every resource limit.
                raise NotEnforceable(
                    f"Podman would not hold the policy: {'; '.join(warnings)}", hint="run `sandbox doctor`"
                )
            connection = await self._start_and_accept(listener)
            path.unlink()
        await self.open_channel(connection)
        await self.handshake()
        self.mark("ready")
        self.confine()
        self._verify()
        self.mark("verified")

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
        accepting = loop.create_task(accepted(listener))
        try:
            await settled(lambda: self._engine.start(self.container_id))
            self.mark("started")
            if pid := self._read_pid():
                self.hold(pid)
            ended = loop.create_task(self.wait_end())
            try:
                await asyncio.wait({accepting, ended}, timeout=READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
            if not accepting.done():
                raise not_ready()
            connection = accepting.result()
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

    def _read_pid(self) -> int:
        """Return the host's id of process 1; 0 when it has ended already."""
        info = self._engine.info()
        pidfile = info.run_root / f"{info.storage_driver}-containers" / self.container_id / "userdata/pidfile"
        try:
            return int(pidfile.read_text())
        except (OSError, ValueError):
            try:
                return self._engine.inspect(self.container_id).pid
            except NotFound:  # Podman has removed it already
                return 0

    def _check_peer(self, connection: socket.socket) -> None:
        """Refuse a connection from anyone but process 1 of this container."""
        if not self.pid:
            raise not_ready()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        if uid != self.spec.host_uid or pid != self.pid:
            raise NotEnforceable(
                f"the job channel was opened by process {pid} of user {uid}, expected {self.pid} of"
                f" {self.spec.host_uid}",
                hint="no code was handed over; run `sandbox doctor`",
            )

    def _verify(self) -> None:
        info = self._engine.info()
        path = info.graph_root / f"{info.storage_driver}-containers" / self.container_id / "userdata/config.json"
        try:
            self.oci = json.loads(path.read_text())
            process = kernel.read_process(self.pid)
        except (OSError, ValueError, KeyError) as error:
            raise NotEnforceable(
                f"the sandbox can't be read back: {error}", hint="no code was handed over; run `sandbox doctor`"
            ) from None
        self.cgroup = process.cgroup
        seen = verify.Observed(
            process=process,
            own_namespaces=kernel.read_namespaces("self"),
            oci=self.oci,
            kernel_files=frozenset(filter(os.path.exists, (*MASKED_BY_PODMAN, *MASKS))),
            project_ids=bool(kernel.read_text("/proc/self/projid_map").strip()),
        )
        self.evidence = verify.compare(self.spec, seen)

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
        try:
            if self.container_id:
                await settled(self._remove)
        except EngineUnavailable:
            # A dead engine can't remove anything: the container ends by itself, the next sweep looks for it.
            if self.pid:
                raise
        finally:
            self.release()
