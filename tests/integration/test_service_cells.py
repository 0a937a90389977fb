"""Cells through the service: a node's messages in turn and at once, and warm containers that come and go."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.client import Client, Result
from sandbox.client.answers import CellCounts
from sandbox.kernel.family import children, family
from tests.command import left_behind
from tests.integration.belongings import command_line, monitors, own_containers
from tests.integration.service import Service, served
from tests.integration.test_service import client
from tests.waiting import WAIT_S, until

__all__ = ["client"]  # a fixture

NODE: dict[str, Any] = {"policy": "cells", "node_id": "flow-7/python"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("service")
    (home / "policies").mkdir()
    (home / "policies" / "paced.toml").write_text('extends = "default"\n[isolation]\nper_run = "auto"\n')
    with served(home, SANDBOX_CELLS__PER_NODE="2") as running:
        yield running
    assert left_behind() == []


def counts(client: Client) -> CellCounts:
    return client.health()["cells"]


def isolation(result: Result) -> str:
    rows = result.document["receipt"]["controls"]
    return next((row["mechanism"] for row in rows if row["control"] == "isolation"), "")


def makers(service: Service) -> list[int]:
    """Return the host's ids of the processes that make cells for a service."""
    own = own_containers(service)
    first = [children(monitor) for monitor, container in monitors().items() if container in own]
    return [pid for pids in first for pid in pids if len(family(pid)) > 2]


def test_messages_of_a_node_share_a_container_and_each_has_a_cell_of_its_own(client: Client) -> None:
    seen = [
        client.run("open('/tmp/x', 'x').close()\nimport os\nresult = [payload, os.getpid()]", payload=n, **NODE)
        for n in range(30)
    ]
    assert [result.value for result in seen] == [[n, 2] for n in range(30)]
    assert all("net" in isolation(result) for result in seen)
    assert counts(client)["containers"] == 1
    assert counts(client)["cells"] >= 30
    assert seen[-1].document["durations"]["warm"]


def test_all_that_a_run_has_works_in_a_cell(client: Client) -> None:
    code = (
        "import os, subprocess, sys\nprint('out')\nprint('err', file=sys.stderr)\nlog('said')\nsave_file('f', b'\\x00'"
        " + read_file('in', binary=True))\nresult = {'secret': len(os.environ['TOKEN']), 'topic': topic, 'child':"
        " subprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout}"
    )
    events: list[str] = []
    result = client.run(
        code,
        topic="north",
        files={"in": b"\xff"},
        secrets={"TOKEN": "four"},
        on_event=lambda event: events.append(event["event"]),
        **NODE,
    )
    assert result.value == {"secret": 4, "topic": "north", "child": "hi\n"}
    assert (result.stdout, result.stderr, result.files) == ("out\n", "err\n", {"f": b"\x00\xff"})
    assert {"stdout", "stderr", "log"} <= set(events)
    again = client.run("import os\nresult = [os.environ.get('TOKEN'), os.listdir('/app')]", **NODE)
    assert again.value == [None, ["script.py"]]


def test_a_script_is_a_file_whose_processes_have_its_names_in_a_cell_too(client: Client) -> None:
    code = """
import multiprocessing, subprocess, sys
import plant.press

def scaled(n):
    log(f"working on {n}")
    return plant.press.HOURS * n * payload

if len(sys.argv) > 1:
    return print(payload)
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        values = pool.map(scaled, range(3))
    again = subprocess.run([sys.executable, __file__, "again"], capture_output=True, text=True).stdout
    open("left.txt", "w").write("left")
    return [values, again, __file__]
"""
    for payload in (5, 7):
        result = client.run(
            code, payload=payload, filename="flow 1.py", files={"plant/press.py": b"HOURS = 2"}, save_new=True, **NODE
        )
        assert result.value == [[0, 2 * payload, 4 * payload], f"{payload}\n", "/app/flow 1.py"]
        assert result.files == {"left.txt": b"left"}
        assert len(result.document["logs"]) == 3


def test_failures_limits_and_cancelling_are_the_same_as_in_a_container(client: Client) -> None:
    def outcome(code: str, **options: Any) -> str:
        return client.run(code, **NODE, **options).outcome

    assert outcome("raise ValueError(1)") == "failed"
    assert outcome("import os\nos._exit(0)") == "no_result"
    assert outcome("while True: pass", limits={"timeout_s": 1}) == "timed_out"
    assert outcome("kept = []\nwhile True: kept.append(bytearray(b'x') * (1 << 20))") == "out_of_memory"
    assert outcome("while True: print('x' * 100_000)") == "output_limit"
    assert outcome("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)") == "killed"
    run_id = ""

    def cancel(event: dict[str, Any]) -> None:
        nonlocal run_id
        run_id = event.get("run_id", run_id)
        if event["event"] == "stdout":
            with Client(client.path) as other:
                other.cancel(run_id)

    ended = client.run("import time\nprint('on', flush=True)\ntime.sleep(60)", on_event=cancel, **NODE)
    assert (ended.outcome, ended.stdout) == ("cancelled", "on\n")
    assert outcome("result = 1") == "succeeded"


