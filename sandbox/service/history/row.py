"""What one run is in the history, and the tables that hold it, version by version."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET

from sandbox.wire.answers import KeptOutput, RecordedRun

HISTORY = "history.sqlite"  # in the service's directory
SERVICE_ENDED = "the service ended before the run did"

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
    (
        "ALTER TABLE runs ADD COLUMN output TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE runs ADD COLUMN detached INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX kept_outputs ON runs (number) WHERE output <> ''",
    ),
]


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run. Times are seconds since 1970, `caller` is a user id; None and "" stand for what isn't known (yet).

    `outcome` is that of the program, or the code of the error where the program has none. `payload` is its text, and
    `output` what it told (a JSON object, see `sandbox.service.history.told`), where the policy has them kept.
    `detached` is a run whose result is fetched later.
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
    output: str = ""
    detached: bool = False


class Often(NamedTuple):
    """A kind of runs, and how many there were; `requirements` and `preload` as in their rows."""

    policy: str
    requirements: str
    preload: str
    environment: str
    runs: int


COLUMNS = tuple(field.name for field in fields(RunRow))
# Bounded where they are made, larger than all else of a row, and left out of lists.
LARGE = ("payload", "output")
FLAGS = ("warm", "detached")
Values: TypeAlias = tuple[Any, ...]


def public(row: RunRow, *, whole: bool) -> RecordedRun:
    """Return what a client is told of a run: the `whole`, or what a list has."""
    known = {name: value for name, value in asdict(row).items() if name not in LARGE}
    payload = row.payload if whole and row.payload else UNSET
    output = msgspec.convert(json.loads(row.output), KeptOutput) if whole and row.output else UNSET
    return RecordedRun(**known, payload=payload, output=output)


def row_of(values: Values) -> RunRow:
    """Return the row that has these values, in the order of `COLUMNS`."""
    named = dict(zip(COLUMNS, values, strict=True))
    return RunRow(**{**named, **{name: bool(named[name]) for name in FLAGS}})
