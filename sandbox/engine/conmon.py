"""Podman's monitor of one container, conmon, where it outlives its container.

When Podman dies between creating a container and starting it, removing the container forgets its processes: conmon, and
the runtime that waits in it for the word to begin. No program runs in it, but it would wait for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from sandbox.kernel.family import family


def monitors(container_id: str) -> list[int]:
    """Return the conmon processes of a container (its whole id)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if Path(os.fsdecode(words[0])).name == "conmon" and container_id.encode() in words:
                    found.append(int(entry.name))
    return found


def kill_left_over(container_id: str) -> None:
    """Kill what is left of a container that was removed: its conmon, and first whatever that has started."""
    while left := [pid for monitor in monitors(container_id) for pid in reversed(family(monitor))]:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except PermissionError:
                return
