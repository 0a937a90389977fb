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
import http.client
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote, urlencode

from sandbox.client_answers import (
    BuiltEnvironment,
    CodeCheck,
    Environment,
    EnvironmentShown,
    Image,
    Policy,
    PolicyAndValues,
    Pruned,
    Stopped,
    Template,
    TemplateAndCode,
)
from sandbox.errors import EngineUnavailable, InvalidRequest, SandboxError
from sandbox.service.config_file import named_socket, usual_socket
from sandbox.unix_http import JSON, NDJSON, Connection, NoService, checked, error_of, gone, read

__all__ = ["Client", "NoService", "Result", "bytes_of", "default_socket", "error_of", "result_of", "run_body"]

# Nothing that a service does by itself takes longer than a run may, with its wait for a turn before it.
ANSWER_TIMEOUT_S = 3_600.0
# Every other field of a run, with what the service takes when it is not sent.
OPTIONAL: dict[str, Any] = {
    "message": {}, "topic": "", "node_id": "", "filename": "script.py", "policy": "default", "image": None,
    "requirements": (), "requires_python": "", "preload": None, "limits": {}, "env": {}, "secrets": {}, "files": {}, "wait_for_end": False,
    "notify": None,
}  # fmt: skip


def default_socket() -> str:
    """Return where the service of this user listens: $SANDBOX_SOCKET, else as its configuration says, else its usual place.

    Raises `NotFound`, `InvalidRequest` for a configuration that can't be read.
    """
    return named_socket(os.environ) or usual_socket(os.environ)


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


