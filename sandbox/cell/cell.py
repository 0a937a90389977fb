"""Cells: a warm container makes one for each run, in namespaces of its own. It ends with the run.

The warm container's process 1, the maker, is sent one end of a socket pair for each cell. It never reads from it: the
cell's own process 1 does, and says so. By what the kernel adds to its first word the runner knows which process that
is.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
from dataclasses import replace

from sandbox.cell import verify as verify_cell
from sandbox.cell.filter import instructions, maker_profile
from sandbox.cell.spec import DEVICES, SHARED, cell_of, maker_of
from sandbox.channel.frames import encode
from sandbox.channel.records import ProgramFailure, ProtocolViolation, shaped
from sandbox.container import spec, verify
from sandbox.container.kernel_files import terminal_options
from sandbox.container.preload import PreloadFailed, preload
from sandbox.container.sandbox import READY_TIMEOUT_S, Sandbox, readable
from sandbox.container.standby import ReadySandbox
from sandbox.container.workspace import Workspace
from sandbox.errors import Internal, NotEnforceable
from sandbox.kernel import process as kernel
from sandbox.kernel.family import family

# A warm container is replaced after so long; Podman's own end of it comes later, should we be gone.
LIFE_S = 3_600.0
# What process 1 of a container has open: its streams, which lead nowhere, and the channel, which its cells close.
OF_THE_MAKER = {"descriptor 0", "descriptor 1", "descriptor 2", "descriptor 3"}
MAKE_CELL = encode("K")
CREDENTIALS = struct.Struct("3i")


class NoCells(NotEnforceable):
    """The host or its kernel lets nobody make cells in a container."""


class Cell(Sandbox):
    """One cell of a warm container, for one run."""

    def __init__(self, decided: spec.ContainerSpec) -> None:
        super().__init__(decided)
        self.processes_at_rest = 2

    async def start(self, send: socket.socket, maker: verify_cell.MakerFacts) -> None:
        """Have it made over the maker's channel `send`, and verify it.

        Raises a `SandboxError`, with nothing left of it.
        """
        self.mark("begin")
        self.mark("created")
        try:
            await self._open(send)
            await self.handshake()
            self.mark("ready")
            if self.ready[0] != "R":
                raise no_cells(self.ready)
            self._pin()
            self._verify(maker)
            self.mark("verified")
        except BaseException:
            self.end()
            raise

    async def _open(self, send: socket.socket) -> None:
        """Give the maker the other end of a new channel, and wait for whoever has it."""
        try:
            ours = order(send)
        except OSError as error:
            raise Internal(f"no cell can be ordered: {error.strerror}", hint="try again") from None
        try:
            self.hold(await asyncio.wait_for(first_speaker(ours), READY_TIMEOUT_S))
            self.mark("started")
        except asyncio.TimeoutError:
            ours.close()
            raise Internal("the maker of cells made none in time", hint="try again") from None
        except BaseException:
            ours.close()
            raise
        await self.open_channel(ours)

    def _pin(self) -> None:
        """Hold its two processes to their cores, where no cgroup holds the CPU cap. Raises `NotEnforceable`."""
        processes = family(self.pid)
        if len(processes) != self.processes_at_rest:
            raise NotEnforceable(f"the cell has {len(processes)} processes before its job", hint="report this")
        try:
            for pid in processes if self.spec.cpu_ids is not None else ():
                os.sched_setaffinity(pid, self.spec.cpu_ids or ())
        except OSError as error:
            raise NotEnforceable(
                f"a cell can't be held to its cores: {error.strerror}", hint="run `sandbox doctor`"
            ) from None

    def _verify(self, maker: verify_cell.MakerFacts) -> None:
        try:
            process = kernel.read_process(self.pid)
        except (OSError, ValueError, KeyError) as error:
            raise NotEnforceable(
                f"the cell can't be read back: {error}", hint="no code was handed over; run `sandbox doctor`"
            ) from None
        # Its peak would be that of every cell before it.
        self.cgroup = process.cgroup
        seen = verify.Observed(
            process=process, own_namespaces=kernel.read_namespaces("self"), oci={}, kernel_files=frozenset()
        )
        self.evidence = verify_cell.compare(self.spec, seen, maker)

    @property
    def events(self) -> kernel.CgroupEvents | None:
        """Return what the container's cgroup has counted; its highest use is not this cell's alone."""
        seen = super().events
        return replace(seen, peak_bytes=None) if seen else None

    def end(self) -> None:
        """Kill every process of it and let go. A second call does nothing."""
        if not self._released:
            self.kill()
            self.release()


def order(send: socket.socket) -> socket.socket:
    """Order a cell, and return our end of its channel. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            ours.settimeout(0)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            socket.send_fds(send, [MAKE_CELL], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
    return ours


async def first_speaker(channel: socket.socket) -> int:
    """Return the host's id of the process that speaks first, without taking what it says.

    Raises `Internal` at the end.
    """
    await readable(channel.fileno())
    space = socket.CMSG_SPACE(CREDENTIALS.size)
    try:
        said, ancillary, _, _ = channel.recvmsg(1, space, socket.MSG_PEEK)
    except OSError:
        said, ancillary = b"", []
    pids = [
        CREDENTIALS.unpack(data[: CREDENTIALS.size])[0]
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    ]
    if not said or not pids:
        raise Internal("the maker of cells made none", hint="try again")
    return int(pids[0])


def no_cells(frame: tuple[str, bytes]) -> NoCells:
    """Return why no cell could be made, in the words of who tried."""
    try:
        said = shaped(ProgramFailure, frame[1]).message if frame[0] == "X" else "it said nonsense"
    except ProtocolViolation:
        said = "it said nonsense"
    return NoCells(
        f"no cell can be made in a container here: {said}",
        hint=(
            "the kernel must let users make namespaces inside of namespaces; or use a policy with isolation.per_run ="
            ' "container"'
        ),
    )


class WarmContainer(ReadySandbox):
    """A warm container of one caller's node. It makes cells one after the other, and runs no user's code itself."""

    _number = 0

    async def start(self, sandbox_id: str, *, idle_s: float = LIFE_S, ahead: bool = True) -> None:
        """Start and verify it, import what its setting names, and have it wait for orders. Raises a `SandboxError`."""
        del ahead
        self.program_filter = self.setting.seccomp
        self.setting = replace(self.setting, seccomp=maker_profile(self.program_filter))
        instructions(self.program_filter)  # what this host can't make is told before anything is started
        try:
            await self._start(sandbox_id, idle_s, self.setting.preload)
        except PreloadFailed:
            if not self.setting.preload:
                raise
            await self._start(sandbox_id, idle_s, ())
        try:
            self._orders = self.sandbox.second_channel()
            self._held.callback(self._orders.close)
            self._seen = verify_cell.MakerFacts(
                process=kernel.read_process(self.sandbox.pid), evidence=self.sandbox.evidence
            )
        except (OSError, ValueError, KeyError) as error:
            await self.dispose()
            raise Internal(f"the maker of cells can't be read back: {error}", hint="try again") from None

    def _decided(self, place: Workspace, sandbox_id: str, idle_s: float) -> spec.ContainerSpec:
        return maker_of(super()._decided(place, sandbox_id, idle_s))

    async def _prepare(self, modules: tuple[str, ...]) -> tuple[str, ...]:
        places = [[mount.destination, mount.size_mib, mount.executable] for mount in self.sandbox.spec.tmpfs]
        program = base64.b64encode(instructions(self.program_filter)).decode()
        masked = self.sandbox.oci["linux"]["maskedPaths"]
        covered = [*SHARED, *(path for path in masked if path.startswith("/proc/"))]
        cell = self._decided_cell()
        limits = {"nproc": cell.nproc, **({"cpu_s": cell.cpu_time_s} if cell.cpu_time_s is not None else {})}
        order = {
            "filter": program,
            "limits": limits,
            "places": places,
            "covered": covered,
            "devices": DEVICES,
            "terminals": ",".join(terminal_options()),
        }
        imported = await preload(self.sandbox, modules, cell=order)
        # A library that keeps a file or shared memory from its import would have all cells share it.
        if more := kernel.shared_by_forks(self.sandbox.pid) - OF_THE_MAKER:
            raise PreloadFailed(
                f"importing {', '.join(modules)} leaves open what cells would share: {', '.join(sorted(more))}",
                hint="don't preload it under a policy with cells",
            )
        return imported

    def _decided_cell(self) -> spec.ContainerSpec:
        """Return the next cell, on other cores than the one before where the policy gives it fewer than there are."""
        self._number += 1
        cores = spec.spread(self._facts.cpu_ids, self.setting.policy.limits.cpus, self._number)
        return cell_of(self.sandbox.spec, self.setting.policy, self.program_filter, cores)

    async def cell(self) -> Cell:
        """Return a new cell, verified, that waits for its job.

        Raises a `SandboxError`; `NoCells` when none can be made here.
        """
        made = Cell(self._decided_cell())
        await made.start(self._orders, self._seen)
        return made

    def fit(self) -> bool:
        """Tell whether it lives, and has not begun to end: its cells die before it does."""
        return self.sandbox.alive() and not kernel.is_ending(self.sandbox.pid)
