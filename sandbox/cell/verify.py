"""Read back and compare one cell: what the kernel says of its process 1, beside what was proven of its warm container.

As in `sandbox.container.verify`, no message is handed to a cell that has not passed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sandbox.cell.spec import SHARED
from sandbox.container.isolation_row import CONTROL, WANTED
from sandbox.container.spec import ContainerSpec
from sandbox.container.verify import (
    Finding,
    Observed,
    cgroup_evidence,
    check_capabilities,
    check_mounts,
    check_network,
    check_rlimits,
    check_terminals,
    check_user,
    concluded,
    fallback_evidence,
    is_mask,
    proven,
)
from sandbox.kernel.process import NAMESPACES, Mount, ProcessFacts
from sandbox.models import ControlEvidence

# What was proven of the container once and can't have changed: its command, and what of the kernel's files is masked in
# it.
OF_THE_CONTAINER = ("launch", "masked kernel files", "project ids")


@dataclass(frozen=True, kw_only=True)
class MakerFacts:
    """The warm container that a cell is in: what was read back of its process 1, and what it proved."""

    process: ProcessFacts
    evidence: tuple[ControlEvidence, ...]


def check_isolation(spec: ContainerSpec, seen: Observed, maker: MakerFacts) -> Iterator[Finding]:
    """Each namespace of the cell's own, none the container's, and process 1 one level below it."""
    del spec
    ours, theirs = seen.process, maker.process
    # A process stays in the cgroup namespace of the container: a new one would show no more and no less.
    own = [name for name in NAMESPACES if name != "cgroup"]
    shared = [name for name in own if ours.namespaces[name] in (theirs.namespaces[name], seen.own_namespaces[name])]
    numbers, above = ours.status["NSpid"].split(), theirs.status["NSpid"].split()
    first = len(numbers) == len(above) + 1 and numbers[-1] == "1"
    evidence = f"shared: {', '.join(shared) or 'none'}; process {numbers[-1]} of a pid namespace in the container's"
    yield proven(CONTROL, WANTED["cell"], f"own {', '.join(own)} namespaces", evidence, holds=not shared and first)


def check_filter(spec: ContainerSpec, seen: Observed, maker: MakerFacts) -> Iterator[Finding]:
    """The program's own filter on top of the container's."""
    status, above = seen.process.status, maker.process.status
    filters, before = int(status.get("Seccomp_filters", "0")), int(above.get("Seccomp_filters", "0"))
    evidence = f"Seccomp {status.get('Seccomp')}, {filters} filters, the container has {before}"
    yield proven(
        "seccomp",
        f"profile {spec.seccomp.name} {spec.seccomp.sha256[:12]} on top of the container's",
        "seccomp filter",
        evidence,
        holds=status.get("Seccomp") == "2" and filters == before + 1 > 1,
    )


def check_covers(spec: ContainerSpec, seen: Observed, maker: MakerFacts) -> Iterator[Finding]:
    """A cell has its own /proc, masked alike, its own writable places, and sees nothing that its siblings share."""
    mounts = {mount.point: mount for mount in seen.process.mounts}
    theirs = {mount.point: mount for mount in maker.process.mounts}
    proc = mounts["/proc"]
    own = ["/proc", *(mount.destination for mount in spec.tmpfs)]
    same = [place for place in own if place not in mounts or mounts[place].device == theirs[place].device]
    covers = {mount.point for mount in seen.process.mounts if mount.parent == proc.id}
    masked = {point for point, mount in theirs.items() if point.startswith("/proc/") and is_mask(mount)}
    bare = sorted(masked - covers) + [place for place in SHARED if place in theirs and not hidden(mounts.get(place))]
    found = [f"the container's own: {', '.join(same)}"] if same else []
    found += [f"not covered: {', '.join(bare)}"] if bare else []
    found += [] if proc.kind == "proc" and proc.read_only else ["/proc is writable"]
    evidence = f"own /proc, read-only, {len(covers)} paths masked; own {', '.join(own[1:])}"
    yield proven(
        "cell mounts", "own /proc, own writable places", "mount", "; ".join(found) or evidence, holds=not found
    )


def hidden(mount: Mount | None) -> bool:
    """Tell whether a place has a read-only tmpfs over it."""
    return mount is not None and mount.kind == "tmpfs" and mount.read_only


def check_caps(spec: ContainerSpec, seen: Observed) -> Iterator[Finding]:
    """Memory and CPUs as the container is held to them; processes by a limit that counts this cell's alone."""
    for cap in spec.caps:
        limits = seen.process.limits.get("Max processes", "?")
        if cap.control == "processes":
            # Since Linux 5.14 the count is of the user namespace, before it was of the user in all of them, which is
            # less.
            yield proven(
                "processes",
                cap.wanted,
                "rlimit",
                f"RLIMIT_NPROC {limits} in a user namespace of its own",
                holds=limits == f"{spec.nproc} {spec.nproc}",
            )
        elif cap.mechanism == "cgroup":
            evidence, holds = cgroup_evidence(spec, seen, cap.control)
            yield proven(cap.control, cap.wanted, "cgroup", f"{evidence}, of the warm container", holds=holds)
        else:
            evidence, holds = fallback_evidence(spec, seen, cap.control)
            row = ControlEvidence(
                control=cap.control,
                wanted=cap.wanted,
                status="fallback",
                mechanism=cap.mechanism,
                evidence=f"{evidence}; {cap.why}",
            )
            yield Finding(
                evidence=row, problem="" if holds else f"{cap.control}: wanted {cap.wanted}, found {evidence}"
            )


def compare(spec: ContainerSpec, seen: Observed, maker: MakerFacts) -> tuple[ControlEvidence, ...]:
    """Return the evidence for every control of a cell. Raises `NotEnforceable` naming each one that doesn't hold."""

    def findings() -> Iterator[Finding]:
        for check in (
            check_user,
            check_network,
            check_capabilities,
            check_mounts,
            check_terminals,
            check_rlimits,
            check_caps,
        ):
            yield from check(spec, seen)
        for of_cell in (check_isolation, check_filter, check_covers):
            yield from of_cell(spec, seen, maker)

    kept = tuple(row for row in maker.evidence if row.control in OF_THE_CONTAINER)
    return (*concluded(findings()), *kept)
