"""What goes in and out of a run, as the runner has it: requests are checked, results are frozen. No I/O.

What of it goes over the wire is declared in `sandbox.wire`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from sandbox.wire.bounds import MAX_COUNT, MAX_FILENAME_CHARS, MAX_SECONDS
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
    "Strict",
    "Tightening",
]


class Strict(BaseModel):
    """Base of every model: no unknown field, no coercion, no change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


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


class Tightening(Strict):
    """Limits of one request; each may only be lower than the policy's. None keeps the policy's."""

    timeout_s: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = None
    memory_mib: Annotated[int, Field(gt=0, le=MAX_COUNT)] | None = None
    cpus: Annotated[float, Field(gt=0, le=MAX_COUNT)] | None = None
    processes: Annotated[int, Field(gt=0, le=MAX_COUNT)] | None = None


class RunRequest(Strict):
    """One piece of code to run on one message.

    `payload_json` and `message_json` are JSON texts (UTF-8) and travel as bytes: they are parsed in the sandbox only.
    `files` maps a flat name to content that `read_file(name)` will find. `requirements` are the libraries it needs, in
    the form of PEP 508, and `requires_python` the Pythons, such as ">=3.10". `preload` are the modules that a sandbox
    made ahead of need has imported; None leaves that to the imports of the code.
    """

    code: str
    filename: Annotated[str, Field(min_length=1, max_length=MAX_FILENAME_CHARS)] = "script.py"
    payload_json: bytes = b"null"
    message_json: bytes = b"{}"
    topic: str = ""
    node_id: str = ""
    policy: str = "default"
    image: Annotated[str, Field(min_length=1)] | None = None
    requirements: tuple[str, ...] = ()
    requires_python: str = ""
    preload: tuple[str, ...] | None = None
    limits: Tightening = Tightening()
    env: dict[str, str] = Field(default_factory=dict)
    secrets: dict[str, SecretStr] = Field(default_factory=dict)
    files: dict[str, bytes] = Field(default_factory=dict)


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
