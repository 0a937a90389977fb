"""What a sandbox sees of the kernel's own files: in containers and in cells, decided in this one place. Pure.

/proc is read-only and has the masks below; a test walks the rest. Of /sys a sandbox has what numeric libraries read and
nothing else, so that a newer kernel can add nothing to it. Pseudo-terminals are its own, and few.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# What Podman masks by itself; verification asks for it all the same.
MASKED_BY_PODMAN = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
                    "/proc/timer_list", "/proc/timer_stats")  # fmt: skip # a table
# What tells of the host's hardware, disks, drivers and users, or whose reading or writing makes the kernel work. A
# kernel that lacks one has nothing to cover. Each one costs a mount in every sandbox.
MASKS = (
    # directories
    "/proc/asound", "/proc/bus", "/proc/driver", "/proc/dynamic_debug", "/proc/fs", "/proc/irq", "/proc/pressure",
    "/proc/tty", "/proc/xen",
    # files
    "/proc/bootconfig", "/proc/cmdline", "/proc/config.gz", "/proc/consoles", "/proc/crypto", "/proc/devices",
    "/proc/diskstats", "/proc/dma", "/proc/fb", "/proc/interrupts", "/proc/iomem", "/proc/ioports", "/proc/kallsyms",
    "/proc/key-users", "/proc/mdstat", "/proc/misc", "/proc/modules", "/proc/mtrr", "/proc/partitions", "/proc/swaps",
    "/proc/sys/dev/cdrom/info", "/proc/sys/kernel/random/boot_id", "/proc/version_signature",
)  # fmt: skip # a table

# A run can make so many pseudo-terminals; the machine has 3,072 for all containers. Source: kernel.pty.max, devpts's
# `max`.
TERMINALS = 16
# The one part of /sys that programs read: processors, caches and memory nodes, by numpy, OpenBLAS, torch, onnxruntime,
# psutil.
SYSTEM_DEVICES = "/sys/devices/system"

_READ_ONLY = ("ro", "nosuid", "nodev", "noexec")


def mounts(cgroup_version: int) -> Iterator[dict[str, Any]]:
    """Yield the mounts for Podman's spec; they take the places of its own at the same points."""
    # Not /proc/self either: what a process may write there of itself reaches the user namespace that all sandboxes of a
    # user share (projid_map), the host's audit (loginuid), and nothing that a program needs.
    yield _mount("/proc", "proc", *_READ_ONLY)
    yield _mount("/dev/pts", "devpts", "nosuid", "noexec", *terminal_options())
    yield _mount("/sys", "tmpfs", *_READ_ONLY, "size=64k", "mode=0555", "notmpcopyup")
    yield {**_mount(SYSTEM_DEVICES, "bind", *_READ_ONLY, "bind", "rprivate"), "source": SYSTEM_DEVICES}
    if cgroup_version != 2:  # version 1 shows every group of the host, whatever the namespace
        yield _mount("/sys/fs/cgroup", "tmpfs", *_READ_ONLY, "size=4k", "mode=0555", "notmpcopyup")


def terminal_options() -> tuple[str, ...]:
    """Return the options of a devpts of a sandbox's own."""
    return ("newinstance", "ptmxmode=0666", "mode=0600", f"max={TERMINALS}")


def _mount(destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}
