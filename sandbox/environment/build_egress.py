"""What the builds of environments asked the egress proxy for.

Each request has one file with every decision, summed up by where it went.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.errors import BuildFailed

if TYPE_CHECKING:
    from sandbox.models import EgressRecord

__all__ = ["note", "read", "summed"]

Row = dict[str, Any]
MAX_ROWS = 200
COUNTED = ("connections", "bytes_up", "bytes_down")


def summed(rows: Iterable[Row], step: str, records: Iterable[EgressRecord], *, now: float) -> list[Row]:
    """Return `rows` with the records of one step added: those that say the same are one row. The newest 200 are kept.

    A row is `{"step", "host", "port", "allowed", "reason", "address", "proxy", "connections", "bytes_up",
    "bytes_down", "last"}`; `last` is in seconds since 1970, `proxy` the one of this host's network, or empty.
    """
    found = {_same(row): dict(row) for row in rows}
    for record in records:
        row = {
            "step": step,
            "host": record.host,
            "port": record.port,
            "allowed": record.allowed,
            "reason": record.reason,
            "address": record.address,
            "proxy": record.proxy,
            "connections": 1,
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
        }
        before = found.pop(_same(row), {})  # what came last stands last
        found[_same(row)] = {**row, **{name: row[name] + before.get(name, 0) for name in COUNTED}, "last": now}
    return list(found.values())[-MAX_ROWS:]


def note(path: Path, step: str, records: Iterable[EgressRecord]) -> None:
    """Add the records of one step to a file, whoever else does so at this moment. Raises `BuildFailed`."""
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            rows = summed(_parsed(file.read()), step, records, now=time.time())
            file.seek(0)
            file.truncate()
            json.dump(rows, file)
    except OSError as error:
        raise BuildFailed(f"{path} can't be written: {error.strerror}", hint="free some space there") from None


def read(path: Path) -> list[Row]:
    """Return the rows of a file; none for one that isn't there or is damaged."""
    try:
        return _parsed(path.read_text())
    except OSError:
        return []


def _parsed(text: str) -> list[Row]:
    try:
        rows = [{"proxy": "", **row} for row in json.loads(text)]  # earlier versions said nothing of it
        return [row for row in rows if _same(row)]
    except (ValueError, TypeError, KeyError):
        return []


def _same(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("step", "host", "port", "allowed", "reason", "address", "proxy"))
