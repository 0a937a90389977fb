"""Where a program's live output and its result go.

Live output is written by a thread of its own: a reader that stops reading (`| less`) must not stop the clock, the
watchdog or Ctrl-C. What waits to be written is bounded by `limits.output_mib`, which the runner counts.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from sandbox.cli.colour import marked
from sandbox.cli.progress import Steps
from sandbox.cli.screen import Screen, escaped, escaped_json
from sandbox.printable import printable

if TYPE_CHECKING:
    from sandbox.cli.answer import Answer


class Descriptor:
    """A stream that writes everything at once and keeps nothing back, so that no flush can block at the end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""


class Output:
    """Live output, progress and the result of one run.

    `on_gone` is called, in the writing thread, when the reader of standard output went away; `gone` tells so later,
    and `finished` that the result was shown.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._json = as_json
        self._quiet = quiet
        self._out = Screen(Descriptor(1), terminal=sys.stdout.isatty())
        self._err = Screen(Descriptor(2), terminal=sys.stderr.isatty())
        self._waiting: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self.progress = Steps(quiet=quiet)
        self._failure: OSError | None = None
        self.gone = False
        self.finished = False
        self.on_gone: Callable[[], None] = lambda: None

    def live(self, kind: str, data: bytes) -> None:
        """Take a piece of output, to be written as soon as the reader takes it; never blocks."""
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_all, daemon=True)
            self._writer.start()
        self._waiting.put((kind, data))

    def log(self, level: str, text: str) -> None:
        """Take a log record of the program likewise."""
        self.live("log", f"[{level}] {text}".encode(errors="backslashreplace"))

    def _write_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self.gone:
                continue
            try:
                self._write(*item)
            except OSError as error:
                self.gone = True
                self._failure = None if isinstance(error, BrokenPipeError) else error
                self.on_gone()

    def _write(self, kind: str, data: bytes) -> None:
        """Write a piece. With --json, stdout is the document's alone: the program prints to stderr."""
        if kind == "log":
            if not self._quiet:
                self._err.end_line()
                self._err.write(data + b"\n")
        elif kind == "stdout" and not self._json:
            self._out.write(data)
        elif not (self._json and self._quiet):
            self._err.write(data)

    def settle(self, *, timeout_s: float | None) -> bool:
        """Wait until everything is written, at most `timeout_s` (None: as long as the reader takes).

        Returns whether it was. Raises OSError when the output could not be written.
        """
        if self._writer is not None:
            self._waiting.put(None)
            self._writer.join(timeout_s)
            if self._writer.is_alive():
                return False
            self._writer = None
        if self._failure is not None:
            raise self._failure
        return True

    def finish(self, answer: Answer) -> None:
        """Print the result, or why there is none."""
        from sandbox.cli.document import readable

        self.finished = True
        if self._json:
            document = answer.document
            if sys.stdout.isatty():
                document = escaped_json(document.decode()).encode()
            self._out.write_as_is(document + b"\n")
            return
        self._out.end()
        self._err.end()
        if (result_json := answer.result_json) is not None:
            self._out.write(readable(result_json) + b"\n")
        self._explain(answer)

    def _explain(self, answer: Answer) -> None:
        if answer.error is not None and answer.error.traceback:
            click.echo(escaped(answer.error.traceback.rstrip("\n")), err=True)
        for warning in () if self._quiet else answer.warnings:
            click.echo(f"sandbox: warning: {printable(warning)}", err=True)
        if answer.explanation:
            marked(f"sandbox: {answer.outcome.value}: ", err=True, nl=False, fg="red")
            click.echo(printable(answer.explanation), err=True)
        elif sys.stderr.isatty() and not self._quiet and answer.receipt is not None:
            controls = answer.receipt.controls
            fallback = sum(control.status == "fallback" for control in controls)
            note = f", {fallback} by a fallback" if fallback else ""
            total_s = answer.durations.total_ms / 1000
            marked(f"· succeeded in {total_s:.2f} s, {len(controls)} controls proven{note}", err=True, dim=True)


def reader_gone() -> None:
    """Point standard output at nothing, so that Python's own flush at exit does not complain."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
