"""A service of the tests' own: a real process with its own socket, history and policies, on real Podman."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox.client import Client
from sandbox.errors import EngineUnavailable
from tests.command import COMMAND
from tests.waiting import until

START_S = 60.0
STOP_S = 60.0
POLICY = """
extends = "default"
description = "Small limits for tests of the service"
limits.timeout_s = 10
limits.memory_mib = 256
limits.output_mib = 1
"""


@dataclass
class Service:
    """One running service."""

    process: subprocess.Popen[bytes]
    socket: str
    home: Path
    policies: Path

    def client(self) -> Client:
        """Return a client of it."""
        return Client(self.socket)

    def log(self, *expected: str) -> str:
        """Return what it has logged, in whole lines, as soon as all that is `expected` is there: a thread writes it."""

        def whole_lines() -> str:
            found, end, _ = (self.home / "log").read_text().rpartition("\n")
            return found + end

        return until(whole_lines, lambda found: all(text in found for text in expected), within_s=START_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_S)


@contextlib.contextmanager
def served(home: Path, **variables: str) -> Iterator[Service]:
    """Start a service with `home` for its data, and stop it at the end. `variables` are SANDBOX_SECTION__KEY."""
    policies = home / "policies"
    policies.mkdir(exist_ok=True)
    (policies / "small.toml").write_text(POLICY)
    with tempfile.TemporaryDirectory(prefix="svc-", dir="/tmp") as place:  # the path of a socket is short
        socket = f"{place}/s/service.sock"
        environment = {
            **os.environ,
            "XDG_DATA_HOME": str(home / "data"),
            "SANDBOX_SOCKET__PATH": socket,
            "SANDBOX_LOG__FORMAT": "json",
            "SANDBOX_STOP__DRAIN_S": "5",
            **variables,
        }
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *COMMAND, "--policy-dir", str(policies), "serve"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        service = Service(process, socket, home, policies)
        try:
            await_health(service)
            yield service
        finally:
            service.stop()


def await_health(service: Service) -> None:
    """Wait until it answers."""

    def refused() -> str:
        try:
            with service.client() as client:
                client.health()
                return ""
        except EngineUnavailable as error:
            assert service.process.poll() is None, service.log()
            return f"{error}\n{service.log()}"

    until(refused, "", within_s=START_S)
