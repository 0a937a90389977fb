"""The client for threads. Each call has a connection for itself while it lasts."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sandbox.client import calls, reading
from sandbox.client.base import AGAIN_S, ClientBase
from sandbox.client.calls import run_body
from sandbox.client.reading import Answer, Call, Result, result_of
from sandbox.client.told import Told
from sandbox.client.unix_http import UnixConnection, UnixConnectionPool, headers_of
from sandbox.errors import QueueFull

if TYPE_CHECKING:
    from sandbox.client.answers import (
        BuiltEnvironment,
        CodeCheck,
        Health,
        HostReport,
        ListedEnvironment,
        ListedImage,
        ListedPolicy,
        ListedTemplate,
        NamedFile,
        Pruned,
        RecordedRun,
        ShownEnvironment,
        ShownPolicy,
        ShownTemplate,
        Stopped,
    )

T = TypeVar("T")


class Client(ClientBase):
    """The service at one socket: a context manager, safe for threads. It connects at the first call.

    `timeout_s` is how long the service may be silent before a call gives up, in seconds (None: for ever). Each call
    takes a `timeout_s` of its own. A call that gives up, or that is broken off, ends its run. The client repeats a
    request only if the service refused it because it had too much to do. `retry_s` is how long to repeat it, at the
    times that the service names. `on_other_version` is called with the service's version if it is not the client's.
    """

    def __init__(self, path: str | None = None, **options: Any) -> None:
        """Take the socket's path, or the place of this user's service."""
        super().__init__(path, **options)
        self._connections = UnixConnectionPool(self.path)

    def __enter__(self) -> Client:
        """Return this client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections. Those that other threads wait for are closed after their answer.

        The next call opens a new one.
        """
        self._connections.close()

    def break_off(self) -> None:
        """End every stream and other call of this client, and so its runs; meant for a thread that does not wait."""
        self._connections.break_off()

    def connect(self) -> int:
        """Connect now, and return the user id of the process that listens, as the kernel reports it.

        Raises `NoService`.
        """
        with self._connections.one(self.timeout_s) as connection:
            return connection.listener()

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
        """Run code and wait for its end. A program that fails is a result. Raises a `SandboxError`.

        `payload` is anything that `json` can encode. `payload_json` is a JSON text instead, which is passed on as it
        is. `on_event` gets every event as it happens (see `stream`). `options` are the other fields of a run: topic,
        message, node_id, policy, image, limits, env, secrets, filename, preload, save_new, wait_for_end.
        """
        fields = calls.fields_of(options, files, requirements)
        if on_event is None:
            return self._ask(calls.run(run_body(code, fields, payload=payload, payload_json=payload_json)), timeout_s)
        with contextlib.closing(
            self.stream(code, payload=payload, payload_json=payload_json, timeout_s=timeout_s, **fields)
        ) as events:
            for event in events:
                if event["event"] == "result":
                    return result_of(event)
                on_event(event)
        raise AssertionError  # a stream ends with a result, or raises

    def stream(
        self,
        code: str,
        *,
        payload: Any = None,
        payload_json: bytes | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Generator[dict[str, Any], None, None]:
        """Run code, and yield each event as it happens. Takes the arguments of `run`. Raises a `SandboxError`.

        Each event is a dict with `event`: `accepted` (with `run_id`), `progress` (`step`, `text`, and counts of bytes),
        `stdout` and `stderr` (`text`; `bytes_of` gives the exact bytes), `log` (`level`, `text`, `elapsed_s`), `file`
        (as in the result), and at the end `result` with the whole answer, which `result_of` takes. The first comes when
        the run has its turn; a refusal before that is raised. Closing the iterator before its end ends the run.
        """
        return self.events(
            "/v1/runs", run_body(code, options, payload=payload, payload_json=payload_json), timeout_s=timeout_s
        )

    def start(
        self,
        code: str,
        *,
        payload: Any = None,
        payload_json: bytes | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> str:
        """Start a run, and return its id at once.

        Takes the arguments of `run`. `result` fetches its answer. Raises a `SandboxError`.
        """
        return self._ask(calls.start(run_body(code, options, payload=payload, payload_json=payload_json)), timeout_s)

    def result(self, run_id: str, wait_s: float | None = None, *, timeout_s: float | None = None) -> Result | None:
        """Return the answer of a run as long as it is kept, or None while the run goes on.

        Waits at most `wait_s` for the end. Raises `NotFound` if the answer is not kept (any more). If the run ended
        with an error, raises that error.
        """
        return self._awaited(lambda left_s: calls.result(run_id, left_s), wait_s, timeout_s)

    def result_text(self, run_id: str, wait_s: float | None = None, *, timeout_s: float | None = None) -> bytes | None:
        """Return the answer of `result` as the JSON text that arrived."""
        return self._awaited(lambda left_s: calls.result_text(run_id, left_s), wait_s, timeout_s)

    def cancel(self, run_id: str) -> None:
        """End a run. Raises `NotFound`."""
        self._ask(calls.whole("DELETE", f"/v1/runs/{calls.part(run_id)}"))

    def runs(self, **filters: str | int) -> list[RecordedRun]:
        """Return runs, newest first. The filters are node, outcome, before and limit."""
        return cast("list[RecordedRun]", self._ask(calls.runs(filters)))

    def recorded(self, run_id: str) -> RecordedRun:
        """Return what the history knows of one run. Raises `NotFound`."""
        return cast("RecordedRun", self._ask(calls.recorded(run_id)))

    def file(self, run_id: str, name: str) -> bytes:
        """Return a file that a run saved, as long as it is kept. Raises `NotFound`."""
        return self._ask(calls.whole("GET", f"/v1/runs/{calls.part(run_id)}/files/{calls.part(name)}"))

    def files(self, run_id: str) -> list[NamedFile]:
        """Return the saved files of a run that are kept. Raises `NotFound`."""
        return cast("list[NamedFile]", self._ask(calls.listed(f"/v1/runs/{calls.part(run_id)}/files", "files")))

    def check(self, code: str, **options: Any) -> CodeCheck:
        """Check whether code compiles where it would run, and which imports its libraries can't serve.

        `options` are filename, policy, image, requirements.
        """
        return cast("CodeCheck", self._ask(calls.check(code, options)))

    # ---- environments

    def build_environment(
        self,
        requirements: Sequence[str],
        *,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> BuiltEnvironment:
        """Install libraries ahead of need, unless they are installed. Raises `BuildFailed` and other `SandboxError`s.

        `on_event` gets the steps as they happen: dicts with `event` `progress`, as in `stream`. `options` are policy,
        image.
        """
        call = calls.build(requirements, options)
        if on_event is None:
            return cast("BuiltEnvironment", self._ask(call, timeout_s))
        with contextlib.closing(self.events(call.path, call.body or b"", timeout_s=timeout_s)) as events:
            for event in events:
                if event["event"] == "result":
                    return cast("BuiltEnvironment", {name: value for name, value in event.items() if name != "event"})
                on_event(event)
        raise AssertionError  # as above

    def environments(self) -> list[ListedEnvironment]:
        """Return the environments of the service's host, most recently used first."""
        return cast("list[ListedEnvironment]", self._ask(calls.listed("/v1/environments", "environments")))

    def environment(self, name: str) -> ShownEnvironment:
        """Return one environment with its lock as TOML, by its id or the first characters of it. Raises `NotFound`."""
        return cast("ShownEnvironment", self._ask(calls.document(f"/v1/environments/{calls.part(name)}")))

    def remove_environment(self, name: str) -> str:
        """Remove an environment that no run uses, and return its id.

        For maintainers. Raises `NotFound`, `InvalidRequest`.
        """
        return self._ask(calls.removed(name))

    # ---- what one may use, and how things are

    def policies(self) -> list[ListedPolicy]:
        """Return the policies that the caller may use."""
        return cast("list[ListedPolicy]", self._ask(calls.listed("/v1/policies", "policies")))

    def policy(self, name: str) -> ShownPolicy:
        """Return one policy with every value and its meaning. Raises `AccessDenied`, `NotFound`."""
        return cast("ShownPolicy", self._ask(calls.document(f"/v1/policies/{calls.part(name)}")))

    def templates(self) -> list[ListedTemplate]:
        """Return the built-in scripts."""
        return cast("list[ListedTemplate]", self._ask(calls.listed("/v1/templates", "templates")))

    def template(self, name: str) -> ShownTemplate:
        """Return one built-in script with its code and its sample payload. Raises `NotFound`."""
        return cast("ShownTemplate", self._ask(calls.document(f"/v1/templates/{calls.part(name)}")))

    def images(self) -> list[ListedImage]:
        """Return the images of the service's host, without environments."""
        return cast("list[ListedImage]", self._ask(calls.listed("/v1/images", "images")))

    def health(self) -> Health:
        """Return the state of the service."""
        return cast("Health", self._ask(calls.document("/v1/health")))

    def doctor(self) -> HostReport:
        """Return what the service's host can enforce: `usable`, `capabilities`, `policies`."""
        return cast("HostReport", self._ask(calls.document("/v1/doctor")))

    def metrics(self) -> str:
        """Return the counters, in Prometheus's text format."""
        return self._ask(calls.whole("GET", "/v1/metrics")).decode(errors="replace")

    def document(self) -> dict[str, Any]:
        """Return the description of the whole interface, as OpenAPI."""
        return self._ask(calls.document("/v1/openapi.json"))

    # ---- maintenance

    def prune(
        self,
        *,
        older_s: float | None = None,
        unused_s: float | None = None,
        budget_mib: int | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Remove environments and cached files by age, last use and size.

        For maintainers. Raises `InvalidRequest`, `AccessDenied`.
        """
        limits = {"older_s": older_s, "unused_s": unused_s, "budget_mib": budget_mib, "dry_run": dry_run}
        return cast("Pruned", self._ask(calls.pruned(limits)))

    def stop_all(self) -> Stopped:
        """End all runs, builds and checks, and retire all ready sandboxes. For maintainers. Raises `AccessDenied`."""
        return cast("Stopped", self._ask(calls.posted("/v1/maintenance/stop-all", {})))

    # ---- the wire

    def get(self, path: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Return a document. Raises a `SandboxError`."""
        return self._ask(calls.document(path), timeout_s)

    def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """Send a document, and return the answer, which is another. Raises a `SandboxError`."""
        return self._ask(calls.posted(path, body), timeout_s)

    def raw(self, method: str, path: str, body: bytes | None = None, *, timeout_s: float | None = None) -> bytes:
        """Return the body of an answer. Raises a `SandboxError` for everything but success."""
        return self._ask(Call(method=method, path=path, read=lambda answer: answer.body, body=body), timeout_s)

    def events(
        self, path: str, body: bytes, *, timeout_s: float | None = None
    ) -> Generator[dict[str, Any], None, None]:
        """Ask for a stream, and yield each event up to its `result`.

        Raises a `SandboxError`, also if the stream breaks off.
        """
        told = Told()
        with contextlib.closing(self.lines(path, body, timeout_s=timeout_s)) as lines:
            for line in lines:
                event = told.event(line)
                yield event
                if event["event"] == "result":
                    return
        raise calls.gone(EOFError(), timeout_s)

    def lines(self, path: str, body: bytes, *, timeout_s: float | None = None) -> Generator[bytes, None, None]:
        """Ask for a stream, and yield each event as the line of JSON that arrived, unparsed. Raises a `SandboxError`.

        The last event of a run does not repeat the events before it; `events` puts the whole answer together. Closing
        the iterator closes the connection, and so ends the run.
        """
        with self._stream(path, body, self._silence(timeout_s)) as (connection, response):
            while line := connection.line(response):
                yield line

    @contextlib.contextmanager
    def _stream(
        self, path: str, body: bytes, timeout_s: float | None
    ) -> Iterator[tuple[UnixConnection, http.client.HTTPResponse]]:
        deadline = time.monotonic() + self.retry_s
        while True:
            with self._connections.one(timeout_s) as connection:
                response = connection.answer("POST", path, body, accept=reading.NDJSON)
                self._heard(headers_of(response))
                if response.status == http.client.OK:
                    yield connection, response
                    return
                answer = connection.whole(response)
            self._refused(answer, deadline)

    def _ask(self, call: Call[T], timeout_s: float | None = None) -> T:
        """Make a call on a connection of its own, and return what it gives. Raises a `SandboxError`."""
        deadline = time.monotonic() + self.retry_s
        while True:
            answer = self._answer(call, self._silence(timeout_s))
            if answer.status != QueueFull.http_status:
                return reading.understood(call, answer)
            self._refused(answer, deadline)

    def _awaited(
        self, call: Callable[[float | None], Call[T | None]], wait_s: float | None, timeout_s: float | None
    ) -> T | None:
        """Ask again until there is an answer, for at most this time. The service itself waits at most a minute."""
        left_s = self._patience(wait_s)
        deadline = time.monotonic() + (left_s or 0.0)
        while True:
            found = self._ask(call(left_s), self._longer(timeout_s, left_s))
            left_s = deadline - time.monotonic()
            if found is not None or left_s <= 0:
                return found
            time.sleep(min(left_s, AGAIN_S))

    def _answer(self, call: Call[Any], timeout_s: float | None) -> Answer:
        with self._connections.one(timeout_s) as connection:
            response = connection.answer(call.method, call.path, call.body, accept=reading.JSON, prefer=call.prefer)
            answer = connection.whole(response)
        self._heard(answer.headers)
        return answer

    def _refused(self, answer: Answer, deadline: float) -> None:
        """Wait if it makes sense to ask again. Otherwise, raises the `SandboxError` that the answer is."""
        try:
            reading.succeeded(answer)
        except QueueFull as error:
            if (pause := calls.pause_s(error, deadline - time.monotonic())) is None:
                raise
            time.sleep(pause)
