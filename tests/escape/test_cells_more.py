"""More ways out of a cell: what it inherits of the maker, the kernel's counts per user, memory, groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sandbox.kernel.family import children, family
from sandbox.models import Outcome
from tests.escape.attacks import needs_known_architecture, program
from tests.escape.bench import Bench
from tests.escape.test_cells import Flow, flow, policy, weakened
from tests.waiting import until

__all__ = ["flow", "policy"]  # fixtures

# Any container's first process is forked anew, and hashes texts in its own way: it tells one from the other.
WHICH = "result = hash('which')"


# ---------------------------------------------------------------- what a cell inherits


def descriptors(pid: int) -> dict[int, str]:
    """Return what a process has open."""
    return {int(entry.name): os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}


OPEN = """
import os
result = [os.readlink(f"/proc/self/fd/{number}") for number in range(64) if os.path.lexists(f"/proc/self/fd/{number}")]
"""


def test_a_cell_inherits_no_descriptor_of_its_maker_but_the_streams_to_nowhere(flow: Flow) -> None:
    seen = flow.value(OPEN)
    maker = flow.runs.makers()[-1].sandbox.pid
    # The cell that has ended is gone, the next waits.
    until(lambda: (len(children(maker)), len(family(maker))), (1, 3))
    [waiting] = children(maker)
    of_maker, of_cell = descriptors(maker), descriptors(waiting)
    shared = {number for number, target in of_cell.items() if target in of_maker.values()}
    assert shared == {0, 1, 2}, "and process 1 alone has these: nothing of Podman's log is kept"
    assert any(target.startswith("socket:") for target in of_maker.values()), "the maker has its own channel open"
    assert {target for target in seen if target in of_maker.values()} == {"/dev/null"}
    assert sorted(target.partition(":")[0] for target in seen) == ["/dev/null", "pipe", "pipe", "socket"]


SCAN = """
import mmap, os, re
# The text is nowhere in memory because of the search: its characters are only ever apart, or in the reverse order.
pattern = re.compile("".join(f"[{character}]" for character in reversed(REVERSED)).encode())
buffer = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
found, regions = [], [line.split() for line in open("/proc/self/maps")]
with open("/proc/self/mem", "rb", 0) as memory:
    for region in regions:
        first, last = (int(part, 16) for part in region[0].split("-"))
        if not region[1].startswith("rw"):
            continue
        for place in range(first, last, len(buffer)):
            memory.seek(place)
            try:
                size = memory.readinto(memoryview(buffer)[:min(len(buffer), last - place)])
            except OSError:
                break
            found += [match.start() for match in pattern.finditer(buffer, 0, size)]
            buffer[:size] = bytes(size)
result = len(found)
"""


def test_nothing_of_a_message_or_a_secret_is_in_the_memory_of_the_next_cell(flow: Flow) -> None:
    for kind in ("payload", "secret"):
        text = f"only-in-one-{kind}-{os.getpid()}"
        scan = f"REVERSED = {text[::-1]!r}\n{SCAN}"
        given: dict[str, Any] = {"payload": [text]} if kind == "payload" else {"secrets": {"TOKEN": text}}
        which = flow.value(WHICH)
        assert flow.value(scan, **given) > 0, "the search finds what is there"
        assert flow.value(scan) == 0
        assert flow.value(WHICH) == which, "another container would show nothing"


FILES = program("""
import stat
writable, special = [], []
for directory, directories, names in os.walk("/", onerror=lambda error: None):
    if directory == "/proc":
        directories.clear()
        continue
    for path in (os.path.join(directory, name) for name in directories + names):
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if not stat.S_ISLNK(mode) and os.access(path, os.W_OK):
            writable.append((path, stat.S_ISCHR(mode)))
        if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
            special.append(path)
KERNEL = (
    "sys/kernel/hostname", "sys/kernel/ns_last_pid", "sys/user/max_inotify_instances", "sys/net/ipv4/ip_forward",
    "self/uid_map", "self/gid_map", "self/setgroups", "self/oom_score_adj", "self/timens_offsets", "self/clear_refs",
    "self/attr/current", "self/loginuid", "1/oom_score_adj", "1/uid_map",
)
def before_and_after(path):
    before = os.stat(path).st_atime_ns
    with open(path, "rb") as file:
        file.read(1)
    return os.stat(path).st_atime_ns - before
