"""Decide: `(policy, image, host facts, place) -> ContainerSpec`. Pure: no I/O, no clock, no randomness.

The specification carries the JSON that Podman is sent *and* what the kernel must say afterwards, so
that `sandbox.container.verify` compares with the same object that was applied.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sandbox.container import kernel_files
from sandbox.errors import NotEnforceable
from sandbox.host.facts import HostFacts
from sandbox.policy.model import Policy
from sandbox.policy.seccomp import SeccompProfile

MIB = 1024 * 1024
RUN_LABEL = "podman-sandbox-runner.run"
OWNER_LABEL = "podman-sandbox-runner.owner"
LIB_DIR = "/run/sandbox/lib"
JOB_DIR = "/run/sandbox/job"
JOB_SOCKET = f"{JOB_DIR}/job.sock"
EGRESS_DIR = "/run/sandbox/out"
EGRESS_SOCKET = f"{EGRESS_DIR}/out.sock"
EGRESS_PORT = 3128
CERTIFICATES = "/run/sandbox/certificates.pem"
PLACE_LABEL = "podman-sandbox-runner.place"
HOSTNAME = "sandbox"
# An image need not name its own host, nor have the file at all.
HOSTS_FILE = "hosts"
HOSTS = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.0.1 {HOSTNAME}\n"

# Container user ids handed out to live sandboxes, one each. Above every id that images use for real users.
UID_FIRST = 20_000
UID_LAST = 60_000

# The harness is process 1 and counts against the same limits as the program's processes; so does its relay.
OWN_PROCESSES = 1
RELAY_PROCESSES = 1
# Signals that wait, and timers, take memory of the kernel, and count against the user who runs all sandboxes.
QUEUED_SIGNALS = 256
# Address space is not memory: thread stacks and allocator arenas are reserved, hardly used. The watchdog counts
# what is used; this bound stops one process from mapping without end.
ADDRESS_SPACE_HEADROOM_MIB = 2_048
# The container's own end, should the runner die before it: conmon kills it this long after the policy's timeout.
ORPHAN_GRACE_S = 45

# Numeric libraries size their thread pools by the host's cores unless told otherwise.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
                    "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "NUMBA_NUM_THREADS",
                    "RAYON_NUM_THREADS")  # fmt: skip # a table

# Not isolated (-I): children of the program would inherit that, and would not find an environment's libraries. What -I
# keeps out is not there: no variable of Python's is set but by us, and the first place on the path, for -c the current
# directory, gives way to ours.
BOOTSTRAP = f"import sys;sys.path[0]={LIB_DIR!r};import harness;harness.main({JOB_SOCKET!r})"


@dataclass(frozen=True, kw_only=True)
class Bind:
    """A file or directory of the host that the sandbox sees read-only."""

    source: Path
    destination: str
    executable: bool = False


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one sandbox lives: the lease of a container user id, its host directories, and the filter's file.

    `egress_dir` is where the egress proxy's socket lies; None for a sandbox without a way out.
    """

    sandbox_id: str
    uid: int
    job_dir: Path
    lib_dir: Path
    seccomp_path: Path
    egress_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Cap:
    """How one capped resource is held: by cgroup v2, or by the fallback that the policy allows.

    `wanted` is for people; `why` says why the fallback is used ("" when the kernel's cgroups hold it).
    """

    control: Literal["memory", "cpus", "processes"]
    mechanism: Literal["cgroup", "rlimit+watchdog", "affinity+rlimit", "rlimit"]
    wanted: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Tmpfs:
    """One writable place: a tmpfs with a hard size."""

    destination: str
    size_mib: int
    executable: bool


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """One sandbox, decided.

    `podman` is the body for Podman's create call. `nproc` (RLIMIT_NPROC), `address_space_bytes`, `cpu_time_s` and
    `cpu_ids` are applied to process 1 from outside before any code is handed over (None: not needed).
    """

    podman: dict[str, Any]
    host_uid: int
    host_gid: int
    place: Place
    binds: tuple[Bind, ...]
    own_processes: int
    caps: tuple[Cap, ...]
    tmpfs: tuple[Tmpfs, ...]
    seccomp: SeccompProfile
    memory_bytes: int
    processes: int
    cpus: float
    open_files: int
    nproc: int
    address_space_bytes: int | None
    cpu_time_s: int | None
    cpu_ids: tuple[int, ...] | None

    @property
    def hash(self) -> str:
        """Return a digest of everything that Podman is told, for comparing two specifications."""
        return "sha256:" + hashlib.sha256(json.dumps(self.podman, sort_keys=True).encode()).hexdigest()

    def cap(self, control: str) -> Cap:
        """Return the plan for one capped resource."""
        return next(cap for cap in self.caps if cap.control == control)