class Client:
    """The service at one socket; a context manager. Nothing is connected before the first call.

    `timeout_s` is the longest that it may be silent before a call gives up, in seconds (None: for ever); each call takes
    one of its own. A call that gives up, or that is broken off, ends its run. What was asked is never asked twice.
    """

    def __init__(self, path: str | None = None, *, timeout_s: float | None = ANSWER_TIMEOUT_S) -> None:
        """Take the socket's path, or the place of this user's service."""
        self.path = path or default_socket()
        self.timeout_s = timeout_s
        self._connection = Connection(self.path, timeout_s)
        self._streams: set[Connection] = set()

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
        return self._connection.listener()

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
        return self.events("/v1/runs", run_body(code, options, payload=payload, payload_json=payload_json), timeout_s=timeout_s)

    def cancel(self, run_id: str) -> None:
        """End a run. Raises `NotFound`."""
        self.raw("DELETE", f"/v1/runs/{_part(run_id)}")

    def runs(self, **filters: str | int) -> list[dict[str, Any]]:
        """Return runs, newest first; filters are node, outcome, before, limit."""
        found: list[dict[str, Any]] = self.get(f"/v1/runs?{urlencode(filters)}")["runs"]
        return found

    def recorded(self, run_id: str) -> dict[str, Any]:
        """Return what the history knows of one run. Raises `NotFound`."""
        return self.get(f"/v1/runs/{_part(run_id)}")

    def file(self, run_id: str, name: str) -> bytes:
        """Return a file that a run saved, while it is kept. Raises `NotFound`."""
        return self.raw("GET", f"/v1/runs/{_part(run_id)}/files/{_part(name)}")

    def check(self, code: str, **options: Any) -> CodeCheck:
        """Tell whether code compiles where it would run, and which imports its libraries can't serve.

        `options` are filename, policy, image, requirements.
        """
        return cast("CodeCheck", self.post("/v1/check", {"code": code, **options}))

    # ---- environments

    def build_environment(
        self, requirements: Sequence[str], *, on_event: Callable[[dict[str, Any]], None] | None = None, timeout_s: float | None = None,
        **options: Any,
    ) -> BuiltEnvironment:  # fmt: skip
        """Install libraries ahead of need, unless they are there. Raises `BuildFailed` and other `SandboxError`s.

        `on_event` gets the steps as they happen: dicts with `event` `progress`, as in `stream`. `options` are policy, image.
        """
        body = {"requirements": list(requirements), **options}
        if on_event is None:
            return cast("BuiltEnvironment", self.post("/v1/environments", body, timeout_s=timeout_s))
        for event in self.events("/v1/environments", _body(body), timeout_s=timeout_s):
            if event["event"] == "result":
                return cast("BuiltEnvironment", {name: value for name, value in event.items() if name != "event"})
            on_event(event)
        raise AssertionError  # as above

    def environments(self) -> list[Environment]:
        """Return the environments of the service's host, most recently used first."""
        return cast("list[Environment]", self.get("/v1/environments")["environments"])

    def environment(self, name: str) -> EnvironmentShown:
        """Return one, by its id or the beginning of it, with its lock as TOML. Raises `NotFound`."""
        return cast("EnvironmentShown", self.get(f"/v1/environments/{_part(name)}"))

    def remove_environment(self, name: str) -> str:
        """Remove one that no run uses, and return its id; for maintainers. Raises `NotFound`, `InvalidRequest`."""
        return str(json.loads(self.raw("DELETE", f"/v1/environments/{_part(name)}"))["removed"])

    # ---- what one may use, and how things are

    def policies(self) -> list[Policy]:
        """Return the policies that the caller may use."""
        return cast("list[Policy]", self.get("/v1/policies")["policies"])

    def policy(self, name: str) -> PolicyAndValues:
        """Return one with every value and its meaning. Raises `AccessDenied`, `NotFound`."""
        return cast("PolicyAndValues", self.get(f"/v1/policies/{_part(name)}"))

    def templates(self) -> list[Template]:
        """Return the built-in scripts."""
        return cast("list[Template]", self.get("/v1/templates")["templates"])

    def template(self, name: str) -> TemplateAndCode:
        """Return one with its code and its sample payload. Raises `NotFound`."""
        return cast("TemplateAndCode", self.get(f"/v1/templates/{_part(name)}"))

    def images(self) -> list[Image]:
        """Return the images of the service's host, without environments."""
        return cast("list[Image]", self.get("/v1/images")["images"])

    def health(self) -> dict[str, Any]:
        """Return how the service is."""
        return self.get("/v1/health")

    def doctor(self) -> dict[str, Any]:
        """Return what the service's host can enforce: `usable`, `capabilities`, `policies`."""
        return self.get("/v1/doctor")

    def metrics(self) -> str:
        """Return the counters, in Prometheus's text format."""
        return self.raw("GET", "/v1/metrics").decode()

    # ---- maintenance

    def prune(
        self, *, older_s: float | None = None, unused_s: float | None = None, budget_mib: int | None = None, dry_run: bool = False
    ) -> Pruned:
        """Remove environments and cached files by age, last use and size; for maintainers. Raises `InvalidRequest`, `AccessDenied`."""
        limits = {"older_s": older_s, "unused_s": unused_s, "budget_mib": budget_mib, "dry_run": dry_run}
        return cast("Pruned", self.post("/v1/maintenance/prune", limits))

    def stop_all(self) -> Stopped:
        """End all runs, builds and checks, and retire all ready sandboxes; for maintainers. Raises `AccessDenied`."""
        return cast("Stopped", self.post("/v1/maintenance/stop-all", {}))

    # ---- the wire

    def get(self, path: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return a document. Raises a `SandboxError`."""
        found: dict[str, Any] = json.loads(self.raw("GET", path, timeout_s=timeout_s))
        return found

    def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """Send a document, and return the one that comes back. Raises a `SandboxError`."""
        found: dict[str, Any] = json.loads(self.raw("POST", path, _body(body), timeout_s=timeout_s))
        return found

    def raw(self, method: str, path: str, body: bytes | None = None, *, timeout_s: float | None = None) -> bytes:
        """Return the body of an answer. Raises a `SandboxError` for everything but success."""
        connection = self._connection
        connection.refresh(self.timeout_s if timeout_s is None else timeout_s)
        try:
            response = connection.answer(method, path, body, accept=JSON)
            return checked(response, read(response, connection.timeout))
        except BaseException as error:
            if not isinstance(error, SandboxError) or isinstance(error, EngineUnavailable):
                connection.close()  # broken off in the middle: what is left of this answer would be taken for the next one
            raise

    def events(self, path: str, body: bytes, *, timeout_s: float | None = None) -> Generator[dict[str, Any], None, None]:
        """Ask for a stream, and give each event up to its `result`. Raises a `SandboxError`, also for a stream that breaks off."""
        with contextlib.closing(self.lines(path, body, timeout_s=timeout_s)) as lines:
            for line in lines:
                event = json.loads(line)
                if event["event"] == "error":
                    raise error_of(event["error"])
                yield event
                if event["event"] == "result":
                    return
        raise gone(EOFError(), timeout_s)

    def lines(self, path: str, body: bytes, *, timeout_s: float | None = None) -> Generator[bytes, None, None]:
        """Ask for a stream, and give each event as the line of JSON that it came as, unparsed. Raises a `SandboxError`.

        Closing the iterator closes the connection, and so ends the run.
        """
        connection = Connection(self.path, self.timeout_s if timeout_s is None else timeout_s)
        self._streams.add(connection)
        try:
            response = connection.answer("POST", path, body, accept=NDJSON)
            if response.status != http.client.OK:
                checked(response, read(response, connection.timeout))
            while line := read(response, connection.timeout, line=True):
                yield line
        finally:
            self._streams.discard(connection)
            connection.close()


def _part(name: str) -> str:
    """Return a name as one part of a path."""
    return quote(name, safe="")


def _body(fields: Mapping[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


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
