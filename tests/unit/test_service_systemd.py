"""The agreements with systemd: sockets handed over, states told."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import InvalidRequest
from sandbox.service.door import systemd
from sandbox.service.door.systemd import listen_fds, notify, reloading
from tests.waiting import until

UNUSED = 9_000  # so many descriptors nobody has open


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(dir="/tmp"))  # a socket's path is short
    yield directory
    shutil.rmtree(directory)


# ---- listen_fds ----------------------------------------------------------------------------------


def test_handed_over_descriptors_are_found_and_not_passed_on() -> None:
    code = (
        "import os, sys; from sandbox.service.door.systemd import listen_fds\n"
        "os.dup2(int(sys.argv[1]), 3); os.dup2(3, 4)\n"
        "environ = {'LISTEN_FDS': '2', 'LISTEN_PID': str(os.getpid()), 'LISTEN_FDNAMES': 'a:b', 'HOME': '/'}\n"
        "print(listen_fds(environ, os.getpid()), environ, os.get_inheritable(3), os.get_inheritable(4))"
    )
    with socket.socket(socket.AF_UNIX) as handed:
        done = subprocess.run(
            [sys.executable, "-c", code, str(handed.fileno())],
            pass_fds=[handed.fileno()],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout == "[3, 4] {'HOME': '/'} False False\n", done.stderr


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "8"},
        {"LISTEN_FDS": "0", "LISTEN_PID": "7"},
        {"LISTEN_FDS": "-1", "LISTEN_PID": "7"},
        {"LISTEN_FDS": "one", "LISTEN_PID": "7"},
        {"LISTEN_FDS": "9" * 4_301, "LISTEN_PID": "7"},
        {"LISTEN_PID": "7"},
    ],
    ids=str,
)
def test_variables_for_another_process_or_without_sense_hand_over_nothing_and_go(environ: dict[str, str]) -> None:
    environ = dict(environ)
    assert listen_fds(environ, 7) == []
    assert environ == {}


def test_promised_descriptor_that_is_not_open_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "FIRST_FD", UNUSED)
    with pytest.raises(InvalidRequest, match=f"promises 1 open sockets, but descriptor {UNUSED} can't be used"):
        listen_fds({"LISTEN_FDS": "1", "LISTEN_PID": "7"}, 7)


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed")
def test_socket_of_systemd_is_served_and_stays(place: Path) -> None:
    code = (
        "import os; from sandbox.service.config.model import Socket\n"
        "from sandbox.service.door.listen import open_socket\n"
        "from sandbox.service.door.systemd import listen_fds\n"
        "listener = open_socket(Socket(), inherited=listen_fds(os.environ, os.getpid()))\n"
        "listener.socket.accept()[0].sendall(b'served'); listener.close()"
    )
    path = place / "s"
    activator = subprocess.Popen(
        ["systemd-socket-activate", "-l", str(path), "-E", "PATH", "-E", "HOME", sys.executable, "-c", code],
        umask=0o077, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip # a command line
    with activator, socket.socket(socket.AF_UNIX) as client:
        try:
            client.settimeout(30)
            until(lambda: client.connect_ex(str(path)), 0)
            assert client.recv(10) == b"served"
            assert activator.wait(30) == 0
        finally:
            activator.kill()
    assert path.is_socket()


# ---- notify --------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_state_reaches_the_socket_that_systemd_names(place: Path, abstract: bool) -> None:
    name = f"sandbox-test-{os.getpid()}" if abstract else str(place / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}" if abstract else name)
        receiver.settimeout(10)
        notify({"NOTIFY_SOCKET": f"@{name}" if abstract else name}, "READY=1\nSTATUS=über")
        assert receiver.recv(100) == "READY=1\nSTATUS=über".encode()


def test_a_reload_tells_the_moment_by_systemd_s_clock() -> None:
    earliest_usec = time.monotonic_ns() // 1000
    state, moment = reloading().splitlines()
    assert state == "RELOADING=1"
    assert moment.startswith("MONOTONIC_USEC=")
    assert earliest_usec <= int(moment.partition("=")[2]) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize(
    "address", [None, "", "relative", "vsock:2:1", "/nowhere/n", "/" + "x" * 200, "@" + "x" * 200, "/a\0b"]
)
def test_nobody_to_tell_is_no_error(address: str | None) -> None:
    notify({} if address is None else {"NOTIFY_SOCKET": address}, "READY=1")


def test_receiver_that_reads_nothing_does_not_hold_us_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "NOTIFY_WAIT_S", 0.01)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full,
    ):
        deaf.bind(str(place / "n"))
        full.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                full.sendto(b"x", str(place / "n"))
        teller = threading.Thread(target=notify, args=({"NOTIFY_SOCKET": str(place / "n")}, "READY=1"), daemon=True)
        teller.start()
        teller.join(10)
        assert not teller.is_alive()