CGROUP_V1_FIX = (
    "as root: sed -i 's/^GRUB_CMDLINE_LINUX=\"/&systemd.unified_cgroup_hierarchy=1 /' /etc/default/grub && update-grub"
    ' && reboot, for a cgroup v2 host; or choose a policy with on_unenforceable = "fallback", such as `default`'
)
# Restarting the user's own systemd is what applies it; a new login alone doesn't where the session lingers.
DELEGATION_FIX = (
    "as root (it restarts all services of this user): mkdir -p /etc/systemd/system/user@.service.d && printf"
    " '[Service]\\nDelegate=cpu cpuset io memory pids\\n' > /etc/systemd/system/user@.service.d/delegate.conf &&"
    " systemctl daemon-reload && systemctl restart user@{uid}.service"
)


def cgroup_fix(facts: HostFacts) -> str:
    """Return the command that lets this user's sandboxes be held by cgroups."""
    return CGROUP_V1_FIX if facts.engine.cgroup_version != 2 else DELEGATION_FIX.format(uid=facts.uid)


FALLBACKS: dict[str, Literal["rlimit+watchdog", "affinity+rlimit", "rlimit"]] = {
    "memory": "rlimit+watchdog",
    "cpus": "affinity+rlimit",
    "processes": "rlimit",
}
CONTROLLERS = {"memory": "memory", "cpus": "cpu", "processes": "pids"}


def why_no_cgroup(facts: HostFacts, control: str) -> str:
    """Return why cgroups can't hold `control` on this host, or "" when they can."""
    if facts.engine.cgroup_version != 2:
        return "this host uses cgroup v1, where rootless Podman ignores resource limits"
    if CONTROLLERS[control] not in facts.controllers:
        return f"the cgroup v2 controller {CONTROLLERS[control]!r} is not delegated to this user"
    return ""


def plan_caps(policy: Policy, facts: HostFacts) -> tuple[Cap, ...]:
    """Decide how memory, CPUs and processes are held.

    Raises `NotEnforceable`, naming every control that this host can't hold, when the policy refuses fallbacks.
    """
    limits = policy.limits
    wanted = {
        "memory": f"{limits.memory_mib} MiB",
        "cpus": f"{limits.cpus:g} CPUs",
        "processes": f"{limits.processes} processes",
    }
    reasons = {control: why_no_cgroup(facts, control) for control in wanted}
    missing = [control for control, why in reasons.items() if why]
    if missing and policy.enforcement.on_unenforceable == "refuse":
        named = ", ".join(
            {"memory": "memory", "cpus": "CPUs", "processes": "processes"}[control] for control in missing
        )
        raise NotEnforceable(
            f"policy {policy.name!r} caps {named} by cgroup v2, and {reasons[missing[0]]}",
            hint=cgroup_fix(facts),
            controls=missing,
            cgroup_version=facts.engine.cgroup_version,
        )
    caps = []
    for control, text in wanted.items():
        mechanism = FALLBACKS[control] if reasons[control] else "cgroup"
        caps.append(Cap(control=control, mechanism=mechanism, wanted=text, why=reasons[control]))  # type: ignore[arg-type]  # keys of `wanted`
    return tuple(caps)


PLACES_WRITABLE = ("/app", "/tmp", "/dev/shm")  # noqa: S108 - inside the sandbox


def tmpfs_mounts(policy: Policy) -> tuple[Tmpfs, ...]:
    """Return the sandbox's only writable places."""
    files = policy.filesystem
    app, tmp, shm = PLACES_WRITABLE
    return (
        Tmpfs(destination=app, size_mib=files.app_mib, executable=files.exec),
        Tmpfs(destination=tmp, size_mib=files.tmp_mib, executable=False),
        Tmpfs(destination=shm, size_mib=files.shm_mib, executable=False),
    )


