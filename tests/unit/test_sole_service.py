"""One service for one directory: who is refused and told what, and when the lock is free again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import EngineUnavailable, InvalidRequest
from sandbox.service import sole_service as module
from sandbox.service.sole_service import LOCK, is_served, sole_service

HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from sandbox.service.sole_service import sole_service

with sole_service(Path(sys.argv[1]), socket="/run/one.sock"):
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    read, write = os.pipe()
    forked = os.fork()
    if not forked:
        os.write(write, b"x")  # by now it has closed what it had of the lock
        time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    print(child.pid, forked, flush=True)
    time.sleep(60)
"""
RACE = """
import sys
from pathlib import Path
from sandbox.errors import InvalidRequest
from sandbox.service.sole_service import sole_service

print("ready", flush=True)
sys.stdin.readline()
try:
    with sole_service(Path(sys.argv[1]), socket="/s"):
        print("alone", flush=True)
        sys.stdin.readline()
except InvalidRequest:
    print("refused", flush=True)
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.1)


@contextlib.contextmanager
def holder(directory: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Have another process hold the lock, with a program it started and a fork of itself."""
    with subprocess.Popen([sys.executable, "-c", HOLD, directory], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        children = [int(word) for word in process.stdout.readline().split()]
        try:
            yield process, children
        finally:
            process.kill()
            for child in children:
                os.kill(child, signal.SIGKILL)


def test_the_second_is_told_who_is_the_first_and_what_to_do(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        assert is_served(tmp_path)
        with pytest.raises(InvalidRequest) as caught, sole_service(tmp_path, socket="/run/two.sock"):
            pytest.fail("both have it")
        assert caught.value.facts == {"pid": process.pid}
        assert f"process id {process.pid}, on /run/one.sock" in caught.value.message
        assert str(tmp_path) in caught.value.message
        assert f"kill {process.pid}" in caught.value.hint
        assert "history.directory" in caught.value.hint


def test_after_sigkill_it_is_free_though_what_the_first_started_lives(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, children):
        process.kill()
        process.wait()
        assert all(Path("/proc", str(child)).exists() for child in children)
        assert not is_served(tmp_path)
        with sole_service(tmp_path, socket="/run/two.sock"):
            assert is_served(tmp_path)


def test_it_is_free_after_the_block_and_never_was_where_no_service_was(tmp_path: Path) -> None:
    assert not is_served(tmp_path / "none")
    with sole_service(tmp_path, socket="/s"):
        assert is_served(tmp_path)
    assert not is_served(tmp_path)
    with sole_service(tmp_path, socket="/s"), sole_service(tmp_path / "other", socket="/s"):
        pass


def test_of_many_that_start_at_the_same_moment_one_is_alone(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for _ in range(6)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
    said = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    for racer in racers:
        racer.communicate("end\n")
    assert sorted(said) == ["alone"] + ["refused"] * 5


def test_a_lock_file_that_says_nothing_still_locks_and_a_link_is_not_followed(tmp_path: Path) -> None:
    with sole_service(tmp_path, socket="/s"):
        (tmp_path / LOCK).write_text("")
        with pytest.raises(InvalidRequest, match="another service"), sole_service(tmp_path, socket="/s"):
            pytest.fail("both have it")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LOCK).symlink_to(tmp_path / "target")
    with pytest.raises(Exception, match="can't be opened"), sole_service(tmp_path / "other", socket="/s"):
        pytest.fail("opened")
    assert not (tmp_path / "target").exists()


def test_a_file_system_without_locks_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with (
        pytest.raises(EngineUnavailable, match=r"service\.lock can't be taken: No locks available"),
        sole_service(tmp_path, socket="s"),
    ):
        pass


def test_where_the_lock_can_t_be_read_nothing_is_said_to_be_over(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(LOCK)
    assert is_served(tmp_path)
