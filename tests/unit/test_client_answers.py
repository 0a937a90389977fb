"""What clients make of answers: all that can't be read, or is not theirs, is a clear error.

The next call is right.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sandbox
from sandbox import client as client_module
from sandbox.client import Client
from sandbox.client import base as client_base
from sandbox.client.async_client import AsyncClient
from sandbox.errors import EngineUnavailable, Internal, NotFound, QueueFull, SandboxError
from tests.unit.echoing import KINDS, answer_of
from tests.waiting import WAIT_S

RUN = "a" * 32
OTHER = "b" * 32
ACCEPTED = {"event": "accepted", "run_id": RUN}
RESULT = {"event": "result", **answer_of(RUN, 7)}


class Said:
    """A service that says, to one request after the other, what the test lays down; then it closes the connection."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.answers: list[bytes] = []
        self.heads: list[str] = []
        self.closed = threading.Semaphore(0)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                while self._one(connection):
                    pass
            self.closed.release()

    def _one(self, connection: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            try:
                more = connection.recv(65536)
            except OSError:
                return False
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
        )
        while len(body) < length:
            body += connection.recv(65536)
        self.heads.append(head.decode())
        answer = self.answers.pop(0)
        try:
            connection.sendall(answer)
        except OSError:
            return False
        return not answer.endswith(b"CUT")

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(WAIT_S)


def said(body: bytes, *, status: int = 200, **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} x\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def streamed(*lines: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(line) + 1, line + b"\n") for line in lines)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def events(*documents: Any) -> bytes:
    return streamed(*(json.dumps(document).encode() for document in documents))


@pytest.fixture
def service() -> Iterator[Said]:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        served = Said(f"{place}/s")
        yield served
        served.close()


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, service: Said) -> Iterator[Any]:
    with KINDS[request.param](service.path, on_other_version=lambda version: None) as connected:
        yield connected


DEEP = b"[" * 200_000 + b"]" * 200_000
UNREADABLE = {
    "deep": b'{"run_id": "r", "result": %s}' % DEEP,
    "deep, and cut off": b"[" * 200_000,
    "a number that is too long": b'{"run_id": "r", "result": %s}' % (b"9" * 10_000),
    "no JSON": b"<html>",
    "no UTF-8": b'{"run_id": "\xff"}',
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "an empty object": b"{}",
    "wrong kinds": (
        b'{"run_id": 1, "outcome": 2, "explanation": 3, "result": 4, "stdout": 5, "stderr": 6, "files": 7, "runs": 8,'
        b' "removed": []}'
    ),
    "no UTF-8 in UTF-16": '{"a": 1}'.encode("utf-16"),
}
CALLS: dict[str, Callable[[Any], object]] = {
    "run": lambda client: client.run("x"),
    "recorded": lambda client: client.recorded(RUN),
    "result": lambda client: client.result(RUN),
    "start": lambda client: client.start("x"),
    "files": lambda client: client.files(RUN),
    "runs": lambda client: client.runs(),
    "policies": lambda client: client.policies(),
    "environments": lambda client: client.environments(),
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_answer_that_can_t_be_read_is_a_clear_error_and_the_next_one_is_right(
    client: Any, service: Said, body: bytes, call: Callable[[Any], object]
) -> None:
    service.answers = [said(body), said(b'{"n": 1}')]
    with pytest.raises(Internal, match=r"the service's answer (can't be read|is not the one)") as caught:
        call(client)
    assert caught.value.hint
    assert client.get("/a") == {"n": 1}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_error_that_can_t_be_read_is_an_error(client: Any, service: Said, body: bytes, status: int) -> None:
    service.answers = [
        said(body, status=status),
        said(b'{"error": %s}' % (body or b"0"), status=status),
        said(b'{"n": 1}'),
    ]
    for _ in range(2):
        with pytest.raises(SandboxError):
            client.health()
    assert client.get("/a") == {"n": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"files": [{"name": "x", "content_base64": "!"}]},
        {"files": [7]},
        {"files": None},
        {"stdout": None},
        {"outcome": 1},
    ],
)
def test_an_answer_of_another_shape_is_a_clear_error(client: Any, service: Said, change: dict[str, Any]) -> None:
    wrong = {**answer_of(RUN, 1), **change}
    service.answers = [
        said(json.dumps(wrong).encode()),
        events(ACCEPTED, {"event": "result", **wrong}),
        said(b'{"n": 1}'),
    ]
    for options in ({}, {"on_event": lambda event: None}):
        with pytest.raises(Internal, match="can't be read"):
            client.run("x", **options)
    assert client.get("/a") == {"n": 1}


