"""Boundary: what the kernel holds on a program's behalf counts as its memory, and what no limit counts can't be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.container.spec import MIB
from sandbox.kernel import memory as kernel_memory
from sandbox.models import Outcome
from tests.escape.attacks import needs_known_architecture, program
from tests.escape.bench import UNCONFINED, Bench, value_of

CAP_MIB = 64
ROOMY_MIB = 1024

C = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
SHARED, PRIVATE, ANONYMOUS = 1, 2, 0x20

def area(size, modes, protection=3):
    address = libc.mmap(None, size, protection, modes | ANONYMOUS, -1, 0)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    return address

def side_by_side(count, work):
    "Have `count` processes do `work`, and hold what they get until all have it."
    reading, writing = os.pipe()
    for number in range(count):
        if os.fork() == 0:
            held = work(number)
            os.write(writing, b"x")
            time.sleep(60)
    for _ in range(count):
        os.read(reading, 1)
    time.sleep(1)
"""

# Each gets far more than CAP_MIB out of the kernel with hardly any memory of its own, and says "had it".
ATTACKS = {
    "pipes": (
        """
        def work(number):
            held = []
            for _ in range(400):
                held.append(os.pipe())
                os.set_blocking(held[-1][1], False)
                os.write(held[-1][1], b"x" * 65536)
            return held
        side_by_side(4, work)
    """
    ),
    "named pipes": (
        """
        def work(number):
            held = []
            for each in range(800):
                name = f"/app/{number}-{each}"
                os.mkfifo(name)
                held.append(os.open(name, os.O_RDWR | os.O_NONBLOCK))
                os.unlink(name)
                os.write(held[-1], b"x" * 65536)
            return held
        side_by_side(2, work)
    """
    ),
    "watches of epoll": (
        """
        import select
        def work(number):
            watched = [end for _ in range(100) for end in os.pipe()]
            sets = [select.epoll() for _ in range(700)]
            for one in sets:
                for end in watched:
                    one.register(end, select.EPOLLIN)
            return sets
        side_by_side(4, work)
    """
    ),
    "page tables": (
        """
        def work(number):
            size = 1800 << 20
            start = area(size, PRIVATE, 1)
            for offset in range(0, size, 2 << 20):  # one page of zeros, and one page that tells where it is
                ctypes.c_char.from_address(start + offset).value
        side_by_side(24, work)
    """
    ),
    "mappings, copied from one generation to the next": (
        """
        count = 2000
        start = area(count * 8192, PRIVATE)
        for number in range(count):
            libc.mprotect(start + number * 8192 + 4096, 4096, 1)
        first = os.getpid()
        for generation in range(30):
            for number in range(count):
                ctypes.c_char.from_address(start + number * 8192).value = b"x"
            if os.fork():
                time.sleep(60 if os.getpid() != first else 3)
                break
        else:
            time.sleep(60)
    """
    ),
    "what waits in sockets": (
        """
        import socket
        server = socket.create_server(("127.0.0.1", 0))
        held = []
        for _ in range(6):
            held += [socket.create_connection(server.getsockname()), server.accept()[0]]
            for end in held[-2:]:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
                end.setblocking(False)
        for _ in range(200):
            for end in held:
                try:
                    end.send(b"x" * 1_000_000)
                except BlockingIOError:
                    time.sleep(0.0005)
        time.sleep(1)
    """
    ),
    "shared mappings of which a page is left": (
        """
        size = 4 << 20
        for _ in range(64):
            start = area(size, SHARED)
            libc.memset(start, 1, size)
            libc.munmap(start + 4096, size - 4096)  # out of sight; mremap(2) would bring it back
        time.sleep(1)
    """
    ),
}

# Processes whose first thread has ended read as empty, to whoever asks only about that thread.
HEADLESS = """
import mmap, threading

def headless(work):
    "Start a process that does `work` in a thread when its first one has ended, and says so."
    reading, writing = os.pipe()
    def later():
        while "zombie" not in open(f"/proc/{os.getpid()}/status").read():
            time.sleep(0.01)
        held = work()
        time.sleep(0.5)
        os.write(writing, b"x")
        time.sleep(60)
    if os.fork() == 0:
        threading.Thread(target=later).start()
        libc.pthread_exit(None)
    return reading
"""
TAKING = {
    "private memory": "headless(lambda: bytearray(b'x') * (payload << 20))",
    "private memory of its children": (
        """headless(
        lambda: [os.read(headless(lambda: bytearray(b"x") * (payload // 4 << 20)), 1) for _ in range(4)]
    )"""
    ),
    "shared memory": "headless(lambda: libc.memset(area(payload << 20, SHARED), 1, payload << 20))",
}


