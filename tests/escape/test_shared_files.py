"""Boundary: a file that sandboxes share tells one nothing of another, as far as that can be had.

What is left is listed here. Locks belong to inodes. The image's files are each container's own, because overlayfs has
inodes of its own; the host's devices, the harness and the host's processors are not. The threat model names what this
list names.
"""

from __future__ import annotations

import asyncio
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sandbox.container.kernel_files import SYSTEM_DEVICES, TERMINALS
from sandbox.container.spec import LIB_DIR
from sandbox.models import Outcome, RunResult
from sandbox.run.decision import Follow
from tests.escape.attacks import needs_known_architecture, program
from tests.escape.bench import UNCONFINED, Bench, Weakening


@contextmanager
def at_the_same_time(bench: Bench, code: str, **fields: Any) -> Iterator[None]:
    """Have a program of another node run meanwhile.

    It waits when it has done its work, and is cancelled at the end, and not before.
    """
    loops: list[asyncio.AbstractEventLoop] = []
    results: list[RunResult] = []
    cancel, held = asyncio.Event(), threading.Event()

    def said(*_: object) -> None:
        loops.append(asyncio.get_running_loop())
        held.set()

    def work() -> None:
        waiting = f"{code}\nprint('held', flush=True)\nimport time\ntime.sleep(600)"
        request = bench.request(waiting, node_id="first", **fields)
        results.append(bench.carry_out(request, follow=Follow(output=said), cancel=cancel))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while not held.wait(0.1):
            assert thread.is_alive(), results
        yield
    finally:
        if loops:
            loops[0].call_soon_threadsafe(cancel.set)
        thread.join()
    assert results[0].outcome is Outcome.CANCELLED, "it ended before the second was asked"


# ---------------------------------------------------------------- locks

PATHS = r"""
import fcntl, os
def paths():
    yield from ("/", "/usr", "/usr/bin", "/etc", "/etc/passwd", "/run", "/dev", "/app", "/tmp", "/dev/shm", "/dev/pts", "/proc", "/sys")
    yield from ("/proc/cpuinfo", "/proc/stat", "/proc/self", "/proc/sys", "/proc/sys/kernel/hostname", "/sys/fs", "/sys/fs/cgroup")
    yield os.path.realpath(__import__("sys").executable)
    yield os.__file__
    for line in open("/proc/self/mountinfo"):
        yield line.split()[4]
    for top in ("/etc", "/run", "/dev", "/sys/devices/system/cpu"):
        for directory, directories, names in os.walk(top):
            yield directory
            yield from (os.path.join(directory, name) for name in names[:20])
    yield from ("/run/sandbox/lib/harness.py", "/sys/devices/system/cpu/online")
    yield from ("/proc/self/ns/" + name for name in os.listdir("/proc/self/ns"))
def opened():
    yield "an eventfd", os.eventfd(0)
    yield "a pidfd", os.pidfd_open(os.getpid())
    yield "a pipe", os.pipe()[0]
    for path in dict.fromkeys(paths()):
        try:
            yield path, os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            pass
"""
TAKE = (
    PATHS
    + """
kept = []
for path, descriptor in opened():
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        kept.append(descriptor)
    except OSError:
        os.close(descriptor)
result = len(kept)
"""
)
TRY = (
    PATHS
    + """
import stat
NULL = os.makedev(1, 3)
taken, tried, rest = [], 0, payload
for path, descriptor in opened():
    tried += 1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        status = os.fstat(descriptor)
        null = stat.S_ISCHR(status.st_mode) and status.st_rdev == NULL
        taken.append("/dev/null" if null else path)
    except OSError:
        pass
    os.close(descriptor)
result = {"taken": sorted(set(taken)), "tried": tried}
"""
)
# What all sandboxes share, and nobody of this project or of Podman ever locks.
SHARED = (
    "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", LIB_DIR, "/etc/hosts", SYSTEM_DEVICES,
    "/proc/self/ns/user", "/proc/self/ns/time",  # of all sandboxes of one user; of the machine
    "an eventfd",  # and what else has the kernel's one anonymous inode
)  # fmt: skip # a table


def test_only_the_listed_files_carry_a_lock_from_one_sandbox_to_another(bench: Bench) -> None:
    policy = bench.policy_with(limits__open_files=1024)
    with at_the_same_time(bench, TAKE, policy=policy):
        seen = bench.value(TRY, node_id="second", policy=policy)
    assert seen["tried"] > 200
    assert [path for path in seen["taken"] if not path.startswith(SHARED)] == []
    assert {"/dev/null", LIB_DIR, SYSTEM_DEVICES} <= set(seen["taken"]), "the locks were there"


DATABASES = """
import dbm.dumb, fcntl, os, sqlite3, tempfile
found = {}
for place in ("/app", "/tmp"):
    name = os.path.join(place, "data.db")
    with sqlite3.connect(name) as one:
        one.execute("PRAGMA journal_mode=WAL")
        one.execute("CREATE TABLE t (a)")
        one.execute("INSERT INTO t VALUES (1)")
    other = sqlite3.connect(name, timeout=0)
    held = sqlite3.connect(name, isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    try:
        other.execute("INSERT INTO t VALUES (2)")
        found[place] = "no lock"
    except sqlite3.OperationalError as error:
        found[place] = str(error)
    held.execute("COMMIT")
    with dbm.dumb.open(os.path.join(place, "kept"), "c") as store:
        store["a"] = "b"
    with open(os.path.join(place, "lock"), "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pid = os.fork()
        if pid == 0:
            answers = 0
            with open(os.path.join(place, "lock"), "w") as again:
                for number, lock in enumerate((fcntl.lockf, fcntl.flock)):
                    try:
                        lock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except OSError:
                        answers |= 1 << number
            os._exit(answers)
        found[place + " locks"] = os.waitstatus_to_exitcode(os.wait()[1])
result = found
"""


