"""The comparison of what was asked with what was read back: each single difference is refused, by name."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.container.kernel_files import MASKED_BY_PODMAN, SYSTEM_DEVICES
from sandbox.container.spec import EGRESS_DIR, JOB_DIR, LIB_DIR, ContainerSpec
from sandbox.container.verify import Observed, compare
from sandbox.errors import NotEnforceable
from sandbox.kernel.process import NAMESPACES, CgroupLimits, Mount, ProcessFacts
from tests.unit.factory import PLACE, container_spec, old_host


def mount(point: str, options: str, kind: str = "tmpfs", *, root: str = "/", super_options: str = "rw") -> Mount:
    return Mount(
        id=1,
        parent=1,
        device="0:1",
        root=root,
        point=point,
        options=frozenset(options.split(",")),
        kind=kind,
        super_options=tuple(super_options.split(",")),
    )


READ_ONLY = ("ro", "nosuid", "nodev", "noexec")


def faithful(spec: ContainerSpec) -> Observed:
    """Return what a kernel says that did everything it was asked."""
    uid, gid = spec.host_uid, spec.host_gid
    status = {
        "Uid": f"{uid} {uid} {uid} {uid}",
        "Gid": f"{gid} {gid} {gid} {gid}",
        "Groups": str(gid),
        "NSpid": "4711 1",
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "Seccomp_filters": "1",
        "Cpus_allowed_list": ",".join(map(str, spec.cpu_ids or (0, 1))),
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0000000000000000"),
    }
    limits = {
        "Max open files": f"{spec.open_files} {spec.open_files}",
        "Max core file size": "0 0",
        "Max msgqueue size": "0 0",
        "Max pending signals": "256 256",
        "Max processes": f"{spec.processes + 1} {spec.processes + 1}",
        "Max address space": f"{spec.address_space_bytes} {spec.address_space_bytes}",
        "Max cpu time": f"{spec.cpu_time_s} {(spec.cpu_time_s or 0) + 1}",
    }
    mounts = [
        mount("/", "ro,relatime", "overlay"),
        mount("/proc", "ro,nosuid,nodev,noexec", "proc"),
        *(
            mount(m["destination"], ",".join(READ_ONLY))
            for m in spec.podman["mounts"]
            if m["destination"] in ("/sys", "/sys/fs/cgroup")
        ),
        mount(SYSTEM_DEVICES, "ro,nosuid,nodev,noexec", "sysfs", root="/devices/system"),
        mount("/dev/pts", "rw,nosuid,noexec", "devpts", super_options="rw,mode=600,ptmxmode=666,max=16"),
        mount("/dev", "rw,nosuid,noexec"),
        mount("/dev/null", "rw", "devtmpfs", root="/null"),
        mount("/proc/keys", "rw", "devtmpfs", root="/null"),
        mount("/proc/interrupts", "rw", "devtmpfs", root="/null"),
        mount("/etc/hostname", "ro", "ext4"),
        mount("/etc/hosts", "ro,nosuid,nodev,noexec", "ext4"),
        mount(LIB_DIR, "ro,nosuid,nodev,noexec", "ext4"),
        mount(JOB_DIR, "ro,nosuid,nodev,noexec", "ext4"),
        *(
            mount(m.destination, "rw,nosuid,nodev,noexec", super_options=f"rw,size={m.size_mib * 1024}k")
            for m in spec.tmpfs
        ),
    ]
    group = CgroupLimits(
        path="x", memory_bytes=spec.memory_bytes, swap_bytes=0, cpus=spec.cpus, processes=spec.processes + 1
    )
    process = ProcessFacts(
        pid=4711,
        status=status,
        namespaces={name: f"{name}:[2]" for name in NAMESPACES},
        uid_map=((0, 1000, 1), (1, 100_000, 65_536)),
        projid_map="",
        limits=limits,
        mounts=tuple(mounts),
        interfaces=("lo",),
        cgroup=group,
    )
    oci = {
        "process": {
            "args": spec.podman["command"],
            "env": [f"{name}={value}" for name, value in spec.podman["env"].items()] + ["HOSTNAME=sandbox"],
        },
        "linux": {
            "seccomp": copy.deepcopy(spec.seccomp.document),
            "maskedPaths": [*MASKED_BY_PODMAN, "/sys/firmware", *spec.podman["mask"]],
        },
        "annotations": {"io.container.manager": "libpod"},
    }
    own = {name: f"{name}:[1]" for name in NAMESPACES}
    return Observed(
        process=process, own_namespaces=own, oci=oci, kernel_files=frozenset({"/proc/keys", "/proc/interrupts"})
    )


def changed(seen: Observed, **process: Any) -> Observed:
    return dataclasses.replace(seen, process=dataclasses.replace(seen.process, **process))


def with_status(seen: Observed, **values: str) -> Observed:
    return changed(seen, status={**seen.process.status, **values})


def with_mount(seen: Observed, *mounts: Mount) -> Observed:
    points = {m.point for m in mounts}
    return changed(seen, mounts=(*(m for m in seen.process.mounts if m.point not in points), *mounts))


def with_limit(seen: Observed, name: str, value: str) -> Observed:
    return changed(seen, limits={**seen.process.limits, name: value})


def with_oci(seen: Observed, *path: str, value: Any) -> Observed:
    oci = copy.deepcopy(seen.oci)
    place = oci
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    return dataclasses.replace(seen, oci=oci)


def test_a_faithful_sandbox_passes_with_every_control_proven() -> None:
    spec = container_spec()
    evidence = compare(spec, faithful(spec))
    assert {row.status for row in evidence} == {"proven"}
    assert {row.mechanism for row in evidence if row.control in ("memory", "cpus", "processes")} == {"cgroup"}


def test_the_annotation_that_podman_5_makes_of_our_own_stop_signal_is_no_difference() -> None:
    spec = container_spec()
    compare(spec, with_oci(faithful(spec), "annotations", "org.systemd.property.KillSignal", value="9"))


def test_on_a_v1_host_the_three_caps_are_fallbacks_and_say_why() -> None:
    spec = container_spec(facts=old_host())
    evidence = {row.control: row for row in compare(spec, changed(faithful(spec), cgroup=None))}
    assert [name for name, row in evidence.items() if row.status == "fallback"] == ["memory", "cpus", "processes"]
    assert all("cgroup v1" in evidence[name].evidence for name in ("memory", "cpus", "processes"))


SPEC = container_spec()
GOOD = faithful(SPEC)
ROOT = "0 0 0 0"
EVIL_RULE = {"names": ["bpf"], "action": "SCMP_ACT_ALLOW"}

DIFFERENCES = [
    ("non-root user", with_status(GOOD, Uid=ROOT)),
    ("non-root user", with_status(GOOD, Uid=f"{SPEC.host_uid} {SPEC.host_uid} 0 {SPEC.host_uid}")),
    ("non-root user", with_status(GOOD, Gid=ROOT)),
    ("non-root user", with_status(GOOD, Groups=f"{SPEC.host_gid} 27")),
    *(
        ("namespaces", changed(GOOD, namespaces={**GOOD.process.namespaces, name: f"{name}:[1]"}))
        for name in NAMESPACES
    ),
    ("namespaces", with_status(GOOD, NSpid="4711 5")),
    ("non-root user", changed(GOOD, uid_map=((0, 0, 4_294_967_295),))),
    ("non-root user", changed(GOOD, uid_map=())),
    ("no network", changed(GOOD, interfaces=("lo", "eth0"))),
    *(
        ("no capabilities", with_status(GOOD, **{name: "0000000000000001"}))
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    ),
    ("no new privileges", with_status(GOOD, NoNewPrivs="0")),
    ("seccomp", with_status(GOOD, Seccomp="0")),
    ("seccomp", with_status(GOOD, Seccomp_filters="0")),
    ("seccomp", with_oci(GOOD, "linux", "seccomp", value=None)),
    (
        "seccomp",
        with_oci(GOOD, "linux", "seccomp", "syscalls", value=[*GOOD.oci["linux"]["seccomp"]["syscalls"], EVIL_RULE]),
    ),
    ("seccomp", with_oci(GOOD, "linux", "seccomp", "defaultAction", value="SCMP_ACT_ALLOW")),
    ("seccomp", with_oci(GOOD, "linux", "seccomp", "architectures", value=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])),
    ("seccomp", with_oci(GOOD, "linux", "seccomp", "listenerPath", value="/tmp/l")),
    ("read-only root", with_mount(GOOD, mount("/", "rw", "overlay"))),
    ("mounts", with_mount(GOOD, mount("/run/secrets", "ro"))),
    ("mounts", with_mount(GOOD, mount("/srv", "rw", "ext4"))),
    ("mounts", with_mount(GOOD, mount("/proc/sysrq-trigger", "rw", "proc", root="/sysrq-trigger"))),
    ("mounts", with_mount(GOOD, mount("/etc/hostname", "rw", "ext4"))),
    ("mounts", with_mount(GOOD, mount(JOB_DIR, "rw", "ext4"))),
    ("mounts", with_mount(GOOD, mount("/dev/sda", "rw", "devtmpfs", root="/sda"))),
    ("tmpfs /app", with_mount(GOOD, mount("/app", "rw,nosuid,nodev,noexec", super_options="rw"))),
    ("tmpfs /app", with_mount(GOOD, mount("/app", "rw,nosuid,nodev,noexec", super_options="rw,size=99999999k"))),
    ("tmpfs /tmp", with_mount(GOOD, mount("/tmp", "rw,nosuid,nodev", super_options="rw,size=1024k"))),
    ("tmpfs /tmp", with_mount(GOOD, mount("/tmp", "rw,nosuid,nodev,noexec", "ext4", super_options="rw,size=1024k"))),
    ("tmpfs /dev/shm", changed(GOOD, mounts=tuple(m for m in GOOD.process.mounts if m.point != "/dev/shm"))),
    ("masked kernel files", with_oci(GOOD, "linux", "maskedPaths", value=["/proc/kcore"])),
    ("masked kernel files", changed(GOOD, mounts=tuple(m for m in GOOD.process.mounts if m.point != "/proc/keys"))),
    ("masked kernel files", dataclasses.replace(GOOD, kernel_files=GOOD.kernel_files | {"/proc/devices"})),
    ("masked kernel files", with_mount(GOOD, mount("/proc/keys", "rw", "proc", root="/keys"))),
    ("masked kernel files", with_mount(GOOD, mount("/sys", "ro", "sysfs"))),
    ("masked kernel files", with_mount(GOOD, mount("/sys/fs/cgroup/pids", "ro", "cgroup"))),
    ("mounts", with_mount(GOOD, mount("/proc", "rw,nosuid,nodev,noexec", "proc"))),
    ("mounts", with_mount(GOOD, mount(SYSTEM_DEVICES, "rw", "sysfs"))),
    ("project ids", with_mount(GOOD, mount("/proc", "rw,nosuid,nodev,noexec", "proc"))),
    ("project ids", with_mount(GOOD, mount("/.proc", "rw,nosuid,nodev,noexec", "proc"))),
    ("pseudo-terminals", with_mount(GOOD, mount("/dev/pts", "rw", "devpts", super_options="rw,mode=600"))),
    ("pseudo-terminals", with_mount(GOOD, mount("/dev/pts", "rw", "devpts", super_options="rw,max=17"))),
    ("pseudo-terminals", with_mount(GOOD, mount("/dev/pts/more", "rw", "devpts", super_options="rw,mode=600"))),
    ("pseudo-terminals", changed(GOOD, mounts=tuple(m for m in GOOD.process.mounts if m.kind != "devpts"))),
    ("open files", with_limit(GOOD, "Max open files", "1048576 1048576")),
    ("core dumps", with_limit(GOOD, "Max core file size", "unlimited unlimited")),
    ("core dumps", with_limit(GOOD, "Max msgqueue size", "819200 819200")),
    ("launch", with_oci(GOOD, "process", "env", value=[*GOOD.oci["process"]["env"], "AWS_SECRET=x"])),
    ("launch", with_oci(GOOD, "process", "args", value=["/bin/sh"])),
    ("launch", with_oci(GOOD, "hooks", "prestart", value=[{"path": "/x"}])),
    ("launch", with_oci(GOOD, "annotations", "run.oci.seccomp_bpf_data", value="x")),
    ("launch", with_oci(GOOD, "annotations", "org.systemd.property.KillSignal", value="15")),
    ("launch", with_oci(GOOD, "annotations", "org.systemd.property.DeviceAllow", value="x")),
]


@pytest.mark.parametrize(("control", "seen"), DIFFERENCES, ids=[f"{i}-{c}" for i, (c, _) in enumerate(DIFFERENCES)])
def test_each_difference_is_refused_and_named(control: str, seen: Observed) -> None:
    with pytest.raises(NotEnforceable) as caught:
        compare(SPEC, seen)
    assert control in caught.value.facts["controls"]
    assert f"{control}: wanted" in caught.value.message


def test_a_proc_that_can_be_written_is_taken_where_the_map_of_project_ids_is_written() -> None:
    proc = mount("/proc", "rw,nosuid,nodev,noexec", "proc")
    maker = dataclasses.replace(
        SPEC, podman={**SPEC.podman, "mounts": [m for m in SPEC.podman["mounts"] if m["type"] != "proc"]}
    )
    with pytest.raises(NotEnforceable):
        compare(maker, with_mount(GOOD, proc))
    row = next(
        row
        for row in compare(maker, changed(with_mount(GOOD, proc), projid_map="0 0 1"))
        if row.control == "project ids"
    )
    assert row.mechanism == "user namespace"
    # Where the runner's own namespace has no project ids, nobody below can map one.
    assert compare(maker, dataclasses.replace(with_mount(GOOD, proc), project_ids=False))


LIMITS = GOOD.process.cgroup
assert LIMITS is not None


@pytest.mark.parametrize(
    ("control", "group"),
    [
        ("memory", dataclasses.replace(LIMITS, memory_bytes=None)),
        ("memory", dataclasses.replace(LIMITS, memory_bytes=SPEC.memory_bytes + 1)),
        ("memory", dataclasses.replace(LIMITS, swap_bytes=None)),
        ("memory", dataclasses.replace(LIMITS, swap_bytes=4096)),
        ("cpus", dataclasses.replace(LIMITS, cpus=None)),
        ("cpus", dataclasses.replace(LIMITS, cpus=SPEC.cpus * 2)),
        ("processes", dataclasses.replace(LIMITS, processes=None)),
        ("processes", dataclasses.replace(LIMITS, processes=SPEC.processes + 2)),
    ],
)
def test_a_cgroup_limit_that_is_absent_or_looser_is_refused(control: str, group: CgroupLimits) -> None:
    with pytest.raises(NotEnforceable) as caught:
        compare(SPEC, changed(GOOD, cgroup=group))
    assert caught.value.facts["controls"] == [control]


def test_no_cgroup_at_all_fails_all_three() -> None:
    with pytest.raises(NotEnforceable) as caught:
        compare(SPEC, changed(GOOD, cgroup=None))
    assert caught.value.facts["controls"] == ["memory", "cpus", "processes"]


@pytest.mark.parametrize(
    ("control", "name", "value"),
    [
        ("memory", "Max address space", "unlimited unlimited"),
        ("processes", "Max processes", "unlimited unlimited"),
        ("cpus", "Max cpu time", "unlimited unlimited"),
    ],
)
def test_a_fallback_that_does_not_hold_is_refused(control: str, name: str, value: str) -> None:
    spec = container_spec(facts=old_host())
    with pytest.raises(NotEnforceable) as caught:
        compare(spec, with_limit(faithful(spec), name, value))
    assert caught.value.facts["controls"] == [control]


def test_a_wider_affinity_is_refused() -> None:
    spec = container_spec(facts=old_host())
    with pytest.raises(NotEnforceable) as caught:
        compare(spec, with_status(faithful(spec), Cpus_allowed_list="0-3"))
    assert caught.value.facts["controls"] == ["cpus"]


def test_a_way_out_is_one_mounted_socket_and_is_named_in_the_evidence() -> None:
    decided = container_spec(place=replace(PLACE, egress_dir=Path("/run/out")))
    seen = faithful(decided)
    limit = f"{decided.processes + decided.own_processes} {decided.processes + decided.own_processes}"
    process = replace(seen.process, limits={**seen.process.limits, "Max processes": limit})
    with pytest.raises(NotEnforceable, match="egress: wanted no way out but the proxy's socket") as missing:
        compare(decided, replace(seen, process=process))
    assert {"egress", "mounts"} <= set(missing.value.facts["controls"])
    mounted = replace(process, mounts=(*process.mounts, mount(EGRESS_DIR, "ro,nosuid,nodev,noexec", "tmpfs")))
    rows = {row.control: row for row in compare(decided, replace(seen, process=mounted))}
    assert rows["egress"].evidence == f"its socket is mounted at {EGRESS_DIR}"
    assert rows["no network"].status == "proven", "the sandbox itself still has loopback alone"
    without = container_spec()
    assert "egress" not in {row.control for row in compare(without, faithful(without))}
