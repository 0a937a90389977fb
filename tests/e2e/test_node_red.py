"""A real Node-RED, headless, with the flow of docs/node-red-flow.json.

It has core nodes alone, and uses the service's socket.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.registry import free_port
from tests.integration.service import Service, served
from tests.waiting import until

# Node-RED comes from the npm registry, which the virtual machine can't reach.
pytestmark = [pytest.mark.podman, pytest.mark.host_only]

FLOW = Path(__file__).parents[2] / "docs/node-red-flow.json"
TAB, PROGRAM, REQUEST, ANSWER = (f"5b7a1c0de000000{n}" for n in (1, 3, 4, 5))
START_S = 60.0
SETTINGS = """
module.exports = { uiHost: '127.0.0.1', uiPort: %d, httpAdminRoot: false, flowFile: 'flows.json', userDir: %s, telemetry: { enabled: false },
    logging: { console: { level: 'warn', metrics: false, audit: false } }, editorTheme: { tours: false } };
"""
# In the place of the inject node: what is sent to it is the message, and what the flow ends with is the answer.
TEST_NODES: list[dict[str, Any]] = [
    {"id": "t1", "type": "http in", "z": TAB, "url": "/message", "method": "post", "wires": [["t2"]]},
    {
        "id": "t2",
        "type": "function",
        "z": TAB,
        "outputs": 1,
        "wires": [[PROGRAM]],
        "libs": [],
        "func": (
            "flow.set('code', msg.payload.code); msg.topic = msg.payload.topic; msg.payload = msg.payload.payload;"
            " return msg;"
        ),
    },
    {
        "id": "t3",
        "type": "function",
        "z": TAB,
        "outputs": 1,
        "wires": [["t4"]],
        "libs": [],
        "func": (
            "msg.payload = {payload: msg.payload, error: msg.error, python: msg.python}; msg.statusCode = 200;"
            " msg.headers = {}; return msg;"
        ),
    },
    {"id": "t4", "type": "http response", "z": TAB, "wires": []},
]


class NodeRed:
    """One running Node-RED, and what the flow makes of a message."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(self, payload: object, *, code: str | None = None, topic: str = "sums") -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            body = json.dumps({"payload": payload, "topic": topic, **({"code": code} if code else {})})
            connection.request("POST", "/message", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found: dict[str, Any] = json.loads(answer.read())
        return found


@contextlib.contextmanager
def node_red(home: Path, socket: str, *, timeout_ms: int = 60_000) -> Iterator[NodeRed]:
    """Run the flow of the documentation, whose socket alone is changed (and its patience), in a Node-RED of its own."""
    flow = json.loads(FLOW.read_text())
    for node in flow:
        if node["id"] == REQUEST:
            node["url"] = node["url"].replace("/run/podman-sandbox-runner/service.sock", socket)
            assert socket in node["url"]
        if node["id"] == PROGRAM:
            assert "msg.requestTimeout = 60000;" in node["func"]
            node["func"] = node["func"].replace("60000", str(timeout_ms))
        if node["id"] == ANSWER:
            node["wires"] = [[*outputs, "t3"] for outputs in node["wires"]]
    home.mkdir()
    port = free_port()
    (home / "flows.json").write_text(json.dumps([*flow, *TEST_NODES]))
    (home / "settings.js").write_text(SETTINGS % (port, json.dumps(str(home))))
    prefix = Path(sys.prefix)
    program = prefix / "node-red/node_modules/node-red/red.js"
    assert program.exists(), "Node-RED is missing: scripts/setup --dev fetches it"
    variables = {"PATH": f"{prefix / 'bin'}:{os.environ['PATH']}", "HOME": str(home)}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", prefix / "bin/node", program, "--settings", home / "settings.js"],
            env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip # a command line
    try:
        there = NodeRed(port)

        def said() -> str:
            """Return "" once it answers, or what it logged until now."""
            try:
                there.send({"numbers": []})
            except (OSError, ValueError):
                assert process.poll() is None, (home / "log").read_text()
                return (home / "log").read_text() or "nothing yet"
            return ""

        until(said, "", within_s=START_S)
        yield there
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(20)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def flow(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRed]:
    with node_red(tmp_path_factory.mktemp("node-red") / "home", service.socket) as running:
        yield running


def test_a_message_goes_through_the_flow_and_comes_back_as_its_result(flow: NodeRed) -> None:
    answer = flow.send({"numbers": [1, 2, 3]})
    assert answer["payload"] == {"doubled": [2, 4, 6], "topic": "sums"}
    assert answer["python"]["outcome"] == "succeeded"
    assert answer["python"]["receipt"]["policy"] == "default"


def test_a_program_that_fails_comes_out_of_the_second_output_with_its_line(flow: NodeRed) -> None:
    answer = flow.send(7, code="x = 1\nresult = payload['absent']")
    assert answer["error"]["code"] == "failed"
    assert answer["error"]["line"] == 2
    assert "TypeError" in answer["error"]["message"]
    assert "payload['absent']" in answer["error"]["traceback"]
    assert answer["payload"] == 7  # the message as it was


def test_a_request_that_is_refused_comes_out_there_with_code_and_hint(flow: NodeRed) -> None:
    answer = flow.send(1, code="x" * (2 << 20))
    assert answer["error"]["code"] == "policy_denied"
    assert "code_kib" in answer["error"]["message"]
    assert answer["error"]["hint"]


def test_buffers_and_files_travel_as_the_page_says(flow: NodeRed) -> None:
    sent = {"type": "Buffer", "data": [0, 255, 7]}
    answer = flow.send(
        {"picture": sent}, code="save_file('a.bin', payload['picture'])\nresult = payload['picture'][::-1]"
    )
    assert answer["payload"] == {"type": "Buffer", "data": [7, 255, 0]}
    [file] = answer["python"]["files"]
    assert file["name"] == "a.bin"
    assert base64.b64decode(file["content_base64"]) == bytes([0, 255, 7])


def test_a_service_that_is_not_there_comes_out_of_the_second_output(tmp_path: Path) -> None:
    with node_red(tmp_path / "home", "/tmp/no-such-service.sock") as running:
        answer = running.send({"numbers": [1]})
    assert answer["error"]["code"] == "no_answer"
    assert "ENOENT" in answer["error"]["message"]
    assert answer["payload"] == {"numbers": [1]}


def test_a_node_that_gives_up_ends_its_run(service: Service, tmp_path: Path) -> None:
    with node_red(tmp_path / "home", service.socket, timeout_ms=3_000) as running:
        answer = running.send(1, code="import time\ntime.sleep(25)\nresult = 1", topic="late")
    assert answer["error"]["code"] == "no_answer"
    assert "ETIMEDOUT" in answer["error"]["message"] or "Timeout" in answer["error"]["message"]
    with service.client() as client:
        until(lambda: client.runs(limit=1)[0]["outcome"], "cancelled")
