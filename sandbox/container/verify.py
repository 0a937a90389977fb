"""Read back and compare: the specification against the kernel's account of the started sandbox.

`compare()` is pure; it returns one `ControlEvidence` per control, or raises `NotEnforceable` naming every
difference. No code is handed to a sandbox that has not passed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sandbox.container.kernel_files import MASKED_BY_PODMAN, SYSTEM_DEVICES, TERMINALS
from sandbox.container.spec import EGRESS_DIR, MIB, QUEUED_SIGNALS, ContainerSpec
from sandbox.errors import NotEnforceable
from sandbox.kernel.process import NAMESPACES, Mount, ProcessFacts
from sandbox.models import ControlEvidence

# What Podman and the runtime mount besides what the specification asks for.
RUNTIME_MOUNTS = re.compile(
    r"/(proc|sys|dev)(/.*)?|/etc/(hostname|hosts|resolv\.conf|passwd|group)|/run/\.containerenv|/run/notify"
)
# Mounts that stay writable for the kernel's or the container root's sake; the sandbox's user can't write there:
# /dev and /sys/fs/cgroup belong to container root, a message queue needs RLIMIT_MSGQUEUE (0) and a denied call.
ROOT_OWNED = re.compile(r"/dev(/pts|/mqueue|/console|/ptmx)?|/proc|/sys/fs/cgroup")
DEVICE_NODES = re.compile(r"/dev/(null|zero|full|random|urandom|tty)")
RESERVED_ANNOTATIONS = re.compile(
    r"run\.oci\.|org\.systemd\.|org\.criu|module\.|io\.crun|io\.podman\.annotations\.(checkpoint|label|seccomp|userns)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Everything that was read back. `own_namespaces` are the runner's; `oci` is the runtime's config.json.

    `kernel_files` are those of the masked paths that this kernel has. `project_ids` tells whether the runner's own user
    namespace has any, without which none below it can map one.
    """

    process: ProcessFacts
    own_namespaces: dict[str, str]
    oci: dict[str, Any]
    kernel_files: frozenset[str]
    project_ids: bool = True


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One control compared: `problem` is empty when it holds."""

    evidence: ControlEvidence
    problem: str = ""


def proven(control: str, wanted: str, mechanism: str, evidence: str, *, holds: bool) -> Finding:
    """Return the finding of a control that is either proven or violated."""
    problem = "" if holds else f"{control}: wanted {wanted}, found {evidence}"
    row = ControlEvidence(control=control, wanted=wanted, status="proven", mechanism=mechanism, evidence=evidence)
    return Finding(evidence=row, problem=problem)


def check_user(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """User and group ids, all four of each, and no supplementary group."""
    status = seen.process.status
    uid, gid = spec.host_uid, spec.host_gid
    holds = status["Uid"] == f"{uid} {uid} {uid} {uid}" and status["Gid"] == f"{gid} {gid} {gid} {gid}"
    holds = holds and set(status["Groups"].split()) <= {str(gid)} and spec.place.uid != 0
    mapped = outside_id(spec.place.uid, seen.process.uid_map)
    holds = holds and mapped == uid
    evidence = f"Uid {status['Uid']}; Gid {status['Gid']}; Groups {status['Groups']}; {spec.place.uid} maps to {mapped}"
    yield proven(
        "non-root user", f"uid {spec.place.uid} (host {uid}) and no other", "user namespace", evidence, holds=holds
    )


def outside_id(inside: int, uid_map: tuple[tuple[int, int, int], ...]) -> int | None:
    """Return the host's id for an id of the sandbox, by /proc/PID/uid_map as the host reads it; None if unmapped."""
    for first, outside, count in uid_map:
        if first <= inside < first + count:
            return outside + inside - first
    return None


