"""Carries out `sandbox run` through the service, and shows its events as if this process had run the program.

Imports little: a run through a warm service takes no longer than starting Python and asking.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.cli.answer import Answer, answer_of, answer_of_stream, fields_of
from sandbox.cli.versions import tell_version
from sandbox.client import Client, NoService, bytes_of, run_body
from sandbox.client.reading import object_of, unreadable
from sandbox.client.told import Told
from sandbox.errors import EngineUnavailable, SandboxError
from sandbox.places import named_socket
from sandbox.progress import Progress

if TYPE_CHECKING:
    from sandbox.cli.output import Output

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CANCEL_TIMEOUT_S = 5.0
KNOWN = Progress.__dataclass_fields__.keys()  # a later version may tell more
# At a path that is too long for a socket, no service can be.
NOBODY_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED, errno.ENAMETOOLONG}


def service_for(options: dict[str, Any], policy_dirs: list[Path]) -> Client | None:
    """Return a connected client of the service that a run can go to; None when this process carries it out.

    A service knows policies by name, those that it has itself. Raises `NoService` for one that is named and can't be
    had, and for a socket of ours that does not work; `NotFound` or `InvalidRequest` for a configuration that can't be
    read.
    """
    if options["no_service"] or policy_dirs or is_path(options["policy"]):
        return None
    named = named_socket(os.environ)
    client = Client(named, on_other_version=tell_version)
    try:
        listener = client.connect()
    except NoService as error:
        if not named and (error.reason in NOBODY_THERE or not is_ours(client.path)):
            return None
        error.hint += "; or run it in this process, without the service: --no-service"
        raise
    # In a directory that others can write, somebody else could listen where our service would. Who names a socket
    # trusts it.
    if listener in (0, os.geteuid()) or named:
        return client
    client.close()
    return None


def is_path(policy: str) -> bool:
    """Tell whether a policy is given as the path of its file."""
    return "/" in policy or policy.endswith(".toml")


def is_ours(path: str) -> bool:
    """Tell whether a socket belongs to this user, as far as it can be seen."""
    try:
        return os.lstat(path).st_uid == os.geteuid()
    except OSError:
        return False


def carry_out(client: Client, fields: dict[str, Any], payload_json: bytes, output: Output) -> Answer:
    """Run one request on the service; Ctrl-C and SIGTERM cancel it. Raises a `SandboxError`."""
    # Secrets pass through this process: it must not be found in a core dump.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    going = Going(client)
    output.on_gone = going.cancel
    with going.cancelled_by_signals():
        return going.follow(run_body(fields["code"], fields, payload_json=payload_json), output)


class Going:
    """A run that the service carries out, and the way to end it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._told = Told()
        self._cancelled = False

    def follow(self, body: bytes, output: Output) -> Answer:
        """Pass on what happens until the answer is there. Raises a `SandboxError`."""
        try:
            with contextlib.closing(self._client.lines("/v1/runs", body)) as lines:
                for line in lines:
                    fields = fields_of(line)
                    if bytes(fields.get("event", b"")) == b'"result"':
                        return answer_of_stream(fields, self._told)
                    event = object_of(line)
                    self._told.take(event)
                    try:
                        self._show(event.pop("event"), event, output)
                    except (LookupError, TypeError, ValueError, AttributeError) as error:
                        raise unreadable(error) from None
        except EngineUnavailable:
            if not self._cancelled or self._told.run_id:
                raise
        if self._cancelled and not self._told.run_id:
            return cancelled_before_its_turn()
        raise EngineUnavailable("the service went away before the run ended", hint="look at its log, then try again")

    def _show(self, kind: str, event: dict[str, Any], output: Output) -> None:
        if kind == "progress":
            output.progress(Progress(**{name: event[name] for name in KNOWN & event.keys()}))
        elif kind == "log":
            output.log(event["level"], event["text"])
        elif kind in ("stdout", "stderr"):
            output.live(kind, bytes_of(event))
        elif kind == "accepted" and self._cancelled:  # while the request was on its way
            self.cancel()

    def cancel(self) -> None:
        """Ask for the end of the run; its answer still comes, unless it waits for its turn: then going away ends it.

        For signal handlers and other threads: it has its own connection.
        """
        self._cancelled = True
        if not self._told.run_id:
            self._client.break_off()
        else:
            with contextlib.suppress(SandboxError), Client(self._client.path, timeout_s=CANCEL_TIMEOUT_S) as other:
                other.cancel(self._told.run_id)

    @contextlib.contextmanager
    def cancelled_by_signals(self) -> Iterator[None]:
        """Have the first Ctrl-C or SIGTERM cancel the run; the next one ends this process, should the service hang.

        A thread does it. Python's own handlers run between two steps of the main thread: a signal that comes just
        before it begins to wait for the service would be noticed at the next event only
        (https://peps.python.org/pep-0475/).
        """
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        waiting = threading.Thread(target=self._wait_for_signals, args=(told,), daemon=True)
        handlers = {number: signal.signal(number, lambda *_: None) for number in NUMBERS}
        before = signal.set_wakeup_fd(tell)
        waiting.start()
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(tell)
            waiting.join()

    def _wait_for_signals(self, told: int) -> None:
        with open(told, "rb", buffering=0) as numbers:
            if numbers.read(1):
                self.cancel()
            if number := numbers.read(1):
                os._exit(128 + number[0])


def cancelled_before_its_turn() -> Answer:
    """Return the answer of a run that was ended while it waited for its turn, which the service gives to nobody."""
    from sandbox.models import Outcome, RunResult

    return answer_of(
        RunResult(
            run_id="", outcome=Outcome.CANCELLED, explanation="the run was cancelled while it waited for its turn"
        )
    )
