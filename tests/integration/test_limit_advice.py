"""Real errors of the system, in Python's words and in others', are explained by the key of the policy.

With the service and without, in a container and in a cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import document, environment
from tests.integration.service import Service, served

pytestmark = pytest.mark.podman

FILL = """
import os
with open({path!r}, "wb") as file:
    while True:
        file.write(bytes(1 << 20))
"""
MAPPED = """
import mmap, os
descriptor = os.open({path!r}, os.O_RDWR | os.O_CREAT)
os.ftruncate(descriptor, 200 << 20)
with mmap.mmap(descriptor, 200 << 20) as mapped:
    for start in range(0, 200 << 20, 1 << 20):
        mapped[start : start + (1 << 20)] = b"x" * (1 << 20)
"""
CASES = {
    "a full /tmp": (FILL.format(path="/tmp/a"), "filesystem.tmp_mib"),
    "a full working directory": (FILL.format(path="out.bin"), "filesystem.app_mib"),
    "a full /dev/shm": (FILL.format(path="/dev/shm/a"), "filesystem.shm_mib"),
    "a full database": (
        "import sqlite3\nbase = sqlite3.connect('/tmp/a.db')\nbase.execute('create table t (x)')\n"
        "while True:\n    base.execute('insert into t values (zeroblob(1000000))')\n    base.commit()",
        "filesystem.tmp_mib",
    ),
    "a command's output": (
        "run_command('head -c 200000000 /dev/zero > /tmp/a; true')\nwith open('/tmp/b', 'w') as file: file.write('x')",
        "filesystem.tmp_mib",
    ),
    "shared memory": (
        (
            "from multiprocessing import shared_memory\nblock = shared_memory.SharedMemory(create=True, size=200 << 20)\n"
            "block.buf[:] = bytes(200 << 20)"
        ),
        "filesystem.shm_mib",
    ),
    "a mapped file in /tmp": (MAPPED.format(path="/tmp/a"), "filesystem.tmp_mib"),
    "a mapped file in the working directory": (MAPPED.format(path="a"), "filesystem.app_mib"),
    "files": ("kept = [open('/tmp/a', 'w') for _ in range(2000)]", "limits.open_files"),
    "descriptors": ("import os\nkept = [os.dup(1) for _ in range(2000)]", "limits.open_files"),
    "a command that needs files": (
        "import os, subprocess\nkept = [os.open('/dev/null', 0) for _ in range(1021)]\nsubprocess.run(['true'], capture_output=True)",
        "limits.open_files",
    ),
    "threads": (
        "import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "limits.processes",
    ),
    "threads of a library in C++": (
        'import os, sys, threading, time\nsys.stderr.write("terminate called after throwing an instance of'
        " 'std::system_error'\\n  what():  Resource temporarily unavailable\\n\")\nsys.stderr.flush()\nos.abort()",
        "limits.processes",
    ),
    "memory of a child": (
        "import sys\nsys.stderr.write('Error occurred during initialization of VM\\nCould not reserve enough space for object heap\\n')\nsys.exit(1)",
        "limits.memory_mib",
    ),
}

# SQLite takes back what it wrote before it raises, and multiprocessing's tracker may be faster than our look at the end:
# all directories are then named.
GIVEN_BACK = {"a full database", "shared memory"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("limits")) as running:
        yield running


def run(tmp_path: Path, code: str, *options: str, **more: Any) -> dict[str, Any]:
    script = tmp_path / "script.py"
    script.write_text(code)
    return document("run", script, *options, **more)


def named(answer: dict[str, Any]) -> set[str]:
    return {
        word.strip("(),;")
        for word in answer["explanation"].split()
        if "." in word and word.strip("(")[:6] in ("limits", "filesy")
    }


def check(answer: dict[str, Any], name: str, key: str) -> None:
    if name in GIVEN_BACK:
        assert key in named(answer), answer["explanation"]
    else:
        assert named(answer) == {key}, answer["explanation"]


@pytest.mark.parametrize("name", CASES)
def test_an_error_of_the_system_names_its_key_and_no_other(tmp_path: Path, name: str) -> None:
    code, key = CASES[name]
    answer = run(tmp_path, code)
    assert answer["outcome"] != "succeeded"
    check(answer, name, key)


@pytest.mark.parametrize("name", CASES)
def test_so_does_one_in_a_cell(tmp_path: Path, service: Service, name: str) -> None:
    """Only a service has cells: a command by itself makes a container under any policy."""
    code, key = CASES[name]
    answer = run(tmp_path, code, "--policy", "cells", env=environment(SANDBOX_SOCKET=service.socket))
    assert answer["outcome"] != "succeeded"
    [row] = [row for row in answer["receipt"]["controls"] if row["control"] == "isolation"]
    assert row["mechanism"] != "container", row
    check(answer, name, key)


@pytest.mark.parametrize("name", ["shared memory", "a full /tmp", "files", "threads", "memory of a child"])
def test_the_service_says_the_same(tmp_path: Path, service: Service, name: str) -> None:
    code, key = CASES[name]
    answer = run(tmp_path, code, env=environment(SANDBOX_SOCKET=service.socket))
    assert answer["outcome"] != "succeeded"
    check(answer, name, key)


def test_memory_that_is_only_reserved_is_told_as_such_where_it_counts(tmp_path: Path) -> None:
    """As wasmtime does it, and Java: much address space, and little of it used."""
    answer = run(tmp_path, "import mmap\nkept = mmap.mmap(-1, 6 << 30, flags=mmap.MAP_PRIVATE | 0x4000)\nresult = 1")
    [cap] = [row for row in answer["receipt"]["controls"] if row["control"] == "memory"]
    if cap["mechanism"] == "cgroup":
        assert answer["outcome"] == "succeeded"
    else:
        assert answer["outcome"] == "out_of_memory"
        assert "limits.memory_mib" in answer["explanation"]
        assert "reserved more than 2560 MiB" in answer["explanation"]
