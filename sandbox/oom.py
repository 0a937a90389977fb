"""Learn at once when the kernel has killed a process of a sandbox for memory (cgroup v2)."""

from __future__ import annotations

import asyncio
import os
import select
from pathlib import Path

from sandbox.kernel import CGROUP_ROOT, CgroupLimits, parse_events


async def killed_for_memory(limits: CgroupLimits, *, root: Path = CGROUP_ROOT) -> None:
    """Return when the kernel has killed a process of the group, or when the group is gone.

    The kernel kills one process; the rest of the sandbox would go on, or wait for the one that is gone until its time
    is over. Source: Documentation/admin-guide/cgroup-v2.rst: a change of `memory.events` generates a file modified event.
    """
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    try:
        events = os.open(root / limits.path / "memory.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
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
    except OSError:
        return  # the group went away with its last process
    finally:
        os.close(events)
