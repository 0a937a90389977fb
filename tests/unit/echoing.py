"""The tests' own service, which gives back what it is sent: HTTP over a Unix socket, a thread per connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from sandbox.client import AsyncClient, Client

WAIT_S = 20.0


def answer_of(run_id: str, value: Any) -> dict[str, Any]:
    """Return the document of a run."""
    return {
        "run_id": run_id,
        "outcome": "succeeded",
        "explanation": "",
        "result": value,
        "stdout": "",
        "stderr": "",
        "files": [],
    }


class Echo(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers runs with their payloads; `meanwhile` is called with each payload before it is answered."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.path = path
        self.meanwhile: Callable[[Any], object] = lambda payload: time.sleep(random.random() / 200)
        self.names_requests = True
        self.server = "podman-sandbox-runner/echo"
        self.more: dict[str, Any] = {}  # in every document
        self.gone: list[Any] = []
        self.connections = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients go away as they please."""

    def server_bind(self) -> None:
        """Bind; the server's name is nobody's business."""
        self.socket.bind(self.server_address)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Count who comes."""
        self.connections += 1
        super().process_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Echo

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def version_string(self) -> str:
        """Name the service."""
        return self.server.server

    def _begin(self, **headers: str) -> None:
        self.send_response(200)
        if self.server.names_requests and (named := self.headers["X-Request-Id"]):
            self.send_header("X-Request-Id", named)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _document(self, document: Any) -> None:
        body = json.dumps(document).encode()
        self._begin(Content_Length=str(len(body)))
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Answer with the path."""
        self.server.meanwhile(self.path)
        self._document({"path": self.path, **self.server.more})

    def do_POST(self) -> None:
        """Answer with the payload, at once or as a stream."""
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["payload"]
        run_id = f"run of {payload}"
        if "ndjson" not in self.headers["Accept"]:
            try:
                self.server.meanwhile(payload)
                self._document(answer_of(run_id, payload))
            except OSError:
                self.server.gone.append(payload)
                raise
            return
        self._begin(Transfer_Encoding="chunked")
        try:
            self._event("accepted", run_id=run_id)
            for _ in range(3):
                self._event("stdout", text=str(payload))
                self.server.meanwhile(payload)
            self._event("result", **answer_of(run_id, payload), **self.server.more)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.server.gone.append(payload)
            raise

    def _event(self, event: str, **facts: Any) -> None:
        line = json.dumps({"event": event, **facts}).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))


@contextlib.contextmanager
def echoing() -> Iterator[Echo]:
    """Serve until the block ends."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place, Echo(f"{place}/s") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(WAIT_S)


class Awaited:
    """An `AsyncClient` with the methods of a `Client`, for tests of both: each call is a task of one event loop."""

    def __init__(self, path: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = AsyncClient(path, **options)

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *arguments, **options: self.wait(method(*arguments, **options))

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def break_off(self) -> None:
        self._loop.call_soon_threadsafe(self._client.break_off)

    def stream(self, *arguments: Any, **options: Any) -> Iterator[dict[str, Any]]:
        events = self._client.stream(*arguments, **options)
        try:
            while True:
                try:
                    yield self.wait(anext(events))
                except StopAsyncIteration:
                    return
        finally:
            self.wait(events.aclose())


KINDS: dict[str, Callable[..., Any]] = {"threads": Client, "asyncio": Awaited}