FOREIGN = {
    "a result of another run": [ACCEPTED, {**RESULT, "run_id": OTHER}],
    "a result without a run": [ACCEPTED, {"event": "result", "outcome": "succeeded"}],
    "a result before the run": [RESULT],
    "a run twice": [ACCEPTED, ACCEPTED, RESULT],
    "another run in between": [ACCEPTED, {"event": "accepted", "run_id": OTHER}, RESULT],
    "a run without an id": [{"event": "accepted"}, RESULT],
    "an id that is no text": [{"event": "accepted", "run_id": ["r"]}, RESULT],
    "an error of another run": [
        ACCEPTED,
        {"event": "error", "error": {"code": "queue_full", "message": "", "run_id": OTHER}},
    ],
    "an event without a name": [ACCEPTED, {"run_id": RUN}],
    "an event whose name is no text": [ACCEPTED, {"event": ["result"]}],
    "no object": [ACCEPTED, ["result"]],
    "an error without a reason": [ACCEPTED, {"event": "error"}],
    "an error that is none": [ACCEPTED, {"event": "error", "error": [1]}],
}


@pytest.mark.parametrize("documents", FOREIGN.values(), ids=FOREIGN)
def test_events_that_are_not_of_this_run_are_refused(client: Any, service: Said, documents: list[Any]) -> None:
    service.answers = [events(*documents), said(b'{"n": 1}')]
    with pytest.raises(Internal, match="the service's answer"):
        list(client.stream("x"))
    assert client.get("/a") == {"n": 1}


@pytest.mark.parametrize(
    "line",
    [
        b"<",
        DEEP,
        b'{"event": "result", "result": %s}' % DEEP,
        b'{"event": "stdout", "text": "\xff"}',
        b'{"event":',
        b"",
    ],
)
def test_a_line_that_can_t_be_read_is_a_clear_error(client: Any, service: Said, line: bytes) -> None:
    service.answers = [streamed(json.dumps(ACCEPTED).encode(), line), said(b'{"n": 1}')]
    with pytest.raises(Internal, match="can't be read"):
        client.run("x", on_event=lambda event: None)
    assert client.get("/a") == {"n": 1}


def test_a_stream_that_ends_in_the_middle_of_a_line_went_away(client: Any, service: Said) -> None:
    service.answers = [
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{"event": "accepted", "run_CUT',
        said(b'{"n": 1}'),
    ]
    with pytest.raises(EngineUnavailable, match="went away"):
        list(client.stream("x"))
    assert client.get("/a") == {"n": 1}


def test_the_head_and_the_body_of_an_answer_name_the_same_run(client: Any, service: Said) -> None:
    body = json.dumps(answer_of(RUN, 7)).encode()
    service.answers = [said(body, X_Run_Id=RUN), said(body, X_Run_Id=OTHER)]
    assert client.run("x").value == 7
    with pytest.raises(Internal, match="not the one to this request"):
        client.run("x")


@given(
    answer=st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=100).map(lambda data: b"HTTP/1.1 200 OK\r\n" + data),
        st.binary(max_size=100).map(lambda data: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data),
        st.binary(max_size=100).map(said),
    )
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_end_in_an_answer_or_a_sandbox_error_and_the_next_call_is_right(
    client: Any, service: Said, answer: bytes
) -> None:
    service.answers = [answer + b"CUT"]
    try:
        client.run("x")
    except SandboxError:
        pass
    else:
        pytest.fail("no answer of a run is made of these bytes")
    assert service.closed.acquire(timeout=WAIT_S)
    service.answers = [said(b'{"n": 1}')]
    assert client.get("/a") == {"n": 1}


@pytest.mark.parametrize("name", ["message", "hint", "self", "code"])
def test_facts_of_an_error_can_t_take_the_place_of_its_words(client: Any, service: Said, name: str) -> None:
    service.answers = [
        said(
            json.dumps({"error": {"code": "not_found", "message": "what", "hint": "do", "facts": {name: 1}}}).encode(),
            status=404,
        )
    ]
    with pytest.raises(NotFound) as caught:
        client.health()
    assert (caught.value.message, caught.value.hint) == ("what", "do")


# ---- start now, fetch later


def test_a_service_that_waits_for_less_long_is_asked_again(client: Any, service: Said) -> None:
    going = said(json.dumps({"run_id": RUN, "state": "running"}).encode(), status=202)
    service.answers = [going, going, going, DONE]
    assert client.result(RUN, wait_s=WAIT_S).value == 7
    assert len(service.heads) == 4
    assert all("Prefer: wait=" in head for head in service.heads)