def test_modules_named_ahead_are_there_and_their_state_is_not_shared(client: Client) -> None:
    code = (
        "import sys\nfound = 'decimal' in sys.modules\nimport decimal\nresult = [found,"
        " decimal.getcontext().prec]\ndecimal.getcontext().prec = 5"
    )
    assert [client.run(code, preload=["decimal"], **NODE).value for _ in range(3)] == [[True, 28]] * 3


def test_messages_at_once_get_a_second_container_and_no_third(service: Service) -> None:
    results: list[Any] = []

    def go(number: int) -> None:
        with service.client() as client:
            results.append(
                client.run(
                    "import time\ntime.sleep(0.2)\nresult = payload", payload=number, policy="cells", node_id="busy"
                ).value
            )

    threads = [threading.Thread(target=go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(results) == [0, 1, 2, 3]
    with service.client() as client:
        assert client.health()["runs"] == {"running": 0, "waiting": 0}


def test_when_the_maker_dies_the_runs_that_wait_for_it_are_carried_out(service: Service, client: Client) -> None:
    client.raw("POST", "/v1/maintenance/stop-all", b"")
    assert counts(client)["containers"] == 0
    node: dict[str, Any] = {"policy": "cells", "node_id": "dies"}
    client.run("result = 1", **node)
    results: list[str] = []

    def go() -> None:
        with service.client() as other:
            results.append(other.run("import time\ntime.sleep(0.3)\nresult = 1", **node).outcome)

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: client.health()["runs"]["running"], lambda seen: seen >= 2)
    for pid in makers(service):
        os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(WAIT_S)
    assert len(results) == 6
    assert set(results) <= {"succeeded", "killed"}
    assert results.count("succeeded") >= 4, "only those whose cell died with its maker are lost, and they say so"
    assert client.run("result = 2", **node).value == 2


def test_idle_containers_retire_and_nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(tmp_path_factory.mktemp("idle"), SANDBOX_CELLS__IDLE_S="1") as service, service.client() as client:
        client.run("result = 1", **NODE)
        assert counts(client)["containers"] == 1
        until(lambda: counts(client)["containers"], 0)
        until(lambda: makers(service), [])


def test_after_sigkill_of_the_service_no_maker_and_no_cell_lives(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("killed")
    with served(home) as service:
        with service.client() as client:
            client.run("result = 1", **NODE)
        # The maker, and a cell with its program, which is made while nobody waits for it.
        alive = until(lambda: [pid for maker in makers(service) for pid in family(maker)], lambda pids: len(pids) >= 3)
        service.process.kill()
        service.process.wait()
        until(lambda: any(map(command_line, alive)), False)
    with served(home) as service, service.client() as client:
        assert client.run("result = 1", **NODE).value == 1


def test_by_pace_a_fast_node_gets_cells_and_one_with_pauses_containers(client: Client) -> None:
    fast = [client.run("result = payload", payload=n, policy="paced", node_id="fast") for n in range(40)]
    assert [result.value for result in fast] == list(range(40))
    got = [isolation(result) for result in fast]
    assert got[:8] == ["container"] * 8
    assert sum("net" in mechanism for mechanism in got[8:]) >= 20, got
    (row,) = (row for row in fast[0].document["receipt"]["controls"] if row["control"] == "isolation")
    assert "no faster than containers are made" in row["evidence"]
    (row,) = (row for row in fast[-1].document["receipt"]["controls"] if row["control"] == "isolation")
    assert "faster than containers are made" in row["evidence"], "which, and why"
    slow = [paused(client, n) for n in range(10)]
    assert slow == ["container"] * 10


def paused(client: Client, number: int) -> str:
    """Run after a pause in which this machine makes a few containers, busy or not; return in what it ran."""
    began = time.monotonic()
    client.run("result = 1", limits={"memory_mib": 100 + number}, node_id="other")  # which no pool has
    time.sleep(3 * (time.monotonic() - began))
    return isolation(client.run("result = payload", payload=number, policy="paced", node_id="slow"))
