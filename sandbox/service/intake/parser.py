"""Takes bodies apart in processes beside the service, under limits.

Nobody else waits for a text that is hard to parse. The service's threads share one interpreter with its event loop, so
a parser in one of them would keep everybody waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from sandbox.errors import Internal, InvalidRequest, PolicyDenied, SandboxError
from sandbox.service.intake.asked import Asked, UnknownPolicy
from sandbox.service.intake.parser_program import (
    KINDS,
    READY,
    Ended,
    Order,
    Refused,
    Understood,
    Unknown,
    received,
    send_order,
)
from sandbox.service.intake.spool import SMALL_BYTES, Spool
from sandbox.service.intake.turns import Turns

# Handing a body on takes longer than parsing one of this size.
AT_ONCE_BYTES = 8 << 10
# Whatever may name libraries is for the process, however it is written.
NAMES_LIBRARIES = (b"requirements", b"/// script", rb"\u", rb"\/")
# Many times what the largest body takes.
MOST_S = 20.0
# Without it, some installations of Python don't start.
KEPT_VARIABLES = ("LD_LIBRARY_PATH",)
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sandbox.service.intake.parser_program import main;"
    " main()"
)
ERRORS: dict[str, type[SandboxError]] = {kind.code: kind for kind in (InvalidRequest, PolicyDenied, Internal)}
_ANSWER = msgspec.msgpack.Decoder(Understood | Unknown | Refused)


class Parser:
    """The processes: one for small bodies, and one for large ones, which small ones don't wait for."""

    def __init__(self, *, most_s: float = MOST_S) -> None:
        self._small, self._large = (ParserProcess(most_s=most_s) for _ in range(2))

    async def asked(
        self, kind: str, spool: Spool, code_kib: Mapping[str, int], *, uid: int
    ) -> tuple[Asked, list[bytes]]:
        """Return what a body asks for and its large parts, see `Taken`, and close its spool.

        The body is one of `KINDS`, from the user `uid`. Raises `UnknownPolicy`, `PolicyDenied`, `InvalidRequest`.
        """
        if len(spool.data) == spool.size_bytes <= AT_ONCE_BYTES and not any(
            mark in spool.data for mark in NAMES_LIBRARIES
        ):
            with contextlib.closing(spool):
                asked, parts = KINDS[kind](spool.data, code_kib)
                return asked, [bytes(memoryview(part)) for part in parts]
        process = self._small if spool.size_bytes <= SMALL_BYTES else self._large
        return await process.asked(kind, spool, code_kib, uid=uid)

    def close(self) -> None:
        """End the processes; who waits for them gets an error."""
        self._small.close()
        self._large.close()


class ParserProcess:
    """One process, started when it is needed, which takes one body after the other; callers take turns."""

    def __init__(self, *, most_s: float = MOST_S) -> None:
        self._most_s = most_s
        self._turns = Turns()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parser")
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._closed = False

    async def asked(
        self, kind: str, spool: Spool, code_kib: Mapping[str, int], *, uid: int
    ) -> tuple[Asked, list[bytes]]:
        """Return what a body of the user `uid` asks for, when its turn has come, and close its spool.

        Raises as `Parser.asked` does.
        """
        future: Future[tuple[Asked, list[bytes]]] | None = None
        try:
            async with self._turns.turn(uid):
                future = self._thread.submit(self._asked, kind, spool, dict(code_kib))
                return await asyncio.wrap_future(future)
        finally:
            if future is None or future.cancelled():  # nobody began with it
                spool.close()

    def close(self) -> None:
        """End it."""
        self._closed = True
        if (process := self._process) is not None:  # the thread may forget it now
            process.kill()
        self._thread.shutdown(cancel_futures=True)
        self._end()

    def _asked(self, kind: str, spool: Spool, code_kib: dict[str, int]) -> tuple[Asked, list[bytes]]:
        with contextlib.closing(spool):
            file = spool.file()
            answer = self._answer(Order(kind, spool.size_bytes, code_kib), file.fileno())
            if isinstance(answer, Unknown):
                raise UnknownPolicy(answer.policy)
            if isinstance(answer, Refused):
                raise ERRORS[answer.code](answer.message, hint=answer.hint)
            parts, place = [], spool.size_bytes
            for size in answer.sizes:
                parts.append(os.pread(file.fileno(), size, place))
                place += size
        return answer.asked, parts

    def _answer(self, order: Order, file: int) -> Understood | Unknown | Refused:
        """Have the process take a body apart. Where it does not live to the end of that, the body is to blame."""
        channel = self._started()
        try:
            send_order(channel, order, file)
            answer: Understood | Unknown | Refused = _ANSWER.decode(received(channel))
            return answer
        except (Ended, OSError, msgspec.DecodeError):
            self._end()
            raise InvalidRequest(
                "the request's body takes too much time or memory to read",
                hint="send less in it, or write it in a simpler way",
            ) from None

    def _started(self) -> socket.socket:
        """Return the way to the process, which is started unless it lives. Raises `Internal`."""
        if self._channel is not None and self._process is not None and self._process.poll() is None:
            return self._channel
        self._end()
        if self._closed:
            raise Internal("the service ends", hint="send the request again")
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        with contextlib.suppress(OSError):
            self._channel, other = socket.socketpair()
            self._channel.settimeout(MOST_S)  # to start takes its time where the machine is busy
            with other:
                # Isolated (-I), or it would take modules from the directory that the service was started in, which may
                # be anybody's. Of its own session, so that the scheduler shares the processor between it and the
                # service (sched(7), autogroup).
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-c", PROGRAM, json.dumps(sys.path)],
                    stdin=other.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,
                )
            if self._channel.recv(len(READY)):
                self._channel.settimeout(self._most_s)
                return self._channel
        self._end()
        raise Internal(
            "the process that takes requests apart could not be started",
            hint=f"look whether {sys.executable} can be, and try again",
        )

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
