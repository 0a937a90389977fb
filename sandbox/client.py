"""Talk to the service from Python.

    from sandbox.client import Client

    with Client() as client:
        result = client.run("result = payload['a'] + 1", payload={"a": 1})
        print(result.outcome, result.value)

Errors are those of `sandbox.errors`, the same tree that the service raises: a program that fails is a result. Only the
standard library is imported; one client is one connection, for one thread at a time.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from sandbox import errors
from sandbox.errors import EngineUnavailable, Internal, SandboxError

__all__ = ["Client", "Result", "default_socket"]

NDJSON = "application/x-ndjson"
CONNECT_TIMEOUT_S = 5.0
# Nothing that a service does by itself takes longer than a run may, with its wait for a turn before it.
ANSWER_TIMEOUT_S = 3_600.0


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

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_TIMEOUT_S)
        try:
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        connection.settimeout(self.timeout)
        self.sock = connection


class Client:
    """One connection to the service; a context manager. It reconnects by itself."""

    def __init__(self, path: str | None = None, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Take the socket's path; nothing is connected before the first call."""
        self.path = path or default_socket()
        self._connection = _Connection(self.path, timeout_s)

    def __enter__(self) -> Client:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._connection.close()

    # ---- runs

    def run(
        self,
        code: str,
        *,
        payload: Any = None,
        payload_json: bytes | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        files: Mapping[str, bytes] | None = None,
        requirements: Sequence[str] = (),
        **options: Any,
    ) -> Result:
        """Run code and wait for its end.

        `payload` is anything that `json` takes, `payload_json` its text instead, which is passed on as it is. `on_event`
        gets every event as it happens. `options` are the other fields of a run: topic, message, node_id, policy, image,
        limits, env, secrets, filename, preload, wait_for_end. Raises a `SandboxError`.
        """
        fields = {
            "code": code, "requirements": list(requirements), **options,
            "files": {name: base64.b64encode(content).decode() for name, content in (files or {}).items()},
        }  # fmt: skip
        text = json.dumps(payload).encode() if payload_json is None else payload_json
        body = b'{"payload": ' + text + b", " + json.dumps(fields).encode()[1:]
        if on_event is None:
            return result_of(json.loads(self.raw("POST", "/v1/runs", body)))
        for event in self._events("/v1/runs", body):
            if event["event"] == "result":
                return result_of(event)
            if event["event"] == "error":
                raise error_of(event["error"], status=0)
            on_event(event)
        raise EngineUnavailable("the service went away before the run ended", hint="look at its log, then try again")

    def cancel(self, run_id: str) -> None:
        """End a run. Raises `NotFound`."""
        self.raw("DELETE", f"/v1/runs/{run_id}")

    def runs(self, **filters: str) -> list[dict[str, Any]]:
        """Return runs, newest first; filters are node, outcome, before, limit."""
        query = "&".join(f"{name}={value}" for name, value in filters.items())
        found: list[dict[str, Any]] = self.get(f"/v1/runs?{query}")["runs"]
        return found

    def check(self, code: str, **options: Any) -> dict[str, Any]:
        """Tell whether code compiles where it would run, and which imports its libraries can't serve."""
        found: dict[str, Any] = json.loads(self.raw("POST", "/v1/check", json.dumps({"code": code, **options}).encode()))
        return found

    def health(self) -> dict[str, Any]:
        """Return how the service is."""
        return self.get("/v1/health")

    # ---- the wire

    def get(self, path: str) -> dict[str, Any]:
        """Return a document. Raises a `SandboxError`."""
        found: dict[str, Any] = json.loads(self.raw("GET", path))
        return found

    def raw(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Return the body of an answer. Raises a `SandboxError` for everything but success."""
        with self._answered(method, path, body, accept="application/json") as response:
            return _checked(response, response.read())

    def _events(self, path: str, body: bytes) -> Iterator[dict[str, Any]]:
        with self._answered("POST", path, body, accept=NDJSON) as response:
            if response.status != http.client.OK:
                _checked(response, response.read())
            try:
                for line in response:
                    yield json.loads(line)
            except (OSError, http.client.HTTPException) as error:
                raise gone(error) from None
            finally:
                # What was not read would be taken for the next answer.
                self._connection.close()

    def _answered(self, method: str, path: str, body: bytes | None, *, accept: str) -> http.client.HTTPResponse:
        headers = {"Accept": accept, **({"Content-Type": "application/json"} if body is not None else {})}
        for attempt in (1, 2):
            fresh = self._connection.sock is None
            try:
                self._connection.request(method, path, body, headers)
                return self._connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                # A kept connection may have been closed meanwhile, before the service saw anything.
                if fresh or attempt == 2 or not isinstance(error, (http.client.RemoteDisconnected, BrokenPipeError)):
                    raise unreachable(self.path, error) if fresh else gone(error) from None
        raise AssertionError  # the loop returns or raises


def result_of(document: dict[str, Any]) -> Result:
    """Return a run's answer as an object."""
    files = {file["name"]: base64.b64decode(file["content_base64"]) for file in document["files"]}
    return Result(
        run_id=document["run_id"], outcome=document["outcome"], explanation=document["explanation"],
        value=document["result"], stdout=document["stdout"], stderr=document["stderr"], files=files, document=document,
    )  # fmt: skip


def error_of(body: Mapping[str, Any], *, status: int) -> SandboxError:
    """Return an error of the service as the exception that it was there."""
    kinds = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    kind = kinds.get(str(body.get("code")), Internal)
    facts = {**body.get("facts", {}), "status": status}
    if body.get("run_id"):
        facts["run_id"] = body["run_id"]
    error: SandboxError = kind(str(body.get("message", "")), hint=str(body.get("hint", "")), **facts)
    return error


def _checked(response: http.client.HTTPResponse, body: bytes) -> bytes:
    if 200 <= response.status < 300:
        return body
    try:
        said = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        raise Internal(f"the service answered {response.status} without saying why", hint="look at its log") from None
    raise error_of(said, status=response.status)


def unreachable(path: str, error: Exception) -> EngineUnavailable:
    """Return the error of a service that can't be reached."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return EngineUnavailable(f"no service answers at {path}: {reason}", hint="start it: sandbox serve")


def gone(error: Exception) -> EngineUnavailable:
    """Return the error of a service that went away in the middle."""
    return EngineUnavailable(
        f"the service went away before it answered: {str(error) or type(error).__name__}", hint="look at its log, then try again"
    )