def check_namespaces(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """Every namespace differs from the runner's own, and the process is the first of its pid namespace."""
    del spec
    shared = [name for name in NAMESPACES if seen.process.namespaces[name] == seen.own_namespaces[name]]
    first = seen.process.status["NSpid"].split()[-1] == "1"
    evidence = (
        f"shared with the host: {', '.join(shared) or 'none'}; process {1 if first else 'other'} of its pid namespace"
    )
    yield proven("namespaces", f"own {', '.join(NAMESPACES)}", "namespaces", evidence, holds=not shared and first)


def check_project_ids(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """Nobody can write the map of project ids: the kernel takes it once, from anyone, for all this user's sandboxes."""
    del spec
    written = bool(seen.process.projid_map.strip())
    proc = [mount for mount in seen.process.mounts if mount.kind == "proc" and mount.root == "/"]
    closed = bool(proc) and all(mount.read_only for mount in proc)
    evidence = f"/proc is {'read-only' if closed else 'writable'}, the map is {'written' if written else 'empty'}"
    yield proven(
        "project ids",
        "a map that nobody can write",
        "read-only /proc" if closed else "user namespace",
        evidence,
        holds=closed or written or not seen.project_ids,
    )


def check_network(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """A network namespace with the loopback interface alone; the way out, where there is one, is a mounted socket."""
    own = seen.process.namespaces["net"] != seen.own_namespaces["net"]
    evidence = f"interfaces: {', '.join(seen.process.interfaces) or 'none'}"
    holds = own and set(seen.process.interfaces) <= {"lo"}
    yield proven("no network", "loopback only", "network namespace", evidence, holds=holds)
    if spec.place.egress_dir is not None:
        mounted = [mount for mount in seen.process.mounts if mount.point == EGRESS_DIR and mount.read_only]
        evidence = f"its socket is mounted at {EGRESS_DIR}" if mounted else "its socket is not mounted"
        # What the proxy lets through is the runner's own doing: the kernel can't vouch for it.
        yield proven("egress", "no way out but the proxy's socket", "read-only mount", evidence, holds=bool(mounted))


def check_capabilities(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """No capability in any set, and no way to gain one."""
    del spec
    status = seen.process.status
    sets = {name: status.get(name, "?") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    evidence = "; ".join(f"{name} {value}" for name, value in sets.items())
    holds = all(value != "?" and int(value, 16) == 0 for value in sets.values())
    yield proven("no capabilities", "all five sets empty", "capabilities", evidence, holds=holds)
    nnp = status.get("NoNewPrivs", "?")
    yield proven("no new privileges", "1", "prctl", f"NoNewPrivs {nnp}", holds=nnp == "1")


def check_filter(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """The seccomp filter is on, and its rules are the profile's."""
    status = seen.process.status
    filters = int(status.get("Seccomp_filters", "1"))
    changed = differences(spec.seccomp.document, seen.oci.get("linux", {}).get("seccomp") or {})
    rules = "; ".join(changed[:5]) or "the runtime's rules equal the profile's"
    evidence = f"Seccomp {status.get('Seccomp')}, {filters} filter(s), {rules}"
    yield proven(
        "seccomp",
        f"profile {spec.seccomp.name} {spec.seccomp.sha256[:12]}",
        "seccomp filter",
        evidence,
        holds=status.get("Seccomp") == "2" and filters >= 1 and not changed,
    )


def rules_of(profile: dict[str, Any]) -> dict[str, Any]:
    """Return a seccomp profile, ours or the runtime's, in a form in which equal profiles compare equal."""
    rules = {
        (name, rule.get("action"), rule.get("errnoRet"), conditions_of(rule))
        for rule in profile.get("syscalls") or ()
        for name in rule.get("names") or ()
    }
    rest = {key: value for key, value in profile.items() if key != "syscalls" and value}
    return {**rest, "syscalls": frozenset(rules)}


def conditions_of(rule: dict[str, Any]) -> frozenset[tuple[Any, ...]]:
    """Return the conditions of one seccomp rule."""
    return frozenset((a["index"], a["op"], a["value"], a.get("valueTwo") or 0) for a in rule.get("args") or ())


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return how the runtime's seccomp section differs from the profile; empty when it doesn't."""
    ours, theirs = rules_of(wanted), rules_of(found)
    changed = [key for key in sorted(set(ours) | set(theirs)) if key != "syscalls" and ours.get(key) != theirs.get(key)]
    names = {rule[0] for rule in ours["syscalls"] ^ theirs["syscalls"]}
    return [f"{key} differs" for key in changed] + [f"rule for {name} differs" for name in sorted(names)]


def check_mounts(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """Read-only root, exactly the expected mounts, and nothing writable but the sized tmpfs."""
    mounts = {mount.point: mount for mount in seen.process.mounts}
    root = mounts["/"]
    yield proven("read-only root", "ro", "mount", ",".join(sorted(root.options)), holds=root.read_only)
    sized = {mount.destination: mount for mount in spec.tmpfs}
    bound = {bind.destination for bind in spec.binds}
    bound |= {mount["destination"] for mount in spec.podman["mounts"] if "ro" in mount["options"]}
    unexpected = [
        point for point in mounts if point not in {"/", *bound, *sized} and not RUNTIME_MOUNTS.fullmatch(point)
    ]
    writable = [mount.point for mount in mounts.values() if mount.point not in sized and may_write(mount)]
    exposed = [point for point in sorted(bound) if point not in mounts or not mounts[point].read_only]
    found = [f"unexpected: {', '.join(unexpected)}"] if unexpected else []
    found += [f"writable: {', '.join(writable)}"] if writable else []
    found += [f"missing or writable: {', '.join(exposed)}"] if exposed else []
    yield proven(
        "mounts",
        "only those asked for, read-only",
        "mount",
        "; ".join(found) or f"{len(mounts)} mounts, all expected",
        holds=not found,
    )
    for destination, wanted in sized.items():
        yield check_tmpfs(destination, wanted.size_mib, executable=wanted.executable, mount=mounts.get(destination))


def check_tmpfs(destination: str, size_mib: int, *, executable: bool, mount: Mount | None) -> Finding:
    """Return the finding for one writable place."""
    flags = {"nosuid", "nodev"} | (set() if executable else {"noexec"})
    wanted = f"tmpfs of {size_mib} MiB, {','.join(sorted(flags))}"
    if mount is None:
        return proven(f"tmpfs {destination}", wanted, "mount", "not mounted", holds=False)
    size = mount.size_bytes
    evidence = (
        f"{mount.kind}, {'unlimited' if size is None else f'{size / MIB:g} MiB'}, {','.join(sorted(mount.options))}"
    )
    holds = mount.kind == "tmpfs" and size is not None and size <= size_mib * MIB and flags <= mount.options
    return proven(f"tmpfs {destination}", wanted, "mount", evidence, holds=holds)


def may_write(mount: Mount) -> bool:
    """Tell whether the sandbox's user might write through a mount that is not one of its own."""
    if mount.read_only or ROOT_OWNED.fullmatch(mount.point):
        return False
    if DEVICE_NODES.fullmatch(mount.point):
        return False
    # A masked file is a bind mount of /dev/null: writes go nowhere.
    return not (mount.root == "/null" and mount.point.startswith(("/proc/", "/sys/")))


def check_masks(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """Kernel files that tell of the host are covered: this kernel's by mounts, all others in the configuration."""
    asked = set(seen.oci.get("linux", {}).get("maskedPaths") or ())
    wanted = {*MASKED_BY_PODMAN, *spec.podman["mask"]}
    covered = {mount.point for mount in seen.process.mounts if is_mask(mount)}
    bare = sorted((wanted - asked) | (wanted & seen.kernel_files - covered))
    # Of /sys nothing is there but what was asked for; cgroup version 1 shows every group of the host.
    bare += sorted(
        mount.point
        for mount in seen.process.mounts
        if mount.kind in ("sysfs", "cgroup") and mount.point != SYSTEM_DEVICES
    )
    evidence = (
        f"not masked: {', '.join(bare)}"
        if bare
        else f"{len(wanted & covered)} paths masked, /sys has processors and memory nodes"
    )
    yield proven("masked kernel files", f"{len(wanted)} paths, and /sys", "mount", evidence, holds=not bare)


def is_mask(mount: Mount) -> bool:
    """Tell whether a mount hides a kernel file: by /dev/null, a tmpfs or an empty directory, never its like."""
    return mount.kind not in ("proc", "sysfs")


def check_terminals(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """Pseudo-terminals of its own, and few: all containers of the machine take theirs from one number."""
    del spec
    bounds = [mount.number("max") for mount in seen.process.mounts if mount.kind == "devpts"]
    holds = bool(bounds) and all(bound is not None and bound <= TERMINALS for bound in bounds)
    evidence = f"a devpts with at most {', '.join(map(str, bounds))}" if bounds else "no devpts"
    yield proven("pseudo-terminals", f"{TERMINALS} at most", "mount", evidence, holds=holds)


def check_rlimits(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """Open files, core dumps, message queues, queued signals."""
    limits = seen.process.limits
    files, core, queue, signals = (
        limits.get(name, "?")
        for name in ("Max open files", "Max core file size", "Max msgqueue size", "Max pending signals")
    )
    rows = (
        ("open files", str(spec.open_files), f"RLIMIT_NOFILE {files}", [files] == twice(spec.open_files)),
        ("core dumps", "none", f"RLIMIT_CORE {core}, RLIMIT_MSGQUEUE {queue}", [core, queue] == twice(0, 0)),
        ("queued signals", str(QUEUED_SIGNALS), f"RLIMIT_SIGPENDING {signals}", [signals] == twice(QUEUED_SIGNALS)),
    )
    for control, wanted, evidence, holds in rows:
        yield proven(control, wanted, "rlimit", evidence, holds=holds)


def twice(*limits: int) -> list[str]:
    """Return limits as the kernel writes those whose soft and hard value are the same."""
    return [f"{limit} {limit}" for limit in limits]


def check_launch(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """What the runtime was told to start: our command and environment, no hook, no reserved annotation."""
    process = seen.oci.get("process", {})
    allowed = {f"{name}={value}" for name, value in spec.podman["env"].items()}
    allowed |= {f"HOSTNAME={spec.podman['hostname']}", "container=podman", "TERM=xterm"}
    extra = sorted(entry.partition("=")[0] for entry in set(process.get("env") or ()) - allowed)
    # Podman 5 repeats our own stop signal as a property of the scope: that name with that value, and no other.
    ours = ("org.systemd.property.KillSignal", str(spec.podman["stop_signal"]))
    reserved = sorted(
        name
        for name, value in (seen.oci.get("annotations") or {}).items()
        if RESERVED_ANNOTATIONS.match(name) and (name, value) != ours
    )
    found = [f"extra variables: {', '.join(extra)}"] if extra else []
    found += [f"annotations: {', '.join(reserved)}"] if reserved else []
    found += ["hooks"] if any((seen.oci.get("hooks") or {}).values()) else []
    found += ["another command"] if list(process.get("args") or ()) != spec.podman["command"] else []
    yield proven(
        "launch", "our command and environment", "OCI config", "; ".join(found) or "as asked, no hooks", holds=not found
    )


def check_caps(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """Memory, CPUs and processes, each by the mechanism that was decided."""
    for cap in spec.caps:
        if cap.mechanism == "cgroup":
            evidence, holds = cgroup_evidence(spec, seen, cap.control)
            yield proven(cap.control, cap.wanted, "cgroup", evidence, holds=holds)
            continue
        evidence, holds = fallback_evidence(spec, seen, cap.control)
        row = ControlEvidence(
            control=cap.control,
            wanted=cap.wanted,
            status="fallback",
            mechanism=cap.mechanism,
            evidence=f"{evidence}; {cap.why}",
        )
        yield Finding(evidence=row, problem="" if holds else f"{cap.control}: wanted {cap.wanted}, found {evidence}")


# Linux took the accounting of locks back in 5.15: see sandbox/kernel/memory.py.
LEFT_OUT = "locks of files, which it leaves out, are counted by a watchdog"


def cgroup_evidence(spec: ContainerSpec, seen: Observed, control: str) -> tuple[str, bool]:
    """Return what cgroup v2 says of one control, and whether it is at least as tight as asked."""
    group = seen.process.cgroup
    if group is None:
        return "no cgroup v2 group", False
    if control == "memory":
        holds = group.memory_bytes is not None and group.memory_bytes <= spec.memory_bytes and group.swap_bytes == 0
        return f"memory.max {group.memory_bytes}, memory.swap.max {group.swap_bytes}; {LEFT_OUT}", holds
    if control == "cpus":
        return f"cpu.max {group.cpus} CPUs", group.cpus is not None and group.cpus <= spec.cpus + 1e-6
    return (
        f"pids.max {group.processes}",
        group.processes is not None and group.processes <= spec.processes + spec.own_processes,
    )


def fallback_evidence(spec: ContainerSpec, seen: Observed, control: str) -> tuple[str, bool]:
    """Return what the kernel says of the weaker mechanism for one control, and whether it is as decided."""
    limits = seen.process.limits
    if control == "memory":
        space = limits.get("Max address space", "?")
        return (
            f"RLIMIT_AS {space}, watchdog on used memory",
            space == f"{spec.address_space_bytes} {spec.address_space_bytes}",
        )
    if control == "cpus":
        cores, cpu = seen.process.status["Cpus_allowed_list"], limits.get("Max cpu time", "?")
        # None for the maker of cells, which makes one after the other; each cell has the limit.
        timed = spec.cpu_time_s is None or cpu == f"{spec.cpu_time_s} {spec.cpu_time_s + 1}"
        holds = (spec.cpu_ids is None or parse_cpu_list(cores) == set(spec.cpu_ids)) and timed
        return f"affinity to core(s) {cores}, RLIMIT_CPU {cpu} s per process", holds
    wanted = spec.processes + spec.own_processes
    found = limits.get("Max processes", "?")
    return f"RLIMIT_NPROC {found} for a user id of its own", found == f"{wanted} {wanted}"


def parse_cpu_list(text: str) -> set[int]:
    """Return the numbers in a list such as `0-2,5`."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


CHECKS: tuple[Callable[[ContainerSpec, Observed], Iterator[Finding]], ...] = (
    check_user, check_namespaces, check_project_ids, check_network, check_capabilities, check_filter, check_mounts,
    check_masks, check_terminals, check_rlimits, check_launch, check_caps,
)  # fmt: skip # a table


def compare(spec: ContainerSpec, seen: Observed) -> tuple[ControlEvidence, ...]:
    """Return the evidence for every control. Raises `NotEnforceable` naming each one that doesn't hold."""
    return concluded(finding for check in CHECKS for finding in check(spec, seen))


def concluded(found: Iterable[Finding]) -> tuple[ControlEvidence, ...]:
    """Return the evidence of findings. Raises `NotEnforceable` naming each one that has a problem."""
    findings = tuple(found)
    problems = [finding.problem for finding in findings if finding.problem]
    if problems:
        raise NotEnforceable(
            f"the started sandbox differs from its specification: {'; '.join(problems)}",
            hint="no code was handed over; run `sandbox doctor`, and report this with its output",
            controls=[finding.evidence.control for finding in findings if finding.problem],
        )
    return tuple(finding.evidence for finding in findings)
