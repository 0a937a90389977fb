"""What ran: one row per run in an SQLite file, bounded in age and size.

A payload, and what a run told (traceback, log records, the ends of its output), are in it where the policy asks for
that; code (but for the lines that a traceback quotes), results and secrets never are.

`began` and `ended` return at once, whatever the disk does (`sandbox.service.history.writer`). Everything else waits for
the disk:
call it in a worker thread.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sandbox.errors import EngineUnavailable, clipped
from sandbox.places import private_directory
from sandbox.service.history.fair_share import Piece, going
from sandbox.service.history.reader import Reader
from sandbox.service.history.row import COLUMNS, LARGE, MIGRATIONS, SERVICE_ENDED, RunRow, Values
from sandbox.service.history.writer import Writer, damaged

READ_WAITS_S = 1.0
FLUSH_WAITS_S = 10.0
WAL_BYTES = 4 << 20
# What a disk that hangs keeps waiting in memory is bounded: beyond so many rows, they come without payload and output.
WAITING_WHOLE = 256
# Pruned each time that so much of what is allowed came in, and not only now and then.
PRUNED_AFTER = 8


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long runs stay in the history, and how large its file may get. Runs that go on always stay.

    Of that, `output_bytes` are for what runs told, which is kept for `output_age_s`.
    """

    age_s: float
    size_bytes: int
    output_age_s: float = math.inf
    output_bytes: int = 1 << 40


# The row of a run that ended is final.
UPSERT = f"""INSERT INTO runs ({", ".join(COLUMNS)}) VALUES ({", ".join("?" * len(COLUMNS))})
    ON CONFLICT (run_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COLUMNS)}
    WHERE runs.state <> 'ended'"""  # noqa: S608 - names of this module


