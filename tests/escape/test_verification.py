"""Removing any one control is noticed before a byte of the job is handed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import (
    AS_ROOT,
    HOST_NETWORK,
    NEW_PRIVILEGES,
    UNCONFINED,
    UNMASKED,
    WRITABLE_ROOT,
    Bench,
    Weakening,
    extra_mount,
    tmpfs_option,
    weakening,
    without_rlimit,
)

WEAKENINGS = (
    UNCONFINED,
    WRITABLE_ROOT,
    AS_ROOT,
    HOST_NETWORK,
    UNMASKED,
    NEW_PRIVILEGES + UNCONFINED,
    weakening("default capabilities", "no capabilities", cap_drop=None),
    weakening("the host's pid namespace", "namespaces", pidns={"nsmode": "host"}),
    weakening("the host's ipc namespace", "namespaces", ipcns={"nsmode": "host"}),
    weakening("the host's uts namespace", "namespaces", utsns={"nsmode": "host"}, hostname=None),
    weakening("the host's cgroup namespace", "namespaces", cgroupns={"nsmode": "host"}),
    weakening("readable kernel files", "masked kernel files", mask=None),
    weakening("privileged", "no capabilities", "seccomp", privileged=True),
    tmpfs_option("/app", "size=", None, "/app without a size"),
    tmpfs_option("/app", "noexec", "exec", "/app executable"),
    tmpfs_option("/tmp", "nosuid", "suid", "/tmp with setuid"),
    tmpfs_option("/dev/shm", "size=", "size=1g", "a larger /dev/shm"),
    without_rlimit("nproc", "processes"),
    without_rlimit("nofile", "open files"),
    without_rlimit("core", "core dumps"),
)


@pytest.mark.parametrize("weaken", WEAKENINGS, ids=lambda weaken: weaken.name)
def test_a_container_with_one_control_removed_is_refused_by_name(bench: Bench, weaken: Weakening) -> None:
    refusal = bench.refusal(weaken)
    assert weaken.controls <= set(refusal.facts["controls"])
    assert all(control in refusal.message for control in weaken.controls)


def test_a_directory_of_the_host_is_refused(bench: Bench, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert "mounts" in bench.refusal(extra_mount(tmp_path, "/mnt", "ro")).facts["controls"]
    assert "mounts" in bench.refusal(extra_mount(tmp_path, "/mnt", "rw")).facts["controls"]


def test_a_variable_too_many_is_refused(bench: Bench) -> None:
    def apply(podman: dict[str, object]) -> None:
        environment = podman["env"]
        assert isinstance(environment, dict)
        environment["HOST_CANARY"] = "1"

    extra = Weakening(name="a variable", controls=frozenset({"launch"}), apply=apply)
    assert "HOST_CANARY" in bench.refusal(extra).message


def test_the_unweakened_container_passes(bench: Bench) -> None:
    weak = bench.run_weakened("result = 1", weakening("nothing"))
    assert weak.value == 1
    assert weak.noticed == frozenset()
