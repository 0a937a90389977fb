"""The API attacked: by schemathesis from its own OpenAPI document, and by clients that bend HTTP itself."""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sandbox.errors import SandboxError
from sandbox.service.application import ROUTES
from sandbox.service.door.connections import PER_USER
from sandbox.service.openapi import openapi
from tests.described import closed
from tests.integration.service import Service, served
from tests.integration.test_service import raw
from tests.waiting import WAIT_S, until

EXAMPLES = 20
SECRET = "correct horse battery"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("api")
    with served(home, XDG_CACHE_HOME=str(home / "cache")) as running:
        yield running
        assert "Traceback" not in running.log()
        assert running.process.poll() is None


# ---- schemathesis


class Forwarder(socketserver.ThreadingTCPServer):
    """A port of loopback that leads to the service's socket: what schemathesis speaks to."""

    daemon_threads = True
    target = ""


class Connection(socketserver.BaseRequestHandler):
    """Carries bytes both ways until either side ends."""

    def handle(self) -> None:
        assert isinstance(self.server, Forwarder)
        with socket.socket(socket.AF_UNIX) as inner:
            inner.connect(self.server.target)
            back = threading.Thread(target=self.carry, args=(inner, self.request))
            back.start()
            self.carry(self.request, inner)
            back.join()

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with Forwarder(("127.0.0.1", 0), Connection) as forwarder:
        forwarder.target = service.socket
        thread = threading.Thread(target=forwarder.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{forwarder.server_address[1]}"
        forwarder.shutdown()
        thread.join()


document = schemathesis.openapi.from_dict(
    {**(described := openapi(ROUTES)), "components": closed(described["components"])}
)


@document.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
def test_whatever_is_sent_the_answer_is_as_the_document_says(case: Any, url: str) -> None:
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    if isinstance(case.body, dict) and isinstance(image := case.body.get("image"), str) and image:
        case.body["image"] = f"localhost/{image}"  # never one that Podman would ask a registry for
    response = case.call(base_url=url, timeout=WAIT_S)
    unavailable = response.status_code == 502 and response.json()["error"]["code"] == "image_unavailable"
    case.validate_response(response, checks=checks if unavailable else [not_a_server_error, *checks])
    if response.status_code >= 400:
        assert set(response.json()) == {"error"}
        assert {"code", "message", "hint"} <= set(response.json()["error"])


# ---- clients that bend HTTP

RUN = b'{"code": "result = 1"}'
HEALTH = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/runs HTTP/1.1\r\nHost: x\r\n"
WHOLE = POST + b"Content-Length: %d\r\n\r\n%s" % (len(RUN), RUN)
LAST = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def spoken(service: Service, said: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Send bytes as they are; return the answers that come until the service closes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(service.socket)
        connection.sendall(said)
        stream = connection.makefile("rb")
        answers: list[tuple[int, dict[str, str], bytes]] = []
        while line := stream.readline():
            status = int(line.split()[1])
            lines = iter(lambda: stream.readline().strip().decode(), "")
            headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
            answers.append((status, headers, stream.read(int(headers.get("content-length", 0)))))
    return answers


def peak_mib(service: Service) -> int:
    text = Path(f"/proc/{service.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")) >> 10


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x00garbage\r\n\r\n",
        b"GET /v1/runs?node=" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        HEALTH + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        HEALTH + b"".join(b"X%d: a\r\n" % number for number in range(20_000)) + b"\r\n",
        POST + b"Content-Length: -5\r\n\r\n" + RUN,
        POST + b"Content-Length: 5\r\nContent-Length: 22\r\n\r\n" + RUN,
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + RUN,
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + RUN,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/runs/a\x00b HTTP/1.1\r\nHost: x\r\n\r\n",
        HEALTH + b"A: b\r\n c\r\n\r\n",
        b"GET /v1/health HTTP/3.7\r\n\r\n",
    ],
    ids=[
        "TLS",
        "long address",
        "long header",
        "many headers",
        "negative length",
        "two lengths",
        "length and chunks",
        "bad chunk",
        "HTTP/2",
        "NUL",
        "folded header",
        "HTTP/3.7",
    ],
)
def test_what_is_no_http_is_refused_and_ends_its_connection(service: Service, said: bytes) -> None:
    answers = spoken(service, said + LAST)
    assert [(status, json.loads(body)["error"]["code"]) for status, _, body in answers] == [(400, "invalid_request")]


def test_a_length_that_lies_puts_nothing_of_the_body_into_the_log(service: Service) -> None:
    body = json.dumps({"code": "1", "secrets": {"A": SECRET}}).encode()
    spoken(service, POST + b"Content-Length: 5\r\n\r\n" + body)
    spoken(service, POST + b"Content-Length: 1\r\n\r\n{" + SECRET.encode() + b" /v1/runs HTTP/1.1\r\n\r\n")
    spoken(service, HEALTH + b"Authorization\x00: " + SECRET.encode() + b"\r\n\r\n")
    assert SECRET not in service.log("no HTTP")


