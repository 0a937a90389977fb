"""Memory that the kernel holds for a sandbox, where only a count from outside can bound it.

Most of it is charged to a memory cgroup where there is one; byte-range locks of files never are: Linux took that
accounting back in 5.15 (commit 3754707bcc3e). Prices are what one such thing was measured to take, rounded up.
"""

from __future__ import annotations

import functools
import os
import re
import select
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sandbox.kernel.family import fields

KIB = 1024
# Kernel stack and description of one thread.
TASK_BYTES = 24 * KIB
# One mapping, and its link to the mapping that it was copied from, once per generation.
MAPPING_BYTES = 256
GENERATION_BYTES = 64
# A descriptor with the file behind it; one byte-range lock; one watch of an epoll set.
DESCRIPTOR_BYTES = KIB
LOCK_BYTES = 192
WATCH_BYTES = 208
# What waits in a pipe, in one made by default.
PIPE_BYTES = 64 * KIB
# A program has a few; what comes on top counts by what it may hold.
FREE_PIPES = 16
FREE_SOCKETS = 16
# The harness's own, which nothing waits in for long.
OWN_SOCKETS = 4
# A TCP connection that was closed is remembered for a minute.
CLOSED_BYTES = 256
# SQLite holds up to a dozen for each connection; nothing common needs hundreds.
MAX_LOCKS = 8_192
# Looking at one takes the time of thousands of instructions, and nobody may buy time with them.
MAX_DESCRIPTORS = 16_384
PART_BYTES = 65_536
# By the file that tells how many sockets of a kind there are. A table takes the kernel milliseconds to write, be it
# empty: it goes through the sockets of the whole machine (net/ipv4/tcp_ipv4.c, `established_get_first`).
TABLES = {"sockstat": (b"TCP", b"UDP"), "sockstat6": (b"TCP6", b"UDP6")}


@dataclass(kw_only=True)
class Descriptors:
    """What the descriptors of some processes stand for."""

    count: int = 0
    locks: int = 0
    watches: int = 0
    pipes: set[tuple[bytes, bytes]] = field(default_factory=set)

    @property
    def excess(self) -> str:
        """Return what there is too much of, in words; empty when there isn't."""
        if self.locks > MAX_LOCKS:
            return f"more than {MAX_LOCKS:,} file locks at a time"
        return f"more than {MAX_DESCRIPTORS:,} open descriptors at a time" if self.count > MAX_DESCRIPTORS else ""

    @property
    def size_bytes(self) -> int:
        """Return the kernel memory that they may take."""
        held = self.count * DESCRIPTOR_BYTES + self.locks * LOCK_BYTES + self.watches * WATCH_BYTES
        return held + max(0, len(self.pipes) - FREE_PIPES) * PIPE_BYTES

    def add(self, text: bytes) -> None:
        """Add one descriptor by its file in /proc/PID/fdinfo.

        That does not say what it is. Named or not, a pipe has no position; nor have sockets and epoll sets, which lie
        on mounts of the kernel's own. What is left may be a pipe.
        """
        self.count += 1
        self.locks += text.count(b"\nlock:")
        self.watches += text.count(b"\ntfd:")
        if text.startswith(b"pos:\t0\n") and (place := place_of(text)) and place[0] not in kernel_mounts():
            self.pipes.add(place)


def place_of(text: bytes) -> tuple[bytes, bytes] | None:
    """Return the mount and the inode that a file of /proc/PID/fdinfo names."""
    found = re.search(rb"^mnt_id:\t(\d+)\nino:\t(\d+)$", text, re.MULTILINE)
    return (found[1], found[2]) if found else None


@functools.cache
def kernel_mounts() -> frozenset[bytes]:
    """Return the mounts that sockets lie on, and what has no name such as epoll sets: the same for every process."""
    with socket.socket() as one, select.epoll() as other:
        places = [place_of(read(f"/proc/self/fdinfo/{each.fileno()}")) for each in (one, other)]
    return frozenset(place[0] for place in places if place)


def read(path: str) -> bytes:
    """Return a file of /proc; empty when what it tells of is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(descriptor, PART_BYTES):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def descriptors(paths: Iterable[str]) -> Descriptors:
    """Return what the descriptors of processes stand for, told by `paths` (see `family.told_by`); stops at too many.

    Where they can't be read (before Linux 5.14, which shows them to their owner alone) none are counted.
    """
    found = Descriptors()
    for path in paths:
        try:
            names = os.listdir(f"{path}/fdinfo")  # noqa: PTH208 - hot path
        except OSError:
            continue
        for name in names:
            found.add(read(f"{path}/fdinfo/{name}"))
            if found.excess:
                return found
    return found


def socket_bytes(path: str) -> int:
    """Return what a sandbox's sockets hold.

    That is what waits in those of the internet families, or more where many may hold it.
    """
    sockets = fields(f"{path}/net/sockstat", b"sockets", column=1)[b"sockets"]
    closed_bytes = fields(f"{path}/net/sockstat", b"TCP", column=5)[b"TCP"] * CLOSED_BYTES
    if sockets <= OWN_SOCKETS:
        return closed_bytes
    # SO_SNDBUF takes up to this value, and the kernel doubles it: socket(7).
    largest = 2 * int(read("/proc/sys/net/core/wmem_max") or 0)
    waiting = sum(queued_bytes(read(f"{path}/net/{table}")) for table in tables_in_use(path))
    return max(max(0, sockets - FREE_SOCKETS) * largest, waiting) + closed_bytes


def tables_in_use(path: str) -> Iterator[str]:
    """Yield which tables of a sandbox have a socket in them: what has none waiting is in none of them, either."""
    for file, kinds in TABLES.items():
        in_use = fields(f"{path}/net/{file}", *kinds, column=1)
        yield from (kind.decode().lower() for kind in kinds if in_use[kind])


def queued_bytes(table: bytes) -> int:
    """Return the bytes that wait in the sockets of a table such as /proc/PID/net/tcp.

    The table has them as `tx_queue:rx_queue`, in hexadecimal.
    """
    total = 0
    for line in table.splitlines()[1:]:
        queues = line.split()[4].partition(b":")
        total += int(queues[0], 16) + int(queues[2], 16)
    return total
