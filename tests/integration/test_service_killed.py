"""What is left when the service does not end in order: nothing, and its history says so."""

from __future__ import annotations

import threading
import time
from collections import Counter
from functools import partial
from operator import not_

import pytest

from sandbox import places
from sandbox.errors import SandboxError
from sandbox.kernel.family import family
from tests.command import workspaces
from tests.integration.belongings import command_line, containers, monitors, orphans, own_containers, own_workspaces
from tests.integration.service import Service, served
from tests.waiting import WAIT_S, until

RUNS = 20
WAITING = 5


def processes(service: Service) -> set[int]:
    """Return the processes of the service and of its sandboxes, those that are no children of it included."""
    own = own_containers(service)
    found = set(family(service.process.pid))
    for monitor, container_id in monitors().items():
        if container_id in own:
            found |= set(family(monitor))
    return found


def clients(service: Service, ended: list[str], number: int = RUNS) -> list[threading.Thread]:
    """Ask for runs that would take long, each on a connection of its own; `ended` gets the error of each."""

    def go() -> None:
        with service.client() as client:
            try:
                client.run("import time\ntime.sleep(100)")
            except SandboxError as error:
                ended.append(error.code)

    threads = [threading.Thread(target=go) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


def test_after_sigkill_nothing_runs_and_the_next_start_tells_what_was_cut_off(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("killed")
    ended: list[str] = []
    with served(home, SANDBOX_QUEUE__RUNNING=str(RUNS)) as service:
        threads = clients(service, ended, RUNS + WAITING)
        with service.client() as client:
            until(lambda: Counter(row["state"] for row in client.runs()), {"running": RUNS, "queued": WAITING})
            until(lambda: client.health()["pool"]["ready"])
        own = own_workspaces(service)
        assert len(own) > RUNS, "those that wait for a run are killed, too"
        before = processes(service)
        assert len(before) > 2 * RUNS, "a conmon and a harness at least for each run"
        service.process.kill()
        for thread in threads:
            thread.join(WAIT_S)
        assert ended == ["engine_unavailable"] * (RUNS + WAITING), "closed connections, no hang"
        dead = service.process.pid
    with served(home) as service:
        assert not own & set(containers().values())
        assert not own & set(workspaces())
        assert not list(places.runtime_dir().glob(f"engine-{dead}-*"))
        until(lambda: [pid for pid in before if any(command_line(pid))], not_, within_s=5)
        with service.client() as client:
            rows = client.runs()
            assert [row["outcome"] for row in rows] == ["killed"] * (RUNS + WAITING), "those that waited, too"
            assert client.health()["runs"] == {"running": 0, "waiting": 0}
            assert client.run("result = 1").value == 1


def test_a_service_killed_while_it_starts_sandboxes_leaves_none_either(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("early")
    ended: list[str] = []
    own: set[str] = set()
    before = orphans()
    for number in range(3):
        with served(home, SANDBOX_QUEUE__RUNNING=str(RUNS)) as service:
            threads = clients(service, ended)
            until(partial(own_containers, service))
            time.sleep(0.1 * number)  # whichever step is hit
            own |= own_workspaces(service)
            service.process.kill()
            for thread in threads:
                thread.join(WAIT_S)
    with served(home) as service:
        until(lambda: own & set(containers().values()), not_, within_s=5)
        assert not own & set(workspaces())
        until(lambda: orphans() - before, not_, within_s=10)
        with service.client() as client:
            assert {row["outcome"] for row in client.runs()} <= {"killed"}
            assert client.run("result = 1").value == 1
    assert ended == ["engine_unavailable"] * 3 * RUNS
