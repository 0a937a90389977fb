"""HTTP over the service's Unix socket, for its clients: connections, each for one thread at a time, and answers."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from sandbox.client.calls import PREFER, REQUEST_ID, check_request_id, check_target, gone
from sandbox.client.reading import JSON, Answer
from sandbox.errors import EngineUnavailable, Internal

CONNECT_TIMEOUT_S = 5.0
CONNECT_PAUSE_S = 0.01
# The service closes a connection that asks nothing for 75 s: what was silent for nearly as long is not trusted with a
# request.
IDLE_S = 60.0
FREE = 16
MAX_PATH_BYTES = 107  # of a Unix socket


class NoService(EngineUnavailable):
    """Nobody answers at the socket; `reason` is the system's error number."""

    def __init__(self, path: str, error: OSError) -> None:
        self.reason = (
            error.errno or errno.ENAMETOOLONG
        )  # Python itself refuses a path that is too long, without a number
        said, hint = why_not(path, self.reason, error.strerror or str(error))
        super().__init__(f"no service answers at {path}: {said}", hint=hint)


def why_not(path: str, number: int, said: str) -> tuple[str, str]:
    """Return why a socket can't be had, in words, and what to do."""
    # What is started without a word listens at the usual place, not where this variable points.
    named = os.environ.get("SANDBOX_SOCKET") == path
    begin = (
        "$SANDBOX_SOCKET names it: correct or unset that, or start the service whose socket it is"
        if named
        else "start it: sandbox serve"
    )
    other = "name the socket of a service in $SANDBOX_SOCKET, or as socket.path of the configuration"
    if number in (errno.EACCES, errno.EPERM):
        return said, f"{owned(path)}; membership in a group takes a new login"
    if number == errno.ENAMETOOLONG:
        return f"the path has more than {MAX_PATH_BYTES} bytes", other
    if number == errno.ECONNREFUSED:
        if not Path(path).is_socket():
            return "it is not a socket", other
        return "the socket is there, and nobody listens", begin
    if number in (errno.ENOENT, errno.ENOTDIR):
        return said, begin if named else f"{begin}; if it listens elsewhere, {other}"
    if number == errno.EAGAIN:
        return "it takes no connection", "it has too much to do, or hangs: try again, or look at its log"
    return said, other


def owned(path: str) -> str:
    """Return who may be asked for access to a socket, as far as it can be seen."""
    import grp
    import pwd

    try:
        status = Path(path).stat()
        return (
            f"ask {pwd.getpwuid(status.st_uid).pw_name}, its owner, for access; its group is"
            f" {grp.getgrgid(status.st_gid).gr_name}"
        )
    except (OSError, KeyError):
        return "ask whoever runs the service for access to it and to the directories above it"


def opened() -> socket.socket:
    """Return a socket that is to be connected and does not block."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.setblocking(False)  # noqa: FBT003 - the name of its parameter is `flag`
    return connection


def tried(connection: socket.socket, path: str) -> bool:
    """Connect at once, or tell that the service's list of newcomers is full. Raises `NoService`."""
    try:
        number = connection.connect_ex(path)
    except OSError as error:  # a path that is too long
        raise NoService(path, error) from None
    except ValueError as error:  # a path with a null byte
        raise NoService(path, OSError(errno.EINVAL, str(error))) from None
    if number not in (0, errno.EAGAIN):
        raise NoService(path, OSError(number, os.strerror(number)))
    return number == 0


def listener_of(connection: socket.socket) -> int:
    """Return the user id of who listens at the other end, as the kernel tells it."""
    uid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[
        1
    ]
    return uid


