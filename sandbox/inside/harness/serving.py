"""Takes one job over a connection, from its first frame to the last."""

from __future__ import annotations

import os
import sys
import time

from sandbox.inside.harness.child import Child
from sandbox.inside.harness.connection import HarnessError
from sandbox.inside.harness.failures import setup_error
from sandbox.inside.harness.json_text import json_value
from sandbox.inside.harness.limits import EXIT_BROKEN, MAX_PART_BYTES, PROTOCOL
from sandbox.inside.harness.supervisor import Supervisor, report_end, start_relay, wake_up
from sandbox.inside.harness.text import clean, path_problem
from sandbox.inside.harness.unseen import unseen
from sandbox.inside.harness.values import type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from sandbox.inside.harness.connection import Connection


FAREWELL_S = 5.0


def say_ready(connection: Connection, more: str = "") -> None:
    """Queue the frame that says which Python is ready for a job; `more` is JSON to go with it."""
    version = ",".join(map(str, sys.version_info[:3]))
    ready = f'{{"protocol":{PROTOCOL},"python":[{version}],"implementation":"{sys.implementation.name}"{more}}}'
    connection.put(b"R", ready.encode())


def _refuse(connection: Connection, message: str, cause: str | None) -> None:
    """Report why the program can't begin."""
    connection.put(b"X", setup_error(message, kind="OSError", cause=cause))
    report_end(connection, "exited")


def _parsed_job(body: bytearray) -> dict[str, Any]:
    job: dict[str, Any] = json_value(body)
    if job["protocol"] != PROTOCOL:
        raise HarnessError(f"this harness speaks protocol {PROTOCOL}, the runner {job['protocol']!r}")
    return job


def _pass_on(connection: Connection, job: dict[str, Any], child: Child, app_dir: str) -> bool:
    """Receive the parts of a job; write its files, and give the rest to the child as it comes; False when cancelled.

    Raises HarnessError, OSError.
    """
    body = bytearray()
    for part in job["parts"]:
        if part["size"] > MAX_PART_BYTES:
            raise HarnessError("a part is too large")
        content = bytearray()
        missing = part["size"]
        while missing:
            if not body:
                kind, body = connection.read()
                if kind == b"C":
                    return False
                if kind != b"D" or not body:
                    raise HarnessError(f"expected data, got {kind!r}")
            piece = body[:missing] if len(body) > missing else body
            body = body[missing:]
            missing -= len(piece)
            if part["kind"] == "file":
                content += piece
            else:
                child.give(piece)
        if part["kind"] == "file":
            _write_input(app_dir, part["name"], content)
    kind, rest = connection.read()
    if kind == b"C":
        return False
    if kind != b"G" or rest or body:
        raise HarnessError(f"expected the word to go, got {kind!r}")
    return True


def _write_input(app_dir: str, name: str, content: bytearray) -> None:
    problem = path_problem(name)
    if problem:
        raise HarnessError(f"an input file's name {problem}")
    if "/" in name:
        os.makedirs(os.path.join(app_dir, os.path.dirname(name)), exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(os.path.join(app_dir, name), flags, 0o644)
    with open(descriptor, "wb") as file:
        file.write(content)


def _start(connection: Connection, job: dict[str, Any], child: Child) -> Supervisor:
    """Let the program begin; return its supervisor. Raises OSError when the relay can't be started."""
    import _signal as signal  # type: ignore[import-not-found]

    relay = job.get("relay")
    relay_pid = start_relay(relay["port"], relay["target"], (connection, child)) if relay else 0
    supervisor = Supervisor(connection, job["limits"], child)
    supervisor.relay = relay_pid
    supervisor.wake, woken = os.pipe()
    for descriptor in (supervisor.wake, woken):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, wake_up)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    child.begin()
    return supervisor


@unseen
def serve(
    connection: Connection,
    app_dir: str,
    preloaded: bool,  # noqa: FBT001
    child: Child | None,
    kind: bytes,
    body: bytearray,
) -> None:
    """Take one job, whose first frame has come, from there to quit. Raises HarnessError."""
    if kind == b"C":
        report_end(connection, "cancelled")
        return
    if kind != b"J":
        raise HarnessError(f"expected a job, got {kind!r}")
    job = _parsed_job(body)
    refused = "the program's process could not start"
    earlier_s = 0.0
    try:
        if child is not None and child.lives():
            earlier_s = child.cpu_s()
        else:
            child = Child(connection, app_dir, preloaded=preloaded, ahead=False)
    except OSError as error:
        _refuse(connection, f"{refused}: {error}", "processes")
        return
    child.give(len(body).to_bytes(4, "big") + body)
    try:
        complete = _pass_on(connection, job, child, app_dir)
    except OSError as error:
        _refuse(connection, f"an input file could not be written: {error.strerror}", None)
        return
    if not complete:
        report_end(connection, "cancelled")
        return
    connection.nonblocking()
    started = time.monotonic()
    try:
        supervisor = _start(connection, job, child)
    except OSError as error:
        _refuse(connection, f"{refused}: {error}", "processes")
        return
    try:
        connection.put(b"S", b"")
        supervisor.watch()
    except HarnessError:
        supervisor.kill()
        raise
    wall_s = time.monotonic() - started
    ended = supervisor.ended or "exited"
    report_end(connection, ended, status=supervisor.status, wall_s=wall_s, earlier_s=earlier_s)


@unseen
def live(life: Callable[..., None], *given: object) -> NoReturn:
    """Be process 1 of a sandbox, and exit with what came of it; never returns."""
    status = EXIT_BROKEN
    try:
        life(*given)
        status = 0
    except HarnessError as error:
        os.write(2, f"harness: {error}\n".encode())
    except BaseException as error:
        os.write(2, clean(f"harness: {type_name(error)}: {error}\n").encode())
    finally:
        os._exit(status)