def environment(policy: Policy, python_path: str) -> dict[str, str]:
    """Return the whole environment of process 1; nothing of the image or the host is added."""
    directory = str(Path(python_path).parent)
    path = [directory, *(d for d in ("/usr/local/bin", "/usr/bin", "/bin") if d != directory)]
    threads = str(max(1, math.ceil(policy.limits.cpus)))
    return {
        "PATH": ":".join(path),
        "HOME": "/app",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108 - inside the sandbox
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(THREAD_VARIABLES, threads),
    }


def resource_limits(policy: Policy, caps: tuple[Cap, ...], own_processes: int) -> dict[str, Any]:
    """Return the cgroup part of Podman's spec, for those controls only that cgroups hold."""
    by_cgroup = {cap.control for cap in caps if cap.mechanism == "cgroup"}
    limits: dict[str, Any] = {}
    if "memory" in by_cgroup:
        memory_bytes = policy.limits.memory_mib * MIB
        limits["memory"] = {"limit": memory_bytes, "swap": memory_bytes}  # equal: no swap at all
    if "cpus" in by_cgroup:
        limits["cpu"] = {"period": 100_000, "quota": round(policy.limits.cpus * 100_000)}
    if "processes" in by_cgroup:
        limits["pids"] = {"limit": policy.limits.processes + own_processes}
    return limits


def r_limits(open_files: int) -> list[dict[str, Any]]:
    """Return the limits that each process has by itself."""
    found = {"nofile": open_files, "core": 0, "memlock": 0, "msgqueue": 0, "sigpending": QUEUED_SIGNALS}
    return [{"type": kind, "soft": limit, "hard": limit} for kind, limit in found.items()]


def mount_json(mount: Tmpfs) -> dict[str, Any]:
    """Return one tmpfs for Podman's spec.

    `U` gives it to the sandbox's own user: runc gives a tmpfs the mode of the image's directory of that name, whatever
    `mode=` says, so a world-writable mode can't be relied upon.
    """
    options = [
        "rw",
        "nosuid",
        "nodev",
        "exec" if mount.executable else "noexec",
        f"size={mount.size_mib}m",
        "mode=0700",
        "U",
        "notmpcopyup",
    ]
    return {"destination": mount.destination, "type": "tmpfs", "source": "tmpfs", "options": options}


def bind_json(bind: Bind) -> dict[str, Any]:
    """Return one read-only bind mount for Podman's spec."""
    options = ["ro", "nosuid", "nodev", "exec" if bind.executable else "noexec", "bind", "rprivate"]
    return {"destination": bind.destination, "type": "bind", "source": str(bind.source), "options": options}


def binds_of(place: Place) -> tuple[Bind, ...]:
    """Return what every sandbox sees of the host: harness, names, job channel, perhaps the proxy's socket."""
    binds = (
        Bind(source=place.lib_dir, destination=LIB_DIR),
        Bind(source=place.lib_dir / HOSTS_FILE, destination="/etc/hosts"),
        Bind(source=place.job_dir, destination=JOB_DIR),
    )
    return binds if place.egress_dir is None else (*binds, Bind(source=place.egress_dir, destination=EGRESS_DIR))


# What Podman is told for every sandbox, whatever the policy: nothing of the image or the host decides these.
BASELINE: dict[str, Any] = {
    "entrypoint": [], "work_dir": "/", "hostname": HOSTNAME,
    "unsetenvall": True, "env_host": False, "httpproxy": False,
    "terminal": False, "stdin": False,
    "privileged": False, "cap_drop": ["all"], "no_new_privileges": True,
    "read_only_filesystem": True, "image_volume_mode": "ignore",
    "netns": {"nsmode": "none"}, "ipcns": {"nsmode": "private"}, "pidns": {"nsmode": "private"},
    "utsns": {"nsmode": "private"}, "cgroupns": {"nsmode": "private"},
    "mask": list(kernel_files.MASKS),
    "log_configuration": {"driver": "none"},
    "use_image_hosts": True, "use_image_resolve_conf": True,
    "systemd": "false", "sdnotifyMode": "ignore", "init": False,
    "restart_policy": "no", "stop_timeout": 0, "stop_signal": 9,
    "remove": True,
    # An image's own health check would be run by Podman inside the sandbox.
    "healthconfig": {"Test": ["NONE"]},
}  # fmt: skip # a table


