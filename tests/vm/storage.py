"""Podman's storage for one user of the machine, filled here: unpacking libraries under emulation takes minutes.

It travels as a disk of its own, with the ids that files have inside a container; `job.sh` gives them those of its user.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.vm.emulator import MachineFailed

SIZE = "4G"  # sparse: what is not written takes no space
TIMEOUT_S = 300
# What is not layers and images says how the Podman here is set up.
WRITE = """
    find "$1" -mindepth 1 -maxdepth 1 ! -name 'overlay*' -exec rm -rf {} + &&
    /sbin/mke2fs -q -t ext4 -E root_owner=0:0 -d "$1" "$2" "$3"
"""


def call(*command: str | Path) -> str:
    """Run a command to its end and return what it printed. Raises `MachineFailed`."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd="/", stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise MachineFailed(f"the machine's images can't be stored: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def write(disk: Path, sources: dict[str, str], scratch: Path) -> None:
    """Write a disk with images: each name with its source, as `podman pull` takes it, such as `dir:/place`."""
    root = scratch / "storage"
    try:
        # Podman takes no longer path than 50 characters for what it runs with.
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="run-", ignore_cleanup_errors=True) as runroot:
            for name, source in sources.items():
                podman = ("podman", "--root", root, "--runroot", runroot)
                found = call(*podman, "pull", "--quiet", source)
                call(*podman, "tag", found, name)
        # In this user's range of ids, whose files these are.
        call("podman", "unshare", "sh", "-c", WRITE, "sh", root, disk, SIZE)
    finally:
        call("podman", "unshare", "rm", "-rf", root)