def policy_of(bench: Bench, memory_mib: int) -> str:
    return bench.policy_with(
        limits__memory_mib=memory_mib, limits__timeout_s=12, limits__processes=48, limits__open_files=2048
    )


@pytest.fixture(scope="module")
def tight(bench: Bench) -> str:
    return policy_of(bench, CAP_MIB)


@pytest.fixture(scope="module")
def roomy(bench: Bench) -> str:
    return policy_of(bench, ROOMY_MIB)


def attack(name: str) -> str:
    return C + "if True:" + ATTACKS[name] + "\nresult = 'had it'\n"


def taking(name: str) -> str:
    return C + HEADLESS + f"\nos.read({TAKING[name]}, 1)\nresult = 'had it'\n"


@pytest.mark.host_only  # where cgroup v2 holds memory, the kernel counts its own
@pytest.mark.parametrize("name", ATTACKS)
def test_memory_of_the_kernel_counts(bench: Bench, tight: str, name: str) -> None:
    ended = bench.run(attack(name), policy=tight)
    assert ended.outcome is Outcome.OUT_OF_MEMORY, (ended.outcome, ended.explanation, ended.error, ended.stderr)


@pytest.mark.host_only
@pytest.mark.parametrize("name", ATTACKS)
def test_with_more_memory_the_same_is_had(bench: Bench, roomy: str, name: str) -> None:
    assert bench.value(attack(name), policy=roomy) == "had it"


@pytest.mark.host_only  # about the fallback that measures from outside
@pytest.mark.parametrize("name", TAKING)
def test_a_process_whose_first_thread_has_ended_is_measured(bench: Bench, tight: str, name: str) -> None:
    ended = bench.run(taking(name), policy=tight, payload=2 * CAP_MIB)
    assert ended.outcome is Outcome.OUT_OF_MEMORY, (ended.outcome, ended.explanation, ended.error, ended.stderr)


@pytest.mark.host_only
@pytest.mark.parametrize("name", TAKING)
def test_with_more_memory_such_a_process_succeeds(bench: Bench, roomy: str, name: str) -> None:
    assert bench.value(taking(name), policy=roomy, payload=2 * CAP_MIB) == "had it"


@pytest.mark.host_only  # about the fallback that measures from outside
def test_a_child_that_borrows_its_parent_s_memory_is_not_counted_again(bench: Bench, tight: str) -> None:
    # Between vfork(2) and execve(2) both are there; a named pipe makes that take long.
    text = """
        import os, time
        held = bytearray(b"x") * (40 << 20)
        os.mkfifo("/app/pipe")
        if os.fork() == 0:
            time.sleep(1)
            os.open("/app/pipe", os.O_WRONLY)
            os._exit(0)
        opening = [(os.POSIX_SPAWN_OPEN, 9, "/app/pipe", os.O_RDONLY, 0)]
        pid = os.posix_spawn("/bin/true", ["true"], {}, file_actions=opening)
        result = os.waitpid(pid, 0)[1]
    """
    assert bench.value(text, policy=tight) == 0


# What is left to have: its bound in MiB, and how a program gets as much of it as it can. docs/threat-model.md has the
# figures.
LEFT = {
    "pipes made larger": (
        """
        import fcntl
        mib, held = 0, []
        try:
            for _ in range(200):
                held.append(os.pipe())
                fcntl.fcntl(held[-1][1], fcntl.F_SETPIPE_SZ, 1 << 20)
                os.set_blocking(held[-1][1], False)
                mib += os.write(held[-1][1], b"x" * (1 << 20)) >> 20
        except PermissionError:
            pass
    """
    ),
    "the first sockets": (
        """
        import socket
        held, sent = [socket.socketpair() for _ in range(6)], 0
        for end in (end for pair in held for end in pair):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
            end.setblocking(False)
            try:
                while True:
                    sent += end.send(b"x" * 65536)
            except BlockingIOError:
                pass
        mib = sent >> 20
    """
    ),
    "shared mappings that are cut": (
        """
        size = payload << 20
        for _ in range(14):
            start = area(size, SHARED)
            libc.memset(start, 1, size)
            libc.munmap(start + 4096, size - 4096)
            time.sleep(0.05)
        mib = 14 * payload
    """
    ),
}


