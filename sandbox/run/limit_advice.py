"""Which key of the policy explains an error of the system: no room, too many files, no memory, no thread. Pure.

Python's own exceptions say it in one way, C and Rust and C++ in others, and a worker that died in the words of whoever
awaited it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandbox.policy.model import Policy

__all__ = ["Circumstances", "limit_advice", "no_room"]

NO_ROOM = (
    r"Errno 28\b|os error 28\b|errno = 28\b|No space left on device|database or disk is full|Disk quota exceeded"
    r"|SIGBUS|Bus error|signal 7\b|exit ?code:? -7\b|exited unexpectedly with exit code -7\b"
)
WORKER_DIED = r"terminated abruptly|died unexpectedly|killed by signal"
NO_FILES = r"Errno 24\b|os error 24\b|EMFILE|Too many open files"
NO_MEMORY = (
    r"Errno 12\b|os error 12\b|errno=12\b|ENOMEM|Cannot allocate memory|[Cc]ould not reserve enough space|bad_alloc"
    r"|[Ff]ailed to (?:reserve|allocate|map|mmap)\b|mmap failed|[Uu]nable to allocate|[Oo]ut of memory"
    r"|memory allocation of \d+ bytes failed|[Ii]nsufficient memory|[Cc]an(?:no|')t allocate memory"
)
NO_THREADS = (
    r"can't start new thread|unable to create (?:new )?native thread|failed to create new OS thread"
    r"|[Ff]ailed to (?:spawn|create|start) (?:a )?(?:new )?\w{0,20} ?thread|Thread creation failed|cannot create thread"
    r"|(?:pthread_create|fork|thread)[^\n]{0,160}Resource temporarily unavailable"
    r"|Resource temporarily unavailable[^\n]{0,80}thread"
    r"|system_error'?\s+what\(\):\s+Resource temporarily unavailable"
)


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Where an error came about: under which policy, and what was seen of the sandbox at the end.

    `full` are the in-memory file systems without room. `address_space_mib` is what each process may reserve, where that
    is limited: on hosts without cgroup v2 alone.
    """

    policy: Policy
    full: tuple[str, ...] = ()
    address_space_mib: int | None = None


def limit_advice(text: str, place: Circumstances) -> str:
    """Return which limit a text in the words of the system is about, or an empty text."""
    policy = place.policy
    if re.search(NO_ROOM, text) or (place.full and re.search(WORKER_DIED, text)):
        return no_room(text, place)
    if re.search(NO_FILES, text):
        return f"a process may have {policy.limits.open_files} files and connections open (limits.open_files)"
    if re.search(NO_THREADS, text):
        return f"the program may have {policy.limits.processes} processes and threads (limits.processes)"
    if re.search(NO_MEMORY, text):
        return _no_memory(place)
    return ""


def no_room(text: str, place: Circumstances) -> str:
    """Return which directory was full, and the key that gives it more; all of them where that can't be told."""
    files = place.policy.filesystem
    keys = {"/dev/shm": "shm_mib", "/tmp": "tmp_mib", "/app": "app_mib"}  # noqa: S108 - inside the sandbox
    named = re.search(r"'(/dev/shm|/tmp|/app)(?:/[^']{0,200})?'|</(torch)_", text)
    full = [named[1] or "/dev/shm"] if named else [path for path in keys if path in place.full]  # noqa: S108
    shown = ", ".join(
        f"{path} holds {getattr(files, keys[path])} MiB (filesystem.{keys[path]})" for path in full or keys
    )
    return f"{shown}, in memory; every file counts, also an empty one"


def _no_memory(place: Circumstances) -> str:
    """Return how much memory there is, and what counts as memory here."""
    limit = f"the program has {place.policy.limits.memory_mib} MiB (limits.memory_mib)"
    if place.address_space_mib is None:
        return limit
    return (
        f"{limit}, and each of its processes may reserve {place.address_space_mib} MiB, used or not, on this host"
        " without cgroup v2: reserve less, or raise limits.memory_mib"
    )
