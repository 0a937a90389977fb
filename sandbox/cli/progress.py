"""Progress on a terminal: a line per step, and a bar where bytes are counted."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from sandbox.cli.colour import marked, wanted
from sandbox.cli.screen import escaped
from sandbox.progress import Progress

SAID = {
    "image": "looking for the image",
    "resolving": "resolving",
    "downloading": "downloading",
    "installing": "installing",
    "storing": "storing",
    "starting": "starting the sandbox",
    "running": "running",
}
MIB = 1 << 20


class Steps:
    """Shows what goes on, on standard error; nothing where that is no terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = sys.stderr.isatty() and not quiet
        self._bar: Any = None
        self._done_bytes = 0
        self._step = ""

    def __call__(self, progress: Progress) -> None:
        """Take one piece of news."""
        if not self._shown:
            return
        if progress.step != self._step:
            self.end()
            self._step = progress.step
            self._line(progress)
        elif progress.total_bytes and self._bar is None:
            self._bar = click.progressbar(
                length=progress.total_bytes,
                label="  ",
                file=sys.stderr,
                show_pos=False,
                color=wanted(os.environ),
                item_show_func=lambda _: self._position(),
            )
            self._bar.__enter__()
        if self._bar is not None and progress.done_bytes is not None:
            step_bytes = min(progress.done_bytes, self._bar.length) - self._done_bytes
            self._done_bytes += step_bytes
            self._bar.update(step_bytes, current_item=progress)

    def _line(self, progress: Progress) -> None:
        what = escaped(progress.text) if progress.text and progress.step not in ("image", "storing") else ""
        marked(f"· {SAID.get(progress.step, escaped(progress.step))}{' ' + what if what else ''}", err=True, dim=True)

    def _position(self) -> str:
        return f"{self._done_bytes / MIB:.1f} of {self._bar.length / MIB:.1f} MiB" if self._bar is not None else ""

    def end(self) -> None:
        """Finish a bar that is still open."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
            self._done_bytes = 0
