"""The fallback for hosts without cgroup v2: count what a sandbox uses, from outside, and kill it past the cap.

Counted: private memory of every process, shared anonymous mappings, the content of its tmpfs, and what the buffers of
its sockets may hold. Not counted: other memory that the kernel holds on its behalf (pipes, page tables, descriptors).
Source of the fields: proc(5), `status` and `smaps_rollup`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

INTERVAL_S = 0.02
# A program that has just begun has nothing yet, and many are over before this.
FIRST_S = 0.01
# About this share of one core goes into measuring a sandbox of many processes, up to a pause that gives no one the
# time to take much more than the cap: a family that is slow to measure must not buy time.
DUTY = 0.1
LONGEST_PAUSE_S = 0.1
KIB = 1024
# Each mapping costs the kernel memory that nothing else counts, and the watchdog time to read.
MAX_MAPPINGS = 200_000
# The harness has four; asyncio and subprocesses need a few more. What comes on top counts by what it may hold.
FREE_SOCKETS = 16
# What the kernel keeps for one file of a tmpfs besides its content: inode and directory entry.
TMPFS_INODE_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the processes below one process use: memory in bytes, tasks = threads of all processes."""

    memory_bytes: int
    tasks: int


def children(pid: int) -> list[int]:
    """Return the processes started by any thread of `pid`."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - hot path
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as stream:  # noqa: PTH123 - hot path
                found.extend(map(int, stream.read().split()))
    except OSError:
        pass  # it ended meanwhile
    return found


def family(pid: int) -> list[int]:
    """Return `pid` and every process below it: all of a pid namespace, since orphans fall to its process 1."""
    found, waiting = [pid], [pid]
    while waiting:
        new = children(waiting.pop())
        found.extend(new)
        waiting.extend(new)
    return found


def fields(path: str, *names: bytes, column: int = 0) -> dict[bytes, int]:
    """Return the named numbers (the word in `column` after the name) of a /proc file, 0 where one is absent or the process is gone."""
    values = dict.fromkeys(names, 0)
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - hot path
            for line in stream:
                name, _, rest = line.partition(b":")
                if name in values:
                    values[name] = int(rest.split()[column])
    except OSError:
        pass
    return values


def tmpfs_bytes(pid: int, places: tuple[str, ...]) -> int:
    """Return what lies in the sandbox's tmpfs, empty files included.

    The paths are mount points of a read-only root: nothing can swap them.
    """
    total = 0
    for place in places:
        try:
            status = os.statvfs(f"/proc/{pid}/root{place}")
        except OSError:
            continue
        total += (status.f_blocks - status.f_bfree) * status.f_frsize
        total += (status.f_files - status.f_ffree) * TMPFS_INODE_BYTES
    return total


def shared_anonymous_bytes(pids: list[int], *, cap_bytes: int) -> int:
    """Return the size of all shared anonymous mappings, each counted once; more than the cap past MAX_MAPPINGS.

    Pages of such a mapping stay in memory when a process drops them from its own view (MADV_DONTNEED), so that no
    process seems to use them: only the size of the mapping bounds them.
    """
    sizes: dict[bytes, int] = {}
    seen = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", "rb") as stream:  # noqa: PTH123 - hot path
                for line in stream:
                    seen += 1
                    if seen > MAX_MAPPINGS:
                        return cap_bytes + 1
                    if b" /dev/zero (deleted)" in line or b" /memfd:" in line or b" /SYSV" in line:
                        span, _, offset, device, inode, *_ = line.split()
                        first, _, last = span.partition(b"-")
                        end = int(offset, 16) + int(last, 16) - int(first, 16)
                        sizes[device + inode] = max(sizes.get(device + inode, 0), end)
        except OSError:
            continue
    return sum(sizes.values())


def socket_bytes(pid: int) -> int:
    """Return what the buffers of the sandbox's sockets may hold, beyond the few that every program has."""
    sockets = fields(f"/proc/{pid}/net/sockstat", b"sockets", column=1)[b"sockets"]
    try:
        # SO_SNDBUF takes up to this value, and the kernel doubles it: socket(7).
        largest = 2 * int(Path("/proc/sys/net/core/wmem_max").read_text())
    except (OSError, ValueError):
        return 0
    return max(0, sockets - FREE_SOCKETS) * largest


def measure(pid: int, *, places: tuple[str, ...], cap_bytes: int) -> Usage:
    """Measure the family of `pid`.

    The cheap sum counts a page once per process that maps it. Only when the family could be past the cap are pages
    shared out between their users (PSS), so that forked workers are not counted many times over, and are shared
    mappings counted by their size.
    """
    pids = family(pid)
    rows = [fields(f"/proc/{p}/status", b"VmSize", b"RssAnon", b"RssShmem", b"VmSwap", b"Threads") for p in pids]
    tasks = sum(row[b"Threads"] for row in rows)
    files = tmpfs_bytes(pid, places) + (socket_bytes(pid) if places else 0)
    anonymous = sum(row[b"RssAnon"] + row[b"VmSwap"] for row in rows) * KIB
    if sum(row[b"VmSize"] for row in rows) * KIB + files <= cap_bytes:
        shared = sum(row[b"RssShmem"] for row in rows) * KIB
        return Usage(memory_bytes=anonymous + max(shared, files), tasks=tasks)
    shared = shared_anonymous_bytes(pids, cap_bytes=cap_bytes)
    if shared <= cap_bytes < anonymous + shared + files:
        exact = [fields(f"/proc/{p}/smaps_rollup", b"Pss_Anon", b"SwapPss") for p in pids]
        anonymous = sum(row[b"Pss_Anon"] + row[b"SwapPss"] for row in exact) * KIB
    return Usage(memory_bytes=anonymous + shared + files, tasks=tasks)


class Watchdog:
    """Measures one sandbox until stopped; `exceeded` says whether the memory cap was passed."""

    def __init__(self, pid: int, *, cap_bytes: int, places: tuple[str, ...], kill: Callable[[], None]) -> None:
        self._pid = pid
        self._cap_bytes = cap_bytes
        self._places = places
        self._kill = kill
        self.exceeded = False
        self.peak = Usage(memory_bytes=0, tasks=0)

    async def watch(self) -> None:
        """Measure at short intervals; kill once past the cap. Ends when cancelled or after the kill."""
        await asyncio.sleep(FIRST_S)
        while Path(f"/proc/{self._pid}").exists():
            began = time.perf_counter()
            # In a thread: what is slow to measure must not hold up the deadline and Ctrl-C.
            usage = await asyncio.to_thread(measure, self._pid, places=self._places, cap_bytes=self._cap_bytes)
            self.peak = Usage(
                memory_bytes=max(self.peak.memory_bytes, usage.memory_bytes), tasks=max(self.peak.tasks, usage.tasks)
            )
            if usage.memory_bytes > self._cap_bytes:
                self.exceeded = True
                self._kill()
                return
            near = usage.memory_bytes > self._cap_bytes // 4
            pause_s = min((time.perf_counter() - began) / DUTY, LONGEST_PAUSE_S)
            await asyncio.sleep(INTERVAL_S if near else max(INTERVAL_S, pause_s))
