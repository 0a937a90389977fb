"""Two services of one user: neither takes what is the other's for dead."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.command import COMMAND
from tests.integration.belongings import own_containers
from tests.integration.service import Service, served
from tests.waiting import WAIT_S, until

LONG = "import time\ntime.sleep(100)\nresult = 1"


def second(home: Path, place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start a service on another socket, with the same directories, and wait for its end."""
    place.mkdir(mode=0o700)
    environment = {
        **os.environ,
        "XDG_DATA_HOME": str(home / "data"),
        "SANDBOX_SOCKET__PATH": f"{place}/two.sock",
        **variables,
    }
    return subprocess.run([*COMMAND, "serve"], env=environment, text=True, capture_output=True, timeout=60, check=False)


def long_run(service: Service, found: list[str]) -> threading.Thread:
    """Ask for a run that takes some seconds; `found` gets its outcome."""

    def go() -> None:
        with service.client() as client:
            found.append(client.run(LONG).outcome)

    thread = threading.Thread(target=go)
    thread.start()
    with service.client() as client:
        until(lambda: [row["state"] for row in client.runs(limit=1)], ["running"])
    return thread


def test_a_second_service_on_the_first_one_s_history_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    found: list[str] = []
    with served(tmp_path) as service:
        going = long_run(service, found)
        refused = second(tmp_path, tmp_path / "two")
        assert refused.returncode == 2
        assert f"process id {service.process.pid}, on {service.socket}" in refused.stderr
        assert "history.directory" in refused.stderr
        with service.client() as client:
            assert [row["state"] for row in client.runs(limit=1)] == ["running"]
            client.cancel(client.runs(limit=1)[0]["run_id"])
            going.join(WAIT_S)
            assert found == ["cancelled"]
            assert [row["outcome"] for row in client.runs(limit=1)] == ["cancelled"]


def test_with_a_directory_of_its_own_it_serves_and_both_keep_what_is_theirs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found: list[str] = []
    other = tmp_path_factory.mktemp("other")
    with served(tmp_path) as service:
        going = long_run(service, found)
        own = own_containers(service)
        with served(
            other, XDG_DATA_HOME=str(tmp_path / "data"), SANDBOX_HISTORY__DIRECTORY=str(other / "history")
        ) as beside:
            assert own <= own_containers(service), "the second one's sweep at its start left the first one's sandboxes"
            with beside.client() as client:
                assert client.run("result = 2").value == 2
                assert len(client.runs()) == 1
        with service.client() as client:
            assert [row["state"] for row in client.runs()] == ["running"]
            client.cancel(client.runs()[0]["run_id"])
            going.join(WAIT_S)
            assert found == ["cancelled"]


def test_the_next_service_has_the_directory_at_once_after_sigkill(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        service.process.kill()
    with served(tmp_path) as service, service.client() as client:
        assert client.health()["status"] == "ok"
