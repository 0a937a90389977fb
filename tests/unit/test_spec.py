"""What is decided from a policy, a host and a place; nothing runs here."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.container.kernel_files import MASKS, SYSTEM_DEVICES, TERMINALS
from sandbox.container.spec import PLACES_WRITABLE, plan_caps, spread
from sandbox.errors import NotEnforceable
from sandbox.host.facts import HostFacts
from sandbox.models import Tightening
from tests.fake_engine import fake_info
from tests.unit.factory import PLACE, container_spec, host, old_host, policy


def test_the_same_decision_gives_the_same_specification_and_hash() -> None:
    assert container_spec().podman == container_spec().podman
    assert container_spec().hash == container_spec().hash


def test_a_tighter_policy_gives_another_hash() -> None:
    tighter = policy().tightened(Tightening(processes=10))
    assert container_spec(chosen=tighter).hash != container_spec().hash


def test_the_specification_is_json() -> None:
    assert json.loads(json.dumps(container_spec().podman)) == container_spec().podman


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("netns", {"nsmode": "none"}),
        ("pidns", {"nsmode": "private"}),
        ("ipcns", {"nsmode": "private"}),
        ("utsns", {"nsmode": "private"}),
        ("cgroupns", {"nsmode": "private"}),
        ("cap_drop", ["all"]),
        ("no_new_privileges", True),
        ("read_only_filesystem", True),
        ("privileged", False),
        ("env_host", False),
        ("httpproxy", False),
        ("unsetenvall", True),
        ("image_volume_mode", "ignore"),
        ("entrypoint", []),
        ("user", "30000:30000"),
        ("remove", True),
        ("log_configuration", {"driver": "none"}),
        ("systemd", "false"),
        ("mask", list(MASKS)),
        ("seccomp_profile_path", "/cache/s.json"),
    ],
)
def test_the_baseline_never_depends_on_the_image(key: str, value: object) -> None:
    assert container_spec().podman[key] == value


def test_only_sized_tmpfs_of_the_policy_are_writable() -> None:
    mounts = container_spec().podman["mounts"]
    writable = {mount["destination"]: mount["options"] for mount in mounts if "ro" not in mount["options"]}
    assert {"newinstance", f"max={TERMINALS}"} <= set(writable.pop("/dev/pts"))
    assert set(writable) == set(PLACES_WRITABLE)
    for options in writable.values():
        assert any(option.startswith("size=") for option in options)
        assert {"nosuid", "nodev", "noexec", "notmpcopyup"} <= set(options)


@pytest.mark.parametrize(("facts", "hidden"), [(host(), False), (old_host(), True)], ids=["v2", "v1"])
def test_of_the_kernels_files_a_sandbox_sees_a_read_only_proc_and_system_devices(
    facts: HostFacts, hidden: bool
) -> None:
    mounts = {mount["destination"]: mount for mount in container_spec(facts=facts).podman["mounts"]}
    assert (mounts["/proc"]["type"], mounts["/sys"]["type"], mounts[SYSTEM_DEVICES]["type"]) == (
        "proc",
        "tmpfs",
        "bind",
    )
    for destination in ("/proc", "/sys", SYSTEM_DEVICES):
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(mounts[destination]["options"])
    assert ("/sys/fs/cgroup" in mounts) == hidden, "version 1 shows every group of the host"


def test_executable_files_are_allowed_in_app_only_and_only_by_the_policy() -> None:
    files = policy().filesystem.model_copy(update={"exec": True})
    chosen = policy().model_copy(update={"filesystem": files})
    options = {m["destination"]: m["options"] for m in container_spec(chosen=chosen).podman["mounts"]}
    assert "exec" in options["/app"]
    assert "noexec" in options["/tmp"]
    assert "noexec" in options["/dev/shm"]


def test_caps_go_to_cgroups_where_all_are_delegated() -> None:
    spec = container_spec()
    limits = policy().limits
    assert {cap.mechanism for cap in spec.caps} == {"cgroup"}
    assert spec.podman["resource_limits"] == {
        "memory": {"limit": limits.memory_mib << 20, "swap": limits.memory_mib << 20},
        "cpu": {"period": 100_000, "quota": round(limits.cpus * 100_000)},
        "pids": {"limit": limits.processes + 1},
    }
    assert (spec.address_space_bytes, spec.cpu_time_s, spec.cpu_ids) == (None, None, None)


def test_on_cgroup_v1_nothing_is_asked_of_cgroups_and_each_cap_has_its_fallback() -> None:
    spec = container_spec(facts=old_host())
    assert "resource_limits" not in spec.podman
    assert [cap.mechanism for cap in spec.caps] == ["rlimit+watchdog", "affinity+rlimit", "rlimit"]
    assert spec.address_space_bytes is not None
    assert spec.address_space_bytes > spec.memory_bytes
    assert spec.cpu_time_s is not None
    assert spec.cpu_ids is not None
    assert len(spec.cpu_ids) == 1
    assert spec.nproc == policy().limits.processes + 1


def test_only_the_missing_controller_falls_back() -> None:
    facts = host(controllers=frozenset({"memory", "pids"}))
    mechanisms = {cap.control: cap.mechanism for cap in container_spec(facts=facts).caps}
    assert mechanisms == {"memory": "cgroup", "cpus": "affinity+rlimit", "processes": "cgroup"}
    assert set(container_spec(facts=facts).podman["resource_limits"]) == {"memory", "pids"}


def test_strict_refuses_naming_every_missing_control_and_the_fix() -> None:
    with pytest.raises(NotEnforceable) as caught:
        plan_caps(policy("strict"), old_host())
    assert caught.value.facts["controls"] == ["memory", "cpus", "processes"]
    assert "memory, CPUs, processes" in caught.value.message
    assert "cgroup v2" in caught.value.hint


def test_strict_on_v2_without_one_controller_names_it_and_how_to_delegate() -> None:
    facts = host(controllers=frozenset({"memory", "pids"}))
    with pytest.raises(NotEnforceable) as caught:
        plan_caps(policy("strict"), facts)
    assert caught.value.facts["controls"] == ["cpus"]
    assert "Delegate=" in caught.value.hint
    assert "systemctl restart user@1000.service" in caught.value.hint


def test_process_and_file_limits_hold_with_cgroups_too() -> None:
    limits = {limit["type"]: limit["hard"] for limit in container_spec().podman["r_limits"]}
    # One above pids.max, which must be the one that refuses: only then does the kernel count the refusal.
    assert container_spec().nproc == policy().limits.processes + 2
    # Through the runtime it would count all the user's processes while the runtime sets the container up.
    assert "nproc" not in limits
    assert limits["nofile"] == policy().limits.open_files
    assert limits["core"] == 0


def test_a_container_whose_runner_died_has_an_end_of_its_own() -> None:
    assert container_spec().podman["timeout"] > policy().limits.timeout_s


def test_thread_pools_are_sized_by_the_cpus_of_the_policy() -> None:
    two = policy().model_copy(update={"limits": policy().limits.model_copy(update={"cpus": 1.5})})
    assert container_spec(chosen=two).podman["env"]["OMP_NUM_THREADS"] == "2"


def test_two_sandboxes_share_no_host_user() -> None:
    other = dataclasses.replace(PLACE, uid=30_001)
    assert container_spec().host_uid == 100_000 + 30_000 - 1
    assert container_spec().host_gid == 200_000 + 30_000 - 1
    assert container_spec(place=other).host_uid != container_spec().host_uid


def test_v1_and_v2_hosts_give_different_hashes() -> None:
    facts = host(engine=fake_info(cgroup_version=1), controllers=frozenset())
    assert container_spec(facts=facts).hash != container_spec().hash


@given(st.sets(st.integers(0, 255), min_size=1, max_size=64), st.floats(0.05, 80), st.integers(20_000, 60_000))
def test_affinity_takes_ceil_cpus_cores_and_only_existing_ones(ids: set[int], cpus: float, uid: int) -> None:
    chosen = spread(tuple(sorted(ids)), cpus, uid)
    assert set(chosen) <= ids
    assert len(chosen) == min(len(ids), -int(-cpus // 1))
