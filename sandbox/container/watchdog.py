"""The fallback for hosts without cgroup v2: count what a sandbox uses, from outside, and kill it past the cap.

Counted: private memory of every process, shared anonymous mappings, the content of its tmpfs, and what the kernel holds
on its behalf. Where cgroup v2 holds memory, locks of files are counted all the same. Source of the fields: proc(5),
`status` and `smaps_rollup`.
"""

from __future__ import annotations

import asyncio
import functools
import mmap
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.kernel.family import Member, family, fields, members, same_memory, told_by
from sandbox.kernel.memory import (
    GENERATION_BYTES,
    KIB,
    MAPPING_BYTES,
    TASK_BYTES,
    Descriptors,
    descriptors,
    read,
    socket_bytes,
)

FULL_BLOCKS = 16
INTERVAL_S = 0.02
# A program that has just begun has nothing yet, and many are over before this.
FIRST_S = 0.01
# About this share of one core goes into measuring a sandbox of many processes, and into looking at it thoroughly, up to
# a pause that gives no one the time to take much more than the cap: a family that is slow to measure must not buy time.
DUTY = 0.1
LONGEST_PAUSE_S = 0.1
# So much of it a program can take in a second: pages of zeros, written once (3 GiB/s were measured).
FILLED_BYTES = 4 << 30
# Each mapping costs the watchdog time to read.
MAX_MAPPINGS = 200_000
# What the kernel keeps for one file of a tmpfs besides its content: inode and directory entry.
TMPFS_INODE_BYTES = 1024
# Few programs have as many shared anonymous mappings. Of each one on top, more may be in memory than anybody still
# maps.
FREE_SHARED = 16
SHARED_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the processes below one process use: memory in bytes, tasks = threads of all processes.

    `excess` is in words what there is too much of, whatever the memory; empty when there is nothing.
    """

    memory_bytes: int
    tasks: int
    excess: str = ""


NOTHING = Usage(memory_bytes=0, tasks=0)


def tmpfs_bytes(path: str, places: tuple[str, ...]) -> int:
    """Return what lies in the sandbox's tmpfs, empty files included.

    The paths are mount points of a read-only root: nothing can swap them.
    """
    total = 0
    for place in places:
        try:
            status = os.statvfs(f"{path}/root{place}")
        except OSError:
            continue
        total += (status.f_blocks - status.f_bfree) * status.f_frsize
        total += (status.f_files - status.f_ffree) * TMPFS_INODE_BYTES
    return total


def full_places(pid: int, places: tuple[str, ...]) -> tuple[str, ...]:
    """Return which tmpfs of a sandbox has hardly any room left, or none for one more file.

    At its end, a program gives back what only it had open.
    """
    found = []
    for place in places:
        try:
            status = os.statvfs(f"/proc/{pid}/root{place}")
        except OSError:
            continue
        if status.f_bfree < FULL_BLOCKS or (status.f_files and not status.f_ffree):
            found.append(place)
    return tuple(found)


@functools.cache
def anonymous_device() -> bytes:
    """Return the device of all shared anonymous mappings.

    /proc/PID/maps tells such mappings by it: a program can choose their names (PR_SET_VMA).
    """
    marked = mmap.PAGESIZE * 12_345  # a size of its own, to find it by
    with mmap.mmap(-1, marked):
        for line in read("/proc/self/maps").splitlines():
            span, modes, _, device, *_ = line.split()
            first, _, last = span.partition(b"-")
            if modes.endswith(b"s") and int(last, 16) - int(first, 16) == marked:
                return device
    return b""


@dataclass(kw_only=True)
class Mappings:
    """The mappings of a sandbox.

    `shared` is how far into each shared anonymous one anybody was seen to look, while it is there.
    """

    shared: dict[bytes, int] = field(default_factory=dict)
    count: int = 0
    kernel_bytes: int = 0

    def look(self, processes: Iterable[Member]) -> None:
        """Read them again, as far as there aren't too many."""
        self.count = self.kernel_bytes = 0
        now: dict[bytes, int] = {}
        for process in processes:
            lines = read(f"{process.path}/maps").splitlines()
            self.count += len(lines)
            self.kernel_bytes += len(lines) * (MAPPING_BYTES + process.generation * GENERATION_BYTES)
            if self.count > MAX_MAPPINGS:
                return
            for line in lines:
                if anonymous_device() in line:
                    span, modes, offset, device, inode, *_ = line.split()
                    if device == anonymous_device() and modes.endswith(b"s"):
                        first, _, last = span.partition(b"-")
                        end = int(offset, 16) + int(last, 16) - int(first, 16)
                        now[inode] = max(now.get(inode, 0), end)
        self.shared = {inode: max(end, self.shared.get(inode, 0)) for inode, end in now.items()}

    @property
    def excess(self) -> str:
        """Return in words that there are too many; empty when there aren't."""
        return f"more than {MAX_MAPPINGS:,} mappings of memory at a time" if self.count > MAX_MAPPINGS else ""

    @property
    def shared_bytes(self) -> int:
        """Return the size of all shared anonymous mappings, each counted once.

        Pages of such a mapping stay in memory when a process drops them from its own view (MADV_DONTNEED, munmap of all
        but a part), so that no process seems to use them: only its size bounds them.
        """
        sizes = sorted(self.shared.values(), reverse=True)
        return sum(sizes[:FREE_SHARED]) + sum(max(size, SHARED_BYTES) for size in sizes[FREE_SHARED:])


