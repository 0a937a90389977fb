"""The service is told to stop while clients are slow, runs go on and runs wait: it ends in time.

Nobody is left hanging.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from sandbox.errors import EngineUnavailable
from sandbox.service.server import SENT_S, STOP_GRACE_S
from tests.command import COMMAND, environment
from tests.escape.bench import SLOWER
from tests.integration.service import Service, served
from tests.integration.test_service import WAIT_S, until

# What taking the sandboxes and Podman down may take beside the deadlines.
DOWN_S = 15.0


def asked(service: Service, code: str) -> socket.socket:
    """Ask for a run, and read nothing of its answer."""
    body = json.dumps({"code": code}).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT_S)
    connection.connect(service.socket)
    connection.sendall(b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return connection


def test_sigterm_waits_neither_for_a_run_without_an_end_nor_for_a_client_that_does_not_read(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    drain_s = 1
    with (
        served(tmp_path_factory.mktemp("stop"), SANDBOX_STOP__DRAIN_S=str(drain_s)) as service,
        service.client() as client,
    ):
        with asked(service, "result = 'x' * (20 << 20)") as unread:
            assert unread.recv(15) == b"HTTP/1.1 200 OK"
            errors: list[str] = []
            thread = threading.Thread(target=lambda: errors.append(client.run("import time\ntime.sleep(25)").outcome))
            thread.start()
            with service.client() as other:
                until(lambda: other.health()["runs"]["running"] == 1)
            began = time.monotonic()
            assert service.stop(signal.SIGTERM) == 0
            assert time.monotonic() - began < drain_s + STOP_GRACE_S + SENT_S + DOWN_S * SLOWER
            thread.join(WAIT_S)
            assert errors == ["cancelled"]
        service.log("1 requests did not end in time and were ended")
        with pytest.raises(EngineUnavailable):
            client.health()


def test_an_interrupt_while_the_run_waits_for_its_turn_ends_it_and_says_so(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = tmp_path / "script.py"
    script.write_text("result = 1")
    with served(tmp_path_factory.mktemp("turn"), SANDBOX_QUEUE__RUNNING="1") as service, service.client() as client:
        with asked(service, "import time\ntime.sleep(25)"):
            until(lambda: client.health()["runs"]["running"] == 1)
            command = [*COMMAND, "run", str(script), "--json"]
            with subprocess.Popen(
                command, env=environment(SANDBOX_SOCKET=service.socket), stdout=subprocess.PIPE
            ) as waiting:
                until(lambda: client.health()["runs"]["waiting"] == 1)
                waiting.send_signal(signal.SIGINT)
                said, _ = waiting.communicate(timeout=WAIT_S)
            assert waiting.returncode == 130
            assert json.loads(said)["outcome"] == "cancelled"
            assert client.health()["runs"] == {"running": 1, "waiting": 0}
        until(lambda: client.health()["runs"]["running"] == 0)
