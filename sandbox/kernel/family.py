"""The processes of a sandbox, as the host's /proc tells of them.

What a process has is told by its first thread, until that has ended (pthread_exit(3) in the main thread): then
/proc/PID reads as that of an empty process, while the others go on and only /proc/PID/task/TID tells. Source of the
fields: proc(5).
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass

# Threads that end while they are looked at, before a process counts as one that is ending itself.
THREADS_TRIED = 16
# Numbers in `status` that tell what a process uses: sizes in KiB, and how many threads it has.
USE = (b"VmSize", b"RssAnon", b"RssShmem", b"VmSwap", b"VmPTE", b"Threads")
KCMP = {"x86_64": 312, "aarch64": 272}.get(platform.machine())
KCMP_VM = 1
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process of a family.

    `path` is where /proc tells what it has, `use` what it uses, `generation` how far below process 1 it is.
    """

    pid: int
    parent: int
    generation: int
    path: str
    use: dict[bytes, int]


def children(pid: int) -> list[int]:
    """Return the processes started by any thread of `pid`."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - hot path
    except OSError:
        return []  # it ended meanwhile
    found: list[int] = []
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as stream:  # noqa: PTH123 - hot path
                found.extend(map(int, stream.read().split()))
        except OSError:
            continue  # this thread ended meanwhile; the others' children are to be seen all the same
    return found


def parents(pid: int) -> dict[int, int]:
    """Return `pid` and every process below it, each with its parent.

    That is all of a pid namespace, since orphans fall to its process 1.
    """
    found, waiting = {pid: 0}, [pid]
    while waiting:
        parent = waiting.pop()
        new = [child for child in children(parent) if child not in found]
        found.update(dict.fromkeys(new, parent))
        waiting.extend(new)
    return found


def family(pid: int) -> list[int]:
    """Return `pid` and every process below it."""
    return list(parents(pid))


def fields(path: str, *names: bytes, column: int = 0) -> dict[bytes, int]:
    """Return the named numbers of a /proc file: for each, the word in `column` after the name.

    A number is 0 where its name is absent or the process is gone.
    """
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


def told_by(pid: int) -> tuple[str, dict[bytes, int]]:
    """Return where /proc tells what a process has, and what it uses.

    It tells that of the first thread, or of another one when the first has ended. All threads have the same memory and
    descriptors (the system-call list lets none be made that hasn't), so one that lives is enough, however many there
    are.
    """
    path = f"/proc/{pid}"
    use = fields(f"{path}/status", *USE)
    if use[b"VmSize"] or use[b"Threads"] < 2:
        return path, use
    try:
        threads = os.listdir(f"{path}/task")  # noqa: PTH208 - hot path
    except OSError:
        return path, use
    # The last ones first: what is about to end is more likely to be old.
    for thread in threads[: -THREADS_TRIED - 1 : -1]:
        found = fields(f"{path}/task/{thread}/status", *USE)
        if found[b"VmSize"]:
            return f"{path}/task/{thread}", found
    return path, use


def members(pid: int) -> list[Member]:
    """Return `pid` and every process below it, with what they use."""
    generations: dict[int, int] = {0: -1}
    found = []
    for each, parent in parents(pid).items():
        generations[each] = generations[parent] + 1
        path, use = told_by(each)
        found.append(Member(pid=each, parent=parent, generation=generations[each], path=path, use=use))
    return found


def same_memory(one: Member, other: Member) -> bool:
    """Tell whether two processes have one memory, as a child has that was made with vfork(2), up to its execve(2)."""
    if KCMP is None or not (one.use[b"VmSize"] and other.use[b"VmSize"]):
        return False
    # By threads that live: two that have ended have the same, namely none.
    first, second = (int(each.path.rpartition("/")[2]) for each in (one, other))
    different: int = LIBC.syscall(ctypes.c_long(KCMP), first, second, KCMP_VM, ctypes.c_ulong(0), ctypes.c_ulong(0))
    return different == 0  # -1 where the kernel doesn't tell
