"""The one thread that writes the history, so that no run waits for the disk.

What comes together is written in one transaction, at most one every `GATHER_S`. A disk that fails fails no run: rows
wait in memory, within a bound, and are tried again every `RETRY_S`.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias

from sandbox.errors import EngineUnavailable
from sandbox.service.history.row import Values

GATHER_S = 0.05
RETRY_S = 5.0
BRIEFLY_S = 0.1
CLOSE_WAITS_S = 10.0
MAX_PENDING = 4_096  # rows, a few MiB

Job: TypeAlias = Callable[[sqlite3.Connection], int]


def damaged(error: sqlite3.DatabaseError) -> bool:
    """Tell whether the file itself is at fault; every other error has a class of its own below `DatabaseError`."""
    return type(error) is sqlite3.DatabaseError


class Writer:
    """Writes rows with one statement. Rows of one run that wait together are written once, as the latest says.

    `commits` counts transactions, `lost` rows that were given up.
    """

    def __init__(self, connection: sqlite3.Connection, statement: str) -> None:
        self.commits = 0
        self.lost = 0
        self._connection = connection
        self._statement = statement
        self._changed = threading.Condition()  # guards all that follows
        self._failure = ""
        self._pending: dict[str, Values] = {}
        self._begun: set[str] = set()  # runs whose beginning was taken, and whose end wasn't yet
        self._jobs: list[tuple[Job, Future[int]]] = []
        self._asked = self._answered = 0
        self._settled = True  # whether the last attempt left nothing to be tried again
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="history", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return how many rows are not written yet."""
        return len(self._pending)

    @property
    def problem(self) -> str:
        """Return why the last attempt failed and what that means, in words; "" when all is well."""
        if not self._failure:
            return ""
        return f"{self._failure}; {len(self._pending)} runs wait to be written, {self.lost} could not be kept"

    def put(self, run_id: str, values: Values, *, last: bool) -> None:
        """Take one row; `last` says that the run is over."""
        with self._changed:
            # The end of a run whose beginning was taken is always taken, or the run would seem to go on for ever. Those
            # are no more than run and wait at once, so memory stays bounded.
            expected = run_id in self._pending or (last and run_id in self._begun)
            if not expected and len(self._pending) >= MAX_PENDING and not self._room():
                self.lost += 1
                return
            self._pending[run_id] = values
            if last:
                self._begun.discard(run_id)
            else:
                self._begun.add(run_id)
            if len(self._pending) == 1:  # with more, the thread knows
                self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Write now; tell whether everything taken so far is in the file."""
        with self._changed:
            self._asked += 1
            ticket = self._asked
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._answered >= ticket or self._stopping, timeout_s)
            return self._answered >= ticket and self._settled

    def do(self, job: Job) -> int:
        """Do something else in the writer's thread and return what it returns; 0 where the file can't be written."""
        return self.begin(job).result()

    def begin(self, job: Job) -> Future[int]:
        """Have it done likewise, and do not wait for it. Raises `EngineUnavailable` once it is closed."""
        future: Future[int] = Future()
        with self._changed:
            if self._stopping:
                raise EngineUnavailable("the history is closed", hint="start the service again")
            self._jobs.append((job, future))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Make one last attempt and end the thread; rows that come later are not kept."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(CLOSE_WAITS_S)

    def _room(self) -> bool:
        """Wait for the thread to take what waits; tell whether it did.

        A burst faster than the disk costs the loop some milliseconds and loses nothing. A disk that hangs costs them
        once, until it goes on: a line in a list is worth less than the time of every run, so those rows are given up.
        """
        if self._failure or self._stopping:
            return False
        self._asked += 1
        self._changed.notify_all()
        taken = self._changed.wait_for(lambda: len(self._pending) < MAX_PENDING, BRIEFLY_S)
        if not taken:
            self._failure = "the disk is too slow"
        return taken

    def _work(self) -> None:
        not_before = 0.0
        stopping = False
        while not stopping:
            with self._changed:
                while not self._due(not_before):
                    self._changed.wait(max(not_before - time.monotonic(), 0) if self._pending else None)
                rows, self._pending = self._pending, {}
                jobs, self._jobs = self._jobs, []
                asked, stopping = self._asked, self._stopping
                self._changed.notify_all()  # there is room
            self._settled = self._write(rows)
            for job, future in jobs:
                future.set_result(self._do(job))
            with self._changed:
                if not self._settled:
                    self._pending = {**rows, **self._pending}
                self._answered = asked
                self._changed.notify_all()
            not_before = time.monotonic() + (GATHER_S if self._settled else RETRY_S)
        self._connection.close()

    def _due(self, not_before: float) -> bool:
        if self._stopping or self._jobs or self._asked > self._answered:
            return True
        return bool(self._pending) and time.monotonic() >= not_before

    def _write(self, rows: dict[str, Values]) -> bool:
        """Write rows in one transaction; tell whether they are done with, written or impossible to write."""
        if not rows:
            return True
        try:
            with self._connection:
                self._connection.executemany(self._statement, rows.values())
        except Exception as error:  # noqa: BLE001 - whatever a row or the disk does, the thread goes on
            may_pass = isinstance(error, sqlite3.OperationalError) or (
                isinstance(error, sqlite3.DatabaseError) and damaged(error)
            )
            if not may_pass and len(rows) > 1:  # one of them can't be written: each is tried alone
                return min(self._write({run_id: values}) for run_id, values in rows.items())
            with self._changed:
                self._failure = f"runs can't be written: {error}"
                self.lost += 0 if may_pass else 1
            return not may_pass
        with self._changed:
            self._failure = ""
            self.commits += 1
        return True

    def _do(self, job: Job) -> int:
        try:
            return job(self._connection)
        except Exception as error:  # noqa: BLE001 - as above
            with self._changed:
                self._failure = f"the file can't be changed: {error}"
            return 0
