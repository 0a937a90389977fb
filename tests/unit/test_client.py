"""The client library against a server that answers what the test says, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandbox import errors
from sandbox.client import OPTIONAL, Client, NoService, bytes_of, error_of, run_body
from sandbox.client.async_client import AsyncClient
from sandbox.document import error_document
from sandbox.errors import AccessDenied, EngineUnavailable, Internal, InvalidRequest, QueueFull, SandboxError
from sandbox.service.intake.bodies import run_body as parsed
from sandbox.wire.requests import RunBody
from tests.unit.factory import wanted
from tests.waiting import WAIT_S


class Served:
    """A socket whose connections are answered, one after the other, by the functions that the test gives."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.requests: list[bytes] = []
        self.closed_early = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen()
        self._thread: threading.Thread | None = None

    def answer(self, *connections: Callable[[socket.socket], None]) -> None:
        def go() -> None:
            for answering in connections:
                connection, _ = self._socket.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(WAIT_S)
                    answering(connection)

        self._thread = threading.Thread(target=go, daemon=True)
        self._thread.start()

    def request(self, connection: socket.socket) -> None:
        """Read one whole request."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
        )
        while len(body) < length:
            body += connection.recv(65536)
        self.requests.append(head.split(b"\r\n")[0])

    def says(self, *documents: Any, status: int = 200) -> Callable[[socket.socket], None]:
        """Answer one request after the other on one connection, and close it."""

        def go(connection: socket.socket) -> None:
            for document in documents:
                self.request(connection)
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                connection.sendall(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)

        return go

    def streams(self, events: Sequence[Any], *, end: bool = True) -> Callable[[socket.socket], None]:
        """Stream events; without an end, wait for the client to go."""

        def go(connection: socket.socket) -> None:
            self.request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for event in events:
                line = json.dumps(event).encode() + b"\n"
                connection.sendall(b"%x\r\n%s\r\n" % (len(line), line))
            if end:
                connection.sendall(b"0\r\n\r\n")
            elif connection.recv(1) == b"":
                self.closed_early.set()

        return go

    def close(self) -> None:
        self._socket.close()
        if self._thread is not None:
            self._thread.join(WAIT_S)
            assert not self._thread.is_alive()


@pytest.fixture
def service() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # the path of a socket is short
        served = Served(f"{place}/s")
        yield served
        served.close()


ANSWER = {
    "run_id": "r",
    "outcome": "succeeded",
    "explanation": "",
    "result": 7,
    "stdout": "",
    "stderr": "",
    "files": [],
}


def test_a_kept_connection_that_the_service_closed_is_opened_again_and_nothing_is_asked_twice(service: Served) -> None:
    service.answer(service.says({"n": 1}, {"n": 2}), service.says(ANSWER))
    with Client(service.path) as client:
        assert [client.get("/a")["n"], client.get("/b")["n"]] == [1, 2]
        threading.Event().wait(0.1)
        assert client.run("result = 7").value == 7
    assert service.requests == [b"GET /a HTTP/1.1", b"GET /b HTTP/1.1", b"POST /v1/runs HTTP/1.1"]


def test_a_run_whose_service_dies_is_not_started_again(service: Served) -> None:
    service.answer(lambda connection: service.request(connection), service.says(ANSWER))
    with Client(service.path) as client:
        with pytest.raises(EngineUnavailable, match="went away"):
            client.run("result = 7")
        assert client.run("result = 7").value == 7
    assert len(service.requests) == 2


def test_a_silent_service_is_given_up_after_the_time_of_the_call_and_the_client_stays_usable(service: Served) -> None:
    def silent(connection: socket.socket) -> None:
        service.request(connection)
        if connection.recv(1) == b"":
            service.closed_early.set()

    service.answer(silent, service.says({"n": 1}))
    with Client(service.path) as client:
        with pytest.raises(EngineUnavailable, match=r"said nothing for 0\.2 s"):
            client.run("result = 7", timeout_s=0.2)
        assert service.closed_early.wait(WAIT_S), "who gives up ends the run"
        assert client.get("/a") == {"n": 1}


def test_nobody_at_the_socket_is_said_with_the_command_that_mends_it(tmp_path: Path) -> None:
    with pytest.raises(NoService, match="no service answers") as caught:
        Client(str(tmp_path / "absent")).health()
    assert caught.value.hint.startswith("start it: sandbox serve")
    assert caught.value.exit_status == 13
    with pytest.raises(NoService):
        Client("/" + "x" * 200).health()


@pytest.mark.parametrize("listened", [False, True])
def test_a_socket_that_a_variable_names_is_not_mended_by_a_service_at_the_usual_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listened: bool
) -> None:
    path = str(tmp_path / "s")
    if listened:
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(path)
    monkeypatch.setenv("SANDBOX_SOCKET", path)
    with pytest.raises(NoService) as caught:
        Client().health()
    assert "sandbox serve" not in caught.value.hint
    assert "$SANDBOX_SOCKET names it" in caught.value.hint


@pytest.mark.parametrize("ending", [b"", b"0\r\n\r\n"], ids=["broken off", "in order"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_line_that_is_cut_off_is_no_event_and_no_end(service: Served, asynchronous: bool, ending: bytes) -> None:
    def cut(connection: socket.socket) -> None:
        service.request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b'9\r\n{"n": 1}\n\r\n' + b'7\r\n{"n": 2\r\n' + ending)

    service.answer(cut)
    found: list[bytes] = []

    async def all_lines() -> None:
        async with AsyncClient(service.path) as client:
            async for line in client.lines("/v1/runs", b"{}"):
                found.append(line)

    def all_lines_of_a_client() -> None:
        with Client(service.path) as client:
            found.extend(client.lines("/v1/runs", b"{}"))

    with pytest.raises(EngineUnavailable, match="went away"):
        asyncio.run(all_lines()) if asynchronous else all_lines_of_a_client()
    assert found in ([], [b'{"n": 1}\n'])


def test_events_come_one_by_one_and_the_last_has_the_whole_answer(service: Served) -> None:
    events = [{"event": "accepted", "run_id": "r"}, {"event": "stdout", "text": "x\n"}, {"event": "result", **ANSWER}]
    service.answer(service.streams(events))
    with Client(service.path) as client:
        assert list(client.stream("print('x')")) == events


def test_closing_the_iterator_early_ends_the_run_and_other_calls_go_on_meanwhile(service: Served) -> None:
    service.answer(service.streams([{"event": "accepted", "run_id": "r"}], end=False))
    with Client(service.path) as client:
        events = client.stream("while True: pass")
        assert next(events)["run_id"] == "r"
        events.close()
        assert service.closed_early.wait(WAIT_S)


def test_a_stream_that_breaks_off_is_an_error_and_never_an_end(service: Served) -> None:
    service.answer(service.streams([{"event": "accepted", "run_id": "r"}]))
    with Client(service.path) as client, pytest.raises(EngineUnavailable, match="went away"):
        list(client.stream("result = 1"))


def test_an_error_in_a_stream_is_the_exception_that_it_was_there(service: Served) -> None:
    error = {"code": "queue_full", "message": "full", "hint": "later", "run_id": "r", "facts": {"retry_after_s": 3}}
    service.answer(service.streams([{"event": "accepted", "run_id": "r"}, {"event": "error", "error": error}]))
    with Client(service.path) as client, pytest.raises(QueueFull, match="full") as caught:
        client.run("result = 1", on_event=lambda event: None)
    assert (caught.value.hint, caught.value.facts) == ("later", {"retry_after_s": 3, "run_id": "r"})


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if hasattr(kind, "code")], ids=lambda kind: kind.code
)
def test_every_error_survives_the_way(kind: type[SandboxError]) -> None:
    back = error_of(json.loads(error_document(kind("what", hint="do", line=3), run_id="r"))["error"])
    assert type(back) is kind
    assert (back.message, back.hint, back.facts) == ("what", "do", {"line": 3, "run_id": "r"})


def test_an_answer_that_is_no_error_of_ours_is_told_by_its_status(service: Served) -> None:
    service.answer(service.says(b"<html>", status=502))
    with Client(service.path) as client, pytest.raises(Internal, match="502"):
        client.health()


def test_after_an_error_the_same_connection_goes_on(service: Served) -> None:
    def both(connection: socket.socket) -> None:
        service.says({"error": {"code": "access_denied", "message": "no", "hint": "ask"}}, status=403)(connection)
        service.says({"n": 1})(connection)

    service.answer(both)
    with Client(service.path) as client:
        with pytest.raises(AccessDenied, match="no"):
            client.health()
        assert client.get("/a") == {"n": 1}


def test_a_body_that_is_refused_unread_still_gets_its_reason(service: Served) -> None:
    def refuses(connection: socket.socket) -> None:
        connection.recv(100)
        body = b'{"error": {"code": "invalid_request", "message": "too large", "hint": "send less"}}'
        connection.sendall(b"HTTP/1.1 413 x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)

    service.answer(refuses, service.says({"n": 1}))
    with Client(service.path) as client:
        # What was not read makes the kernel drop the connection: the reason arrives only if it was quick enough.
        with pytest.raises((InvalidRequest, EngineUnavailable)):
            client.run("result = 1", payload="x" * (8 << 20))
        assert client.get("/a") == {"n": 1}


# ---- bodies


def test_the_fields_of_a_run_are_those_that_the_service_knows() -> None:
    assert set(OPTIONAL) == set(RunBody.__struct_fields__) - {"code", "payload"}
    assert wanted(run_body("c", {}, payload_json=b"null")) == wanted(b'{"code": "c"}')


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (b'1, "policy": "loose", "code": "evil", "secrets": {"A": "b"}, "wait_for_end": true', False),
        (b'1, "limits": {"timeout_s": 1}, "payload": 2', False),
        (b'1, "unknown": 1', True),
        (b"1}", True),
        (b"", True),
    ],
)
def test_the_text_of_a_payload_can_t_bring_other_fields(text: bytes, refused: bool) -> None:
    body = run_body("c", {"policy": "strict"}, payload_json=text)
    if refused:
        with pytest.raises(InvalidRequest):
            parsed(body)
        return
    assert msgspec.structs.replace(wanted(body), payload_json=b"null") == wanted(b'{"code": "c", "policy": "strict"}')
    assert bytes(parsed(body)[0].code) == b'"c"'
    assert not parsed(body)[0].wait_for_end


def test_a_payload_s_text_arrives_byte_for_byte_and_files_whole() -> None:
    text = b'{"a": 1.10, "\\u00e4": [1e400]}'
    found = wanted(run_body("c", {"files": {"f": b"\x00\xff"}}, payload_json=text))
    assert found.payload_json == text
    assert found.files == {"f": b"\x00\xff"}


@pytest.mark.parametrize("payload", [{1, 2}, float("nan"), b"bytes"])
def test_what_json_has_no_form_for_is_refused_in_words(payload: Any) -> None:
    with pytest.raises(InvalidRequest, match="no form as JSON"):
        run_body("c", {}, payload=payload)


def test_output_that_is_no_text_comes_back_exactly() -> None:
    assert bytes_of({"text": "\\xff", "base64": "/w=="}) == b"\xff"
    assert bytes_of({"text": "\\xff"}) == b"\\xff"


HEADER = '# /// script\n# requires-python = ">=3.9"\n# dependencies = ["tiny"]\n# ///\n'


@pytest.mark.parametrize(
    ("fields", "libraries", "python"),
    [
        ({"code": HEADER}, ("tiny",), ">=3.9"),
        ({"code": "x", "requirements": ("other",), "requires_python": ">=3.10"}, ("other",), ">=3.10"),
        ({"code": HEADER, "requirements": ("other",)}, ("other",), ""),
        ({"code": "x"}, (), ""),
    ],
)
def test_a_run_has_the_libraries_and_the_python_that_are_sent_or_else_those_of_its_header(
    fields: dict[str, Any], libraries: tuple[str, ...], python: str
) -> None:
    code = fields.pop("code")
    found = wanted(run_body(code, fields))
    assert (found.requirements, found.requires_python) == (libraries, python)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_time_in_which_nobody_can_answer_is_refused_before_anything_is_asked(timeout_s: float) -> None:
    with Client("/nowhere") as client, pytest.raises(InvalidRequest, match="timeout_s"):
        client.run("result = 1", timeout_s=timeout_s)
    with pytest.raises(InvalidRequest, match="timeout_s"):
        asyncio.run(AsyncClient("/nowhere", timeout_s=timeout_s).health())


def test_a_time_longer_than_the_system_s_clocks_is_as_good_as_for_ever(service: Served) -> None:
    service.answer(service.says(ANSWER, ANSWER))
    with Client(service.path, timeout_s=float("inf")) as client:
        assert client.run("result = 7", timeout_s=1e30).value == 7
        assert (found := client.result("r", wait_s=float("inf"))) is not None
        assert found.value == 7
        with pytest.raises(InvalidRequest, match="wait_s"):
            client.result("r", wait_s=float("nan"))


@pytest.mark.parametrize(
    "path", ["v1/health", "/v1/he alth", "/v1/health HTTP/1.1\r\nX: y\r\n\r\nDELETE /v1/runs/1", "/ü", ""]
)
def test_a_path_that_would_be_another_request_is_never_sent(service: Served, path: str) -> None:
    async def asked() -> None:
        async with AsyncClient(service.path, timeout_s=1.0) as client:
            await client.get(path)

    with (
        Client(service.path, timeout_s=1.0) as client,
        pytest.raises(InvalidRequest, match="is not the path of a route"),
    ):
        client.get(path)
    with pytest.raises(InvalidRequest, match="is not the path of a route"):
        asyncio.run(asked())
    assert service.requests == []


def test_text_in_the_place_of_bytes_or_a_list_is_refused_with_what_to_write() -> None:
    text: Any = {"a.txt": "text"}
    with Client("/nowhere") as client:
        with pytest.raises(InvalidRequest, match=r"'a\.txt' is text") as refused:
            client.run("result = 1", files=text)
        assert "encode" in refused.value.hint
        with pytest.raises(InvalidRequest, match="are one text") as refused:
            client.build_environment("six")
        assert "['six']" in refused.value.hint


@pytest.mark.parametrize(
    "ask", ["recorded", "cancel", "result", "files", "environment", "policy", "template", "remove_environment"]
)
def test_an_empty_name_is_not_asked_for(ask: str) -> None:
    with Client("/nowhere/s") as client, pytest.raises(InvalidRequest, match="is empty"):
        getattr(client, ask)("")
