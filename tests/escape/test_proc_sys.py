"""Boundary: nothing of the host is read or changed through /proc and /sys.

The program walks all of both, its own process's directory included, on whatever kernel it is: a file that a newer
kernel adds is either covered, or unreadable, or a reader must say in `kernel_files.toml` why it is harmless.
"""

from __future__ import annotations

import fnmatch
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox.container.kernel_files import MASKED_BY_PODMAN, MASKS
from tests.escape.bench import CONTAINER_ROOT, UNMASKED, Bench, WeakResult, podmans_own

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # from 3.11 on it is in the library

LISTED: dict[str, dict[str, list[str]]] = tomllib.loads(Path(__file__).with_name("kernel_files.toml").read_text())

PROBE = r"""
import errno, os, re, stat

NULL = os.makedev(1, 3)

def attempt(path, flags):
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def readable(path):
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.read(descriptor, 1) != b""
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM)
    finally:
        os.close(descriptor)

def name_of(path):
    return re.sub(r"\d+", "N", path)

writable, told, tried = set(), set(), 0
for top in ("/proc", "/sys"):
    for directory, directories, names in os.walk(top):
        if directory == "/proc":
            directories[:] = [name for name in directories if not name.isdigit() or int(name) in (1, os.getpid())]
        directories[:] = [name for name in directories if name not in ("fd", "map_files", "cwd", "root")]
        for name in names:
            path = os.path.join(directory, name)
            tried += 1
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISLNK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev == NULL):
                continue  # a mask is /dev/null: what is written there is gone
            if attempt(path, os.O_WRONLY | os.O_NONBLOCK) == "ok":
                writable.add(name_of(path))
            if readable(path):
                told.add(name_of(path))
        if attempt(directory, os.O_TMPFILE | os.O_WRONLY) == "ok":
            writable.add(directory)

def content(path):
    try:
        if os.path.isdir(path):
            return len(os.listdir(path))
        with open(path, "rb") as file:
            return len(file.read(1000))
    except OSError as error:
        return errno.errorcode[error.errno]

result = {
    "writable": sorted(writable), "told": sorted(told), "tried": tried,
    "single": {path: attempt(path, os.O_WRONLY) for path in payload["single"]},
    "masked": {path: content(path) for path in payload["masked"]},
    "own sysctl": attempt("/proc/sys/kernel/shmmax", os.O_WRONLY), "sys": sorted(os.listdir("/sys")),
    "devices": os.listdir("/sys/devices"), "groups": content("/sys/fs/cgroup"),
    "others": [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())],
}
"""

# Masked files are not among them: a mask is /dev/null, which can be opened, and what is written there is gone.
SINGLE = (
    "/proc/sysrq-trigger",
    "/proc/kmsg",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/pressure/cpu",
    "/proc/1/comm",
    "/proc/1/oom_score_adj",
    "/proc/self/uid_map",
    "/proc/self/gid_map",
    "/proc/self/projid_map",
    "/proc/self/loginuid",
    "/proc/self/setgroups",
    "/proc/self/timerslack_ns",
    "/proc/self/comm",
    "/proc/self/attr/current",
    "/proc/self/mem",
    "/proc/self/clear_refs",
    "/sys/kernel/uevent_helper",
    "/sys/power/state",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/kernel/mm/ksm/run",
)
MASKED = (
    *MASKED_BY_PODMAN, *MASKS, "/sys/firmware", "/sys/kernel/vmcoreinfo", "/sys/kernel/boot_params/data", "/sys/block",
    "/sys/class/net", "/sys/module", "/sys/devices/virtual/dmi/id", "/sys/devices/pci0000:00", "/sys/kernel/debug",
)  # fmt: skip # a table
PAYLOAD = {"single": SINGLE, "masked": MASKED}
NOTHING = (0, "ENOENT", "EACCES", "EPERM", "EIO")


def not_listed(paths: list[str], section: str) -> list[str]:
    patterns = [pattern for group in LISTED[section].values() for pattern in group]
    return [path for path in paths if not any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)]