def test_sqlite_dbm_and_lock_files_work_in_the_writable_places(bench: Bench) -> None:
    locked = "database is locked"
    assert bench.value(DATABASES) == {"/app": locked, "/app locks": 3, "/tmp": locked, "/tmp locks": 3}


# ---------------------------------------------------------------- notices, leases, signals

COMMANDS = program(r"""
F = {
    "duplicate": (0, 10), "flags": (1, 0), "set flags": (2, 1), "status": (3, 0), "set status": (4, 2048),
    "pipe size": (1032, 0), "duplicate close-on-exec": (1030, 10),
    "owner": (8, os.getpid()), "owner read": (9, 0), "signal": (10, signal.SIGUSR1), "signal read": (11, 0),
    "lease": (1024, 1), "lease read": (1025, 0), "notice": (1026, 0x80000001), "delegation": (1039, 0), "seals": (1034, 0),
}
number = payload
reading, writing = os.pipe()
shared = os.open("/run/sandbox/lib", os.O_RDONLY)
found = {}
for name, (command, argument) in F.items():
    descriptor = reading if command < 9 or command in (1030, 1032) else shared
    found[name] = name_of(*raw(number, descriptor, command, argument))
    if command > 4 and command not in (1030, 1032):
        found[name + ", high bit"] = name_of(*raw(number, descriptor, command | 1 << 32, argument))
lock = struct.pack("hhqqi4x", 0, 0, 0, 0, 0)  # F_RDLCK, of the whole file
kept = ctypes.create_string_buffer(lock)
file = os.open("/etc/passwd", os.O_RDONLY)
for name, command in {"lock read": 5, "lock": 6, "open file lock read": 36, "open file lock": 37, "open file lock, waits": 38}.items():
    found[name] = name_of(*raw(number, file, command, ctypes.addressof(kept)))
result = found
""")
FCNTL = {"x86_64": 72, "aarch64": 25}
ALLOWED = {
    "duplicate",
    "flags",
    "set flags",
    "status",
    "set status",
    "pipe size",
    "duplicate close-on-exec",
    "lock read",
    "lock",
}


def fcntl_number() -> int:
    return FCNTL[platform.machine()]


@needs_known_architecture
def test_of_fcntl_a_program_has_flags_pipes_and_locks_of_processes(bench: Bench) -> None:
    found = bench.value(COMMANDS, payload=fcntl_number())
    assert {name for name, answer in found.items() if answer == "ok"} == ALLOWED
    assert {answer for name, answer in found.items() if name not in ALLOWED} == {"ENOSYS"}


@needs_known_architecture
@pytest.mark.control
def test_without_the_filter_notices_signals_and_locks_of_open_files_are_there(bench: Bench) -> None:
    found = bench.run_weakened(COMMANDS, UNCONFINED, payload=fcntl_number()).value
    for name in ("notice", "notice, high bit", "owner", "signal", "lease read", "open file lock"):
        assert found[name] == "ok", name


# ---------------------------------------------------------------- terminals

TERMINAL_LOOP = """
import os
kept = []
try:
    while len(kept) < 64:
        kept.append(os.openpty())
except OSError:
    pass
"""
COUNT = TERMINAL_LOOP + "\nresult = len(kept)"
USE = """
import os, pty, subprocess
kept = []
def read(descriptor):
    kept.append(os.read(descriptor, 100))
    return kept[-1]
status = pty.spawn(["/bin/sh", "-c", "test -t 1 && echo here"], read)
master, slave = pty.openpty()
asked = subprocess.run(["/bin/sh", "-c", "test -t 0 && echo yes"], stdin=slave, capture_output=True, text=True)
result = [status, b"".join(kept).decode().strip(), asked.stdout.strip(), os.ttyname(slave).startswith("/dev/pts/")]
"""
MORE_TERMINALS = Weakening(
    name="more terminals",
    controls=frozenset({"pseudo-terminals"}),
    apply=lambda podman: next(m for m in podman["mounts"] if m["type"] == "devpts")["options"].append("max=40"),
)


def test_a_sandbox_that_takes_all_terminals_takes_none_of_another(bench: Bench) -> None:
    with at_the_same_time(bench, COUNT):
        assert bench.value(COUNT, node_id="second") == TERMINALS


def test_programs_that_want_a_terminal_have_one(bench: Bench) -> None:
    assert bench.value(USE) == [0, "here", "yes", True]


@pytest.mark.control
def test_with_another_bound_a_sandbox_takes_more_terminals_and_that_is_noticed(bench: Bench) -> None:
    weak = bench.run_weakened(COUNT, MORE_TERMINALS)
    assert TERMINALS < weak.value <= 40
    assert weak.noticed == {"pseudo-terminals"}
