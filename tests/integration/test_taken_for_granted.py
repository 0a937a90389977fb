"""Calls that libraries take for granted are answered as they handle best, in a container and in a cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import document, environment
from tests.integration.service import Service, served

pytestmark = pytest.mark.podman

C = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(number, *arguments):
    ctypes.set_errno(0)
    value = libc.syscall(ctypes.c_long(number), *map(ctypes.c_void_p, arguments))
    return errno.errorcode[ctypes.get_errno()] if value == -1 else value

x86 = os.uname().machine == "x86_64"
"""
CASES = {
    "os.sched_setaffinity": ("os.sched_setaffinity(0, {0})\nresult = len(os.sched_getaffinity(0))", 1),
    "cores that are not there": ("os.sched_setaffinity(0, {900})\nresult = len(os.sched_getaffinity(0))", 1),
    "pthread_setaffinity_np": (
        "libc.pthread_self.restype = ctypes.c_ulong\n"
        "result = libc.pthread_setaffinity_np(ctypes.c_void_p(libc.pthread_self()), 128, b'\\x01' + bytes(127))",
        0,
    ),
    "set_mempolicy": ("result = call(238 if x86 else 237, 3, 0, 0)", 0),
    "get_mempolicy": ("result = call(239 if x86 else 236, 0, 0, 0, 0, 0)", 0),
    "mbind": ("result = call(237 if x86 else 235, 0, 0, 1, 0, 0, 0)", "EPERM"),
    "ioprio_set": ("result = call(251 if x86 else 30, 1, 0, 3 << 13)", 0),
    "ioprio_get": ("result = call(252 if x86 else 31, 1, 0) >= 0", True),
    "capget": (
        "head = (ctypes.c_uint32 * 2)(0x20080522, 0)\ndata = (ctypes.c_uint32 * 6)(*[7] * 6)\n"
        "result = [call(125 if x86 else 90, ctypes.addressof(head), ctypes.addressof(data)), list(data)]",
        [0, [0] * 6],
    ),
    "ordinary scheduling": (
        "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))\nresult = os.sched_getscheduler(0)",
        0,
    ),
    "a priority without real time": ("os.sched_setparam(0, os.sched_param(0))\nresult = 1", 1),
    "real time": (
        "try:\n    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\nexcept PermissionError:\n    result = 'refused'",
        "refused",
    ),
    "a thread with explicit scheduling": (
        "attributes, thread = ctypes.create_string_buffer(256), ctypes.c_ulong()\n"
        "libc.pthread_attr_init(attributes)\nlibc.pthread_attr_setinheritsched(attributes, 1)\n"
        "work = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: None)\n"
        "result = libc.pthread_create(ctypes.byref(thread), attributes, work, None)\nlibc.pthread_join(thread, None)",
        0,
    ),
    "nice": ("before = os.nice(0)\nresult = os.nice(1) >= before", True),
    "io_uring": ("result = call(425, 1, 0)", "EPERM"),
    "perf": ("result = call(298 if x86 else 241, 0, 0, -1, -1, 0)", "EPERM"),
    "a later kernel's call": ("result = call(600)", "ENOSYS"),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("granted")) as running:
        yield running


@pytest.mark.parametrize("policy", ["default", "cells"])
def test_each_call_is_answered_as_programs_handle_best(tmp_path: Path, service: Service, policy: str) -> None:
    script = tmp_path / "script.py"
    parts = [
        f"def part(call, libc, x86):\n{''.join(f'    {line}{chr(10)}' for line in code.splitlines())}    return result\n"
        f"found[{name!r}] = part(call, libc, x86)\n"
        for name, (code, _) in CASES.items()
    ]
    script.write_text(C + "found = {}\n" + "".join(parts) + "result = found\n")
    answer = document("run", script, "--policy", policy, env=environment(SANDBOX_SOCKET=service.socket))
    assert answer["outcome"] == "succeeded", answer
    assert answer["result"] == {name: expected for name, (_, expected) in CASES.items()}