def exact_private_bytes(processes: list[Member]) -> int:
    """Return what processes have in private memory, and memory that they share as well.

    Pages that they share count once (PSS).
    """
    known = {process.pid: process for process in processes}
    total = 0
    for process in processes:
        parent = known.get(process.parent)
        if parent is not None and same_memory(process, parent):
            continue
        exact = fields(f"{process.path}/smaps_rollup", b"Pss_Anon", b"SwapPss")
        total += (exact[b"Pss_Anon"] + exact[b"SwapPss"]) * KIB
    return total


@dataclass(kw_only=True)
class Sight:
    """What was seen of a sandbox: its sockets just now, the others at its last thorough look, which takes longer."""

    mappings: Mappings = field(default_factory=Mappings)
    opened: Descriptors = field(default_factory=Descriptors)
    socket_bytes: int = 0

    def look(self, processes: list[Member]) -> None:
        """Look at everything again but sockets, which fill fast and are told at once."""
        self.mappings.look(processes)
        self.opened = descriptors(process.path for process in processes)

    @property
    def held_bytes(self) -> int:
        """Return what all this may take."""
        return self.mappings.shared_bytes + self.mappings.kernel_bytes + self.opened.size_bytes + self.socket_bytes


def measure(
    pid: int, *, places: tuple[str, ...], cap_bytes: int, sight: Sight | None = None, thorough: bool = True
) -> Usage:
    """Measure the family of `pid`.

    `sight` is what was seen of it before; a look that is not `thorough` renews only the sockets of that. The cheap sum
    counts a page once per process that maps it. Only when the family could be past the cap are pages shared out between
    their users (PSS), so that forked workers are not counted many times over.
    """
    sight = sight or Sight()
    processes = members(pid)
    total = {name: sum(process.use[name] for process in processes) for name in processes[0].use}
    if thorough:
        sight.look(processes)
    sight.socket_bytes = socket_bytes(processes[0].path) if places else 0
    files = tmpfs_bytes(processes[0].path, places) + total[b"VmPTE"] * KIB + total[b"Threads"] * TASK_BYTES
    anonymous = (total[b"RssAnon"] + total[b"VmSwap"]) * KIB
    rest, in_view = files + sight.held_bytes, total[b"RssShmem"] * KIB
    if in_view > rest and not thorough:  # shared mappings that are new, or many processes that see one
        sight.mappings.look(processes)
        rest = files + sight.held_bytes
    if rest <= cap_bytes < anonymous + rest:
        anonymous = exact_private_bytes(processes)
    excess = sight.opened.excess or sight.mappings.excess
    return Usage(memory_bytes=anonymous + rest, tasks=total[b"Threads"], excess=excess)


def uncharged(pid: int) -> Usage:
    """Measure what cgroup v2 does not charge a sandbox for, and nothing else bounds: locks of files."""
    opened = descriptors(told_by(each)[0] for each in family(pid))
    return Usage(memory_bytes=0, tasks=0, excess=opened.excess)


def timed(look: Callable[[bool], Usage], thorough: bool) -> tuple[Usage, float]:  # noqa: FBT001
    """Return what a look shows, and the processor time that it took, in seconds.

    By the clock, a busy machine would make looks rarer.
    """
    began = time.thread_time()
    usage = look(thorough)
    return usage, time.thread_time() - began


def pause_s(took_s: float, *, left_bytes: int, interval_s: float = INTERVAL_S) -> float:
    """Return how long to wait until the next look, when the last one took `took_s` and left so much up to the cap.

    What is slow to measure is looked at more seldom, though never so seldom that it could be past the cap long before.
    """
    return max(interval_s, min(took_s / DUTY, LONGEST_PAUSE_S, left_bytes / FILLED_BYTES))


class Watchdog:
    """Measures one sandbox until stopped; `exceeded` says whether it went past the memory cap, or past `excess`.

    Where a `cgroup` holds its memory, it looks seldom, and at what that leaves out.
    """

    def __init__(
        self, pid: int, *, cap_bytes: int, places: tuple[str, ...], kill: Callable[[], None], cgroup: bool = False
    ) -> None:
        self._pid = pid
        self._cap_bytes = cap_bytes
        self._kill = kill
        self._first_s, self._interval_s = (LONGEST_PAUSE_S, LONGEST_PAUSE_S) if cgroup else (FIRST_S, INTERVAL_S)
        sight = Sight()
        self._look = (
            (lambda _: uncharged(pid))
            if cgroup
            else (lambda thorough: measure(pid, places=places, cap_bytes=cap_bytes, sight=sight, thorough=thorough))
        )
        self.exceeded = False
        self.excess = ""
        self.peak = NOTHING

    async def watch(self) -> None:
        """Measure at short intervals; kill once past the cap. Ends when cancelled or after the kill."""
        await asyncio.sleep(self._first_s)
        thorough_s = 0.0
        while Path(f"/proc/{self._pid}").exists():
            thorough = time.perf_counter() >= thorough_s
            # In a thread: what is slow to measure must not hold up the deadline and Ctrl-C.
            usage, took_s = await asyncio.to_thread(timed, self._look, thorough)
            if thorough:
                thorough_s = time.perf_counter() + min(took_s / DUTY, LONGEST_PAUSE_S)
            self.peak = Usage(
                memory_bytes=max(self.peak.memory_bytes, usage.memory_bytes), tasks=max(self.peak.tasks, usage.tasks)
            )
            if usage.excess or usage.memory_bytes > self._cap_bytes:
                self.exceeded, self.excess = True, usage.excess
                self._kill()
                return
            left_bytes = self._cap_bytes - usage.memory_bytes
            await asyncio.sleep(pause_s(took_s, left_bytes=left_bytes, interval_s=self._interval_s))
