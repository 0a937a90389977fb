"""What goes in and out of a run, as the runner has it: frozen requests and results. No I/O.

What of it goes over the wire is declared in `sandbox.wire`.
"""

from __future__ import annotations

import msgspec

from sandbox.wire.bounds import MAX_COUNT, MAX_FILENAME_CHARS, MAX_SECONDS, NameOrPath
from sandbox.wire.requests import RunOptions, Tightening
from sandbox.wire.run import (
    ControlEvidence,
    Durations,
    EgressRecord,
    LogRecord,
    Outcome,
    ProgramError,
    Receipt,
)

__all__ = [
    "EXIT_STATUS",
    "MAX_COUNT",
    "MAX_FILENAME_CHARS",
    "MAX_SECONDS",
    "ControlEvidence",
    "Durations",
    "EgressRecord",
    "LogRecord",
    "Outcome",
    "ProgramError",
    "Receipt",
    "RunRequest",
    "RunResult",
    "SavedFile",
    "Tightening",
]


EXIT_STATUS: dict[Outcome, int] = {
    Outcome.SUCCEEDED: 0,
    Outcome.FAILED: 1,
    Outcome.NO_RESULT: 3,
    Outcome.TOO_MANY_PROCESSES: 5,
    Outcome.OUTPUT_LIMIT: 6,
    Outcome.KILLED: 7,
    Outcome.TIMED_OUT: 124,
    Outcome.CANCELLED: 130,
    Outcome.OUT_OF_MEMORY: 137,
}


class RunRequest(RunOptions, frozen=True, kw_only=True):
    """One piece of code to run on one message.

    `payload_json` and `message_json` are JSON texts (UTF-8) and travel as bytes: they are parsed in the sandbox only.
    `files` maps a name, which may have directories, to content that `read_file(name)` will find. `policy` is a name, or
    the path of a file.
    `requirements` are the libraries it needs, in the form of PEP 508, and `requires_python` the Pythons, such as
    ">=3.10". `preload` are the modules that a sandbox made ahead of need has imported; None leaves that to the imports
    of the code. `warnings` are for whoever gets the result: what was changed when the
    request was read; None is one that nobody has read yet.

    To make one checks nothing. The runner checks every request before it starts anything.
    """

    code: str
    policy: NameOrPath = "default"
    payload_json: bytes = b"null"
    message_json: bytes = b"{}"
    files: dict[str, bytes] = msgspec.field(default_factory=dict)
    warnings: tuple[str, ...] | None = None


class SavedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file given to `save_file(name, content)`."""

    name: str
    content: bytes


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run gave. `result_json` is valid JSON (UTF-8) exactly when the outcome is `succeeded`."""

    run_id: str
    outcome: Outcome
    explanation: str = ""
    result_json: bytes | None = None
    output_topic: str | None = None
    additional_data_json: bytes | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    logs: tuple[LogRecord, ...] = ()
    files: tuple[SavedFile, ...] = ()
    warnings: tuple[str, ...] = ()
    error: ProgramError | None = None
    exit_code: int | None = None
    signal: str | None = None
    peak_memory_mib: float | None = None
    cpu_s: float | None = None
    durations: Durations = Durations()
    egress: tuple[EgressRecord, ...] = ()
    receipt: Receipt | None = None
