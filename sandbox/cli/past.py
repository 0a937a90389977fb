"""Past runs, from the service, or from its history's file if no service runs and the user may read the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sandbox.cli.handover import leave_root
from sandbox.cli.remote import NOBODY_THERE
from sandbox.cli.versions import tell_version
from sandbox.client import Client, NoService
from sandbox.errors import NotFound

TIMEOUT_S = 30.0


class Past(Protocol):
    """Who knows what ran."""

    def runs(self, **filters: str | int) -> Sequence[Mapping[str, Any]]:
        """Return runs, newest first."""

    def recorded(self, run_id: str) -> Mapping[str, Any]:
        """Return what is known of one. Raises `NotFound`."""


class OnDisk:
    """The history's file. A run that it has as going on has ended with its service, where none uses the directory."""

    def __init__(self, directory: Path) -> None:
        from sandbox.service.history.reader import Reader
        from sandbox.service.history.row import HISTORY

        self._directory = directory
        self._reader = Reader(directory / HISTORY)

    def runs(self, **filters: Any) -> Sequence[Mapping[str, Any]]:
        """Return runs, newest first."""
        from sandbox.service.history.record import ending

        ending(filters.get("outcome"))
        return [self._public(row, whole=False) for row in self._reader.list(**filters)]

    def recorded(self, run_id: str) -> Mapping[str, Any]:
        """Return what is known of one. Raises `NotFound`."""
        row = self._reader.get(run_id)
        if row is None:
            raise NotFound(f"there is no run {run_id[:64]!r}", hint="sandbox runs lists them")
        return self._public(row, whole=True)

    def _public(self, row: Any, *, whole: bool) -> Mapping[str, Any]:
        from msgspec import to_builtins

        from sandbox.service.history.row import SERVICE_ENDED, public
        from sandbox.service.sole_service import is_served

        if row.state != "ended" and not is_served(self._directory):
            row = replace(row, state="ended", outcome="killed", explanation=SERVICE_ENDED)
        return to_builtins(public(row, whole=whole))  # type: ignore[no-any-return]


@contextlib.contextmanager
def past(*, timeout_s: float = TIMEOUT_S, on_other_version: Callable[[str], None] = tell_version) -> Iterator[Past]:
    """Yield the source of past runs: the service, or the history's file. Root gets that of the user `sandbox`.

    Raises `NoService` if there is neither, or if a named service is not there.
    """
    leave_root(quiet=True)
    with Client(timeout_s=timeout_s, on_other_version=on_other_version) as client:
        try:
            client.connect()
        except NoService as error:
            found = None if os.environ.get("SANDBOX_SOCKET") or error.reason not in NOBODY_THERE else on_disk()
            if found is None:
                raise
            yield found
            return
        yield client


def on_disk() -> OnDisk | None:
    """Return the history of this user's service, where there is one that this user may read."""
    from sandbox.service.config.load import load_config
    from sandbox.service.history.row import HISTORY

    directory = Path(load_config(None, os.environ).config.history.directory)
    return OnDisk(directory) if os.access(directory / HISTORY, os.R_OK) else None
