"""Every sandbox from outside, container or cell: process 1, held by a pidfd, and the channel to its harness."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import resource
import select
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterable

from sandbox.channel.frames import FrameReader
from sandbox.container.spec import ContainerSpec
from sandbox.errors import Internal, NotEnforceable
from sandbox.kernel import process as kernel
from sandbox.models import ControlEvidence

READY_TIMEOUT_S = 60.0


async def readable(descriptor: int) -> None:
    """Return when there is something to read or to accept.

    Cancelled in that very moment, it is quiet: `loop.sock_accept` is not.
    """
    loop = asyncio.get_running_loop()
    seen = loop.create_future()
    loop.add_reader(descriptor, lambda: None if seen.done() else seen.set_result(None))
    try:
        await seen
    finally:
        loop.remove_reader(descriptor)


class Sandbox:
    """One sandbox, for one run.

    `spec` is what was decided of it, `evidence` what was read back, `pid` the host's id of process 1.

    `marks` holds the moments (monotonic seconds) of: begin, created, started, ready, verified; `ready` is the harness's
    last word that it is. `cgroup` are the limits of its cgroup v2, if it is in one. While it waits for its job it has
    `processes_at_rest`.
    """

    def __init__(self, spec: ContainerSpec) -> None:
        self.spec = spec
        self.pid = 0
        self.evidence: tuple[ControlEvidence, ...] = ()
        self.cgroup: kernel.CgroupLimits | None = None
        self.marks: dict[str, float] = {}
        self.ready: tuple[str, bytes] = ("", b"")
        self.processes_at_rest = 1
        self._pidfd = -1
        self._writer: asyncio.StreamWriter | None = None
        self._frames: FrameReader | None = None
        self._released = False

    async def open_channel(self, connection: socket.socket) -> None:
        """Take a connected socket as the channel to the harness."""
        reader, self._writer = await asyncio.open_connection(sock=connection)
        self._frames = FrameReader(reader)

    def second_channel(self) -> socket.socket:
        """Return the channel once more, for what a stream can't carry. Raises `Internal` before it is open."""
        if self._writer is None:
            raise Internal("the sandbox has not started")
        opened: socket.socket = self._writer.get_extra_info("socket").dup()
        return opened

    def hold(self, pid: int) -> None:
        """Take a process as process 1, so that it can't be mistaken for another later."""
        self.pid = pid
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)

    def release(self) -> None:
        """Close the channel and let go of process 1."""
        self._released = True
        if self._writer is not None:
            self._writer.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def mark(self, name: str) -> None:
        """Note the moment at which something is done."""
        self.marks[name] = time.monotonic()

    async def handshake(self) -> None:
        """Take the harness's first word. Raises `Internal` when none comes."""
        try:
            frame = await asyncio.wait_for(self.frames().read(), READY_TIMEOUT_S)
        except asyncio.TimeoutError:
            frame = None
        if frame is None:
            raise Internal("the harness did not report that it is ready", hint="try another --image")
        self.ready = frame

    def confine(self) -> None:
        """Apply from outside what the runtime can't: children inherit it, and seccomp denies undoing it.

        Raises `NotEnforceable`.
        """
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
        if self._pidfd >= 0:
            await readable(self._pidfd)

    def alive(self) -> bool:
        """Tell whether process 1 still lives: a pidfd becomes readable when its process ends."""
        if self._pidfd < 0 or self._released:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def keep_events(self) -> None:
        """Keep what the cgroup has counted so far: systemd removes it with its last process, and the reason with it."""
        if self.cgroup is not None:
            self.cgroup = dataclasses.replace(self.cgroup, seen=kernel.read_cgroup_events(self.cgroup))

    def count_kills(self) -> None:
        """Note how often the kernel has killed for memory around this sandbox, before the program begins."""
        if self.cgroup is not None:
            self.cgroup = dataclasses.replace(self.cgroup, killed_around=kernel.killed_around(self.cgroup))

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
