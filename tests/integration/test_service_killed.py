"""What is left when the service does not end in order: nothing, and its history says so."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sandbox import places
from sandbox.errors import SandboxError
from sandbox.watchdog import family
from tests.command import left_behind, our_containers, workspaces
from tests.integration.service import Service, served
from tests.integration.test_service import WAIT_S, until

RUNS = 20


def processes(service: Service) -> set[str]:
    """Return the processes of the service and of its sandboxes, those that are no children of it included."""
    below = {str(pid) for pid in family(service.process.pid)}
    marks = [*our_containers(), f"engine-{service.process.pid}-"]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and any(mark in command_line(entry.name) for mark in marks):
            below |= {str(pid) for pid in family(int(entry.name))}
    return below


def command_line(pid: str) -> str:
    """Return the command of a process that has not ended; of one that did it is empty."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_after_sigkill_nothing_runs_and_the_next_start_tells_what_was_cut_off(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("killed")
    ended: list[str] = []
    with served(home, SANDBOX_QUEUE__RUNNING=str(RUNS)) as service:

        def go() -> None:
            with service.client() as client:
                try:
                    client.run("import time\ntime.sleep(100)")
                except SandboxError as error:
                    ended.append(error.code)

        threads = [threading.Thread(target=go) for _ in range(RUNS)]
        for thread in threads:
            thread.start()
        with service.client() as client:
            until(lambda: sum(row["state"] == "running" for row in client.runs()) == RUNS)
            until(lambda: client.health()["pool"]["ready"])
            until(lambda: not client.health()["pool"]["starting"])
            waiting = client.health()["pool"]["ready"]
        assert len(our_containers()) == len(workspaces()) == RUNS + waiting
        before = processes(service)
        assert len(before) > 2 * RUNS, "a conmon and a harness at least for each run"
        service.process.kill()
        for thread in threads:
            thread.join(WAIT_S)
        assert ended == ["engine_unavailable"] * RUNS, "closed connections, no hang"
        dead = service.process.pid
    with served(home) as service:
        assert our_containers() == []
        assert workspaces() == []
        assert not list(places.runtime_dir().glob(f"engine-{dead}-*"))
        until(lambda: not [pid for pid in before if command_line(pid)], within_s=5)
        with service.client() as client:
            rows = client.runs()
            assert [row["outcome"] for row in rows] == ["killed"] * RUNS
            assert client.health()["runs"] == {"running": 0, "waiting": 0}
            assert client.run("result = 1").value == 1
    assert left_behind() == []


def test_a_service_killed_while_it_starts_sandboxes_leaves_none_either(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("early")
    ended: list[str] = []
    for _ in range(3):
        with served(home, SANDBOX_QUEUE__RUNNING=str(RUNS)) as service:

            def go(service: Service = service) -> None:
                with service.client() as client:
                    try:
                        client.run("import time\ntime.sleep(100)")
                    except SandboxError as error:
                        ended.append(error.code)

            threads = [threading.Thread(target=go) for _ in range(RUNS)]
            for thread in threads:
                thread.start()
            until(our_containers)
            service.process.kill()
            for thread in threads:
                thread.join(WAIT_S)
    with served(home) as service:
        until(lambda: not our_containers(), within_s=5)
        assert workspaces() == []
        with service.client() as client:
            assert {row["outcome"] for row in client.runs()} <= {"killed"}
            assert client.run("result = 1").value == 1
    assert ended == ["engine_unavailable"] * 3 * RUNS
    assert left_behind() == []
