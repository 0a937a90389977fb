"""Decide a warm container and its cells, from what was decided of a container for one run.

Pure, as `sandbox.container.spec`.
"""

from __future__ import annotations

from dataclasses import replace

from sandbox.container.spec import OWN_PROCESSES, ContainerSpec, cpu_time_s
from sandbox.policy.model import Policy
from sandbox.policy.seccomp import SeccompProfile

# In a warm container there are, besides a run's own processes: the maker of cells, the cell that waits for the next
# run with its program, and one that is on its way into a cell.
MAKER_PROCESSES = 5
# A second /proc with nothing over it: only where one is in full view may a cell have its own.
# Source: mount_too_revealing() in the kernel's fs/namespace.c. crun mounts one at the root only.
WHOLE_PROC = "/.proc"
PROC_JSON = {
    "destination": WHOLE_PROC,
    "type": "proc",
    "source": "proc",
    "options": ["nosuid", "nodev", "noexec", "ro"],
}
# The host's own, in rootless containers; others can be told by their times.
DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))
# What the cells of one container would share.
SHARED = ("/sys/fs/cgroup", "/dev/mqueue", WHOLE_PROC)


def maker_of(container: ContainerSpec) -> ContainerSpec:
    """Return the warm container: it has room for its own processes, and its maker has no limit of processor time."""
    own_processes = container.own_processes + MAKER_PROCESSES
    # The maker writes the maps of its cells' user namespaces, so that its own /proc is not read-only; theirs are.
    mounts = [mount for mount in container.podman["mounts"] if mount["destination"] != "/proc"]
    podman = {**container.podman, "mounts": [*mounts, PROC_JSON]}
    limits = podman.get("resource_limits", {})
    if "pids" in limits:
        podman["resource_limits"] = {**limits, "pids": {"limit": container.processes + own_processes}}
    # Without a cgroup, each cell has cores of its own choice: the next one is made where the run is not.
    return replace(
        container,
        podman=podman,
        own_processes=own_processes,
        nproc=container.nproc + MAKER_PROCESSES,
        cpu_time_s=None,
        cpu_ids=None,
    )


def cell_of(
    maker: ContainerSpec, policy: Policy, seccomp: SeccompProfile, cpu_ids: tuple[int, ...] | None
) -> ContainerSpec:
    """Return one cell of a warm container: held to the program's own filter and counts, and to `cpu_ids` if any."""
    by_cgroup = maker.cap("cpus").mechanism == "cgroup"
    return replace(
        maker,
        seccomp=seccomp,
        own_processes=OWN_PROCESSES,
        nproc=policy.limits.processes + OWN_PROCESSES,
        cpu_time_s=None if by_cgroup else cpu_time_s(policy),
        cpu_ids=None if by_cgroup else cpu_ids,
    )