class RunHistory(Reader):
    """The file and its writer. Opening brings it to this version's schema; `warning` tells of a file that was damaged.

    Raises `EngineUnavailable` where the file can't be opened or belongs to a newer version.
    """

    def __init__(self, path: Path, limits: Retention) -> None:
        super().__init__(path)
        self._limits = limits
        self._output_bytes = 0  # that came since it was pruned last
        self.warning = ""
        private_directory(self._path.parent)
        try:
            connection = self._open()
        except (sqlite3.Error, OSError) as error:
            raise EngineUnavailable(
                f"the history {path} can't be opened: {error}",
                hint="free some space there, or correct its owner and mode",
            ) from None
        self._writer = Writer(connection, UPSERT)

    @property
    def problem(self) -> str:
        """Return why runs are not written at present, in words for health; "" when all is well."""
        return self._writer.problem

    @property
    def commits(self) -> int:
        """Return how many transactions wrote rows."""
        return self._writer.commits

    @property
    def lost(self) -> int:
        """Return how many runs are missing, or not told to their end, because they could not be written."""
        return self._writer.lost

    def began(self, row: RunRow) -> None:
        """Keep a run that was received; once more, with a new state, replaces what was kept. Returns at once."""
        self._writer.put(row.run_id, self._values(row), last=False)

    def ended(self, row: RunRow) -> None:
        """Keep all that is known of a run that is over: the whole row, so that it needs no earlier one.

        Returns at once.
        """
        self._writer.put(row.run_id, self._values(replace(row, state="ended")), last=True)
        self._output_bytes += len(row.output)
        if self._output_bytes > self._limits.output_bytes / PRUNED_AFTER:
            self._output_bytes = 0
            with contextlib.suppress(EngineUnavailable):
                self._writer.begin(lambda connection: _prune_outputs(connection, self._limits, time.time()))

    def flush(self, timeout_s: float = FLUSH_WAITS_S) -> bool:
        """Write now what was kept so far; tell whether it is in the file."""
        return self._writer.flush(timeout_s)

    def get(self, run_id: str, caller: int | None = None) -> RunRow | None:
        """Return one run as `Reader` does, also one that has just ended."""
        self.flush(READ_WAITS_S)
        return super().get(run_id, caller)

    def list(
        self,
        caller: int | None = None,
        node: str | None = None,
        outcome: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> tuple[RunRow, ...]:
        """Return runs as `Reader` does, also those that have just ended."""
        self.flush(READ_WAITS_S)
        return super().list(caller, node, outcome, before, limit)

    def interrupted(self, now: float | None = None) -> int:
        """End every run that an earlier process left open, as killed; return how many. For the start of the service."""

        def end_all(connection: sqlite3.Connection) -> int:
            with connection:
                return connection.execute(
                    "UPDATE runs SET state = 'ended', outcome = 'killed', ended = ?, explanation = ? WHERE state <>"
                    " 'ended'",
                    (_now(now), SERVICE_ENDED),
                ).rowcount

        return self._writer.do(end_all)

    def prune(self, now: float | None = None) -> int:
        """Remove what is older or, oldest first, more than the limits allow, and shrink the file; return how many."""
        return self._writer.do(lambda connection: _prune(connection, self._limits, _now(now)))

    def close(self) -> None:
        """Write what was kept, and end the thread. A second call does nothing."""
        self._writer.close()

    def _values(self, row: RunRow) -> Values:
        if self._writer.waiting >= WAITING_WHOLE:
            row = replace(row, payload="", output="")
        return tuple(_storable(name, getattr(row, name)) for name in COLUMNS)

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.DatabaseError as error:
            if not damaged(error):
                raise
        moved = self._path.with_name(f"{self._path.stem}-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.damaged")
        for ending in ("", "-wal", "-shm"):  # together: with them, what is left can still be looked at
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._path}{ending}").rename(f"{moved}{ending}")
        self.warning = f"the history was damaged: it is kept as {moved}, and a new one has begun"
        return _connect(self._path)


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file for the writer, make it if need be, and bring it to this version's schema."""
    path.touch(mode=0o600)  # SQLite gives its own files beside it the same mode
    path.chmod(0o600)
    # Made here, so that an error reaches the caller; from then on the writer's thread alone uses it.
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        if (version := _number(connection, "PRAGMA user_version")) > len(MIGRATIONS):
            raise EngineUnavailable(
                f"the history {path} was written by a newer version (its schema is {version}, this one knows"
                f" {len(MIGRATIONS)})",
                hint="install that version again, or move the file away to begin a new one",
            )
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # in a file with content it would change nothing
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last runs, never the file
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        if version < len(MIGRATIONS):
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for statements in MIGRATIONS[_number(connection, "PRAGMA user_version") :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _prune_outputs(connection: sqlite3.Connection, limits: Retention, now: float) -> int:
    """Forget what runs told that is too old or beyond the limit, and return of how many runs.

    Beyond the limit, those who keep most lose theirs.
    """
    with connection:
        old = connection.execute(
            "UPDATE runs SET output = '' WHERE output <> '' AND received < ?", (now - limits.output_age_s,)
        ).rowcount
        kept = connection.execute("SELECT number, caller, length(output) FROM runs WHERE output <> '' ORDER BY number")
        gone = going((Piece(*row) for row in kept), limits.output_bytes)
        connection.executemany("UPDATE runs SET output = '' WHERE number = ?", [(number,) for number in gone])
    return old + len(gone)


def _prune(connection: sqlite3.Connection, limits: Retention, now: float) -> int:
    _prune_outputs(connection, limits, now)
    with connection:
        removed = connection.execute(
            "DELETE FROM runs WHERE state = 'ended' AND received < ?", (now - limits.age_s,)
        ).rowcount
    while (size_bytes := _shrink(connection)) > limits.size_bytes:
        rows = _number(connection, "SELECT count(*) FROM runs WHERE state = 'ended'")
        oldest = "SELECT number FROM runs WHERE state = 'ended' ORDER BY number LIMIT ?"
        share = math.ceil(rows * (size_bytes - limits.size_bytes) / size_bytes)
        with connection:
            deleted = connection.execute(f"DELETE FROM runs WHERE number IN ({oldest})", (share,)).rowcount  # noqa: S608 - a constant
        removed += deleted
        if not deleted:
            break
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return removed


def _shrink(connection: sqlite3.Connection) -> int:
    """Give free pages back and return the size of the file, in bytes."""
    connection.executescript("PRAGMA incremental_vacuum")  # execute() would stop after the first page
    return _number(connection, "PRAGMA page_count") * _number(connection, "PRAGMA page_size")


def _number(connection: sqlite3.Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])


def _storable(name: str, value: Any) -> Any:
    """Return text that SQLite takes and that is bounded; what isn't text stays."""
    if not isinstance(value, str):
        return value
    text = value.encode(errors="replace").decode()
    return text if name in LARGE else clipped(text)


def _now(now: float | None) -> float:
    return time.time() if now is None else now
