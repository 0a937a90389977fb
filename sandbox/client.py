"""Talk to the service from Python.

    from sandbox.client import Client

    with Client() as client:
        result = client.run("result = payload['a'] + 1", payload={"a": 1})
        print(result.outcome, result.value)
        for event in client.stream("print('hello')"):
            print(event)

Errors are those of `sandbox.errors`, the same tree that the service raises: a program that fails is a result. Only the
standard library is imported. A client is for one thread at a time; it keeps one connection for everything but streams,
which have one of their own each.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

from sandbox import errors
from sandbox.errors import EngineUnavailable, Internal, InvalidRequest, SandboxError

__all__ = ["Client", "NoService", "Result", "bytes_of", "default_socket", "error_of", "result_of", "run_body"]

JSON = "application/json"
NDJSON = "application/x-ndjson"
CONNECT_TIMEOUT_S = 5.0
CONNECT_PAUSE_S = 0.01
# Nothing that a service does by itself takes longer than a run may, with its wait for a turn before it.
ANSWER_TIMEOUT_S = 3_600.0
# Every other field of a run, with what the service takes when it is not sent.
OPTIONAL: dict[str, Any] = {
    "message": {}, "topic": "", "node_id": "", "filename": "script.py", "policy": "default", "image": None,
    "requirements": (), "preload": None, "limits": {}, "env": {}, "secrets": {}, "files": {}, "wait_for_end": False,
}  # fmt: skip


class NoService(EngineUnavailable):
    """Nobody answers at the socket; `reason` is the system's error number."""

    def __init__(self, path: str, error: OSError) -> None:
        self.reason = error.errno
        said = error.strerror or str(error) or type(error).__name__
        super().__init__(f"no service answers at {path}: {said}", hint="start it: sandbox serve")