def most_mib(name: str) -> float:
    """Return what the kernel itself lets a user have of it."""

    def setting(path: str) -> int:
        return int(Path("/proc/sys", path).read_text())

    return {
        "pipes made larger": setting("fs/pipe-user-pages-soft") / 256,
        "the first sockets": kernel_memory.FREE_SOCKETS * 2 * setting("net/core/wmem_max") / MIB,
        "shared mappings that are cut": 2 * CAP_MIB,
    }[name]


@pytest.mark.host_only  # about the fallback that measures from outside
@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_have_is_bounded(bench: Bench, tight: str, name: str) -> None:
    text = C + "if True:" + LEFT[name] + "\ntime.sleep(0.5)\nresult = mib\n"
    ended = bench.run(text, policy=tight, payload=CAP_MIB // 8)
    print(f"{name}: {ended.result_json!r} MiB of at most {most_mib(name):.0f}, {ended.outcome}")
    if ended.outcome is not Outcome.OUT_OF_MEMORY:
        assert 0 < value_of(ended) <= most_mib(name)


# ---------------------------------------------------------------- what no limit counts

SHARING = {"memory": 0x100, "directories": 0x200, "descriptors": 0x400, "handlers": 0x800, "half a thread": 0x10900}


@needs_known_architecture
def test_what_no_limit_counts_is_denied(bench: Bench) -> None:
    text = program(
        f"""
        BIND, HUGE, NAME = {{"x86_64": 237, "aarch64": 235}}[os.uname().machine], 0x40000, 0x53564D41
        size = 2 << 20
        result = {{"a rule for each page": name_of(*raw(BIND, BAD, 4096, 99, 0, 0, 0))}}
        libc.mmap.restype = ctypes.c_long
        ctypes.set_errno(0)
        found = libc.mmap(None, ctypes.c_size_t(size), 3, 0x22 | HUGE, -1, ctypes.c_long(0))
        result["pages set aside"] = name_of(found, ctypes.get_errno())
        result["names of memory"] = call("prctl", NAME, 99, 0, 0, 0)
        for name, flags in {SHARING!r}.items():
            result[name] = call("clone", flags, 0, 0, 0, 0)
    """.replace("\n        ", "\n")
    )
    found = bench.value(text)
    assert found.pop("a rule for each page") == "EPERM"
    assert set(found.values()) == {"ENOSYS"}


@pytest.mark.control
@needs_known_architecture
def test_without_the_filter_the_kernel_answers(bench: Bench) -> None:
    text = program(
        """
        import threading
        BIND = {"x86_64": 237, "aarch64": 235}[os.uname().machine]
        result = {"bind": name_of(*raw(BIND, BAD, 4096, 99, 0, 0, 0)), "name": call("prctl", 0x53564D41, 99, 0, 0, 0)}
        result["handlers"] = call("clone", 0x800, 0, 0, 0, 0)
        result["half a thread"] = call("clone", 0x10000, 0, 0, 0, 0)
        pid = raw(NUMBERS["clone"], 0x400 | signal.SIGCHLD, 0, 0, 0, 0)[0]
        if pid == 0:
            os._exit(0)
        result["descriptors"] = "ok" if pid > 0 else "refused"
    """.replace("\n        ", "\n")
    )
    assert bench.run_weakened(text, UNCONFINED).value == {
        "bind": "EINVAL",
        "name": "EINVAL",
        "handlers": "EINVAL",
        "half a thread": "EINVAL",
        "descriptors": "ok",
    }


def test_threads_forks_and_spawned_programs_start(bench: Bench) -> None:
    text = """
        import os, subprocess, threading
        from concurrent.futures import ProcessPoolExecutor
        seen = []
        thread = threading.Thread(target=seen.append, args=(1,)); thread.start(); thread.join()
        with ProcessPoolExecutor(2) as pool:
            seen += pool.map(abs, [-2])
        seen.append(subprocess.run(["true"]).returncode)
        seen.append(os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1])
        result = seen
    """
    assert bench.value(text) == [1, 2, 0, 0]
