"""What the fallback for hosts without cgroup v2 counts, on real processes of this host."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sandbox.container.watchdog import (
    INTERVAL_S,
    LONGEST_PAUSE_S,
    Mappings,
    Watchdog,
    anonymous_device,
    measure,
    pause_s,
)
from sandbox.kernel.family import THREADS_TRIED, children, fields, members, same_memory, told_by
from sandbox.kernel.memory import Descriptors, descriptors, queued_bytes

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


def test_a_thread_that_ends_meanwhile_hides_no_child_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with program("import subprocess; subprocess.Popen(['sleep', '30'])") as pid:
        listed = os.listdir
        monkeypatch.setattr(os, "listdir", lambda path: ["999999999", *listed(path)])
        found = children(pid)
        assert len(found) == 1
        os.kill(found[0], signal.SIGKILL)


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
    code = (
        "import threading, time\nfor _ in range(5):\n    threading.Thread(target=time.sleep, args=(30,),"
        " daemon=True).start()"
    )
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


@pytest.mark.parametrize(
    ("took_ms", "left_mib", "pause_ms"),
    [
        (0.0, 1024, 20),
        (1.0, 1024, 20),
        (2.0, 1024, 20),  # cheap: as often as ever
        (5.0, 1024, 50),
        (50.0, 1024, 100),  # slow to measure: a tenth of one core, up to a bound
        # and no longer than filling the rest takes
        (50.0, 160, 39.0625),
        (50.0, 96, 23.4375),
        (50.0, 1, 20),
        (50.0, 0, 20),
    ],
)
def test_what_is_cheap_to_measure_or_near_its_cap_is_looked_at_most_often(
    took_ms: float, left_mib: int, pause_ms: float
) -> None:
    assert pause_s(took_ms / 1000, left_bytes=left_mib * MIB) * 1000 == pytest.approx(pause_ms)


def test_the_watchdog_waits_no_longer_than_that_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay_s: float) -> None:
        pauses.append(delay_s)
        if len(pauses) == 6:
            raise asyncio.CancelledError
        await sleep(0)

    monkeypatch.setattr("sandbox.container.watchdog.asyncio.sleep", noted)
    # A clock of no duration: looks that cost nothing.
    monkeypatch.setattr("sandbox.container.watchdog.time.thread_time", lambda: 0.0)
    with program("pass") as pid, pytest.raises(asyncio.CancelledError):
        asyncio.run(Watchdog(pid, cap_bytes=1024 * MIB, places=(), kill=lambda: None).watch())
    assert max(pauses) == INTERVAL_S < LONGEST_PAUSE_S


def test_a_process_that_is_gone_uses_nothing() -> None:
    with program("pass") as pid:
        pass
    assert measure(pid, places=(), cap_bytes=MIB).tasks == 0


# ---------------------------------------------------------------- whose first thread has ended

HEADLESS = (
    "import ctypes, os, threading, time\n"
    "def later():\n    global held\n"
    "    while 'zombie' not in open(f'/proc/{{os.getpid()}}/status').read():\n        time.sleep(0.01)\n"
    "    held = bytearray(64 << 20)\n    print('ready', flush=True); input()\n"
    "for _ in range({others}):\n    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    "threading.Thread(target=later).start()\nctypes.CDLL(None).pthread_exit(None)"
)


def test_a_process_whose_first_thread_has_ended_is_told_by_another() -> None:
    with program(HEADLESS.format(others=0)) as pid:
        path, use = told_by(pid)
        assert path.startswith(f"/proc/{pid}/task/")
        assert use[b"RssAnon"] >= 64 << 10
        assert measure(pid, places=(), cap_bytes=MIB).memory_bytes >= 64 * MIB


def test_hundreds_of_threads_take_no_longer_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def counted(path: str, *names: bytes, column: int = 0) -> dict[bytes, int]:
        looked.append(path)
        return fields(path, *names, column=column)

    monkeypatch.setattr("sandbox.kernel.family.fields", counted)
    with program(HEADLESS.format(others=300)) as pid:
        path, _ = told_by(pid)
    assert path.startswith(f"/proc/{pid}/task/")
    assert len(looked) <= 1 + THREADS_TRIED


def test_two_processes_whose_first_threads_have_ended_do_not_pass_for_one() -> None:
    with program(HEADLESS.format(others=0)) as one, program(HEADLESS.format(others=0)) as other:
        first, second = (members(pid)[0] for pid in (one, other))
        assert not same_memory(first, second)
        assert same_memory(first, first)


# ---------------------------------------------------------------- what the kernel holds

LOCKED = (
    "import fcntl, tempfile\nfile = tempfile.TemporaryFile()\n"
    "for n in range(100):\n    fcntl.lockf(file, fcntl.LOCK_EX, 1, 2 * n)"
)
WATCHING = (
    "import os, select\nsets = [select.epoll() for _ in range(10)]\nends = os.pipe()\n"
    "for one in sets:\n    one.register(ends[0])"
)
PIPED = (
    "import os, tempfile\npipes = [os.pipe() for _ in range(20)]\nname = tempfile.mkdtemp() + '/pipe'\n"
    "os.mkfifo(name); named = os.open(name, os.O_RDWR)\nos.unlink(name); os.rmdir(os.path.dirname(name))"
)


def opened(code: str) -> Descriptors:
    with program(code) as pid:
        return descriptors([f"/proc/{pid}"])


def test_locks_watches_and_pipes_are_counted() -> None:
    assert opened(LOCKED).locks == 100
    assert opened(WATCHING).watches == 10
    standard = len(opened("pass").pipes)
    assert len(opened(PIPED).pipes) == standard + 21
    assert len(opened("import socket; held = [socket.socketpair() for _ in range(9)]").pipes) == standard


def test_too_many_are_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.kernel.memory.MAX_LOCKS", 99)
    assert opened(LOCKED).excess == "more than 99 file locks at a time"
    monkeypatch.setattr("sandbox.kernel.memory.MAX_DESCRIPTORS", 5)
    assert opened(PIPED).excess == "more than 5 open descriptors at a time"


def test_what_waits_in_sockets_is_read_from_the_kernel_s_table() -> None:
    table = (
        b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
        b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000  0\n"
        b"   1: 0100007F:1F91 0100007F:1F90 01 00000100:00000000 00:00000000 00000000  0\n"
    )
    assert queued_bytes(table) == 0x103


def test_shared_mappings_are_told_by_their_device_and_not_by_a_name() -> None:
    mappings = Mappings()
    with program("import mmap\nm = mmap.mmap(-1, 8 << 20)") as pid:
        mappings.look(members(pid))
        assert sum(mappings.shared.values()) == 8 * MIB
    assert anonymous_device()


def test_of_a_shared_mapping_that_was_cut_what_was_seen_before_counts() -> None:
    code = (
        "import ctypes, mmap\nm = mmap.mmap(-1, 8 << 20)\nstart = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "print('ready', flush=True); input()\nlibc = ctypes.CDLL(None)\n"
        "libc.munmap(ctypes.c_void_p(start + 4096), ctypes.c_size_t((8 << 20) - 4096))\nprint('cut', flush=True)"
    )
    command = [sys.executable, "-I", "-c", f"{code}\n{WAIT}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        mappings = Mappings()
        mappings.look(members(process.pid))
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"cut\n"
        mappings.look(members(process.pid))
        process.kill()
    assert mappings.shared_bytes == 8 * MIB


def test_beside_a_cgroup_only_what_that_leaves_out_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.kernel.memory.MAX_LOCKS", 99)
    killed: list[bool] = []
    with program(f"held = bytearray(64 << 20)\n{LOCKED}") as pid:
        watchdog = Watchdog(pid, cap_bytes=MIB, places=(), kill=lambda: killed.append(True), cgroup=True)
        asyncio.run(watchdog.watch())
    assert killed == [True]
    assert watchdog.excess == "more than 99 file locks at a time"
    assert watchdog.peak.memory_bytes == 0
