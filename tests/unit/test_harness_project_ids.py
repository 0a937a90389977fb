"""The one map of a user namespace that anyone may write, once: the harness writes it before anybody else can."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from sandbox.inside.harness import process

MAP = Path("/proc/self/projid_map")
CLONE_NEWUSER = 0x10000000


def in_a_user_namespace(work: Callable[[], str]) -> str:
    """Return what `work` says in a process that is alone in a user namespace of its own, with no capability outside."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            assert ctypes.CDLL(None).unshare(CLONE_NEWUSER) == 0
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with open(reading, closefd=True) as said:
        return said.read()


def write() -> str:
    try:
        with MAP.open("w") as file:
            file.write("7 7 1")
    except PermissionError:
        return "refused"
    return " ".join(MAP.read_text().split())


def test_anybody_may_write_the_map_once() -> None:
    assert in_a_user_namespace(write) == "7 7 1"


def test_what_the_harness_has_written_nobody_changes() -> None:
    def written_first() -> str:
        process.close_project_ids()
        return f"{write()}, {' '.join(MAP.read_text().split())}"

    assert in_a_user_namespace(written_first) == "refused, 0 0 1"


def test_a_map_that_is_written_already_is_left_as_it_is() -> None:
    def twice() -> str:
        write()
        process.close_project_ids()
        return " ".join(MAP.read_text().split())

    assert in_a_user_namespace(twice) == "7 7 1"
