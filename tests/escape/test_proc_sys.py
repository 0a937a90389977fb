"""Boundary: nothing of the host is read or changed through /proc and /sys."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.spec import EXTRA_MASKS
from tests.escape.bench import CONTAINER_ROOT, UNMASKED, Bench, WeakResult

PROBE = """
import errno, os

def attempt(path, flags):
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

writable, tried = [], 0
for top in ("/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/driver", "/proc/acpi", "/sys"):
    for directory, directories, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            tried += 1
            if not os.path.islink(path) and attempt(path, os.O_WRONLY | os.O_NONBLOCK) == "ok":
                writable.append(path)
        if attempt(directory, os.O_TMPFILE | os.O_WRONLY) == "ok":
            writable.append(directory)

def content(path):
    try:
        if os.path.isdir(path):
            return len(os.listdir(path))
        with open(path, "rb") as file:
            return len(file.read(1000))
    except OSError as error:
        return errno.errorcode[error.errno]

result = {
    "writable": writable, "tried": tried,
    "single": {path: attempt(path, os.O_WRONLY) for path in payload["single"]},
    "masked": {path: content(path) for path in payload["masked"]},
    "own sysctl": attempt("/proc/sys/kernel/shmmax", os.O_WRONLY),
    "others": [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())],
}
"""

# Masked files are not among them: a mask is /dev/null, which can be opened, and what is written there is gone.
SINGLE = (
    "/proc/sysrq-trigger", "/proc/kmsg", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory", "/proc/sys/fs/binfmt_misc/register",
    "/proc/1/comm", "/proc/1/oom_score_adj", "/proc/self/uid_map", "/proc/self/gid_map", "/proc/mtrr",
    "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/fs/cgroup/cgroup.procs", "/sys/kernel/mm/ksm/run",
)  # fmt: skip
MASKED = (
    "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/proc/acpi", "/sys/firmware",
    *EXTRA_MASKS,
)  # fmt: skip
PAYLOAD = {"single": SINGLE, "masked": MASKED}
NOTHING = (0, "ENOENT", "EACCES", "EPERM", "EIO")


@pytest.fixture(scope="module")
def seen(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = bench.value(PROBE, payload=PAYLOAD)
    return found


@pytest.fixture(scope="module")
def as_root(bench: Bench) -> WeakResult:
    return bench.run_weakened(PROBE, CONTAINER_ROOT, payload=PAYLOAD)


def test_no_file_of_proc_or_sys_can_be_opened_for_writing(seen: dict[str, Any]) -> None:
    assert seen["tried"] > 500
    assert seen["writable"] == []
    assert "ok" not in {answer for path, answer in seen["single"].items() if not path.startswith("/proc/self/")}


@pytest.mark.parametrize("path", MASKED)
def test_kernel_files_that_tell_of_the_host_are_empty_or_absent(seen: dict[str, Any], path: str) -> None:
    assert seen["masked"][path] in NOTHING


def test_no_process_of_the_host_is_visible(seen: dict[str, Any]) -> None:
    assert seen["others"] == []


def test_even_container_root_finds_settings_read_only(as_root: WeakResult) -> None:
    # The user can't write there because it isn't root; this shows that the mounts hold as well.
    assert as_root.value["own sysctl"] == "EROFS"
    # ENOENT: not every kernel has the key.
    assert as_root.value["single"]["/proc/sysrq-trigger"] in ("EROFS", "EACCES", "ENOENT")


@pytest.mark.host_only
@pytest.mark.control
def test_without_masks_the_files_are_readable_and_root_changes_settings(bench: Bench) -> None:
    weak = bench.run_weakened(PROBE, CONTAINER_ROOT + UNMASKED, payload=PAYLOAD)
    assert weak.value["masked"]["/proc/interrupts"] == 1000
    assert weak.value["masked"]["/proc/cmdline"] not in NOTHING
    assert weak.value["own sysctl"] == "ok"
    assert {"non-root user", "masked kernel files"} <= weak.noticed


def test_uid_and_gid_maps_can_not_be_changed(bench: Bench) -> None:
    text = """
        found = {}
        for name in ("uid_map", "gid_map", "setgroups"):
            try:
                with open(f"/proc/self/{name}", "wb", buffering=0) as file:
                    file.write(b"deny" if name == "setgroups" else b"0 0 1")
                found[name] = "ok"
            except OSError as error:
                found[name] = error.errno
        result = found
    """
    assert "ok" not in bench.value(text).values()
