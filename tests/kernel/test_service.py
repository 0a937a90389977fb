"""The service under systemd: its socket is opened for it, the first client starts it, and it tells when it is ready."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.client import Client
from tests.command import left_behind
from tests.kernel.machine import as_root

UNIT = "sandbox-of-the-tests"
SOCKET = Path(f"/run/{UNIT}/service.sock")
# Nothing is kept ready: what the one run needs is all that is started.
ENVIRONMENT = (f"XDG_RUNTIME_DIR=/run/user/{os.getuid()}", "SANDBOX_POOL__MEMORY_MIB=0")


def state(unit: str) -> str:
    """Return `active`, `inactive`, `failed` or what else systemd calls it."""
    return as_root("systemctl", "is-active", unit).stdout.strip()


def main_process(unit: str) -> str:
    """Return the number of the unit's process, "0" where it has none."""
    return as_root("systemctl", "show", "--property=MainPID", "--value", unit).stdout.strip()


@pytest.fixture
def units(newcomer: pwd.struct_passwd) -> Iterator[None]:
    """Give a .socket unit and its service, which runs as the user of the tests."""
    made = as_root(
        "systemd-run",
        f"--unit={UNIT}",
        "--quiet",
        "--service-type=notify",
        f"--uid={os.getuid()}",
        *(f"--setenv={variable}" for variable in ENVIRONMENT),
        *(
            f"--socket-property={line}"
            for line in (f"ListenStream={SOCKET}", "SocketMode=0660", f"SocketUser={os.getuid()}")
        ),
        sys.executable,
        "-m",
        "sandbox",
        "serve",
    )
    assert made.returncode == 0, made.stderr
    yield
    as_root("systemctl", "stop", f"{UNIT}.socket", f"{UNIT}.service")


def test_the_first_client_starts_the_service_and_systemd_ends_it_in_order(units: None) -> None:
    assert stat.S_IMODE(SOCKET.stat().st_mode) == 0o660
    assert (state(f"{UNIT}.socket"), state(f"{UNIT}.service")) == ("active", "inactive")
    with Client(str(SOCKET)) as client:
        found = client.run("result = sum(payload)", payload=[20, 22])
    assert (found.outcome, found.value) == ("succeeded", 42), found.explanation
    assert {row["status"] for row in found.document["receipt"]["controls"]} == {"proven"}
    assert state(f"{UNIT}.service") == "active", "it has not told that it is ready"

    before = main_process(f"{UNIT}.service")
    told = subprocess.run(
        [sys.executable, "-m", "sandbox", "serve", "--restart"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert f"restarted: {UNIT}.service" in told.stdout.splitlines()
    assert main_process(f"{UNIT}.service") not in (before, "0")

    assert as_root("systemctl", "stop", f"{UNIT}.service").returncode == 0
    assert state(f"{UNIT}.service") == "inactive", "it did not end in order"
    assert SOCKET.is_socket(), "it is systemd's"
    assert left_behind() == []
