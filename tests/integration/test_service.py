"""The service as its clients see it: a real process, real sandboxes, over its socket."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import pwd
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sandbox.client import Client
from sandbox.client.answers import (
    CodeCheck,
    ListedImage,
    ListedPolicy,
    ListedTemplate,
    MissingModule,
    PolicyValue,
    Problem,
    ShownPolicy,
    ShownTemplate,
)
from sandbox.errors import AccessDenied, InvalidRequest, NotFound, PolicyDenied, QueueFull, SandboxError
from tests.command import environment, left_behind, sandbox
from tests.integration.service import Service, served
from tests.waiting import WAIT_S, until


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("service")) as running:
        yield running
    assert left_behind() == []


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with service.client() as connected:
        yield connected


# ---- a run


def test_a_run_gives_its_result_output_files_and_receipt(client: Client) -> None:
    result = client.run(
        "print('hello')\nlog('working')\nsave_file('a.bin', b'\\x00\\x01')\nresult = {'double': payload['n'] * 2, 't':"
        " topic}",
        payload={"n": 21},
        topic="north",
        policy="small",
    )
    assert (result.outcome, result.value, result.stdout) == ("succeeded", {"double": 42, "t": "north"}, "hello\n")
    assert result.files == {"a.bin": b"\x00\x01"}
    assert client.file(result.run_id, "a.bin") == b"\x00\x01"
    with pytest.raises(NotFound):
        client.file(result.run_id, "../../history.sqlite")
    assert client.recorded(result.run_id)["outcome"] == "succeeded"
    receipt = result.document["receipt"]
    assert receipt["policy"] == "small"
    assert receipt["run_id"] == result.run_id
    assert receipt["durations"] == result.document["durations"]
    assert {row["status"] for row in receipt["controls"]} <= {"proven", "fallback"}


def test_a_program_that_fails_is_an_answer_with_its_line(client: Client) -> None:
    result = client.run("x = 1\nraise ValueError('no')")
    assert (result.outcome, result.document["error"]["type"], result.document["error"]["line"]) == (
        "failed",
        "ValueError",
        2,
    )


def test_a_syntax_error_is_the_program_s_failure_and_no_file_of_the_host_is_read_for_it(client: Client) -> None:
    result = client.run("def f(x, x): pass", filename="/etc/machine-id")
    assert result.outcome == "failed"
    assert result.document["error"]["type"] == "SyntaxError"
    assert Path("/etc/machine-id").read_text().strip() not in json.dumps(result.document)


def test_a_payload_passes_byte_for_byte(client: Client) -> None:
    text = (
        b'{"\\u00e4": [1.10, 1e400, 1E+02, -0, 12345678901234567890123, "\\ud83d\\ude00", '
        + b"7, " * 1000
        + b'null] , "a":\t 1}'
    )
    result = client.run("result = msg['payload']['a']", payload_json=text)
    assert result.value == 1
    assert result.document["receipt"]["payload_hash"] == f"sha256:{hashlib.sha256(text).hexdigest()}"


def test_the_log_has_a_line_for_each_run_s_end(service: Service, client: Client) -> None:
    result = client.run("raise ValueError", policy="small")
    with pytest.raises(PolicyDenied) as caught:
        client.run("result = 1", limits={"memory_mib": 1 << 20})
    logged = [json.loads(line) for line in service.log(result.run_id, "policy_denied").splitlines()]
    found = {line["run_id"]: line for line in logged if "run_id" in line}
    line = found[result.run_id]
    assert (line["policy"], line["outcome"], line["level"]) == ("small", "failed", "info")
    assert line["caller"] == pwd.getpwuid(os.getuid()).pw_name
    assert line["duration_ms"] >= result.document["durations"]["program_ms"] > 0
    assert found[caught.value.facts["run_id"]]["outcome"] == "policy_denied"


def test_output_comes_while_the_program_still_runs(client: Client) -> None:
    seen: list[dict[str, Any]] = []
    result = client.run(
        "import time\nprint('first', flush=True)\ntime.sleep(1)\nprint('second')\nresult = 1", on_event=seen.append
    )
    assert result.value == 1
    kinds = [event["event"] for event in seen]
    assert kinds[0] == "accepted"
    texts = [event["text"] for event in seen if event["event"] == "stdout"]
    assert len(texts) >= 2, "not all of it at the end"
    assert "".join(texts) == "first\nsecond\n"
    assert [event["step"] for event in seen if event["event"] == "progress"][-1] == "running"


def test_server_sent_events_carry_the_same(service: Service) -> None:
    status, headers, body = raw(
        service, "POST", "/v1/runs", {"code": "print('x')\nresult = 2"}, accept="text/event-stream"
    )
    assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    events = [json.loads(line.removeprefix(b"data: ")) for line in body.split(b"\n\n") if line]
    assert [events[0]["event"], events[-1]["event"], events[-1]["result"]] == ["accepted", "result", 2]


def raw(
    service: Service, method: str, path: str, body: Any = None, *, accept: str = "application/json", prefer: str = ""
) -> tuple[int, dict[str, str], bytes]:
    """Send one request without the client library."""
    connection = http.client.HTTPConnection("localhost", timeout=WAIT_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(WAIT_S)
    connection.sock.connect(service.socket)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {"Accept": accept, **({"Prefer": prefer} if prefer else {})})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


# ---- what the history keeps


def test_a_payload_is_kept_where_the_policy_asks_for_it_and_nowhere_else(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("kept")
    (home / "policies").mkdir()
    (home / "policies" / "kept.toml").write_text('extends = "default"\nhistory.payloads = true\n')
    with served(home) as service, service.client() as client:
        runs = {
            policy: (
                client.run(
                    "result = 'a result'",
                    payload=[f"payload of {policy}"],
                    secrets={"TOKEN": "a secret"},
                    policy=policy,
                ).run_id
            )
            for policy in ("kept", "default")
        }
        shown = {policy: client.get(f"/v1/runs/{run_id}") for policy, run_id in runs.items()}
        assert (shown["kept"]["payload"], "payload" in shown["default"]) == ('["payload of kept"]', False)
        assert not any("payload" in row for row in client.runs())
        logs = {
            policy: sandbox("logs", run_id, env=environment(SANDBOX_SOCKET=service.socket))
            for policy, run_id in runs.items()
        }
    assert "payload of kept" in logs["kept"].stdout
    assert all("what it told is not kept" in shown.stderr for shown in logs.values()), "they succeeded"
    content = b"".join(path.read_bytes() for path in (home / "data").rglob("history.sqlite*"))
    assert b"payload of kept" in content
    assert b"payload of default" not in content
    assert b"a secret" not in content
    assert b"a result" not in content


# ---- warm sandboxes


def test_what_was_run_often_is_ready_at_the_next_start_with_what_it_imports(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("often")
    (home / "policies").mkdir()
    (home / "policies" / "tables.toml").write_text('extends = "default"\nisolation.preload = ["decimal"]\n')
    code = "import sys\nresult = 'decimal' in sys.modules"
    with served(home) as service, service.client() as client:
        for _ in range(3):
            client.run(code, policy="tables")
        until(lambda: client.run(code, policy="tables").value)
    with served(home) as service, service.client() as client:
        until(lambda: client.health()["pool"]["ready"], 1)
        first = client.run(code, policy="tables")
        assert (first.value, first.document["durations"]["warm"]) == (True, True)


# What a program finds of an earlier one.
SEEN = (
    "{'files': [sorted(set(os.listdir(d)) - {'script.py'}) for d in ('/app', '/tmp', '/dev/shm')], 'module': hasattr(json, 'left'), "
    "'variable': 'LEFT' in os.environ, 'uid': os.getuid()}"
)


def test_the_second_run_finds_a_sandbox_ready_and_no_trace_of_the_first(client: Client) -> None:
    leave = (
        "import os, threading, time\nopen('/app/left', 'w').close()\nopen('/tmp/left', 'w').close()\n"
        "open('/dev/shm/left', 'w').close()\nimport json\njson.left = 1\nos.environ['LEFT'] = '1'\n"
        f"result = {SEEN}"
    )
    look = f"import json, os\nresult = {SEEN}"
    uids, warm = [], 0
    deadline = time.monotonic() + WAIT_S
    while warm < 3:
        assert time.monotonic() < deadline, "no run found a sandbox ready"
        left = client.run(leave).value
        assert {**left, "uid": 0} == {
            "files": [["left"]] * 3,
            "module": True,
            "variable": True,
            "uid": 0,
        }, "it is there to be found"
        time.sleep(0.3)
        result = client.run(look)
        assert {**result.value, "uid": 0} == {"files": [[], [], []], "module": False, "variable": False, "uid": 0}
        uids.append(result.value["uid"])
        warm += result.document["durations"]["warm"]
    assert len(set(uids)) == len(uids), "each run has a sandbox, and so a user id, of its own"


def test_kinds_that_the_configuration_names_are_ready_before_anybody_asks(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("warm")
    with (
        served(home, SANDBOX_POOL__WARM='[{policy = "small"}, {policy = "absent"}]') as service,
        service.client() as client,
    ):
        until(lambda: client.health()["pool"]["ready"], 1)
        assert client.run("result = 1", policy="small").document["durations"]["warm"]
        service.log(
            "no sandbox is kept ready for policy absent",
            "policy in entry 2 of pool.warm: there is no policy named absent",
        )


# ---- refusals, in one shape


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"policy": "absent"}, NotFound, "there is no policy named absent"),
        ({"policy": "smal"}, NotFound, "did you mean small?"),
        ({"policy": "/etc/passwd"}, AccessDenied, "by path the service takes none"),
        ({"policy": "../default"}, AccessDenied, "by path the service takes none"),
        ({"limits": {"memory_mib": 1 << 20}}, PolicyDenied, "allows at most"),
        ({"limits": {"timeout_s": 100_000}}, PolicyDenied, "allows at most"),
        ({"limits": {"timeout_s": -1}}, InvalidRequest, "limits.timeout_s"),
        ({"env": {"LD_PRELOAD": "x"}}, SandboxError, "LD_PRELOAD"),
        ({"image": "docker.io/library/other:1"}, SandboxError, "other"),
        ({"requirements": ["-r /etc/passwd"]}, InvalidRequest, "-r"),
        ({"requirements": ["x @ file:///etc/passwd"]}, SandboxError, "file:"),
        (
            {"requires_python": ">=3.99"},
            InvalidRequest,
            "Python >=3.99 is needed (requires-python), and the image localhost/",
        ),
        ({"requires_python": "three"}, InvalidRequest, "requires-python is not a version constraint"),
        ({"topic": 7}, InvalidRequest, "Expected `str`"),
        ({"unknown": 7}, InvalidRequest, "unknown"),
        ({"message": []}, InvalidRequest, "no JSON object"),
    ],
)
def test_what_is_not_granted_is_refused_in_words(
    client: Client, options: dict[str, Any], kind: type[SandboxError], said: str
) -> None:
    with pytest.raises(kind, match=re.escape(said)) as caught:
        client.run("result = 1", **options)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/nothing", None, 404),
        ("PUT", "/v1/runs", None, 405),
        ("POST", "/v1/runs", b"{", 400),
        ("POST", "/v1/runs", b"", 400),
        ("POST", "/v1/runs", b'{"code": "x", "payload": {]}', 400),
        ("POST", "/v1/runs", b"[" * 100_000, 400),
        ("POST", "/v1/runs", b'{"code": "x", "payload": ' + b"[" * 100_000 + b"}", 400),
        ("POST", "/v1/runs", b'{"code": "\\ud800", "files": {"a": "!"}}', 400),
        ("GET", "/v1/runs?limit=x", None, 400),
        ("GET", "/v1/runs?limit=501", None, 400),
        ("GET", "/v1/runs?limit=-1", None, 400),
        ("GET", "/v1/runs?outcom=failed", None, 400),
        ("GET", "/v1/runs?node=a&node=b", None, 400),
        ("GET", "/v1/health?verbose", None, 400),
        ("GET", "/v1/runs/" + "f" * 32 + "?x=1", None, 400),
        ("GET", "/v1/nothing?x=1", None, 404),
        ("GET", "/v1/runs/" + "f" * 32, None, 404),
        ("DELETE", "/v1/runs/" + "f" * 32, None, 404),
        ("GET", "/v1/policies/absent", None, 404),
        ("GET", "/v1/templates/absent", None, 404),
        ("GET", "/v1/environments/absent", None, 404),
        ("POST", "/v1/maintenance/prune", None, 400),
        ("POST", "/v1/environments", b'{"requirements": []}', 400),
    ],
)
def test_every_error_has_the_one_shape(
    service: Service, method: str, path: str, body: bytes | None, status: int
) -> None:
    answered, _, text = raw(service, method, path, body)
    assert answered == status, text
    error = json.loads(text)["error"]
    assert set(error) >= {"code", "message", "hint"}


# ---- watching and ending


def test_a_run_can_be_ended_by_its_id_and_says_so(service: Service, client: Client) -> None:
    ids: list[str] = []
    results: list[Any] = []

    def go() -> None:
        with service.client() as other:
            results.append(
                other.run(
                    "import time\nprint('x', flush=True)\ntime.sleep(60)",
                    on_event=lambda e: ids.append(e.get("run_id", "")),
                )
            )

    thread = threading.Thread(target=go)
    thread.start()
    until(lambda: len(ids) > 1 and client.get(f"/v1/runs/{ids[0]}")["state"] == "running")
    client.cancel(ids[0])
    thread.join(WAIT_S)
    assert results[0].outcome == "cancelled"
    row = client.get(f"/v1/runs/{ids[0]}")
    assert (row["state"], row["outcome"]) == ("ended", "cancelled")


def test_a_client_that_goes_away_takes_its_run_along(service: Service, client: Client) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(service.socket)
    body = json.dumps({"code": "import time\ntime.sleep(60)", "node_id": "leaves"}).encode()
    connection.sendall(b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    until(lambda: [row["state"] for row in client.runs(node="leaves")], ["running"])
    before: Mapping[str, Any] = client.runs(node="leaves")[0]
    connection.close()
    until(lambda: [row["state"] for row in client.runs(node="leaves")], ["ended"])
    after: Mapping[str, Any] = client.runs(node="leaves")[0]
    assert after["outcome"] == "cancelled"
    told = ("run_id", "caller", "caller_name", "node_id", "policy", "requirements", "received")
    assert {name: before[name] for name in told} == {name: after[name] for name in told}, "one run, one description"


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_run_that_shall_end_does_so_without_its_client(service: Service, client: Client, accept: str) -> None:
    node = f"stays {accept}"
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(service.socket)
    body = json.dumps(
        {"code": "import time\ntime.sleep(1)\nresult = 1", "node_id": node, "wait_for_end": True}
    ).encode()
    head = b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nAccept: %s\r\nContent-Length: %d\r\n\r\n" % (
        accept.encode(),
        len(body),
    )
    connection.sendall(head + body)

    def ours() -> list[Any]:
        return [row for row in client.get("/v1/runs")["runs"] if row["node_id"] == node]

    until(lambda: [row["state"] for row in ours()], ["running"])
    connection.close()
    until(lambda: [row["state"] for row in ours()], ["ended"])
    assert ours()[0]["outcome"] == "succeeded"


def test_the_history_has_no_payload_code_output_or_secret(service: Service, client: Client) -> None:
    secret = "correct horse battery"
    client.run(
        f"print('{secret}')\nresult = payload",
        payload={"k": secret},
        secrets={"TOKEN": secret},
        node_id=f"n{secret[:3]}",
    )
    assert client.runs(limit="1")[0]["payload_bytes"] > 0
    files = [path for path in (service.home / "data").rglob("*") if path.is_file()]
    assert any(path.name.startswith("history") for path in files)
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert secret not in service.log()


def test_what_a_caller_may_use_is_listed(client: Client) -> None:
    assert {"default", "strict", "small"} <= {policy["name"] for policy in client.policies()}
    small = client.policy("small")
    assert "limits.memory_mib" in {row["key"] for row in small["values"]}
    assert "iot" in {template["name"] for template in client.templates()}
    simple = client.template("simple")
    assert client.run(simple["code"], payload=simple["payload"]).outcome == "succeeded"
    images = client.images()
    assert any("sandbox-python" in image["name"] for image in images)
    assert client.doctor()["usable"]
    assert client.environments() == []
    for found, kind in (
        (client.policies()[0], ListedPolicy),
        (small, ShownPolicy),
        (small["values"][0], PolicyValue),
        (client.templates()[0], ListedTemplate),
        (simple, ShownTemplate),
        (images[0], ListedImage),
    ):
        assert set(found) == set(kind.__annotations__)


def test_what_is_not_there_is_told_by_the_same_errors_from_every_call(client: Client) -> None:
    asked: list[Callable[[str], object]] = [
        client.template,
        client.environment,
        client.recorded,
        client.cancel,
        client.policy,
    ]
    for ask in asked:
        for name in ("absent", "a/../b", "ä b?c#d"):
            with pytest.raises((NotFound, AccessDenied, InvalidRequest)) as caught:
                ask(name)
            assert caught.value.hint
    with pytest.raises(InvalidRequest, match="prune needs to know"):
        client.prune()


def test_metrics_are_prometheus_text(service: Service, client: Client) -> None:
    client.run("result = 1", policy="small")
    _, headers, body = raw(service, "GET", "/v1/metrics")
    assert headers["Content-Type"].startswith("text/plain")
    assert b'sandbox_runs_total{outcome="succeeded",policy="small"}' in body
    assert 'sandbox_runs_total{outcome="succeeded",policy="small"}' in client.metrics()


def test_code_is_checked_without_being_run(client: Client) -> None:
    found = client.check("import cv2\nprint(1")
    assert found["problem"] is not None
    assert found["problem"]["line"] == 2
    assert set(found) == set(CodeCheck.__annotations__)
    assert set(found["problem"]) == set(Problem.__annotations__)
    found = client.check("import cv2, json\nopen('/app/x', 'w')")
    assert set(found["missing"][0]) == set(MissingModule.__annotations__)
    assert [(row["module"], row["install"]) for row in found["missing"]] == [("cv2", "opencv-python-headless")]


# ---- load


def test_past_the_queue_the_answer_is_at_once_no_with_a_time_to_come_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("small")
    with served(home, SANDBOX_QUEUE__RUNNING="1", SANDBOX_QUEUE__WAITING="1") as service:
        outcomes: list[str] = []

        def go() -> None:
            with service.client() as client:
                try:
                    outcomes.append(client.run("import time\ntime.sleep(3)\nresult = 1").outcome)
                except QueueFull as error:
                    outcomes.append(error.code if error.facts["retry_after_s"] >= 1 else "at once")

        threads = [threading.Thread(target=go) for _ in range(5)]
        with service.client() as client:
            for number, thread in enumerate(threads):
                thread.start()
                if number < 2:
                    until(lambda: client.health()["runs"], {"running": 1, "waiting": number})
            for thread in threads:
                thread.join(WAIT_S)
            assert outcomes == ["queue_full"] * 3 + ["succeeded"] * 2, "at once: before the others end"
            assert [row["outcome"] for row in client.runs()] == ["succeeded"] * 2, "a flood would push the others out"


def test_a_run_that_waited_in_vain_is_in_the_history(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        served(tmp_path_factory.mktemp("vain"), SANDBOX_QUEUE__RUNNING="1", SANDBOX_QUEUE__WAIT_S="1") as service,
        service.client() as client,
    ):
        events = client.stream("import time\nprint(1, flush=True)\ntime.sleep(60)", node_id="long")
        while next(events)["event"] != "stdout":
            pass
        with service.client() as other, pytest.raises(QueueFull, match="waited 1 s") as caught:
            other.run("result = 1", node_id="vain")
        assert [(row["node_id"], row["state"]) for row in client.runs(node="vain")] == [("vain", "ended")]
        assert client.runs(outcome="queue_full")[0]["run_id"] == caught.value.facts["run_id"]
        events.close()


# ---- its life


def test_sigterm_lets_runs_end_and_leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(tmp_path_factory.mktemp("drain")) as service:
        results: list[Any] = []
        seen: list[str] = []

        def go() -> None:
            with service.client() as client:
                code = "import time\nprint('begun', flush=True)\ntime.sleep(2)\nresult = 'ended'"
                results.append(client.run(code, on_event=lambda event: seen.append(event["event"])))

        thread = threading.Thread(target=go)
        thread.start()
        with service.client() as client:
            until(lambda: seen, lambda events: "stdout" in events)
            service.process.send_signal(signal.SIGTERM)
            service.log("stopping")
            with pytest.raises(SandboxError, match="stopping"):
                client.run("result = 1")
        thread.join(WAIT_S)
        assert results[0].value == "ended"
        assert service.stop() == 0
        assert not os.path.exists(service.socket)


def test_sighup_reads_policies_again_and_keeps_the_old_one_where_the_file_is_broken(
    service: Service, client: Client
) -> None:
    file = service.policies / "small.toml"
    before = file.read_text()
    try:
        file.write_text(before.replace("limits.output_mib = 1", "limits.output_mib = 2"))
        service.process.send_signal(signal.SIGHUP)
        until(lambda: values(client)["limits.output_mib"], 2)
        file.write_text("limits.nonsense = 1")
        service.process.send_signal(signal.SIGHUP)
        until(lambda: client.health()["status"], "degraded")
        assert "small" in client.health()["problems"][0]
        service.log("policy small is as it was: ")
        assert values(client)["limits.output_mib"] == 2
        assert client.run("result = 1", policy="small").value == 1
    finally:
        file.write_text(before)
        service.process.send_signal(signal.SIGHUP)
        until(lambda: client.health()["status"], "ok")


def test_sighup_lets_larger_bodies_in_where_a_policy_takes_them_now(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        served(tmp_path_factory.mktemp("larger"), SANDBOX_QUEUE__BODIES_MIB="1") as service,
        service.client() as client,
    ):
        (service.policies / "large.toml").write_text('extends = "default"\nlimits.payload_mib = 256\n')
        with announced(service, 1 << 20) as held:  # beside it nothing fits, so that who is let in is told so at once
            held.sendall(b"{")
            assert told(service, 400 << 20) == (413, "invalid_request")
            service.process.send_signal(signal.SIGHUP)
            until(lambda: "large" in {policy["name"] for policy in client.get("/v1/policies")["policies"]})
            assert told(service, 400 << 20) == (429, "queue_full")


def announced(service: Service, size_bytes: int) -> socket.socket:
    """Begin a request whose body will have so many bytes, and send none of them."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT_S)
    connection.connect(service.socket)
    connection.sendall(b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size_bytes)
    return connection


def told(service: Service, size_bytes: int) -> tuple[int, str]:
    """Return status and code of the answer to a request with so large a body, which comes before the body does."""
    with announced(service, size_bytes) as connection, http.client.HTTPResponse(connection) as response:
        response.begin()
        return response.status, json.loads(response.read())["error"]["code"]


def values(client: Client) -> dict[str, Any]:
    return {row["key"]: row["value"] for row in client.get("/v1/policies/small")["values"]}