def test_a_run_is_started_and_its_answer_fetched_when_it_is_there(client: Any, service: Said) -> None:
    going = json.dumps({"run_id": RUN, "state": "running"}).encode()
    gone = json.dumps({"error": {"code": "not_found", "message": "no longer", "hint": ""}}).encode()
    listed = json.dumps({"files": [{"name": "a.csv", "size_bytes": 3}]}).encode()
    service.answers = [
        said(going, status=202, Location=f"/v1/runs/{RUN}"),
        said(going, status=202),
        said(going, status=202),
        said(json.dumps(answer_of(RUN, 7)).encode()),
        said(listed),
        said(gone, status=404),
        said(json.dumps(answer_of(OTHER, 7)).encode()),
        said(b'{"openapi": "3.1.0"}'),
    ]
    assert client.start("result = 7", payload=1) == RUN
    assert client.result(RUN) is None
    assert client.result(RUN, wait_s=0) is None
    assert client.result(RUN, wait_s=1.5).value == 7
    assert client.files(RUN) == [{"name": "a.csv", "size_bytes": 3}]
    with pytest.raises(NotFound, match="no longer"):
        client.result(RUN)
    with pytest.raises(Internal, match="not the one"):
        client.result(RUN)
    assert client.document() == {"openapi": "3.1.0"}
    firsts = [head.split("\r\n")[0] for head in service.heads]
    assert firsts[:2] == ["POST /v1/runs HTTP/1.1", f"GET /v1/runs/{RUN}/result HTTP/1.1"]
    assert "Prefer: respond-async" in service.heads[0]
    assert "Prefer" not in service.heads[1]
    assert "Prefer: wait=0\r" in service.heads[2] + "\r"
    assert "Prefer: wait=2\r" in service.heads[3] + "\r"
    assert firsts[-1] == "GET /v1/openapi.json HTTP/1.1"


# ---- too much at once


FULL = said(
    b'{"error": {"code": "queue_full", "message": "full", "hint": "later", "facts": {"retry_after_s": 0}}}', status=429
)
CONNECTIONS = said(
    b'{"error": {"code": "queue_full", "message": "connections", "hint": "", "facts": {}}}', status=429, Retry_After="0"
)
DONE = said(json.dumps(answer_of(RUN, 7)).encode())


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_refused_for_too_much_is_asked_again_where_that_is_wanted(service: Said, kind: str) -> None:
    with KINDS[kind](service.path, retry_s=WAIT_S) as client:
        service.answers = [FULL, CONNECTIONS, DONE, FULL, FULL, events(ACCEPTED, RESULT)]
        assert client.run("x").value == 7
        assert [event["event"] for event in client.stream("x")] == ["accepted", "result"]
        assert len(service.heads) == 6
        # What has begun is not asked again.
        service.answers = [
            events(
                ACCEPTED,
                {"event": "error", "error": {"code": "queue_full", "message": "", "facts": {"retry_after_s": 0}}},
            )
        ]
        with pytest.raises(QueueFull):
            list(client.stream("x"))
        assert len(service.heads) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_without_being_told_nothing_is_asked_twice_and_never_for_longer_than_told(service: Said, kind: str) -> None:
    far = FULL.replace(b'_s": 0', b'_s": 9')
    for options in ({}, {"retry_s": 5}):
        with KINDS[kind](service.path, **options) as client:
            service.answers = [far]
            with pytest.raises(QueueFull) as caught:
                client.run("x")
            assert caught.value.facts["retry_after_s"] == 9
    assert len(service.heads) == 2


# ---- versions


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_of_another_version_is_told_once(
    service: Said, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_base, "_LOGGED", set())
    other = said(b"{}", Server="podman-sandbox-runner/0.0.1")
    service.answers = [
        other,
        other,
        said(b"{}", Server=f"podman-sandbox-runner/{sandbox.__version__}"),
        said(b"{}", Server="nginx/1.0"),
        said(b"{}"),
    ]
    with caplog.at_level(logging.WARNING), KINDS[kind](service.path) as client:
        for _ in range(5):
            client.health()
    assert len(caplog.messages) == 1
    assert "the service is version 0.0.1" in caplog.text
    assert "restart the service" in caplog.text


# ---- one shape


def test_both_clients_have_the_same_methods() -> None:
    methods = {name: method for name, method in vars(Client).items() if callable(method) and not name.startswith("_")}
    for name, method in methods.items():
        other = getattr(AsyncClient, name)
        assert inspect.signature(method).parameters == inspect.signature(other).parameters, name
        assert inspect.iscoroutinefunction(other) or name in ("stream", "events", "lines", "break_off"), name
    assert {name for name in vars(AsyncClient) if not name.startswith("_")} == set(methods)
    assert client_module.AsyncClient is AsyncClient


def test_the_client_imports_the_standard_library_alone_and_asyncio_only_when_it_is_used() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, '.'); import sandbox.client as c; before = set(sys.modules); c.AsyncClient;"
        " print(*before); print(*sys.modules)"
    )
    root = os.path.dirname(os.path.dirname(sandbox.__file__))
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    before, after = (set(line.split()) for line in ran.stdout.splitlines())
    assert {name.partition(".")[0] for name in after} - set(sys.stdlib_module_names) == {"sandbox", "__main__"}
    assert "asyncio" not in before
