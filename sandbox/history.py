"""What ran: one row per run in an SQLite file, bounded in age and size.

A payload is in it where the policy asks for that; code, output and secrets never are.

`began` and `ended` return at once, whatever the disk does (`sandbox.history_writer`). Everything else waits for the disk:
call it in a worker thread.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sandbox.errors import EngineUnavailable, clipped
from sandbox.history_writer import Values, Writer, damaged
from sandbox.places import private_directory

READ_WAITS_S = 1.0
FLUSH_WAITS_S = 10.0
MAX_LISTED = 500
WAL_BYTES = 4 << 20

# Each brings the file from one version of the schema to the next; `PRAGMA user_version` counts those that were applied.
# One that was released never changes: add another.
MIGRATIONS: list[tuple[str, ...]] = [
    (
        """CREATE TABLE runs (
            number INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, caller INTEGER NOT NULL, caller_name TEXT NOT NULL,
            received REAL NOT NULL, state TEXT NOT NULL, node_id TEXT NOT NULL, policy TEXT NOT NULL,
            policy_hash TEXT NOT NULL, image TEXT NOT NULL, environment TEXT NOT NULL, requirements TEXT NOT NULL,
            code_hash TEXT NOT NULL, outcome TEXT NOT NULL, explanation TEXT NOT NULL, started REAL, ended REAL,
            queue_ms REAL, environment_ms REAL, sandbox_ms REAL, program_ms REAL, total_ms REAL, warm INTEGER NOT NULL,
            peak_memory_mib REAL, cpu_s REAL, payload_bytes INTEGER NOT NULL, result_bytes INTEGER NOT NULL,
            output_bytes INTEGER NOT NULL, files_bytes INTEGER NOT NULL
        )""",
        "CREATE INDEX runs_of_caller ON runs (caller, number)",
        "CREATE INDEX runs_of_node ON runs (node_id, number)",
        "CREATE INDEX open_runs ON runs (number) WHERE state <> 'ended'",
    ),
    ("ALTER TABLE runs ADD COLUMN preload TEXT NOT NULL DEFAULT ''",),
    ("ALTER TABLE runs ADD COLUMN payload TEXT NOT NULL DEFAULT ''",),
]


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long runs stay in the history, and how large its file may get. Runs that go on always stay."""

    age_s: float
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run. Times are seconds since 1970, `caller` is a user id; None and "" stand for what isn't known (yet).

    `outcome` is that of the program, or the code of the error where the program has none. `payload` is its text, where the
    policy has it kept.
    """

    run_id: str
    caller: int
    caller_name: str
    received: float
    state: Literal["queued", "running", "ended"] = "queued"
    node_id: str = ""
    policy: str = ""
    policy_hash: str = ""
    image: str = ""
    environment: str = ""
    requirements: str = ""
    preload: str = ""
    code_hash: str = ""
    outcome: str = ""
    explanation: str = ""
    started: float | None = None
    ended: float | None = None
    queue_ms: float | None = None
    environment_ms: float | None = None
    sandbox_ms: float | None = None
    program_ms: float | None = None
    total_ms: float | None = None
    warm: bool = False
    peak_memory_mib: float | None = None
    cpu_s: float | None = None
    payload_bytes: int = 0
    payload: str = ""
    result_bytes: int = 0
    output_bytes: int = 0
    files_bytes: int = 0


class Often(NamedTuple):
    """A kind of runs, and how many there were; `requirements` and `preload` as in their rows."""

    policy: str
    requirements: str
    preload: str
    environment: str
    runs: int


COLUMNS = tuple(field.name for field in fields(Row))
SELECT = f"SELECT {', '.join(COLUMNS)} FROM runs"  # noqa: S608 - names of this module
# The row of a run that ended is final.
UPSERT = f"""INSERT INTO runs ({", ".join(COLUMNS)}) VALUES ({", ".join("?" * len(COLUMNS))})
    ON CONFLICT (run_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COLUMNS)}
    WHERE runs.state <> 'ended'"""  # noqa: S608 - names of this module


class History:
    """The file and its writer. Opening brings it to this version's schema; `warning` tells of a file that was damaged.

    Raises `EngineUnavailable` where the file can't be opened or belongs to a newer version.
    """

    def __init__(self, path: Path, limits: Retention) -> None:
        self._path = path.absolute()
        self._limits = limits
        self.warning = ""
        private_directory(self._path.parent)
        try:
            connection = self._open()
        except (sqlite3.Error, OSError) as error:
            raise EngineUnavailable(
                f"the history {path} can't be opened: {error}", hint="free some space there, or mend its owner and mode"
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

    def began(self, row: Row) -> None:
        """Keep a run that was received; once more, with a new state, replaces what was kept. Returns at once."""
        self._writer.put(row.run_id, _values(row), last=False)

    def ended(self, row: Row) -> None:
        """Keep all that is known of a run that is over: the whole row, so that it needs no earlier one. Returns at once."""
        self._writer.put(row.run_id, _values(replace(row, state="ended")), last=True)

    def flush(self, timeout_s: float = FLUSH_WAITS_S) -> bool:
        """Write now what was kept so far; tell whether it is in the file."""
        return self._writer.flush(timeout_s)

    def get(self, run_id: str, caller: int | None = None) -> Row | None:
        """Return one run, and for a caller only one of its own; None where there is none."""
        found = self._select({"run_id = ?": run_id, "caller = ?": caller}, 1)
        return found[0] if found else None

    def list(
        self,
        caller: int | None = None,
        node: str | None = None,
        outcome: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> tuple[Row, ...]:
        """Return runs, newest first, at most 500. `before` is the run id that the page before ended with."""
        older = "number < (SELECT number FROM runs WHERE run_id = ?)"
        return self._select(
            {"caller = ?": caller, "node_id = ?": node, "outcome = ?": outcome, older: before}, min(limit, MAX_LISTED)
        )

    def often(self, limit: int, *, since: float, least: int = 3) -> tuple[Often, ...]:
        """Return the kinds of runs that were asked for most often since then, `least` times at least, most often first."""
        sql = (
            "SELECT policy, requirements, preload, max(environment), count(*) FROM runs WHERE state = 'ended' AND sandbox_ms IS NOT NULL"
            " AND received > ? GROUP BY policy, requirements, preload HAVING count(*) >= ? ORDER BY count(*) DESC LIMIT ?"
        )
        return tuple(Often(*row) for row in self._read(sql, (since, least, limit)))

    def interrupted(self, now: float | None = None) -> int:
        """End every run that an earlier process left open, as killed; return how many. For the start of the service."""

        def end_all(connection: sqlite3.Connection) -> int:
            with connection:
                return connection.execute(
                    "UPDATE runs SET state = 'ended', outcome = 'killed', ended = ?, explanation = ? WHERE state <> 'ended'",
                    (_now(now), "the service ended before the run did"),
                ).rowcount

        return self._writer.do(end_all)

    def prune(self, now: float | None = None) -> int:
        """Remove what is older or, oldest first, more than the limits allow, and shrink the file; return how many."""
        return self._writer.do(lambda connection: _prune(connection, self._limits, _now(now)))

    def close(self) -> None:
        """Write what was kept, and end the thread. A second call does nothing."""
        self._writer.close()

    def _select(self, wanted: dict[str, object], limit: int) -> tuple[Row, ...]:
        conditions = {condition: value for condition, value in wanted.items() if value is not None}
        where = " AND ".join(["1", *conditions])
        self.flush(READ_WAITS_S)  # who asks finds the run that has just ended
        sql = f"{SELECT} WHERE {where} ORDER BY number DESC LIMIT ?"
        return tuple(_row(values) for values in self._read(sql, (*conditions.values(), max(limit, 0))))

    def _read(self, sql: str, values: tuple[object, ...]) -> Sequence[Any]:
        try:
            # A connection of its own for each look: none is ever shared between threads, and WAL lets it read while
            # the writer writes.
            with contextlib.closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)) as connection:
                return connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise EngineUnavailable(
                f"the history {self._path} can't be read: {error}",
                hint="restart the service: it begins a new file where this one is damaged",
            ) from None

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
                f"the history {path} was written by a newer version (its schema is {version}, this one knows {len(MIGRATIONS)})",
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


def _prune(connection: sqlite3.Connection, limits: Retention, now: float) -> int:
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


def _values(row: Row) -> Values:
    return tuple(_storable(getattr(row, name)) for name in COLUMNS)


def _storable(value: Any) -> Any:
    """Return text that SQLite takes and that is bounded; what isn't text stays."""
    return clipped(value.encode(errors="replace").decode()) if isinstance(value, str) else value


def _row(values: Values) -> Row:
    named = dict(zip(COLUMNS, values, strict=True))
    return Row(**{**named, "warm": bool(named["warm"])})


def _now(now: float | None) -> float:
    return time.time() if now is None else now