def default_socket() -> str:
    """Return where the service of this user listens: $SANDBOX_SOCKET, else its place in the runtime directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return os.environ.get("SANDBOX_SOCKET") or f"{runtime}/podman-sandbox-runner/service.sock"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run gave; `document` is the whole answer, as docs/service.md describes it."""

    run_id: str
    outcome: str
    explanation: str
    value: Any
    stdout: str
    stderr: str
    files: dict[str, bytes]
    document: dict[str, Any] = field(repr=False)

    @property
    def succeeded(self) -> bool:
        """Tell whether the program gave a result."""
        return self.outcome == "succeeded"


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket; wait a little where the service's list of newcomers is full. Raises `NoService`."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        try:
            connection.settimeout(CONNECT_TIMEOUT_S)
            while (number := connection.connect_ex(self._path)) == errno.EAGAIN and time.monotonic() < deadline:
                time.sleep(CONNECT_PAUSE_S)
            if number:
                raise OSError(number, os.strerror(number))
        except OSError as error:  # also a path that is too long
            connection.close()
            raise NoService(self._path, error) from None
        connection.settimeout(self.timeout)
        self.sock = connection

    def refresh(self, timeout_s: float | None) -> None:
        """Close a kept connection that the service has closed, and have the next answer waited for so long."""
        if self.sock is not None and select.select([self.sock], [], [], 0)[0]:
            self.close()  # nothing was asked: what there is to read can only be its end
        self.timeout = timeout_s
        if self.sock is not None:
            self.sock.settimeout(timeout_s)

    def break_off(self) -> None:
        """Have whoever waits for the service find that it is gone."""
        connection = self.sock
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, method: str, path: str, body: bytes | None, *, accept: str) -> http.client.HTTPResponse:
        """Send a request, once, and return the answer's head. Raises `NoService`, `EngineUnavailable`."""
        headers = {"Accept": accept, **({"Content-Type": JSON} if body is not None else {})}
        try:
            try:
                self.request(method, path, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                # Who refuses a body without reading it says why before it closes.
                return self._last_words(method)
            return self.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise gone(error, self.timeout) from None

    def _last_words(self, method: str) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(self.sock, method=method)
        response.begin()
        self.close()  # the rest of the request will never be sent; the answer can still be read
        return response


class Client:
    """The service at one socket; a context manager. Nothing is connected before the first call.

    `timeout_s` is the longest that it may be silent before a call gives up, in seconds (None: for ever); each call takes
    one of its own. A call that gives up, or that is broken off, ends its run. What was asked is never asked twice.
    """

    def __init__(self, path: str | None = None, *, timeout_s: float | None = ANSWER_TIMEOUT_S) -> None:
        """Take the socket's path, or the place of this user's service."""
        self.path = path or default_socket()
        self.timeout_s = timeout_s
        self._connection = _Connection(self.path, timeout_s)
        self._streams: set[_Connection] = set()

    def __enter__(self) -> Client:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._connection.close()

    def break_off(self) -> None:
        """End every stream of this client, and so its run; for other threads, which may not close an iterator that waits."""
        for stream in tuple(self._streams):
            stream.break_off()

    def connect(self) -> int:
        """Connect now, and return the user id of who listens, as the kernel tells it. Raises `NoService`."""
        if self._connection.sock is None:
            self._connection.connect()
        credentials = self._connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid: int = struct.unpack("3i", credentials)[1]
        return uid

    # ---- runs

    def run(
        self,
        code: str,
        *,
        payload: Any = None,
        payload_json: bytes | None = None,
        files: Mapping[str, bytes] | None = None,
        requirements: Sequence[str] = (),
        on_event: Callable[[dict[str, Any]], None] | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Result:
        """Run code and wait for its end; a program that fails is a result. Raises a `SandboxError`.

        `payload` is anything that `json` takes, `payload_json` its text instead, which is passed on as it is. `on_event`
        gets every event as it happens (see `stream`). `options` are the other fields of a run: topic, message, node_id,
        policy, image, limits, env, secrets, filename, preload, wait_for_end.
        """
        fields = {**options, "files": files or {}, "requirements": requirements}
        if on_event is None:
            body = run_body(code, fields, payload=payload, payload_json=payload_json)
            return result_of(json.loads(self.raw("POST", "/v1/runs", body, timeout_s=timeout_s)))
        for event in self.stream(code, payload=payload, payload_json=payload_json, timeout_s=timeout_s, **fields):
            if event["event"] == "result":
                return result_of(event)
            on_event(event)
        raise AssertionError  # a stream ends with a result, or raises

    def stream(
        self, code: str, *, payload: Any = None, payload_json: bytes | None = None, timeout_s: float | None = None, **options: Any
    ) -> Generator[dict[str, Any], None, None]:
        """Run code, and give what happens while it happens; takes what `run` takes. Raises a `SandboxError`.

        Each event is a dict with `event`: `accepted` (with `run_id`), `progress` (`step`, `text`, and counts of bytes),
        `stdout` and `stderr` (`text`; `bytes_of` gives the exact bytes), `log` (`level`, `text`, `elapsed_s`), `file` (as
        in the result), and at the end `result` with the whole answer, which `result_of` takes. The first comes when the
        run has its turn; what is refused before is raised. Closing the iterator before its end ends the run.
        """
        body = run_body(code, options, payload=payload, payload_json=payload_json)
        with contextlib.closing(self.lines("/v1/runs", body, timeout_s=timeout_s)) as lines:
            for line in lines:
                event = json.loads(line)
                if event["event"] == "error":
                    raise error_of(event["error"])
                yield event
                if event["event"] == "result":
                    return
        raise gone(EOFError(), timeout_s)

    def cancel(self, run_id: str) -> None:
        """End a run. Raises `NotFound`."""
        self.raw("DELETE", f"/v1/runs/{quote(run_id, safe='')}")

    def runs(self, **filters: str | int) -> list[dict[str, Any]]:
        """Return runs, newest first; filters are node, outcome, before, limit."""
        found: list[dict[str, Any]] = self.get(f"/v1/runs?{urlencode(filters)}")["runs"]
        return found

    def check(self, code: str, **options: Any) -> dict[str, Any]:
        """Tell whether code compiles where it would run, and which imports its libraries can't serve."""
        found: dict[str, Any] = json.loads(self.raw("POST", "/v1/check", json.dumps({"code": code, **options}).encode()))
        return found

    def health(self) -> dict[str, Any]:
        """Return how the service is."""
        return self.get("/v1/health")

    # ---- the wire

    def get(self, path: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return a document. Raises a `SandboxError`."""
        found: dict[str, Any] = json.loads(self.raw("GET", path, timeout_s=timeout_s))
        return found

    def raw(self, method: str, path: str, body: bytes | None = None, *, timeout_s: float | None = None) -> bytes:
        """Return the body of an answer. Raises a `SandboxError` for everything but success."""
        connection = self._connection
        connection.refresh(self.timeout_s if timeout_s is None else timeout_s)
        try:
            response = connection.answer(method, path, body, accept=JSON)
            return _checked(response, _read(response, connection.timeout))
        except BaseException as error:
            if not isinstance(error, SandboxError) or isinstance(error, EngineUnavailable):
                connection.close()  # broken off in the middle: what is left of this answer would be taken for the next one
            raise

    def lines(self, path: str, body: bytes, *, timeout_s: float | None = None) -> Generator[bytes, None, None]:
        """Ask for a stream, and give each event as the line of JSON that it came as, unparsed. Raises a `SandboxError`.

        Closing the iterator closes the connection, and so ends the run.
        """
        connection = _Connection(self.path, self.timeout_s if timeout_s is None else timeout_s)
        self._streams.add(connection)
        try:
            response = connection.answer("POST", path, body, accept=NDJSON)
            if response.status != http.client.OK:
                _checked(response, _read(response, connection.timeout))
            while line := _read(response, connection.timeout, line=True):
                yield line
        finally:
            self._streams.discard(connection)
            connection.close()


def run_body(code: str, fields: Mapping[str, Any], *, payload: Any = None, payload_json: bytes | None = None) -> bytes:
    """Return the body of a request to run code; `fields` are the other fields, with `files` as bytes.

    A payload's text can't put other fields beside itself: what it may add comes before ours, and the last one counts.
    Raises `InvalidRequest` for what JSON has no form for.
    """
    named = {**(OPTIONAL if payload_json is not None else {}), **fields, "code": code}
    named["files"] = {name: base64.b64encode(content).decode() for name, content in named.get("files", {}).items()}
    try:
        text = json.dumps(payload, allow_nan=False).encode() if payload_json is None else payload_json
        return b'{"payload": ' + text + b", " + json.dumps(named).encode()[1:]
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request has no form as JSON: {error}", hint="send what the json module takes") from None


def result_of(document: Mapping[str, Any]) -> Result:
    """Return a run's answer as an object."""
    files = {file["name"]: base64.b64decode(file["content_base64"]) for file in document["files"]}
    return Result(
        run_id=document["run_id"], outcome=document["outcome"], explanation=document["explanation"],
        value=document["result"], stdout=document["stdout"], stderr=document["stderr"], files=files,
        document={name: value for name, value in document.items() if name != "event"},
    )  # fmt: skip


def bytes_of(event: Mapping[str, Any]) -> bytes:
    """Return what a program wrote, from its event: exactly, also where it is no text."""
    exact = event.get("base64")
    return base64.b64decode(exact) if exact is not None else str(event["text"]).encode()


def error_of(body: Mapping[str, Any]) -> SandboxError:
    """Return an error of the service as the exception that it was there; its `facts` may have a `run_id`."""
    kinds = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    kind = kinds.get(str(body.get("code")), Internal)
    facts = dict(body.get("facts") or {})
    if body.get("run_id"):
        facts["run_id"] = body["run_id"]
    error: SandboxError = kind(str(body.get("message", "")), hint=str(body.get("hint", "")), **facts)
    return error


def gone(error: Exception, timeout_s: float | None) -> EngineUnavailable:
    """Return the error of a service that went away, or fell silent, in the middle."""
    if isinstance(error, TimeoutError):
        return EngineUnavailable(f"the service said nothing for {timeout_s:g} s", hint="look at its log, or allow more time")
    reason = getattr(error, "strerror", None) or type(error).__name__
    return EngineUnavailable(f"the service went away before it answered: {reason}", hint="look at its log, then try again")


def _read(response: http.client.HTTPResponse, timeout_s: float | None, *, line: bool = False) -> bytes:
    try:
        return response.readline() if line else response.read()
    except (OSError, http.client.HTTPException) as error:
        raise gone(error, timeout_s) from None


def _checked(response: http.client.HTTPResponse, body: bytes) -> bytes:
    if 200 <= response.status < 300:
        return body
    try:
        said = error_of(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Internal(f"the service answered {response.status} without saying why", hint="look at its log") from None
    raise said
