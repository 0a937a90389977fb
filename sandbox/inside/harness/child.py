"""The program's process before it has its job: forked, made ready, given what it is to run."""

from __future__ import annotations

import gc
import os
import time
from _socket import AF_UNIX, SOCK_SEQPACKET, SOCK_STREAM, socketpair

from sandbox.inside.harness.channel import Channel
from sandbox.inside.harness.connection import HarnessError, exactly
from sandbox.inside.harness.failures import cause_of, setup_error, type_and_message
from sandbox.inside.harness.json_text import json_value
from sandbox.inside.harness.limits import CHUNK_BYTES, EXIT_BROKEN
from sandbox.inside.harness.program import Program, become_program, rehearse, take_on
from sandbox.inside.harness.unseen import unseen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any, NoReturn

    from sandbox.inside.harness.connection import Connection


class Child:
    """The program's process before it has its job, as the supervisor has it: its id, and our ends of its channels."""

    @unseen
    def __init__(
        self, connection: Connection, app_dir: str, *, preloaded: bool, ahead: bool, rehearsed: bool = False
    ) -> None:
        """Fork it; `ahead` of its job it gets as ready as can be first, unless its parent has `rehearsed` already.

        Raises OSError when the fork is refused.
        """
        self._inbox, inbox = socketpair(AF_UNIX, SOCK_STREAM)
        self.channel, channel = socketpair(AF_UNIX, SOCK_SEQPACKET)
        out, err = os.pipe(), os.pipe()
        self.out, self.err = out[0], err[0]
        self._unsent = bytearray()
        gc.freeze()
        self.pid = os.fork()
        if self.pid == 0:
            _run_child((connection, self), inbox, channel, (out[1], err[1]), (app_dir, preloaded, ahead, rehearsed))
        inbox.close()
        channel.close()
        os.close(out[1])
        os.close(err[1])

    def close(self) -> None:
        """Close our ends in this process."""
        self._inbox.close()
        self.channel.close()
        os.close(self.out)
        os.close(self.err)

    def settled(self) -> bool:
        """Wait until it is ready for its job; return whether it is."""
        try:
            return self._inbox.recv(1) != b""
        except OSError:
            return False

    def lives(self) -> bool:
        """Tell whether it still waits; when it has ended, nothing is left of it."""
        if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            return True
        self.close()
        return False

    def cpu_s(self) -> float:
        """Return the processor time that it has used, and what other children had that are gone."""
        import resource

        gone = resource.getrusage(resource.RUSAGE_CHILDREN)
        # How Linux numbers the clock of another process: clock_getcpuclockid(3).
        return gone.ru_utime + gone.ru_stime + time.clock_gettime(~self.pid << 3 | 2)

    def give(self, data: bytes | bytearray) -> None:
        """Pass a piece of the job on. Pieces travel together: waking a process costs more than a small job is long."""
        self._unsent += data
        if len(self._unsent) >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what has been given."""
        data, self._unsent = self._unsent, bytearray()
        try:
            self._inbox.sendall(data)
        except OSError:
            return  # it has ended, for want of memory or killed: its status will say so

    def begin(self) -> None:
        """Let the program begin: the job is complete."""
        self.give(b"G")
        self.flush()
        self._inbox.close()


@unseen
def _run_child(
    not_its: tuple[Connection, Child],
    inbox: socket,
    end: socket,
    outputs: tuple[int, int],
    setting: tuple[str, bool, bool, bool],
) -> NoReturn:
    """Live the child's life: get ready, wait for the job, run it; never returns."""
    app_dir, preloaded, ahead, rehearsed = setting
    status = EXIT_BROKEN
    try:
        for other in not_its:
            other.close()
        channel = Channel(end)
        try:
            become_program(*outputs, app_dir, preloaded=preloaded)
            if ahead:
                if not rehearsed:
                    rehearse(app_dir)
                inbox.send(b"R")
            job, parts = _received_job(inbox)
            inbox.close()
            started = time.monotonic()
            job["preloaded"] = preloaded
            warnings = take_on(job)
        except HarnessError:  # cancelled, or the supervisor is gone
            os._exit(status)
        except BaseException as error:
            _, message = type_and_message(error)
            cause = cause_of(error) or "channel"
            channel.send(b"X", setup_error(f"the sandbox could not prepare the program: {message}", cause=cause))
            os._exit(status)
        Program(job, parts, channel, app_dir, warnings).run(started)
    finally:
        os._exit(status)


def _received_job(inbox: socket) -> tuple[dict[str, Any], dict[str, bytes | bytearray]]:
    """Return the job and its parts, as the supervisor passes them on. Raises HarnessError when there is to be none."""
    job = json_value(exactly(inbox, int.from_bytes(exactly(inbox, 4), "big")))
    parts: dict[str, bytes | bytearray] = {}
    for part in job["parts"]:
        if part["kind"] != "file":
            parts[part["kind"]] = exactly(inbox, part["size"])
    exactly(inbox, 1)  # the word to go
    return job, parts
