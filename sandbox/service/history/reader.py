"""Reading the history, with or without a service that writes it.

Each look has a connection of its own, which threads never share.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandbox.errors import EngineUnavailable
from sandbox.service.history.row import COLUMNS, LARGE, Often, RunRow, row_of

MAX_LISTED = 500
ALL = ", ".join(COLUMNS)
LISTED = ", ".join("''" if name in LARGE else name for name in COLUMNS)


class Reader:
    """The file, as it is on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def get(self, run_id: str, caller: int | None = None) -> RunRow | None:
        """Return one run, and for a caller only one of its own; None where there is none."""
        found = self._select(ALL, {"run_id = ?": run_id, "caller = ?": caller}, 1)
        return found[0] if found else None

    def list(
        self,
        caller: int | None = None,
        node: str | None = None,
        outcome: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> tuple[RunRow, ...]:
        """Return runs, newest first, at most 500, without payload and output.

        `before` is the run id that the page before ended with.
        """
        older = "number < (SELECT number FROM runs WHERE run_id = ?)"
        wanted: dict[str, object] = {"caller = ?": caller, "node_id = ?": node, "outcome = ?": outcome, older: before}
        return self._select(LISTED, wanted, min(limit, MAX_LISTED))

    def often(self, limit: int, *, since: float, least: int = 3) -> tuple[Often, ...]:
        """Return the kinds of runs that were asked for at least `least` times since then, most often first."""
        sql = (
            "SELECT policy, requirements, preload, max(environment), count(*) FROM runs WHERE state = 'ended' AND"
            " sandbox_ms IS NOT NULL AND received > ? GROUP BY policy, requirements, preload HAVING count(*) >= ? ORDER"
            " BY count(*) DESC LIMIT ?"
        )
        return tuple(Often(*row) for row in self._read(sql, (since, least, limit)))

    def _select(self, columns: str, wanted: dict[str, object], limit: int) -> tuple[RunRow, ...]:
        conditions = {condition: value for condition, value in wanted.items() if value is not None}
        where = " AND ".join(["1", *conditions])
        sql = f"SELECT {columns} FROM runs WHERE {where} ORDER BY number DESC LIMIT ?"  # noqa: S608 - names of this module
        return tuple(row_of(values) for values in self._read(sql, (*conditions.values(), max(limit, 0))))

    def _read(self, sql: str, values: tuple[object, ...]) -> Sequence[Any]:
        try:
            # WAL lets it read while the writer writes.
            with contextlib.closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)) as connection:
                return connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise EngineUnavailable(
                f"the history {self._path} can't be read: {error}",
                hint=(
                    "start the service: it brings an old file to its own version, and begins a new one where this one"
                    " is damaged"
                ),
            ) from None
