"""One client for many, at a real service: each caller gets the answer to its own run; who goes away ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sandbox import __version__
from sandbox.client import AsyncClient, Client
from sandbox.errors import EngineUnavailable, InvalidRequest, NotFound, QueueFull
from sandbox.service.history.record import ENDINGS
from tests.command import environment, left_behind, sandbox
from tests.integration.service import Service, served
from tests.unit.echoing import KINDS, echoing
from tests.waiting import until, until_async

ROOT = Path(__file__).parents[2]
THREADS = 8
TURNS = 8
ECHO = "print(payload)\nresult = payload"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("service")) as running:
        yield running
    assert left_behind() == []


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, service: Service) -> Iterator[Any]:
    with KINDS[request.param](service.socket) as connected:
        yield connected


def test_threads_with_one_client_get_each_their_own_runs_streams_and_errors(client: Any) -> None:
    def work(number: int) -> list[str]:
        chance, done = random.Random(number), []
        for turn in range(TURNS):
            tag, way = f"<{number}-{turn}>", chance.choice(["run", "stream", "left", "hasty", "other"])
            if way == "run":
                found = client.run(ECHO, payload=tag)
                assert (found.value, found.stdout) == (tag, f"{tag}\n")
            elif way == "stream":
                events = list(client.stream(ECHO, payload=tag))
                assert "".join(event["text"] for event in events if event["event"] == "stdout") == f"{tag}\n"
                assert events[-1]["result"] == tag
            elif way == "left":
                with contextlib.closing(
                    client.stream(f"import time\n{ECHO}\ntime.sleep(60)", payload=tag, node_id=tag)
                ) as stream:
                    # A busy machine may send the end of the line by itself.
                    assert next(event for event in stream if event["event"] == "stdout")["text"] in (tag, f"{tag}\n")
            elif way == "hasty":
                with pytest.raises(EngineUnavailable):
                    client.run("import time\ntime.sleep(60)", payload=tag, node_id=tag, timeout_s=chance.random() / 5)
            else:
                assert client.runs(node=tag) == []
            done.append(way)
        return done

    with ThreadPoolExecutor(THREADS) as threads:
        done = [way for ways in threads.map(work, range(THREADS)) for way in ways]
    assert set(done) == {"run", "stream", "left", "hasty", "other"}
    until(lambda: client.health()["runs"], {"running": 0, "waiting": 0})


def test_a_cancelled_task_ends_its_run_and_no_other(service: Service) -> None:
    async def work() -> Any:
        async with AsyncClient(service.socket) as client:
            doomed = asyncio.create_task(client.run("import time\ntime.sleep(60)", node_id="doomed"))
            other = asyncio.create_task(
                client.run("import time\ntime.sleep(2)\nresult = payload", payload="mine", node_id="other")
            )

            async def of_doomed(field: str) -> list[Any]:
                return [row.get(field) for row in await client.runs(node="doomed")]

            await until_async(lambda: of_doomed("state"), ["running"])
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doomed
            await until_async(lambda: of_doomed("outcome"), ["cancelled"])
            return (await other).value

    assert asyncio.run(work()) == "mine"


def test_one_async_client_works_in_one_event_loop_after_the_other(service: Service) -> None:
    client = AsyncClient(service.socket)
    assert [asyncio.run(client.run("result = payload", payload=n)).value for n in range(3)] == [0, 1, 2]
    asyncio.run(client.close())


def test_what_the_service_refuses_for_too_much_is_asked_again_until_all_are_done(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with served(
        tmp_path_factory.mktemp("small"),
        SANDBOX_QUEUE__RUNNING="1",
        SANDBOX_QUEUE__WAITING="1",
        SANDBOX_QUEUE__PER_CALLER_WAITING="1",
    ) as small:
        with ThreadPoolExecutor(THREADS) as threads, Client(small.socket) as plain, pytest.raises(QueueFull):
            list(threads.map(lambda n: plain.run("result = payload", payload=n), range(THREADS)))
        with ThreadPoolExecutor(THREADS) as threads, Client(small.socket, retry_s=120) as patient:
            found = threads.map(lambda n: patient.run("result = payload", payload=n).value, range(THREADS))
            assert list(found) == list(range(THREADS))


# ---- start now, fetch later


def test_a_run_is_started_watched_and_fetched_by_either_client(client: Any) -> None:
    run_id = client.start(
        "import time\nprint('x')\nsave_file('a.txt', 'abc')\ntime.sleep(1)\nresult = payload * 2",
        payload=21,
        node_id="later",
    )
    assert client.result(run_id) is None
    found = client.result(run_id, wait_s=30)
    assert (found.run_id, found.value, found.stdout, found.files) == (run_id, 42, "x\n", {"a.txt": b"abc"})
    assert client.result(run_id).document == found.document, "it is kept"
    assert client.files(run_id) == [{"name": "a.txt", "size_bytes": 3}]
    assert client.file(run_id, "a.txt") == b"abc"
    assert [row["run_id"] for row in client.runs(node="later")][:1] == [run_id]
    for wrong, error in (("0" * 32, NotFound), ("../../health", NotFound), ("", InvalidRequest)):
        with pytest.raises(error):
            client.result(wrong)
        with pytest.raises(error):
            client.files(wrong)


def test_what_is_refused_at_once_is_refused_when_it_is_started_and_a_started_run_can_be_ended(client: Any) -> None:
    with pytest.raises(NotFound):
        client.start("result = 1", policy="absent")
    run_id = client.start("import time\ntime.sleep(60)")
    client.cancel(run_id)
    assert client.result(run_id, wait_s=30).outcome == "cancelled"


def test_many_threads_start_and_fetch_each_their_own(client: Any) -> None:
    def work(number: int) -> bool:
        ids = [client.start("result = payload", payload=[number, turn]) for turn in range(3)]
        return [client.result(run_id, wait_s=60).value for run_id in ids] == [[number, turn] for turn in range(3)]

    with ThreadPoolExecutor(THREADS) as threads:
        assert all(threads.map(work, range(THREADS)))


def test_the_description_of_the_interface_is_the_published_one(client: Any) -> None:
    assert client.document() == json.loads((ROOT / "docs/openapi.json").read_text())


# ---- what every answer says


@pytest.mark.parametrize(
    "request_text",
    [
        "GET /v1/health HTTP/1.1\r\n{}\r\n",
        "GET /nothing HTTP/1.1\r\n{}\r\n",
        "PUT /v1/runs HTTP/1.1\r\n{}\r\n",
        'POST /v1/runs HTTP/1.1\r\n{}Content-Length: 14\r\n\r\n{{"code": "x="}}',
        "POST /v1/runs HTTP/1.1\r\n{}Accept: application/x-ndjson\r\nContent-Length: 20\r\n\r\n"
        + '{{"code": "result=1"}}',
        "POST /v1/runs HTTP/1.1\r\n{}Content-Length: 2\r\n\r\n{{}}",
    ],
)
def test_every_answer_names_the_service_and_the_request(service: Service, request_text: str) -> None:
    head = head_of_answer(service, request_text.format("Host: x\r\nX-Request-Id: mine-1\r\n"))
    assert head["server"] == f"podman-sandbox-runner/{__version__}"
    assert head["x-request-id"] == "mine-1"


@pytest.mark.parametrize("named", ["", "x" * 129, "a b", "\xe4"])
def test_an_id_that_is_none_is_not_repeated(service: Service, named: str) -> None:
    assert "x-request-id" not in head_of_answer(
        service, f"GET /v1/health HTTP/1.1\r\nHost: x\r\nX-Request-Id: {named}\r\n\r\n"
    )


def test_what_is_no_http_is_answered_by_name_too(service: Service) -> None:
    assert head_of_answer(service, "hello\r\n\r\n")["server"] == f"podman-sandbox-runner/{__version__}"


def head_of_answer(service: Service, text: str) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(service.socket)
        connection.sendall(text.encode("latin-1"))
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            assert more
            data += more
    lines = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_health_says_the_version_and_since_when(service: Service) -> None:
    with service.client() as client:
        first, second = client.health(), client.health()
    assert first["version"] == __version__
    assert first["since"] == second["since"] < first["since"] + first["uptime_s"] + 1
    assert json.loads(json.dumps(first["since"])) > 1_700_000_000


# ---- how runs end, and which versions meet


def test_an_outcome_that_no_run_can_have_is_refused_with_those_there_are(service: Service) -> None:
    with service.client() as client:
        for name in ENDINGS:
            assert isinstance(client.runs(outcome=name), list)
        for wrong in ("bogus", "", "SUCCEEDED", "succeeded ", "x" * 500):
            with pytest.raises(InvalidRequest, match="no run ends as") as caught:
                client.runs(outcome=wrong)
            assert all(name in caught.value.hint for name in ENDINGS)
    answer = sandbox("runs", "--outcome", "bogus", env=environment(SANDBOX_SOCKET=service.socket))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "no run ends as 'bogus'" in answer.stderr
    assert "timed_out" in answer.stderr
    assert "queue_full" in answer.stderr
    assert sandbox("runs", "--outcome", "timed_out", env=environment(SANDBOX_SOCKET=service.socket)).returncode == 0


def test_a_shell_is_offered_the_runs_of_the_service(service: Service) -> None:
    with service.client() as client:
        run_id = client.run("result = 1").run_id
    for typed, found in (("sandbox logs ", True), (f"sandbox logs {run_id[:4]}", True), ("sandbox stop ", False)):
        words = len(typed.split()) - (not typed.endswith(" "))
        answer = sandbox(
            env=environment(
                SANDBOX_SOCKET=service.socket,
                _SANDBOX_COMPLETE="bash_complete",
                COMP_WORDS=typed,
                COMP_CWORD=str(words),
            )
        )
        assert (answer.returncode, answer.stderr) == (0, "")
        assert (f"plain,{run_id[:12]}" in answer.stdout.split()) == found


@pytest.mark.parametrize("command", [["ps"], ["runs"], ["run"]], ids=lambda command: command[0])
def test_the_command_line_says_once_that_the_service_is_of_another_version(tmp_path: Path, command: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text("result = 1")
    with echoing() as old:
        old.server = "podman-sandbox-runner/0.0.1"
        old.more = {"runs": [], "warnings": [], "error": None, "durations": {}, "receipt": None}
        answer = sandbox(*command, *([script] if command == ["run"] else []), env=environment(SANDBOX_SOCKET=old.path))
        old.server = f"podman-sandbox-runner/{__version__}"
        same = sandbox(*command, *([script] if command == ["run"] else []), env=environment(SANDBOX_SOCKET=old.path))
    assert answer.stderr.count("the service is version 0.0.1") == 1
    assert "restart the service" in answer.stderr
    assert "version" not in same.stderr


def test_the_measurement_of_cold_runs_asks_no_service(tmp_path: Path) -> None:
    with echoing() as service:
        measured = subprocess.run(
            [sys.executable, ROOT / "scripts/bench.py", "cold", "--runs", "1", "--json"],
            env=environment(SANDBOX_SOCKET=service.path),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        assert service.connections == 0
    assert len(json.loads(measured.stdout)["times_ms"]["sandbox_run"]) == 1
