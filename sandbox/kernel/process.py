"""Reads what the kernel says about one process: the only source that verification trusts.

Everything comes from the host's own /proc and /sys/fs/cgroup, never from inside the sandbox. Formats: proc(5),
cgroups(7), and the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
READ_BYTES = 32_768
FLAGS = 6  # of /proc/PID/stat, counted behind the command
PF_EXITING = 0x4
LIMIT = re.compile(r"(Max [a-z ]+?)\s{2,}(\S+)\s+(\S+)")


class Mount(NamedTuple):
    """One line of mountinfo: `options` are the mount's own, `super_options` the file system's, `device` its number.

    `id` is the mount's own, `parent` that of the mount which it lies on.
    """

    id: int
    parent: int
    device: str
    root: str
    point: str
    options: frozenset[str]
    kind: str
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Tell whether nothing can be written through this mount."""
        return "ro" in self.options

    @property
    def size_bytes(self) -> int | None:
        """Return the size limit of a tmpfs, None when it has none."""
        for option in self.super_options:
            if match := re.fullmatch(r"size=(\d+)([kmg]?)", option):
                return int(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[match[2]]
        return None

    def number(self, name: str) -> int | None:
        """Return a number among the file system's options, None when it is not there."""
        return next((int(option.split("=")[1]) for option in self.super_options if option.startswith(f"{name}=")), None)


@dataclass(frozen=True, kw_only=True)
class CgroupEvents:
    """What a cgroup v2 group went through: processes killed at its memory limit, forks refused, highest use."""

    oom_kills: int
    fork_failures: int
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class CgroupLimits:
    """The tightest cgroup v2 limits on the way from a process to the root; None where nothing limits.

    `seen` are events that were read earlier, kept because a group's counters vanish with its last process.
    `killed_around` is how many processes the kernel had killed for memory in all groups around this one, when the
    program began.
    """

    path: str
    memory_bytes: int | None
    swap_bytes: int | None
    cpus: float | None
    processes: int | None
    seen: CgroupEvents | None = None
    killed_around: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProcessFacts:
    """What the kernel says of one process."""

    pid: int
    status: dict[str, str]
    namespaces: dict[str, str]
    uid_map: tuple[tuple[int, int, int], ...]
    projid_map: str
    limits: dict[str, str]
    mounts: tuple[Mount, ...]
    interfaces: tuple[str, ...]
    cgroup: CgroupLimits | None


def read_text(path: str) -> str:
    """Return a file of /proc, in a tenth of the time of `Path.read_text`. A cell is read back for every message."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, READ_BYTES):
            parts.append(part)
        return b"".join(parts).decode()
    finally:
        os.close(descriptor)


def read_status(pid: int) -> dict[str, str]:
    """Return /proc/PID/status as name → value, values with single spaces."""
    lines = read_text(f"/proc/{pid}/status").splitlines()
    return {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in lines)}


def is_ending(pid: int) -> bool:
    """Tell whether a process has begun to end, or has ended.

    The first process of a PID namespace ends all others before it has ended itself, so a pidfd of it tells later.
    https://elixir.bootlin.com/linux/v6.1/source/kernel/pid_namespace.c (zap_pid_ns_processes)
    """
    try:
        flags = int(read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[FLAGS])
    except (OSError, ValueError, IndexError):
        return True
    return bool(flags & PF_EXITING)


def read_namespaces(pid: int | str) -> dict[str, str]:
    """Return the identity of each namespace, such as `net:[4026531833]`."""
    # The directory can't be listed for another user's process; its entries can be read by the namespace's owner.
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}  # noqa: PTH115 - see read_text


def parse_limits(text: str) -> dict[str, str]:
    """Return /proc/PID/limits as name → "soft hard"."""
    rows = {}
    for line in text.splitlines()[1:]:
        if match := LIMIT.match(line):
            rows[match[1]] = f"{match[2]} {match[3]}"
    return rows


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """Return the mounts of a mountinfo file, later ones covering earlier ones at the same point."""
    mounts = []
    for line in text.splitlines():
        number, parent, device, rest = line.split(" ", 3)
        mounts.append(Mount(int(number), int(parent), device, *parse_mount(rest)))
    return tuple(mounts)


@functools.lru_cache(maxsize=4096)
def parse_mount(text: str) -> tuple[str, str, frozenset[str], str, tuple[str, ...]]:
    """Return the fields of a line of mountinfo from its fourth on, which are the same in most sandboxes."""
    left, _, right = text.partition(" - ")
    fields, tail = left.split(" "), right.split(" ")
    point = fields[1].encode().decode("unicode_escape") if "\\" in fields[1] else fields[1]
    return fields[0], point, frozenset(fields[2].split(",")), tail[0], tuple(tail[-1].split(","))


def read_limit(path: Path) -> int | None:
    """Return the number in a cgroup limit file; None for `max` or no such file (not limited there)."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return None if text == "max" else int(text)


def tightest(values: list[int | None]) -> int | None:
    """Return the lowest limit; None when nothing limits."""
    known = [value for value in values if value is not None]
    return min(known) if known else None


def own_group() -> Path | None:
    """Return this process's cgroup v2 directory; None where there is none, or it is the root."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::/") and line != "0::/":
            return CGROUP_ROOT / line.removeprefix("0::/")
    return None


def session_group(uid: int) -> Path:
    """Return the directory of the user's own systemd, which exists while that runs."""
    return CGROUP_ROOT / f"user.slice/user-{uid}.slice/user@{uid}.service"


def read_controllers(group: Path) -> frozenset[str]:
    """Return the controllers that a cgroup v2 directory has; empty where there is none."""
    try:
        return frozenset((group / "cgroup.controllers").read_text().split())
    except OSError:
        return frozenset()


def read_cgroup(pid: int, *, root: Path = CGROUP_ROOT, proc: Path = Path("/proc")) -> CgroupLimits | None:
    """Return the effective cgroup v2 limits of a process; None where it is in no v2 group below the root."""
    for line in (proc / str(pid) / "cgroup").read_text().splitlines():
        if line.startswith("0::/") and line != "0::/":
            path = line.removeprefix("0::/")
            break
    else:
        return None
    directories = [root / path, *(root / parent for parent in Path(path).parents if parent != Path())]
    cpus: list[float] = []
    for directory in directories:
        try:
            quota, period = (directory / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            cpus.append(int(quota) / int(period))
    return CgroupLimits(
        path=path,
        memory_bytes=tightest([read_limit(directory / "memory.max") for directory in directories]),
        swap_bytes=tightest([read_limit(directory / "memory.swap.max") for directory in directories]),
        cpus=min(cpus) if cpus else None,
        processes=tightest([read_limit(directory / "pids.max") for directory in directories]),
    )


def read_process(pid: int) -> ProcessFacts:
    """Read everything that verification compares. Raises OSError when the process is gone."""
    net = read_text(f"/proc/{pid}/net/dev").splitlines()[2:]
    maps = [tuple(map(int, line.split())) for line in read_text(f"/proc/{pid}/uid_map").splitlines()]
    return ProcessFacts(
        pid=pid,
        status=read_status(pid),
        namespaces=read_namespaces(pid),
        uid_map=tuple((a, b, c) for a, b, c in maps),
        projid_map=read_text(f"/proc/{pid}/projid_map"),
        limits=parse_limits(read_text(f"/proc/{pid}/limits")),
        mounts=parse_mounts(read_text(f"/proc/{pid}/mountinfo")),
        interfaces=tuple(line.partition(":")[0].strip() for line in net),
        cgroup=read_cgroup(pid),
    )


def shared_by_forks(pid: int) -> set[str]:
    """Return what a process and its future children would share.

    That is open descriptors, and memory that is written through to others. This is for a process of a sandbox that
    hides: the kernel gives its files to the sandbox's root, who is this user outside. Raises OSError.
    """
    descriptors = {f"descriptor {name}" for name in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH208 - see read_text
    lines = (line.split(None, 5) for line in read_text(f"/proc/{pid}/maps").splitlines())
    return descriptors | {f"mapping {fields[-1]}" for fields in lines if "s" in fields[1] and "w" in fields[1]}


def parse_events(text: str) -> dict[str, int]:
    """Return the counters of a flat-keyed cgroup file."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def read_events(path: Path) -> dict[str, int]:
    """Return a flat-keyed cgroup file; empty where there is none."""
    try:
        return parse_events(path.read_text())
    except (OSError, ValueError):
        return {}


def oom_kills(events: dict[str, int]) -> int:
    """Return how many processes were killed because the group's own limit was reached.

    `oom_kill` alone also counts what a host without memory killed; `oom` then stays 0 here.
    """
    return events.get("oom_kill", 0) if events.get("oom", 0) else 0


def _groups(directory: Path) -> list[Path]:
    """Return the groups of a sandbox: the runtime may put processes one level below the one that carries the limits."""
    return [directory, directory.parent] if directory.name == "container" else [directory]  # as crun does


def killed_around(limits: CgroupLimits, *, root: Path = CGROUP_ROOT) -> int:
    """Return how many processes were killed for memory below the group that a sandbox's group lies in."""
    return oom_kills(read_events(_groups(root / limits.path)[-1].parent / "memory.events"))


def read_cgroup_events(limits: CgroupLimits | None, *, root: Path = CGROUP_ROOT) -> CgroupEvents | None:
    """Return the events of a sandbox's group, with those seen earlier; None where it is in none (cgroup v1)."""
    if limits is None:
        return None
    directory = root / limits.path
    groups = _groups(directory)
    seen = limits.seen or CgroupEvents(oom_kills=0, fork_failures=0, peak_bytes=None)
    peaks = [peak for group in groups if (peak := read_limit(group / "memory.peak")) is not None]
    peaks += [] if seen.peak_bytes is None else [seen.peak_bytes]
    kills = [oom_kills(read_events(group / "memory.events")) for group in groups]
    if limits.seen is None and limits.killed_around is not None and not groups[-1].exists():
        # It went before anybody looked, as it does when process 1 is killed. The groups around it have counted.
        kills.append(killed_around(limits, root=root) - limits.killed_around)
    fork_failures = [read_events(group / "pids.events").get("max", 0) for group in groups]
    return CgroupEvents(
        oom_kills=max(seen.oom_kills, *kills),
        fork_failures=max(seen.fork_failures, *fork_failures),
        peak_bytes=max(peaks) if peaks else None,
    )
