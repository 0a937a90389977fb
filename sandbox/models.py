"""What goes over the wire between clients and the runner: strict, frozen, no I/O."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

__all__ = [
    "ControlEvidence",
    "Durations",
    "EgressRecord",
    "ErrorBody",
    "LogRecord",
    "Outcome",
    "ProgramError",
    "Receipt",
    "RunRequest",
    "RunResult",
    "SavedFile",
    "Tightening",
]


# No run lasts a thousand years: what claims to is not a measurement.
MAX_SECONDS = 3e10
# Whole numbers beyond this are no longer exact everywhere, and no limit of anything.
MAX_COUNT = 2**53 - 1
MAX_FILENAME_CHARS = 255


class Strict(BaseModel):
    """Base of every model: no unknown field, no coercion, no change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Outcome(str, Enum):
    """How a run ended. Only `succeeded` carries a result; `EXIT_STATUS` maps each to a status."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NO_RESULT = "no_result"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    TOO_MANY_PROCESSES = "too_many_processes"
    OUTPUT_LIMIT = "output_limit"
    KILLED = "killed"
    CANCELLED = "cancelled"


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

    `payload_json` and `message_json` are JSON texts (UTF-8) and travel as bytes: they are parsed in
    the sandbox only. `files` maps a flat name to content that `read_file(name)` will find. `requirements` are the
    libraries it needs, in the form of PEP 508, and `requires_python` the Pythons, such as ">=3.10". `preload` are the modules that a sandbox made ahead of need has imported;
    None leaves that to the imports of the code.
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


class ProgramError(Strict):
    """The exception that ended the program; `line`/`column` are the user's own, 1-based."""

    type: str
    message: str
    line: int | None = None
    column: int | None = None
    traceback: str = ""


class LogRecord(Strict):
    """One call of `log(message, level)`; `elapsed_s` counts from the start of the program."""

    level: Literal["debug", "info", "warning", "error"]
    message: str
    elapsed_s: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]


class SavedFile(Strict):
    """One file given to `save_file(name, content)`."""

    name: str
    content: bytes


class ControlEvidence(Strict):
    """One control of the policy: what was asked, what holds it, and what was read back.

    `status` is `proven` (the kernel's own account, read from outside the sandbox, agrees with the
    specification), `fallback` (proven too, but by a weaker named mechanism), or `not_applicable`.
    """

    control: str
    wanted: str
    status: Literal["proven", "fallback", "not_applicable"]
    mechanism: str
    evidence: str


class EgressRecord(Strict):
    """One connection that a program asked the egress proxy for, and what became of it.

    `allowed` says whether the policy let it through; `reason` says in words why it was refused or broke off, and is empty
    when all went well. `host` is printable, and empty when none was asked for; `address` is where it went, if anywhere.
    """

    host: str
    port: int
    allowed: bool
    reason: str = ""
    address: str = ""
    bytes_up: int = 0
    bytes_down: int = 0


class Durations(Strict):
    """Where the time of one run went, in milliseconds.

    `sandbox_ms` is the wait for the sandbox: creating, starting, readying and verifying one, or taking a `warm` one,
    which was made before anybody asked.
    """

    warm: bool = False
    queue_ms: float = 0.0
    prepare_ms: float = 0.0
    environment_ms: float = 0.0
    sandbox_ms: float = 0.0
    create_ms: float = 0.0
    start_ms: float = 0.0
    ready_ms: float = 0.0
    verify_ms: float = 0.0
    program_ms: float = 0.0
    remove_ms: float = 0.0
    total_ms: float = 0.0


class Receipt(Strict):
    """What was enforced during one run, and how it was known.

    `environment` and `lock_hash` name the libraries; None for a run without any.
    """

    run_id: str
    started_at: str
    policy: str
    policy_hash: str
    image: str
    image_digest: str
    environment: str | None = None
    lock_hash: str | None = None
    code_hash: str
    payload_hash: str
    engine: str
    runtime: str
    kernel: str
    controls: tuple[ControlEvidence, ...]
    outcome: Outcome
    durations: Durations


class RunResult(Strict):
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


class ErrorBody(Strict):
    """The one JSON shape of an error: `{"error": {...}}`."""

    code: str
    message: str
    hint: str = ""
    run_id: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
