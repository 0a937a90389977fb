"""Boundary: memory ends at the policy's cap.

It may be in one process or many, private, shared, in files or held by the kernel.
"""

from __future__ import annotations

from textwrap import dedent

import pytest

from sandbox.container.spec import MIB
from sandbox.models import Outcome, RunResult
from tests.escape.bench import Bench, tightening, tmpfs_option

CAP_MIB = 96
# The fallback measures from outside: what a program takes between two looks comes on top.
OVERSHOOT = 2.0

# Each takes its memory as fast as it can, and holds it: the fallback ends it at the next look, and a busy machine may
# let the watchdog run late. How often it looks is counted in tests/unit/test_watchdog.py.
HOLDING = "import time\ndef hold(): time.sleep(4)\n"
AT_ONCE = "def hold(): pass\n"
ATTACKS = {
    "one process": (
        """
        held = []
        while len(held) < payload:
            held.append(bytearray(b"x") * (1 << 20))
        hold()
        result = len(held)
    """
    ),
    "many processes": (
        """
        import os, time
        each = 12
        for _ in range(payload // each):
            if os.fork() == 0:
                held = bytearray(b"x") * (each << 20)
                time.sleep(60)
        time.sleep(2)
        hold()
        result = payload
    """
    ),
    "many threads": (
        """
        import threading, time
        held = []
        def take():
            for _ in range(8):
                held.append(bytearray(b"x") * (1 << 20))
        threads = [threading.Thread(target=take) for _ in range(payload // 8)]
        for thread in threads: thread.start(); thread.join()
        hold()
        result = len(held)
    """
    ),
    "shared and anonymous": (
        """
        import mmap
        area = mmap.mmap(-1, payload << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        for page in range(0, payload << 20, 4096):
            area[page] = 1
        hold()
        result = payload
    """
    ),
    "shared, one part per process": (
        """
        import mmap, os, time
        each = 12
        for _ in range(payload // each):
            area = mmap.mmap(-1, each << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
            if os.fork() == 0:
                for page in range(0, each << 20, 4096):
                    area[page] = 1
                time.sleep(60)
            area.close()
        time.sleep(2)
        hold()
        result = payload
    """
    ),
    "shared, then out of sight": (
        """
        import mmap
        held = []
        for _ in range(payload // 16):
            area = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
            for page in range(0, 16 << 20, 4096):
                area[page] = 1
            area.madvise(mmap.MADV_DONTNEED)  # drops the mapping's pages from view; the object keeps them
            held.append(area)
        hold()
        result = sum(area[0] for area in held) * 16
    """
    ),
    "files in memory": (
        """
        import os
        held = []
        for _ in range(payload // 8):
            file = os.memfd_create("held")
            os.write(file, b"x" * (8 << 20))
            held.append(file)
        hold()
        result = sum(os.fstat(file).st_size for file in held) >> 20
    """
    ),
    "a file in memory, in nobody's hands": (
        """
        import array, os, socket
        held = []
        for _ in range(payload // 8):
            file = os.memfd_create("held")
            os.write(file, b"x" * (8 << 20))
            pair = socket.socketpair()
            socket.send_fds(pair[0], [b"x"], [file])
            os.close(file)
            held.append(pair)
        hold()
        result = sum(os.fstat(socket.recv_fds(pair[1], 1, 1)[1][0]).st_size for pair in held) >> 20
    """
    ),
    "a child that outgrows its parent": (
        """
        import os
        if os.fork() == 0:
            held = bytearray(b"x") * (payload << 20)
            hold()
            os._exit(0 if len(held) == payload << 20 else 1)
        status = os.wait()[1]
        result = payload if status == 0 else -1
    """
    ),
    "in a result": (
        """
        result = ["x" * (1 << 20) + str(i) for i in range(payload)]
        hold()
        result = len(result)
    """
    ),
    "through a daemon": (
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                held = bytearray(b"x") * (payload << 20)
                open("/app/done", "w").write("done")
                time.sleep(60)
            os._exit(0)
        for _ in range(60):
            time.sleep(0.05)
            if os.path.exists("/app/done"):
                hold()
                result = payload
                break
    """
    ),
}
ATTACKS = {name: dedent(code) for name, code in ATTACKS.items()}


@pytest.fixture(scope="module")
def tight(bench: Bench) -> str:
    return bench.policy_with(limits__memory_mib=CAP_MIB, limits__timeout_s=6, limits__processes=48)


@pytest.fixture(scope="module")
def roomy(bench: Bench) -> str:
    return bench.policy_with(limits__memory_mib=512, limits__timeout_s=10, limits__processes=48, limits__result_mib=8)


def is_contained(ended: RunResult) -> bool:
    """Tell whether a program got no more memory than its cap: it was ended, or its own allocation was refused."""
    return ended.outcome is Outcome.OUT_OF_MEMORY or (
        ended.outcome is Outcome.FAILED
        and ended.error is not None
        and ended.error.type in ("OSError", "AttributeError", "PermissionError")
    )


@pytest.mark.host_only  # in the virtual machine, tests/kernel/test_memory.py has bombs of its own
@pytest.mark.parametrize("name", ATTACKS)
def test_memory_past_the_cap_is_not_had(bench: Bench, tight: str, name: str) -> None:
    ended = bench.run(HOLDING + ATTACKS[name], policy=tight, payload=2 * CAP_MIB)
    assert is_contained(ended), (ended.outcome, ended.explanation, ended.result_json)
    assert ended.result_json is None


@pytest.mark.host_only  # the attacks are the same everywhere
@pytest.mark.parametrize(
    "name", [name for name in ATTACKS if "file in memory" not in name and "files in memory" not in name]
)
def test_under_a_larger_cap_the_same_program_succeeds(bench: Bench, roomy: str, name: str) -> None:
    assert bench.value(AT_ONCE + ATTACKS[name], policy=roomy, payload=2 * CAP_MIB) == 2 * CAP_MIB


def test_the_outcome_names_the_cap_and_its_key(bench: Bench, tight: str) -> None:
    ended = bench.run(HOLDING + ATTACKS["one process"], policy=tight, payload=4 * CAP_MIB)
    assert ended.outcome is Outcome.OUT_OF_MEMORY
    assert f"{CAP_MIB} MiB (limits.memory_mib)" in ended.explanation


def test_files_count_as_memory(bench: Bench) -> None:
    # The three places together are below the cap, or the policy would not load; filled, they leave less for processes:
    # enough for two Pythons and what the kernel keeps for them (16 MiB), and not for 60 MiB more.
    policy = bench.policy_with(
        limits__memory_mib=112, filesystem__app_mib=32, filesystem__tmp_mib=32, filesystem__shm_mib=16
    )
    text = """
        for place, size in (("/app", 31), ("/tmp", 31), ("/dev/shm", 15)):
            with open(place + "/filler", "wb") as file:
                for _ in range(size):
                    file.write(b"x" * (1 << 20))
        held = bytearray(b"x") * (payload << 20)
        import time
        time.sleep(1)
        result = "both"
    """
    assert bench.run(text, policy=policy, payload=60).outcome is Outcome.OUT_OF_MEMORY
    assert bench.run(text, policy=policy, payload=1).outcome is Outcome.SUCCEEDED


def test_many_empty_files_count_as_memory(bench: Bench, tight: str) -> None:
    # An empty file takes no block of its file system, yet about 1 KiB of the kernel's memory.
    text = """
        import os
        made = 0
        try:
            for directory in range(1000):
                os.mkdir(f"/app/{directory}")
                for number in range(1000):
                    os.close(os.open(f"/app/{directory}/{number}", os.O_CREAT | os.O_WRONLY))
                    made += 1
        except OSError as error:
            result = [made, error.errno]
    """
    ended = bench.run(text, policy=tight)
    if ended.outcome is Outcome.SUCCEEDED:  # refused by the file system instead: ENOSPC
        assert ended.result_json is not None
        assert ended.result_json.endswith(b",28]")
    else:
        assert ended.outcome is Outcome.OUT_OF_MEMORY, (ended.outcome, ended.explanation)


@pytest.mark.quiet  # the watchdog measures as often as it gets a processor, and the peak tells how often
@pytest.mark.host_only  # about the fallback that measures from outside
def test_a_peak_stays_near_the_cap(bench: Bench, tight: str) -> None:
    # As much in each millisecond as its pages can be written: the peak tells how long the watchdog took to see it.
    text = """
        import time
        held = []
        while True:
            held.append(bytearray(b"x") * (1 << 20))
            time.sleep(0.001)
    """
    ended = bench.run(text, policy=tight)
    assert ended.outcome is Outcome.OUT_OF_MEMORY
    assert ended.peak_memory_mib is not None
    assert ended.peak_memory_mib <= CAP_MIB * OVERSHOOT


@pytest.mark.quiet  # the watchdog measures as often as it gets a processor, and the peak tells how often
@pytest.mark.host_only  # about the fallback that measures from outside
def test_noise_does_not_blind_the_measurement(bench: Bench, tight: str) -> None:
    # A flood of one-byte writes keeps the runner busy while another process allocates.
    text = """
        import os, time
        if os.fork() == 0:
            while True:
                os.write(1, b"x")
        time.sleep(0.3)
        held = []
        for _ in range(payload):
            held.append(bytearray(b"x") * (1 << 20))
            time.sleep(0.002)
        time.sleep(1)
        result = "had it"
    """
    ended = bench.run(text, policy=tight, payload=4 * CAP_MIB)
    assert ended.outcome in (Outcome.OUT_OF_MEMORY, Outcome.OUTPUT_LIMIT)
    assert ended.peak_memory_mib is not None
    assert ended.peak_memory_mib <= CAP_MIB * OVERSHOOT


@pytest.mark.quiet  # the watchdog measures as often as it gets a processor, and the peak tells how often
@pytest.mark.host_only  # about the fallback that measures from outside
def test_a_family_that_is_slow_to_measure_does_not_buy_time(bench: Bench, tight: str) -> None:
    # Forked copies share their pages, so the quick sum is past the cap and each look takes the long way.
    text = """
        import os, time
        shared = bytearray(b"x") * (40 << 20)
        children = 0
        try:
            for _ in range(40):
                if os.fork() == 0:
                    while True:
                        time.sleep(60)
                children += 1
        except OSError:
            pass
        time.sleep(0.5)
        held = []
        for _ in range(payload):
            held.append(bytearray(b"x") * (1 << 20))
            if len(held) % 10 == 0:
                time.sleep(0.005)
        time.sleep(1)
        result = "had it"
    """
    ended = bench.run(text, policy=tight, payload=5 * CAP_MIB)
    assert ended.outcome is Outcome.OUT_OF_MEMORY
    assert ended.peak_memory_mib is not None
    assert ended.peak_memory_mib <= CAP_MIB * OVERSHOOT


@pytest.mark.host_only  # about the fallback that measures from outside
def test_workers_that_share_their_memory_are_not_counted_many_times(bench: Bench, tight: str) -> None:
    text = """
        import os, time
        shared = bytearray(b"x") * (50 << 20)
        for _ in range(8):
            if os.fork() == 0:
                time.sleep(1)
                os._exit(0)
        for _ in range(8):
            os.wait()
        result = "fine"
    """
    assert bench.value(text, policy=tight) == "fine"


def test_buffers_of_sockets_count_as_memory(bench: Bench) -> None:
    policy = bench.policy_with(limits__memory_mib=CAP_MIB, limits__open_files=1024)
    text = """
        import socket
        held, total = [], 0
        try:
            while True:
                held.append(socket.socketpair())
                for end in held[-1]:
                    end.setblocking(False)
                    try:
                        while True:
                            total += end.send(b"x" * 65536)
                    except BlockingIOError:
                        pass
        except OSError:
            hold()
            result = total >> 20
    """
    ended = bench.run(HOLDING + dedent(text), policy=policy)
    assert ended.receipt is not None
    assert ended.outcome is Outcome.OUT_OF_MEMORY


@pytest.mark.host_only  # the policy is the same everywhere
def test_a_request_may_ask_for_less_memory(bench: Bench) -> None:
    text = HOLDING + ATTACKS["one process"]
    ended = bench.run(text, payload=120, limits=tightening(memory_mib=64))
    assert ended.outcome is Outcome.OUT_OF_MEMORY
    assert "64 MiB" in ended.explanation


def test_memory_locked_or_in_message_queues_is_not_had(bench: Bench) -> None:
    text = """
        import ctypes, mmap, resource
        libc = ctypes.CDLL(None, use_errno=True)
        area = mmap.mmap(-1, 1 << 20)
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        result = [libc.mlock(ctypes.c_void_p(address), 1 << 20),
                  resource.getrlimit(resource.RLIMIT_MEMLOCK), resource.getrlimit(resource.RLIMIT_MSGQUEUE)]
    """
    assert bench.value(text) == [-1, [0, 0], [0, 0]]


@pytest.mark.host_only
@pytest.mark.control
def test_a_larger_shm_would_hold_more(bench: Bench) -> None:
    size = bench.policy().filesystem.shm_mib * MIB
    text = """
        from multiprocessing import shared_memory
        area = shared_memory.SharedMemory(create=True, size=payload)
        try:
            for page in range(0, payload, 4096):
                area.buf[page] = 1
            result = "had it"
        finally:
            area.close()
            area.unlink()
    """
    ended = bench.run(text, payload=size + 4 * MIB)
    assert ended.outcome in (Outcome.KILLED, Outcome.OUT_OF_MEMORY, Outcome.FAILED)
    assert ended.result_json is None
    larger = tmpfs_option("/dev/shm", "size=", f"size={size + 8 * MIB}", "a larger /dev/shm")
    weak = bench.run_weakened(text, larger, payload=size + 4 * MIB)
    assert weak.value == "had it"
    assert weak.noticed == {"tmpfs /dev/shm"}