def readable(connection: socket.socket) -> bool:
    """Tell whether there is something to read, or the end; also with more descriptors than select(2) takes."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    return bool(waiting.poll(0))


def head_of(method: str, path: str, request_id: str, *, accept: str, prefer: str, body: bytes | None) -> dict[str, str]:
    """Return the headers of a request. Raises `InvalidRequest` for a method or path that would break the head."""
    check_target(method, path)
    head = {"Accept": accept, REQUEST_ID: request_id}
    if body is not None:
        head["Content-Type"] = JSON
    if prefer:
        head[PREFER] = prefer
    return head


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, for one request after the other, in the process that opened it."""

    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._process = os.getpid()
        self._ending = threading.Lock()
        self._broken_off = False
        self._asked = False

    @property
    def free(self) -> bool:
        """Tell whether it can take another request: connected, and nothing of an answer is left on it."""
        return self.sock is not None and not self._asked and not self._broken_off

    def connect(self) -> None:
        """Connect to the socket; wait a little where the service's list of newcomers is full. Raises `NoService`."""
        connection = opened()
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        try:
            while not tried(connection, self._path):
                if time.monotonic() > deadline:
                    raise NoService(self._path, OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
                time.sleep(CONNECT_PAUSE_S)
            connection.settimeout(self.timeout)
            with self._ending:
                if self._broken_off:
                    raise self._gone(ConnectionAbortedError())
                self.sock = connection
        except BaseException:
            connection.close()
            raise

    def listener(self) -> int:
        """Connect, unless it is connected, and return the user id of who listens, as the kernel tells it.

        Raises `NoService`.
        """
        if self.sock is None:
            self.connect()
        return listener_of(self.sock)

    def refresh(self, timeout_s: float | None) -> bool:
        """Have the next answer waited for so long; False for a connection that the service has closed."""
        if not self.free or readable(self.sock):
            return False  # nothing was asked: what there is to read can only be its end
        self.timeout = timeout_s
        self.sock.settimeout(timeout_s)
        return True

    def close(self) -> None:
        """Close it. In a process that was forked from ours, the connection goes on for the one that it belongs to."""
        if os.getpid() != self._process:  # where the lock may be held by a thread that is not here
            super().close()
            return
        with self._ending:
            super().close()

    def break_off(self) -> None:
        """End the connection for both sides: whoever waits for the service, and the service that waits for us.

        Both see the other one gone, also where a forked process has the connection open.
        """
        if os.getpid() != self._process:
            return
        with self._ending:
            self._broken_off = True
            if self.sock is not None:
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)

    def _gone(self, error: Exception) -> EngineUnavailable:
        if self._broken_off:
            return EngineUnavailable(
                "the call was broken off before it was answered",
                hint="another thread ended what this client did; ask again",
            )
        return gone(error, self.timeout)

    def answer(
        self, method: str, path: str, body: bytes | None, *, accept: str, prefer: str = ""
    ) -> http.client.HTTPResponse:
        """Send a request, once, and return the answer's head. Raises `NoService`, `EngineUnavailable`, `Internal`."""
        request_id = os.urandom(16).hex()
        head = head_of(method, path, request_id, accept=accept, prefer=prefer, body=body)
        self._asked = True  # until all of the answer is read, nothing else can be asked here
        try:
            try:
                self.request(method, path, body, head)
            except (BrokenPipeError, ConnectionResetError):
                # Who refuses a body without reading it says why before it closes.
                response = self._last_words(method)
            else:
                response = self.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from None
        check_request_id(headers_of(response), request_id)
        return response

    def _last_words(self, method: str) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(self.sock, method=method)
        response.begin()
        self.close()  # the rest of the request will never be sent; the answer can still be read
        return response

    def whole(self, response: http.client.HTTPResponse) -> Answer:
        """Return all of an answer. Raises `EngineUnavailable`."""
        try:
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from None
        self._asked = not response.isclosed()
        return Answer(response.status, headers_of(response), body)

    def line(self, response: http.client.HTTPResponse) -> bytes:
        """Return the next line of an answer, b"" at its end.

        Raises `EngineUnavailable`, `Internal` in a forked process.
        """
        if os.getpid() != self._process:
            raise Internal(
                "this stream belongs to the process that it began in", hint="begin a stream of its own after a fork"
            )
        try:
            line = response.readline()
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from None
        if not line:
            self._asked = not response.isclosed()
        elif not line.endswith(b"\n"):  # cut off in the middle
            raise self._gone(EOFError())
        return line


def headers_of(response: http.client.HTTPResponse) -> Mapping[str, str]:
    """Return an answer's headers by their names in lower case."""
    return {name.lower(): value for name, value in response.getheaders()}


class UnixConnectionPool:
    """Connections to one socket.

    Each is used by one thread at a time, and never again where an answer was not read to its end.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._free: list[tuple[UnixConnection, float]] = []
        self._busy: dict[UnixConnection, bool] = {}  # whether it is kept afterwards

    def _owned(self) -> None:
        """Begin anew in a forked process: the connections are its parent's, and so may be the lock."""
        if self._process != os.getpid():
            inherited = [connection for connection, _ in self._free]
            self._begin()
            for connection in inherited:
                connection.close()

    @contextlib.contextmanager
    def one(self, timeout_s: float | None) -> Iterator[UnixConnection]:
        """Give a connection that nobody else uses.

        It is used again if all of the answer was read, however the block ends.
        """
        connection = self._taken(timeout_s)
        try:
            yield connection
        finally:
            self._give_back(connection)

    def _taken(self, timeout_s: float | None) -> UnixConnection:
        self._owned()
        stale: list[UnixConnection] = []
        with self._lock:
            found = None
            while self._free and found is None:
                connection, since = self._free.pop()
                if time.monotonic() - since < IDLE_S and connection.refresh(timeout_s):
                    found = connection
                else:
                    stale.append(connection)
            found = found or UnixConnection(self._path, timeout_s)
            self._busy[found] = True
        for connection in stale:
            connection.close()
        return found

    def _give_back(self, connection: UnixConnection) -> None:
        self._owned()
        with self._lock:
            kept = self._busy.pop(connection, False) and connection.free and len(self._free) < FREE
            if kept:
                self._free.append((connection, time.monotonic()))
        if not kept:
            connection.break_off()
            connection.close()

    def close(self) -> None:
        """Close those that nobody uses; the others when their answers are read."""
        self._owned()
        with self._lock:
            free, self._free = self._free, []
            self._busy = dict.fromkeys(self._busy, False)
        for connection, _ in free:
            connection.close()

    def break_off(self) -> None:
        """End whatever waits for an answer."""
        self._owned()
        with self._lock:
            for connection in self._busy:
                connection.break_off()
