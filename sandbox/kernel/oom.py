"""Learn at once when the kernel has killed a process of a sandbox for memory (cgroup v2)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from pathlib import Path

from sandbox.kernel.process import CGROUP_ROOT, CgroupLimits, parse_events


async def killed_for_memory(limits: CgroupLimits, *, root: Path = CGROUP_ROOT) -> None:
    """Return when the kernel has killed a process of the group; never, where it can't be seen.

    The kernel kills one process; the rest of the sandbox would go on, or wait for the one that is gone until its time
    is over. Source: Documentation/admin-guide/cgroup-v2.rst: a change of `memory.events` generates a file modified
    event.
    """
    with contextlib.suppress(OSError):  # the group went away with its last process
        await _wait_for_kill(root / limits.path / "memory.events")
        return
    await asyncio.get_running_loop().create_future()


async def _wait_for_kill(path: Path) -> None:
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    events = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Such a file is always readable, so the loop can't wait for it; an epoll of its own waits for the change alone.
        with select.epoll() as change:
            change.register(events, select.EPOLLPRI)
            loop.add_reader(change.fileno(), changed.set)
            try:
                while not parse_events(os.pread(events, 4096, 0).decode()).get("oom_kill"):
                    await changed.wait()
                    changed.clear()
            finally:
                loop.remove_reader(change.fileno())
    finally:
        os.close(events)