def place_id(job_dir: Path) -> str:
    """Return a name for the directory of all workspaces that `job_dir` (`RUNS/UID/job`) belongs to."""
    return runs_id(job_dir.parent.parent)


def runs_id(runs: Path) -> str:
    """Return a short name for one directory of workspaces: two of them may share one container storage."""
    return hashlib.sha256(str(runs).encode()).hexdigest()[:16]


def spread(cpu_ids: tuple[int, ...], cpus: float, uid: int) -> tuple[int, ...]:
    """Choose ceil(cpus) cores, different ones for neighbouring sandboxes."""
    count = min(len(cpu_ids), math.ceil(cpus))
    return tuple(sorted(cpu_ids[(uid + i) % len(cpu_ids)] for i in range(count)))


def build(
    policy: Policy,
    *,
    image_id: str,
    python_path: str,
    facts: HostFacts,
    seccomp: SeccompProfile,
    place: Place,
    binds: tuple[Bind, ...] = (),
    idle_s: float = 0.0,
) -> ContainerSpec:
    """Decide one sandbox, which sees `binds` and may wait `idle_s` for its job. Raises `NotEnforceable`."""
    caps = plan_caps(policy, facts)
    limits = policy.limits
    mechanisms = {cap.control: cap.mechanism for cap in caps}
    # Behind a cgroup the rlimit stands one higher: the kernel asks it first, and only a fork that pids.max itself
    # refuses is counted in pids.events, from which the runner learns that the program asked for too many.
    own_processes = OWN_PROCESSES + (RELAY_PROCESSES if place.egress_dir is not None else 0)
    nproc = limits.processes + own_processes + (mechanisms["processes"] == "cgroup")
    tmpfs = tmpfs_mounts(policy)
    binds = (*binds_of(place), *binds)
    podman = {
        **BASELINE,
        "image": image_id,
        "name": f"sandbox-{place.sandbox_id}",
        "command": [python_path, "-s", "-B", "-c", BOOTSTRAP],
        "env": environment(policy, python_path),
        "user": f"{place.uid}:{place.uid}",
        "seccomp_profile_path": str(place.seccomp_path),
        "mounts": [*map(mount_json, tmpfs), *kernel_files.mounts(facts.engine.cgroup_version), *map(bind_json, binds)],
        "r_limits": r_limits(limits.open_files),
        "timeout": math.ceil(idle_s + limits.timeout_s) + ORPHAN_GRACE_S,
        "labels": {RUN_LABEL: place.sandbox_id, OWNER_LABEL: str(place.uid), PLACE_LABEL: place_id(place.job_dir)},
    }
    if cgroup := resource_limits(policy, caps, own_processes):
        podman["resource_limits"] = cgroup
    memory_bytes = limits.memory_mib * MIB
    return ContainerSpec(
        podman=podman,
        host_uid=facts.subuid_start + place.uid - 1,
        host_gid=facts.subgid_start + place.uid - 1,
        place=place,
        binds=binds,
        own_processes=own_processes,
        caps=caps,
        tmpfs=tmpfs,
        seccomp=seccomp,
        memory_bytes=memory_bytes,
        processes=limits.processes,
        cpus=limits.cpus,
        open_files=limits.open_files,
        nproc=nproc,
        address_space_bytes=(
            None if mechanisms["memory"] == "cgroup" else memory_bytes + ADDRESS_SPACE_HEADROOM_MIB * MIB
        ),
        cpu_time_s=None if mechanisms["cpus"] == "cgroup" else cpu_time_s(policy),
        cpu_ids=None if mechanisms["cpus"] == "cgroup" else spread(facts.cpu_ids, limits.cpus, place.uid),
    )


def cpu_time_s(policy: Policy) -> int:
    """Return the processor time that one process may use, where no cgroup holds the CPU cap."""
    return math.ceil(policy.limits.timeout_s * policy.limits.cpus) + 1