def test_requests_in_one_go_are_answered_in_order(service: Service) -> None:
    runs = [
        POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        for body in (b'{"code": "result = %d"}' % n for n in range(5))
    ]
    answers = spoken(service, b"".join(runs) + LAST)
    assert [status for status, _, _ in answers] == [200] * 6
    assert [json.loads(body).get("result") for _, _, body in answers] == [0, 1, 2, 3, 4, None]


def test_a_body_in_chunks_and_one_that_is_announced_first_are_taken(service: Service) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in RUN) + b"0\r\n\r\n"
    answers = spoken(service, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + LAST)
    assert [json.loads(body).get("result") for _, _, body in answers] == [1, None]
    answers = spoken(service, POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n%s" % (len(RUN), RUN) + LAST)
    assert [status for status, _, _ in answers] == [100, 200, 200]


@pytest.mark.parametrize("method", [b"HEAD", b"OPTIONS", b"TRACE", b"PATCH", b"BREW"])
def test_other_methods_have_no_route(service: Service, method: bytes) -> None:
    (status, headers, _), *_ = spoken(service, method + b" /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert status == (400 if method == b"BREW" else 405)
    assert headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
def test_nothing_is_upgraded(service: Service, upgrade: bytes) -> None:
    asked = (
        b"Connection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key:"
        b" dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(service.socket)
        connection.sendall(HEALTH + asked % upgrade + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_nothing_that_a_client_names_becomes_a_header(service: Service) -> None:
    for path in (
        b"/v1/runs/%0d%0aSet-Cookie:%20a=b",
        b"/v1/policies/%0aX-Own:%201",
        b"/v1/runs?before=%0d%0aX-Own:%201",
    ):
        (_, headers, _), *_ = spoken(service, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert not {"set-cookie", "x-own"} & set(headers)


def test_a_compressed_body_does_not_grow_in_the_service(service: Service) -> None:
    before = peak_mib(service)
    bomb = gzip.compress(b" " * 100_000_000)
    answers = spoken(
        service, POST + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(bomb), bomb) + LAST
    )
    assert (answers[0][0], json.loads(answers[0][2])["error"]["code"]) == (400, "invalid_request")
    assert peak_mib(service) < before + 50


@pytest.mark.parametrize("announced", [b"Content-Length: 99999999999", b"Transfer-Encoding: chunked"])
def test_a_body_that_is_too_large_is_refused_and_not_kept(service: Service, announced: bytes) -> None:
    before = peak_mib(service)
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(WAIT_S)
        connection.connect(service.socket)
        connection.sendall(POST + announced + b"\r\n\r\n")
        for _ in range(600):
            connection.sendall(chunk if b"chunked" in announced else b" " * (1 << 20))
            if select.select([connection], [], [], 0)[0]:
                break
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    bound_mib = 300 if b"chunked" in announced else 20
    assert peak_mib(service) < before + bound_mib


def test_one_user_s_connections_are_bounded_and_come_back(service: Service) -> None:
    held: list[socket.socket] = []
    try:
        for _ in range(PER_USER + 50):
            held.append(socket.socket(socket.AF_UNIX))
            held[-1].settimeout(WAIT_S)
            held[-1].connect(service.socket)
        answer = held[-1].recv(2000)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "queue_full"
    finally:
        for connection in held:
            connection.close()

    def answers() -> bool:
        with contextlib.suppress(SandboxError), service.client() as client:
            return bool(client.health()["status"] == "ok")
        return False

    until(answers)


# Fields, what becomes of NUL there, and the status where it is half a character, which is read as U+FFFD.
NUL_OR_HALF: list[tuple[dict[str, Any], int, str, int]] = [
    ({"code": "\0"}, 200, "failed", 200),
    ({"env": {"A": "\0"}}, 400, "has a NUL character", 200),
    ({"env": {"A\0B": "x"}}, 400, "is not a name for a variable", 400),
    ({"node_id": "\0\n"}, 200, "succeeded", 200),
    ({"topic": "\0"}, 200, "succeeded", 200),
    ({"filename": "a\0b"}, 400, "has control or invisible characters", 200),
    ({"files": {"a\0b": ""}}, 400, "must not contain control or invisible characters", 200),
    ({"secrets": {"A": "\0"}}, 400, "has a NUL character", 200),
    ({"policy": "\0"}, 403, "is not the name of a policy", 403),
    ({"image": "a\0b"}, 400, "is not the name of an image", 400),
    ({"requirements": ["a\0b"]}, 400, "has the control character", 400),
]


@pytest.mark.parametrize(
    ("fields", "status", "said", "half"),
    NUL_OR_HALF,
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_a_nul_or_half_a_character_in_a_field_is_a_refusal_or_the_program_s_affair(
    service: Service, fields: dict[str, Any], status: int, said: str, half: int
) -> None:
    text = json.dumps({"code": "result = 1", **fields})
    found, _, body = raw(service, "POST", "/v1/runs", text.encode())
    assert (found, said in body.decode()) == (status, True), body
    found, _, body = raw(service, "POST", "/v1/runs", text.replace("\\u0000", "\\ud800").encode())
    assert found == half, body
