"""Boundary: no process reads, steers or takes descriptors from another; least of all from process 1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox.container.harness_files import harness_source
from tests.escape.attacks import needs_known_architecture, program
from tests.escape.bench import UNCONFINED, Bench, WeakResult, other_harness

pytestmark = needs_known_architecture

# A parent may debug its child in every ordinary Linux process, so success is the kernel's own answer to most of these.
PROBE = program("""
def of_child(function):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        return function(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

def vectors():
    buffer = ctypes.create_string_buffer(8)
    own = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 8)
    other = (ctypes.c_uint64 * 2)(ctypes.addressof(libc_text), 8)
    return own, other

libc_text = ctypes.create_string_buffer(b"12345678")

def vm(name, pid):
    own, other = vectors()
    return call(name, pid, ctypes.addressof(own), 1, ctypes.addressof(other), 1, 0)

def first_of(path):
    with open(path, "rb") as file:
        return file.read(16)

def memory(pid):
    start = next(int(line.split("-")[0], 16) for line in open(f"/proc/{pid}/maps") if "heap" in line)
    with open(f"/proc/{pid}/mem", "rb") as file:
        file.seek(start)
        return file.read(16)

result = {
    "ptrace traceme": in_child(lambda: call("ptrace", 0, 0, 0, 0)),
    "ptrace attach child": of_child(lambda pid: call("ptrace", 0x4206, pid, 0, 0)),
    "ptrace nobody": call("ptrace", 0x4206, 2147483647, 0, 0),
    "process_vm_readv child": of_child(lambda pid: vm("process_vm_readv", pid)),
    "process_vm_writev child": of_child(lambda pid: vm("process_vm_writev", pid)),
    "process_vm_readv 1": vm("process_vm_readv", 1),
    "pidfd_getfd nowhere": call("pidfd_getfd", -1, 0, 0),
    "pidfd_getfd child": of_child(lambda pid: call("pidfd_getfd", os.pidfd_open(pid), 0, 0)),
    "pidfd_getfd 1": call("pidfd_getfd", os.pidfd_open(1), 3, 0),
    "kcmp own": call("kcmp", os.getpid(), os.getpid(), 1, 0, 0),
    "process_madvise nowhere": call("process_madvise", -1, 0, 0, 0, 0),
    "prlimit of 1": attempt(lambda: __import__("resource").prlimit(1, 7, (32, 64))),
    "oom score of 1": attempt(lambda: open("/proc/1/oom_score_adj", "w").write("1000")),
    "mem of 1": attempt(open, "/proc/1/mem", "rb"),
    "heap of 1": attempt(lambda: memory(1)),
    "environ of 1": attempt(lambda: first_of("/proc/1/environ")),
    "maps of 1": attempt(lambda: first_of("/proc/1/maps")),
    "stack of 1": attempt(lambda: first_of("/proc/1/stack")),
    "fds of 1": attempt(lambda: os.listdir("/proc/1/fd")),
    "cwd of 1": attempt(lambda: os.readlink("/proc/1/cwd")),
    "root of 1": attempt(lambda: os.listdir("/proc/1/root/")),
    "a thread of 1": attempt(lambda: os.listdir("/proc/1/task/1/fd")),
    "signal to 1": attempt(lambda: os.kill(1, signal.SIGKILL)),
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "own pid": os.getpid(),
}
""")

FILTERED = (
    "ptrace traceme", "ptrace attach child", "ptrace nobody", "process_vm_readv child", "process_vm_writev child",
    "process_vm_readv 1", "pidfd_getfd nowhere", "pidfd_getfd child", "pidfd_getfd 1", "kcmp own",
    "process_madvise nowhere",
)  # fmt: skip # a table
OPAQUE = ("mem of 1", "heap of 1", "environ of 1", "maps of 1", "fds of 1", "cwd of 1", "root of 1", "a thread of 1")


@pytest.fixture(scope="module")
def seen(bench: Bench) -> dict[str, str]:
    found: dict[str, str] = bench.value(PROBE)
    return found


@pytest.fixture(scope="module")
def unconfined(bench: Bench) -> WeakResult:
    return bench.run_weakened(PROBE, UNCONFINED)


@pytest.mark.parametrize("name", FILTERED)
def test_debugging_calls_are_refused_by_the_filter(seen: dict[str, str], name: str) -> None:
    assert seen[name] == "EPERM"


@pytest.mark.parametrize("name", OPAQUE)
def test_process_1_is_opaque(seen: dict[str, str], name: str) -> None:
    assert seen[name] in ("EACCES", "EPERM")


def test_process_1_is_out_of_reach_of_limits_and_the_oom_score(seen: dict[str, str]) -> None:
    assert seen["prlimit of 1"] in ("EPERM", "ENOSYS")
    assert seen["oom score of 1"] in ("EACCES", "EPERM", "EROFS")


def test_no_process_outside_the_sandbox_is_seen(seen: dict[str, object]) -> None:
    assert seen["processes"] == [1, seen["own pid"]]


@pytest.mark.host_only
@pytest.mark.control
def test_without_the_filter_the_kernel_debugs_a_child(unconfined: WeakResult) -> None:
    answers = unconfined.value
    assert answers["ptrace traceme"] == answers["process_vm_readv child"] == answers["kcmp own"] == "ok"
    assert answers["ptrace nobody"] == "ESRCH"
    assert answers["pidfd_getfd nowhere"] == answers["process_madvise nowhere"] == "EBADF"
    assert unconfined.noticed == {"seccomp"}


@pytest.mark.host_only
@pytest.mark.control
def test_even_without_the_filter_process_1_stays_opaque(unconfined: WeakResult) -> None:
    answers = unconfined.value
    assert {answers[name] for name in ("process_vm_readv 1", "pidfd_getfd 1", *OPAQUE)} <= {"EACCES", "EPERM"}


def test_a_harness_that_did_not_hide_would_be_read(bench: Bench, tmp_path: Path) -> None:
    text = harness_source()
    shown, count = re.subn(r"(def hide\(\).*?)    set_dumpable\(0\)\n", r"\1", text, flags=re.DOTALL)
    assert count == 1
    (tmp_path / "harness.py").write_text(shown)
    tmp_path.chmod(0o755)
    answers = bench.run_weakened(PROBE, other_harness(tmp_path)).value
    assert {answers[name] for name in OPAQUE} == {"ok"}, answers


def test_a_debugger_is_not_needed_for_a_program_to_see_itself(bench: Bench) -> None:
    assert bench.value("import os; result = sorted(os.listdir('/proc/self/fd'))[:3]") == ["0", "1", "2"]
