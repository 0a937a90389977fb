"""Watches the running program: relays its output, counts against the caps, kills it, reports its end."""

from __future__ import annotations

import os
import select
import time
from _socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

from sandbox.inside.harness.connection import HarnessError
from sandbox.inside.harness.limits import CHUNK_BYTES, EXIT_BROKEN
from sandbox.inside.harness.relay import Relay
from sandbox.inside.harness.streams import LAST_WORDS
from sandbox.inside.harness.text import name_problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from sandbox.inside.harness.child import Child
    from sandbox.inside.harness.connection import Connection


HIGH_WATER_BYTES = 262_144
DRAIN_S = 1.0
LAST_WORDS_S = 0.1
REST_S = 0.02


class Supervisor:
    """Watches the program: relays its output, counts against the caps, kills it, reports its end."""

    def __init__(self, connection: Connection, limits: dict[str, int], child: Child) -> None:
        self.connection = connection
        self.limits = limits
        self.channel = child.channel
        self.channel.setblocking(False)  # noqa: FBT003
        # Descriptor to frame type; the channel's is b"".
        self.sources: dict[int, bytes] = {child.out: b"O", child.err: b"E", self.channel.fileno(): b""}
        self.pid = child.pid
        self.relay = 0
        self.wake = 0
        self.status: int | None = None
        self.ended: str | None = None
        self.output_bytes = 0
        self.result_bytes = 0
        self.files_bytes = 0
        self.files_count = 0
        self.log_records = 0
        self.file_missing = 0
        self.stage = b""  # the last of V, A, M, X that came

    # ---- what the program sends

    def _limit(self, ended: str) -> None:
        self.ended = self.ended or ended

    def _output(self, kind: bytes, data: bytes) -> None:
        room = self.limits["output_bytes"] - self.output_bytes
        if len(data) > room:
            self._limit("output_limit")
            data = data[: max(room, 0)]
        if data:
            self.output_bytes += len(data)
            self.connection.put(kind, data)

    def _packet(self, kind: bytes, body: bytes) -> None:
        """Relay one packet of the channel, or end the run where it breaks the rules."""
        handlers = {
            b"L": self._log,
            b"F": self._file,
            b"f": self._file_data,
            b"V": self._result,
            b"A": self._result,
            b"M": self._final,
            b"X": self._final,
        }
        if kind == b"Z" and not body and self.stage not in (b"M", b"X"):
            self._limit("result_limit")
        elif kind not in handlers or not body or len(body) > CHUNK_BYTES:
            self._limit("channel")
        else:
            handlers[kind](kind, body)

    def _log(self, kind: bytes, body: bytes) -> None:
        if self.log_records >= self.limits["log_records"]:
            self._limit("log_limit")
        elif self.output_bytes + len(body) > self.limits["output_bytes"]:
            self._limit("output_limit")
        else:
            self.log_records += 1
            self.output_bytes += len(body)
            self.connection.put(kind, body)

    def _file(self, kind: bytes, body: bytes) -> None:
        try:
            name = body[8:].decode("utf-8")
        except UnicodeDecodeError:
            name = ""
        size = int.from_bytes(body[:8], "big")
        if self.file_missing or name_problem(name):
            self._limit("channel")
        elif self.files_count >= self.limits["files_count"] or self.files_bytes + size > self.limits["files_bytes"]:
            self._limit("files_limit")
        else:
            self.files_count += 1
            self.files_bytes += size
            self.file_missing = size
            self.connection.put_json(kind, {"name": name, "size": size})

    def _file_data(self, kind: bytes, body: bytes) -> None:
        if len(body) > self.file_missing:
            self._limit("channel")
        else:
            self.file_missing -= len(body)
            self.connection.put(kind, body)

    def _result(self, kind: bytes, body: bytes) -> None:
        if self.stage not in (b"", b"V", kind):
            self._limit("channel")
            return
        self.stage = kind
        self.result_bytes += len(body)
        if self.result_bytes > self.limits["result_bytes"]:
            self._limit("result_limit")
        else:
            self.connection.put(kind, body)

    def _final(self, kind: bytes, body: bytes) -> None:
        if self.stage in (b"M", b"X"):
            self._limit("channel")
        else:
            self.stage = kind
            self.connection.put(kind, body)

    # ---- the event loop

    def _read(self, source: int) -> None:
        kind = self.sources[source]
        try:
            # Of a packet, one byte more than is allowed shows that it is too large.
            data = os.read(source, CHUNK_BYTES) if kind else self.channel.recv(CHUNK_BYTES + 2)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(source)
        elif kind:
            self._output(kind, with_the_rest(source, data))
        elif self.ended is None:
            self._packet(data[:1], data[1:])

    def _close(self, source: int) -> None:
        if self.sources.pop(source):
            os.close(source)
        else:
            self.channel.close()

    def _commands(self) -> None:
        data = self.connection.receive()
        if not data:
            raise HarnessError("the runner is gone")
        if data[:1] == b"C":
            self._limit("cancelled")

    def _step(self, timeout_s: float) -> bool:
        """Handle what is ready within `timeout_s`; return whether anything was."""
        poll = select.poll()
        blocked = self.connection.pending > 0
        poll.register(self.connection.fd, select.POLLIN | (select.POLLOUT if blocked else 0))
        poll.register(self.wake, select.POLLIN)
        if self.connection.pending < HIGH_WATER_BYTES:
            for source in self.sources:
                poll.register(source, select.POLLIN)
        ready = poll.poll(int(timeout_s * 1000))
        for descriptor, events in ready:
            if descriptor == self.connection.fd:
                if events & select.POLLOUT:
                    self.connection.flush()
                if events & ~select.POLLOUT:
                    self._commands()
            elif descriptor == self.wake:
                os.read(self.wake, 4096)
            elif descriptor in self.sources:
                self._read(descriptor)
        return bool(ready)

    def _reap(self) -> bool:
        """Collect every dead process; return whether any child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.status = status

    def _hear_last_words(self) -> None:
        """Let a program that did nothing wrong send what it holds back, for a moment."""
        if self.ended != "cancelled":
            return
        os.kill(self.pid, LAST_WORDS)
        deadline = time.monotonic() + LAST_WORDS_S
        while self.status is None and time.monotonic() < deadline:
            self._step(0.01)
            self._reap()

    def kill(self) -> None:
        """Kill the program and, as process 1, everything else in the sandbox."""
        import _signal as signal  # type: ignore[import-not-found]

        if os.getpid() == 1:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                return
        elif self.pid:  # in a test on a host, where -1 would mean everybody
            for kill, pid in ((os.killpg, self.pid), (os.kill, self.pid), (os.kill, self.relay)):
                try:
                    if pid:
                        kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue

    def watch(self) -> None:
        """Relay until the program is dead, then everything it left behind. Raises HarnessError."""
        killed = False
        while self.status is None:
            if self.ended and not killed:
                self._hear_last_words()
                self.kill()
                killed = True
            self._step(1.0)
            self._reap()
        self.kill()
        self._drain()
        deadline = time.monotonic() + DRAIN_S
        while self._reap() and os.getpid() == 1 and time.monotonic() < deadline:
            self.kill()
            time.sleep(0.001)

    def _drain(self) -> None:
        """Relay what the dead left in the pipes. Waiting for a slow runner doesn't count as time."""
        deadline = time.monotonic() + DRAIN_S
        while self.sources:
            if self.connection.pending >= HIGH_WATER_BYTES:
                self._step(1.0)
                deadline = time.monotonic() + DRAIN_S
            elif time.monotonic() > deadline or not self._step(0.05):
                return


