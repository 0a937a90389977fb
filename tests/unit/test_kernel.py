"""Reading the kernel's account: cgroup files in a tree of our own, and this very process."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.kernel.oom import killed_for_memory
from sandbox.kernel.process import (
    CgroupLimits,
    is_ending,
    killed_around,
    parse_limits,
    parse_mounts,
    read_cgroup,
    read_cgroup_events,
    read_process,
    read_status,
)

GROUP = "user.slice/user-1000.slice/user@1000.service/user.slice/libpod-abc.scope/container"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "cgroup" / GROUP
    directory.mkdir(parents=True)
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(f"0::/{GROUP}\n")
    return tmp_path


def write(tree: Path, group: str, **files: str) -> None:
    for name, text in files.items():
        (tree / "cgroup" / group / name.replace("_", ".", 1)).write_text(text + "\n")


def read(tree: Path) -> CgroupLimits | None:
    return read_cgroup(7, root=tree / "cgroup", proc=tree / "proc")


def test_limits_on_the_group_above_hold_for_the_process_below(tree: Path) -> None:
    write(tree, GROUP, memory_max="max", pids_max="max", cpu_max="max 100000")
    write(tree, str(Path(GROUP).parent), memory_max="268435456", pids_max="33", cpu_max="50000 100000")
    (tree / "cgroup" / Path(GROUP).parent / "memory.swap.max").write_text("0\n")
    limits = read(tree)
    assert limits is not None
    assert (limits.memory_bytes, limits.swap_bytes, limits.cpus, limits.processes) == (268_435_456, 0, 0.5, 33)


def test_the_tightest_of_all_levels_counts(tree: Path) -> None:
    write(tree, GROUP, memory_max="100")
    write(tree, "user.slice", memory_max="50")
    limits = read(tree)
    assert limits is not None
    assert limits.memory_bytes == 50


def test_absent_files_are_no_limit(tree: Path) -> None:
    limits = read(tree)
    assert limits is not None
    assert (limits.memory_bytes, limits.cpus, limits.processes, limits.swap_bytes) == (None, None, None, None)


def test_a_process_in_the_root_group_or_on_v1_has_no_cgroup_limits(tree: Path) -> None:
    for text in ("0::/\n", "8:pids:/x\n4:memory:/y\n0::/\n"):
        (tree / "proc/7/cgroup").write_text(text)
        assert read(tree) is None


def test_events_are_read_from_the_group_that_carries_the_limits(tree: Path) -> None:
    scope = str(Path(GROUP).parent)
    write(tree, GROUP, memory_events="oom 0\noom_kill 0", pids_events="max 0", memory_peak="100")
    write(tree, scope, memory_events="oom 1\noom_kill 1", pids_events="max 4", memory_peak="200")
    limits = read(tree)
    events = read_cgroup_events(limits, root=tree / "cgroup")
    assert events is not None
    assert (events.oom_kills, events.fork_failures, events.peak_bytes) == (1, 4, 200)


def test_a_kill_for_want_of_memory_on_the_whole_host_is_not_the_program_s(tree: Path) -> None:
    for group in (GROUP, str(Path(GROUP).parent)):
        write(tree, group, memory_events="oom 0\noom_kill 1")
    events = read_cgroup_events(read(tree), root=tree / "cgroup")
    assert events is not None
    assert events.oom_kills == 0


def test_a_group_that_can_not_be_watched_is_not_taken_for_one_that_reached_its_limit(tree: Path) -> None:
    async def watch() -> None:
        limits = read(tree)
        assert limits is not None
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(killed_for_memory(limits, root=tree / "nowhere"), 0.2)

    asyncio.run(watch())


def test_events_of_a_group_that_is_gone_are_none_seen() -> None:
    gone = CgroupLimits(path="gone", memory_bytes=None, swap_bytes=None, cpus=None, processes=None)
    events = read_cgroup_events(gone, root=Path("/nonexistent"))
    assert events is not None
    assert (events.oom_kills, events.fork_failures, events.peak_bytes) == (0, 0, None)
    assert read_cgroup_events(None) is None


def test_of_a_group_that_went_before_anybody_looked_the_groups_around_it_have_counted(tree: Path) -> None:
    scope = Path(GROUP).parent
    write(tree, GROUP, memory_events="oom 0\noom_kill 0")
    write(tree, str(scope.parent), memory_events="oom 2\noom_kill 2")
    began = read(tree)
    assert began is not None
    began = replace(began, killed_around=killed_around(began, root=tree / "cgroup"))
    write(tree, str(scope.parent), memory_events="oom 3\noom_kill 3")

    def kills(limits: CgroupLimits) -> int:
        events = read_cgroup_events(limits, root=tree / "cgroup")
        assert events is not None
        return events.oom_kills

    assert kills(began) == 0, "it is there, and has counted none: the kill was another's"
    seen = replace(began, seen=read_cgroup_events(began, root=tree / "cgroup"))
    shutil.rmtree(tree / "cgroup" / scope)
    assert kills(began) == 1
    assert kills(seen) == 0, "what was seen of it counts"


def test_mounts_keep_options_kind_and_size() -> None:
    text = (
        "92 68 0:39 / / ro,relatime - overlay overlay rw,lowerdir=/l\n"
        "96 92 0:45 / /app rw,nosuid,nodev,noexec shared:1 master:2 - tmpfs tmpfs rw,size=8192k,uid=1\n"
        "99 92 254:0 /with\\040space /run/a\\040b ro - ext4 /dev/vda rw\n"
    )
    root, app, spaced = parse_mounts(text)
    assert (root.read_only, root.kind) == (True, "overlay")
    assert (app.point, app.kind, app.size_bytes, app.read_only) == ("/app", "tmpfs", 8 << 20, False)
    assert spaced.point == "/run/a b"


def test_a_tmpfs_without_size_is_unlimited() -> None:
    (mount,) = parse_mounts("1 2 0:4 / /x rw - tmpfs tmpfs rw,mode=755\n")
    assert mount.size_bytes is None


def test_limits_are_soft_and_hard() -> None:
    text = Path("/proc/self/limits").read_text()
    limits = parse_limits(text)
    assert set(limits) >= {"Max open files", "Max processes", "Max address space", "Max core file size", "Max cpu time"}
    assert all(len(value.split()) == 2 for value in limits.values())


def test_this_process_can_be_read() -> None:
    facts = read_process(os.getpid())
    assert facts.status["NSpid"].split()[-1] == str(os.getpid())
    assert set(facts.namespaces) == {"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"}
    assert any(mount.point == "/proc" for mount in facts.mounts)
    assert read_status(os.getpid())["Name"]


def test_a_process_that_has_begun_to_end_is_told_from_one_that_lives() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert not is_ending(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not collected yet
        assert is_ending(process.pid)
    assert is_ending(process.pid)