result = {
    "places": sorted(path for path, device in writable if not device), "special": special,
    "kernel": {path: attempt(lambda: open("/proc/" + path, "r+b", 0)) for path in KERNEL if os.path.exists("/proc/" + path)},
    "touch": attempt(lambda: os.utime("/etc/passwd")), "read": before_and_after("/etc/passwd"),
    "lease": attempt(lambda: __import__("fcntl").fcntl(open("/etc/passwd"), 1024, 0)),
}
""")


def test_a_cell_can_write_to_no_file_that_another_sees_nor_set_anything_of_the_kernel(flow: Flow) -> None:
    seen = flow.value(FILES)
    assert seen["places"] == ["/app", "/app/attack.py", "/dev/shm", "/tmp"]
    assert seen["special"] == [], "no socket and no pipe that leads somewhere"
    assert len(seen["kernel"]) > 8
    assert set(seen["kernel"].values()) <= {"EROFS", "EACCES", "EPERM"}
    assert seen["touch"] == "EROFS"
    assert seen["read"] == 0, "not even when a file was read last can be seen"
    assert seen["lease"] in ("EACCES", "EPERM", "ENOSYS"), "a lease would make who opens it wait"


# ---------------------------------------------------------------- signals to a group

TO_GROUP = program("""
def to_all():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(0, signal.SIGTERM)
result = {
    "own": os.getpgrp() == os.getsid(0) == os.getpid(), "join": attempt(os.setpgid, 0, 1), "leave": attempt(os.setpgid, 0, 0),
    "above": [os.getpgid(1), os.getsid(1)], "kill": attempt(to_all),
}
""")


def test_a_signal_to_its_process_group_reaches_neither_the_maker_nor_the_cell_that_waits(flow: Flow) -> None:
    seen = flow.value(TO_GROUP)
    # The group of process 1 is the maker's, and has no number here: nobody can join it or send to it.
    assert seen == {"own": True, "join": "EPERM", "leave": "EPERM", "above": [0, 0], "kill": "ok"}
    which, broken = flow.value(WHICH), flow.runs.counts().broken
    assert flow.run("import os\nos.kill(0, 9)").outcome is Outcome.KILLED
    assert flow.value(WHICH) == which
    assert flow.runs.counts().broken == broken


@pytest.mark.control
def test_without_a_session_of_its_own_a_program_is_in_the_group_of_the_maker(bench: Bench, policy: str) -> None:
    weak = weakened(bench, policy, {"    os.setsid()\n    null =": "    null ="}, "import os\nresult = os.getpgrp()")
    assert weak.value == 0


# ---------------------------------------------------------------- counts of a user, who is the same in all cells

TAKE = program("""
import fcntl
signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 65))
def count(function, most):
    taken = 0
    while taken < most and function():
        taken += 1
    return taken
def signals():
    return libc.sigqueue(os.getpid(), 40, 0) == 0
def watchers():
    fd = libc.inotify_init1(0)
    return fd >= 0 and (kept.append(fd) or True)
def large_pipes():
    try:
        ends = os.pipe()
        kept.extend(ends)
        return fcntl.fcntl(ends[0], 1031, 1 << 20) == 1 << 20
    except OSError:
        return False
def in_flight():
    "A descriptor that travels in the queue of its own socket, and so is no one's: the kernel must find that out."
    try:
        one, other = socket.socketpair()
        socket.send_fds(one, [b"x"], [one.fileno(), other.fileno()] * 20)
    except OSError:
        return False
    one.close()
    other.close()
    return True
def terminals():
    try:
        kept.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
        return True
    except OSError:
        return False
kept, result = [], {}
for function, most in ((in_flight, 100), (signals, 100), (watchers, 12), (large_pipes, 8), (terminals, 12)):
    result[function.__name__] = count(function, most)
""")
TAKE_ALL = f"{TAKE}\nwhile signals() or watchers() or terminals(): pass\nos.kill(os.getpid(), 9)"


@needs_known_architecture
def test_what_a_run_took_of_the_kernel_s_counts_the_next_one_has_again(flow: Flow) -> None:
    first = flow.value(TAKE)
    assert first["signals"] == 100
    for _ in range(3):
        assert flow.run(TAKE_ALL).outcome is Outcome.KILLED
        found = flow.value(TAKE)
        assert found | {"in_flight": 0} == first | {"in_flight": 0}
        # What travels in no one's socket the kernel collects in the background.
        until(lambda: flow.value(TAKE)["in_flight"] >= first["in_flight"])
