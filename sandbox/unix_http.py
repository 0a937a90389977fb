"""HTTP over the service's Unix socket, for its clients: a connection, its answers, and errors as what they were there."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import select
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from sandbox import errors
from sandbox.errors import EngineUnavailable, Internal, SandboxError

JSON = "application/json"
NDJSON = "application/x-ndjson"
CONNECT_TIMEOUT_S = 5.0
CONNECT_PAUSE_S = 0.01


class NoService(EngineUnavailable):
    """Nobody answers at the socket; `reason` is the system's error number."""

    def __init__(self, path: str, error: OSError) -> None:
        self.reason = error.errno
        said = error.strerror or str(error) or type(error).__name__
        super().__init__(f"no service answers at {path}: {said}", hint="start it: sandbox serve")


class Connection(http.client.HTTPConnection):
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

    def listener(self) -> int:
        """Connect, unless it is connected, and return the user id of who listens, as the kernel tells it. Raises `NoService`."""
        if self.sock is None:
            self.connect()
        credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid: int = struct.unpack("3i", credentials)[1]
        return uid

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


def read(response: http.client.HTTPResponse, timeout_s: float | None, *, line: bool = False) -> bytes:
    """Return the body of an answer, or its next line. Raises `EngineUnavailable`."""
    try:
        return response.readline() if line else response.read()
    except (OSError, http.client.HTTPException) as error:
        raise gone(error, timeout_s) from None


def checked(response: http.client.HTTPResponse, body: bytes) -> bytes:
    """Return the body of a successful answer. Raises the `SandboxError` of every other."""
    if 200 <= response.status < 300:
        return body
    try:
        said = error_of(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Internal(f"the service answered {response.status} without saying why", hint="look at its log") from None
    raise said