def with_the_rest(source: int, data: bytes, *, within_s: float = REST_S) -> bytes:
    """Return output with the rest of its last line, if that comes at once: `print` writes the end by itself."""
    if data.endswith(b"\n"):
        return data
    poll = select.poll()
    poll.register(source, select.POLLIN)
    deadline = time.monotonic() + within_s
    while not data.endswith(b"\n") and len(data) < CHUNK_BYTES:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            break
        more = os.read(source, CHUNK_BYTES - len(data))
        if not more:  # its end, which the next look finds, too
            break
        data += more
    return data


def report_end(
    connection: Connection, ended: str, *, status: int | None = None, wall_s: float = 0.0, earlier_s: float = 0.0
) -> None:
    """Queue the final frame; `status` is what `waitpid` said of the program, `earlier_s` processor time before it."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    exit_code, signal_name = None, None
    if status is not None and os.WIFEXITED(status):
        exit_code = os.WEXITSTATUS(status)
    elif status is not None:
        signal_name = _signal_name(os.WTERMSIG(status))
    fields = {
        "exit_code": exit_code,
        "signal": signal_name,
        "ended": ended,
        "max_rss_kib": usage.ru_maxrss,
        "cpu_s": round(max(0.0, usage.ru_utime + usage.ru_stime - earlier_s), 6),
        "wall_s": round(wall_s, 6),
    }
    connection.put_json(b"Q", fields)


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def wake_up(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: a handler must exist for the wake-up descriptor to be written."""


def start_relay(port: int, target: str, not_its: Iterable[Connection | Child]) -> int:
    """Fork the relay of `127.0.0.1:port`, which closes what is `not_its`; return its process id. Raises OSError."""
    listener = socket(AF_INET, SOCK_STREAM)
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    pid = os.fork()
    if pid == 0:
        try:
            for other in not_its:
                other.close()
            Relay(listener, target).serve()
        finally:
            os._exit(EXIT_BROKEN)
    listener.close()
    return pid
