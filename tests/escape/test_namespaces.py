"""Boundary: no new namespace, and no way into another one; above all no user namespace."""

from __future__ import annotations

from typing import Any

import pytest

from tests.escape.attacks import needs_known_architecture, program
from tests.escape.bench import UNCONFINED, Bench, WeakResult

pytestmark = needs_known_architecture

FLAGS = {
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "mount": 0x00020000, "ipc": 0x08000000,
    "uts": 0x04000000, "cgroup": 0x02000000,
}  # fmt: skip # a table

PROBE = program("""
def clone(flags):
    value, code = raw(NUMBERS["clone"], flags | signal.SIGCHLD, 0, 0, 0, 0)
    if value == 0:
        os._exit(0)
    if value > 0:
        os.waitpid(value, 0)
    return name_of(value, code)

def clone3(flags):
    block = (ctypes.c_uint64 * 11)(flags, 0, 0, 0, signal.SIGCHLD)
    value, code = raw(NUMBERS["clone3"], ctypes.addressof(block), 64)
    if value == 0:
        os._exit(0)
    if value > 0:
        os.waitpid(value, 0)
    return name_of(value, code)

def enter(path):
    with open(path) as file:
        return call("setns", file.fileno(), 0)

def mapped():
    with open("/proc/self/uid_map", "wb", buffering=0) as file:
        file.write(b"0 0 1")

seen = {}
for name, flag in payload.items():
    seen["unshare " + name] = in_child(lambda: call("unshare", flag))
    seen["unshare high " + name] = in_child(lambda: call("unshare", flag | 1 << 32))
    seen["clone " + name] = in_child(lambda: clone(flag))
    seen["clone high " + name] = in_child(lambda: clone(flag | 1 << 40))
    seen["clone3 " + name] = in_child(lambda: clone3(flag))
seen["clone user with others"] = in_child(lambda: clone(0x10000000 | 0x20000000 | 0x40000000))
seen["unshare time"] = in_child(lambda: call("unshare", 0x80))
# The kernel says EINVAL to flags that don't exist and EBADF to no descriptor, whatever the caller may do.
seen["unshare nonsense"] = in_child(lambda: call("unshare", 0x1))
seen["setns nowhere"] = in_child(lambda: call("setns", -1, 0))
seen["setns own"] = in_child(lambda: enter("/proc/self/ns/user"))
seen["uid_map"] = in_child(lambda: attempt(mapped))
result = seen
""")


@pytest.fixture(scope="module")
def seen(bench: Bench) -> dict[str, str]:
    found: dict[str, str] = bench.value(PROBE, payload=FLAGS)
    return found


@pytest.fixture(scope="module")
def unconfined(bench: Bench) -> WeakResult:
    return bench.run_weakened(PROBE, UNCONFINED, payload=FLAGS)


@pytest.mark.parametrize("name", FLAGS)
def test_no_namespace_can_be_made(seen: dict[str, Any], name: str) -> None:
    assert seen[f"unshare {name}"] == seen[f"unshare high {name}"] == "EPERM"
    assert seen[f"clone {name}"] == seen[f"clone high {name}"] == seen[f"clone3 {name}"] == "ENOSYS"


def test_no_combination_hides_the_flag(seen: dict[str, Any]) -> None:
    assert seen["clone user with others"] == "ENOSYS"
    assert seen["unshare time"] == "EPERM"


def test_the_refusal_is_the_filter_s_and_not_the_kernel_s(seen: dict[str, Any]) -> None:
    assert seen["unshare nonsense"] == seen["setns nowhere"] == seen["setns own"] == "EPERM"
    assert seen["uid_map"] in ("EPERM", "EACCES", "EROFS")


@pytest.mark.host_only
@pytest.mark.control
def test_without_the_filter_the_kernel_answers_instead(unconfined: WeakResult) -> None:
    answers = unconfined.value
    assert answers["unshare nonsense"] == "EINVAL"
    assert answers["setns nowhere"] == "EBADF"
    assert unconfined.noticed == {"seccomp"}


@pytest.mark.host_only
@pytest.mark.control
def test_without_the_filter_a_user_namespace_is_made(unconfined: WeakResult) -> None:
    answers = unconfined.value
    if answers["unshare user"] in ("ENOSPC", "EPERM"):
        pytest.skip("this host allows no nested user namespaces")
    assert answers["unshare user"] == answers["clone user"] == answers["clone3 user"] == "ok"
    assert answers["clone user with others"] == "ok"


def test_threads_and_forks_still_work(bench: Bench) -> None:
    text = """
        import os, subprocess, threading
        found = []
        thread = threading.Thread(target=lambda: found.append("thread"))
        thread.start(); thread.join()
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        found.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        found.append(subprocess.run(["true"]).returncode)
        result = found
    """
    assert bench.value(text) == ["thread", 7, 0]
