"""Removing any one control is noticed before a byte of the job is handed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.escape.bench import (
    AS_ROOT,
    HOST_NETWORK,
    NEW_PRIVILEGES,
    UNCONFINED,
    UNMASKED,
    WRITABLE_ROOT,
    Bench,
    Weakening,
    extra_mount,
    podmans_own,
    tmpfs_option,
    weakening,
    without_rlimit,
)

WEAKENINGS = (
    UNCONFINED,
    WRITABLE_ROOT,
    HOST_NETWORK,
    UNMASKED,
    NEW_PRIVILEGES + UNCONFINED,
    weakening("default capabilities", "no capabilities", cap_drop=None),
    # A /proc can be mounted for a pid namespace of one's own alone.
    weakening("the host's pid namespace", "namespaces", pidns={"nsmode": "host"}) + podmans_own("/proc", "mounts"),
    weakening("the host's uts namespace", "namespaces", utsns={"nsmode": "host"}, hostname=None),
    weakening("the host's cgroup namespace", "namespaces", cgroupns={"nsmode": "host"}),
    weakening("readable kernel files", "masked kernel files", mask=None),
    # crun needs more open files than the policy gives for all the devices of a privileged container.
    weakening("privileged", "no capabilities", "masked kernel files", privileged=True) + without_rlimit("nofile"),
    tmpfs_option("/app", "size=", None, "/app without a size"),
    without_rlimit("nproc", "processes"),
    podmans_own("/proc", "mounts"),
    podmans_own("/sys", "mounts", "masked kernel files"),
    podmans_own("/dev/pts", "pseudo-terminals"),
)
# The same mechanisms again: that each is compared is our own code's doing.
MORE = (
    tmpfs_option("/app", "noexec", "exec", "/app executable"),
    tmpfs_option("/tmp", "nosuid", "suid", "/tmp with setuid"),
    tmpfs_option("/dev/shm", "size=", "size=1g", "a larger /dev/shm"),
    without_rlimit("nofile", "open files"),
    without_rlimit("core", "core dumps"),
)


@pytest.mark.parametrize(
    "weaken",
    [
        *(pytest.param(weaken, id=weaken.name) for weaken in WEAKENINGS),
        *(pytest.param(weaken, id=weaken.name, marks=pytest.mark.host_only) for weaken in MORE),
    ],
)
def test_a_container_with_one_control_removed_is_refused_by_name(bench: Bench, weaken: Weakening) -> None:
    refusal = bench.refusal(weaken)
    assert weaken.controls <= set(refusal.facts.get("controls", ())), refusal
    assert all(control in refusal.message for control in weaken.controls)


def test_another_user_is_refused_as_the_peer_of_the_job_channel(bench: Bench) -> None:
    # Refused before anything is read back: only the sandbox's own user id may connect.
    assert "job channel" in bench.refusal(AS_ROOT).message


def test_the_host_s_ipc_namespace_is_refused(bench: Bench) -> None:
    # Podman refuses this itself where the host has no message queues mounted: then it names their directory.
    refusal = bench.refusal(weakening("the host's ipc namespace", ipcns={"nsmode": "host"}))
    assert "namespaces" in refusal.facts.get("controls", ()) or "/dev/mqueue" in refusal.message


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
