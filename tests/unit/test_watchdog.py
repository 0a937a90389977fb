"""What the fallback for hosts without cgroup v2 counts, on real processes of this host."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox.watchdog import Watchdog, measure

MIB = 1 << 20
WAIT = "print('ready', flush=True); input()"


@contextmanager
def program(code: str) -> Iterator[int]:
    """Run Python until the block ends; yields its process id once the code before the wait is done."""
    command = [sys.executable, "-I", "-c", f"{code}\n{WAIT}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


def used_mib(code: str, *, cap_mib: int) -> float:
    with program(code) as pid:
        return measure(pid, places=(), cap_bytes=cap_mib * MIB).memory_bytes / MIB


def test_private_memory_is_counted() -> None:
    assert 64 <= used_mib("x = bytearray(64 << 20)", cap_mib=1024) < 100


def test_memory_of_children_is_counted_with_their_parent() -> None:
    code = "import os\nif os.fork() == 0:\n    x = bytearray(64 << 20)"
    with program(code + "\n    import time; time.sleep(30)") as pid:
        deadline = 200
        while measure(pid, places=(), cap_bytes=1 << 40).memory_bytes < 64 * MIB and deadline:
            deadline -= 1
            subprocess.run(["sleep", "0.02"], check=True)
        assert deadline


def test_memory_that_forks_share_is_counted_once_when_it_matters() -> None:
    code = (
        "import os, time\nx = bytearray(64 << 20)\nfor _ in range(3):\n    if os.fork() == 0:\n        time.sleep(30)"
    )
    assert used_mib(code, cap_mib=100) < 100


def test_shared_memory_that_was_dropped_from_view_still_counts() -> None:
    code = "import mmap\nm = mmap.mmap(-1, 64 << 20)\nm[:] = b'x' * len(m)\nm.madvise(mmap.MADV_DONTNEED)"
    assert used_mib(code, cap_mib=32) >= 64


def test_a_shared_mapping_counts_once_for_all_its_users() -> None:
    code = (
        "import mmap, os, time\nm = mmap.mmap(-1, 64 << 20)\nm[:] = b'x' * len(m)\n"
        "for _ in range(3):\n    if os.fork() == 0:\n        time.sleep(30)"
    )
    assert 64 <= used_mib(code, cap_mib=32) < 128


def test_threads_count_as_tasks() -> None:
    code = "import threading, time\nfor _ in range(5):\n    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()"
    with program(code) as pid:
        assert measure(pid, places=(), cap_bytes=1 << 40).tasks == 6


def test_the_watchdog_kills_past_the_cap_and_remembers_the_peak() -> None:
    killed: list[bool] = []
    with program("x = bytearray(64 << 20)") as pid:
        watchdog = Watchdog(pid, cap_bytes=32 * MIB, places=(), kill=lambda: killed.append(True))
        asyncio.run(watchdog.watch())
    assert killed == [True]
    assert watchdog.exceeded
    assert watchdog.peak.memory_bytes >= 64 * MIB


def test_a_process_that_is_gone_uses_nothing() -> None:
    with program("pass") as pid:
        pass
    assert measure(pid, places=(), cap_bytes=MIB).tasks == 0
