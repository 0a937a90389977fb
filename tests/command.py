"""Run the `sandbox` command as a user does: a process of its own, real Podman behind it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import places
from sandbox.client import Client
from sandbox.container.spec import RUN_LABEL
from tests.waiting import until

COMMAND = [sys.executable, "-m", "sandbox"]
TIMEOUT_S = 120
# Commands run by themselves, also where this user happens to have a service.
NO_SERVICE = "/run/no-service.sock"


@dataclass(frozen=True)
class Through:
    """A service that makes the runs of the commands; under `cell`, each in a cell of a warm container."""

    socket: str
    pid: int
    policies: Path
    cell: bool

    def arguments(self, given: list[str]) -> list[str]:
        """Return a command's arguments with a policy that this service has."""
        if given[:1] != ["run"] and given[:2] != ["template", "run"]:
            return given
        place = given.index("--policy") + 1 if "--policy" in given else 0
        named = given[place] if place else "default"
        if named.endswith(".toml"):
            text = Path(named).read_text()
            if self.cell and "[network]" not in text:  # a way out is for one container alone
                text += '\n[isolation]\nper_run = "cell"\n'
            named = f"p{hashlib.sha256(text.encode()).hexdigest()[:16]}"
            self._have(named, text)
        elif self.cell and named == "default":
            named = "cells"
        return [*given[:place], named, *given[place + 1 :]] if place else [*given, "--policy", named]

    def _have(self, name: str, text: str) -> None:
        """Give the service one more policy, and wait until it has read that."""
        (self.policies / f"{name}.toml").write_text(text)
        os.kill(self.pid, signal.SIGHUP)
        with Client(self.socket) as client:
            until(lambda: name in [policy["name"] for policy in client.policies()])


# What tests/e2e/conftest.py sets: without it, commands make their runs themselves.
through: Through | None = None


def environment(**changes: str) -> dict[str, str]:
    """Return the caller's environment with changes; if they name no socket, the command itself makes the runs."""
    if through and "SANDBOX_SOCKET" not in changes:
        return {**os.environ, "SANDBOX_SOCKET": through.socket, **changes}
    own = {} if "SANDBOX_SOCKET" in changes else {"SANDBOX_SOCKET": NO_SERVICE, "SANDBOX_NO_SERVICE": "1"}
    return {**os.environ, **own, **changes}


def without_socket(**changes: str) -> dict[str, str]:
    """Return the caller's environment with changes, and no variable for where a service is or for wanting none."""
    found = environment(**changes)
    return {
        name: value
        for name, value in found.items()
        if name not in ("SANDBOX_SOCKET", "SANDBOX_SOCKET__PATH", "SANDBOX_NO_SERVICE")
    }


def sandbox(
    *arguments: str | Path, stdin: str = "", env: dict[str, str] | None = None, timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    given = list(map(str, arguments))
    return subprocess.run(
        [*COMMAND, *(through.arguments(given) if through else given)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=environment() if env is None else env,
        errors="backslashreplace",
    )


def on_terminal(*arguments: str | Path) -> tuple[int, bytes]:
    """Run one command to its end on a terminal; return its exit status and what a person sees."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment()
    ) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # how a terminal ends that nobody writes to any more
            while data := os.read(ours, 65536):
                seen += data
        os.close(ours)
        return process.wait(TIMEOUT_S), seen


def document(*arguments: str | Path, **options: Any) -> dict[str, Any]:
    """Run one command with --json and return what it printed."""
    answer = sandbox(*arguments, "--json", **options)
    loaded: dict[str, Any] = json.loads(answer.stdout)
    return loaded


def our_containers() -> list[str]:
    """Return the ids of all containers of runs."""
    answer = subprocess.run(
        ["podman", "ps", "--all", "--quiet", "--filter", f"label={RUN_LABEL}"],
        capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip # a command line
    return answer.stdout.split()


def left_behind(within_s: float = 5.0) -> list[str]:
    """Return the containers and workspaces that are there now and still there when `within_s` have passed.

    What a service keeps ready is its own.
    """
    if through:
        return []
    left = {*our_containers(), *workspaces()}
    deadline = time.monotonic() + within_s
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= {*our_containers(), *workspaces()}
    return sorted(left)


def workspaces() -> list[str]:
    """Return the names of all workspaces."""
    runs = places.runtime_dir() / "runs"
    return sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