@pytest.fixture(scope="module")
def seen(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = bench.value(PROBE, payload=PAYLOAD)
    return found


@pytest.fixture(scope="module")
def as_root(bench: Bench) -> WeakResult:
    return bench.run_weakened(PROBE, CONTAINER_ROOT, payload=PAYLOAD)


@pytest.fixture(scope="module")
def with_podmans_own(bench: Bench) -> WeakResult:
    return bench.run_weakened(PROBE, podmans_own("/proc") + podmans_own("/sys") + UNMASKED, payload=PAYLOAD)


def test_no_file_of_proc_or_sys_can_be_opened_for_writing(seen: dict[str, Any]) -> None:
    assert seen["tried"] > 500
    assert seen["writable"] == []
    assert {path: answer for path, answer in seen["single"].items() if answer == "ok" and path not in MASKS} == {}


def test_every_file_that_tells_anything_is_listed_as_harmless(seen: dict[str, Any]) -> None:
    assert len(seen["told"]) > 200
    assert not_listed(seen["told"], "harmless") == []


@pytest.mark.parametrize("path", MASKED)
def test_kernel_files_that_tell_of_the_host_are_empty_or_absent(seen: dict[str, Any], path: str) -> None:
    assert seen["masked"][path] in NOTHING


def test_of_sys_there_are_processors_and_memory_nodes_alone(seen: dict[str, Any]) -> None:
    assert (seen["sys"], seen["devices"]) == (["devices", "fs"], ["system"])
    # Version 2 shows the sandbox's own group; version 1 would show those of the host, and a cell's maker is in its
    # group.
    assert seen["groups"] == 0 or "/sys/fs/cgroup/cgroup.controllers" in seen["told"]


def test_programs_find_processors_and_memory_as_ever(bench: Bench) -> None:
    text = """
        import os, pathlib
        read = lambda path: pathlib.Path(path).read_text()
        result = {
            "count": os.cpu_count(), "online": os.sysconf("SC_NPROCESSORS_ONLN"), "configured": os.sysconf("SC_NPROCESSORS_CONF"),
            "model": "processor" in read("/proc/cpuinfo"), "memory": "MemAvailable" in read("/proc/meminfo"),
            "stat": "btime" in read("/proc/stat"), "vm": "pswpin" in read("/proc/vmstat"), "self": "VmRSS" in read("/proc/self/status"),
            "list": read("/sys/devices/system/cpu/online").strip(), "kinds": "tmpfs" in read("/proc/filesystems"),
        }
    """
    seen = bench.value(text)
    assert (seen["count"], seen["online"]) == (os.cpu_count(), os.sysconf("SC_NPROCESSORS_ONLN"))
    assert seen["configured"] == os.sysconf("SC_NPROCESSORS_CONF")
    assert seen["list"] == Path("/sys/devices/system/cpu/online").read_text().strip()
    assert all(seen[name] for name in ("model", "memory", "stat", "vm", "self", "kinds"))


def test_no_process_of_the_host_is_visible(seen: dict[str, Any]) -> None:
    assert seen["others"] == []


def test_even_container_root_finds_settings_read_only(as_root: WeakResult) -> None:
    # The user can't write there because it isn't root; this shows that the mounts hold as well.
    assert as_root.value["own sysctl"] == "EROFS"
    assert as_root.value["writable"] == []
    # ENOENT: not every kernel has the key.
    assert as_root.value["single"]["/proc/sysrq-trigger"] in ("EROFS", "EACCES", "ENOENT")


@pytest.mark.host_only
@pytest.mark.control
def test_without_masks_the_files_are_readable_and_root_changes_settings(bench: Bench) -> None:
    weak = bench.run_weakened(PROBE, CONTAINER_ROOT + UNMASKED + podmans_own("/proc"), payload=PAYLOAD)
    assert weak.value["masked"]["/proc/interrupts"] == 1000
    assert weak.value["masked"]["/proc/cmdline"] not in NOTHING
    assert weak.value["own sysctl"] == "ok"
    assert {"non-root user", "masked kernel files", "mounts"} <= weak.noticed


@pytest.mark.control
def test_podmans_own_proc_can_be_written_where_the_list_says(with_podmans_own: WeakResult) -> None:
    weak = with_podmans_own.value
    assert {"/proc/N/comm", "/proc/N/oom_score_adj", "/proc/N/projid_map", "/proc/N/timerslack_ns"} <= set(
        weak["writable"]
    )
    assert not_listed(weak["writable"], "denied") == []
    assert {"mounts", "masked kernel files"} <= with_podmans_own.noticed


@pytest.mark.control
def test_podmans_own_sys_tells_of_the_host(with_podmans_own: WeakResult) -> None:
    weak = with_podmans_own.value
    assert {"block", "class", "kernel", "module"} <= set(weak["sys"])
    assert len(not_listed(weak["told"], "harmless")) > 100


WRITES = """
    import errno
    found = {}
    values = {"setgroups": "deny", "projid_map": "0 0 1", "uid_map": "0 0 1", "gid_map": "0 0 1", "loginuid": "0", "comm": "other",
              "oom_score_adj": "1000", "timerslack_ns": "1", "coredump_filter": "0", "clear_refs": "1", "autogroup": "5",
              "sched": "0", "timens_offsets": "monotonic 1 0", "attr/current": "x", "attr/exec": "x", "task/self/comm": "other"}
    for name, value in values.items():
        path = f"/proc/self/{name}".replace("task/self", "task/" + __import__("os").readlink("/proc/thread-self").split("/")[-1])
        try:
            with open(path, "wb", buffering=0) as file:
                file.write(value.encode())
            found[name] = "ok"
        except OSError as error:
            found[name] = errno.errorcode[error.errno]
    result = [found, open("/proc/self/comm").read().strip() == "other"]
"""


def test_a_program_can_write_no_map_label_or_setting_of_its_own_process(bench: Bench) -> None:
    found, renamed = bench.value(WRITES)
    # ENOENT: not every kernel has each file. EACCES: of another owner.
    assert set(found.values()) <= {"EROFS", "EACCES", "ENOENT"}
    assert {found[name] for name in ("projid_map", "comm", "timerslack_ns", "oom_score_adj")} == {"EROFS"}
    assert not renamed


@pytest.mark.control
def test_podmans_own_proc_takes_settings_and_the_map_of_project_ids_is_written_already(bench: Bench) -> None:
    weak = bench.run_weakened(WRITES, podmans_own("/proc"))
    found, renamed = weak.value
    assert found["comm"] == found["timerslack_ns"] == found["oom_score_adj"] == "ok"
    assert renamed
    assert found["projid_map"] == "EPERM", "process 1 wrote it first"
