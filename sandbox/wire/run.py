"""What a run gave: its outcome, its output, its files, and the receipt of what was enforced."""

from __future__ import annotations

from enum import Enum
from typing import Literal

from msgspec import Raw, field

from sandbox.wire.bounds import Elapsed
from sandbox.wire.given import Given


class Outcome(str, Enum):
    """How a run ended. Only `succeeded` carries a result."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NO_RESULT = "no_result"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    TOO_MANY_PROCESSES = "too_many_processes"
    OUTPUT_LIMIT = "output_limit"
    KILLED = "killed"
    CANCELLED = "cancelled"


class ProgramError(Given, frozen=True, kw_only=True):
    """The exception that ended the program; `line`/`column` are the user's own, 1-based."""

    type: str
    message: str
    line: int | None = None
    column: int | None = None
    traceback: str = ""


class LogRecord(Given, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call of `log(message, level)`; `elapsed_s` counts from the start of the program."""

    level: Literal["debug", "info", "warning", "error"]
    message: str
    elapsed_s: Elapsed


class NamedFile(Given, frozen=True, kw_only=True):
    """A file that a run saved, by its name."""

    name: str
    size_bytes: int


class FileDocument(NamedFile, frozen=True, kw_only=True):
    """The same with its content, which is base64 on the wire."""

    content: bytes = field(name="content_base64")


class ControlEvidence(Given, frozen=True, kw_only=True):
    """One control of the policy: what was asked, what holds it, and what was read back.

    `status` is `proven` (the kernel's own account, read from outside the sandbox, agrees with the
    specification), `fallback` (proven too, but by a weaker named mechanism), or `not_applicable`.
    """

    control: str
    wanted: str
    status: Literal["proven", "fallback", "not_applicable"]
    mechanism: str
    evidence: str


class EgressRecord(Given, frozen=True, kw_only=True):
    """One connection that a program asked the egress proxy for, and what became of it.

    `allowed` says whether the policy let it through; `reason` says in words why it was refused or broke off, and is
    empty when all went well. `host` is printable, and empty when none was asked for; `address` is where it went, if
    anywhere. `proxy` is the host's own proxy that it went through; with one and no `address`, the proxy chose that.
    """

    host: str
    port: int
    allowed: bool
    reason: str = ""
    address: str = ""
    proxy: str = ""
    bytes_up: int = 0
    bytes_down: int = 0


class Durations(Given, frozen=True, kw_only=True):
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


class Receipt(Given, frozen=True, kw_only=True):
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


class Ending(Given, frozen=True, kw_only=True):
    """How a run ended. `result` and `additional_data` are the JSON that the program gave, untouched; None without any.

    `explanation` says in words why there is no result. `output_topic` is the topic that the program set.
    """

    run_id: str
    outcome: Outcome
    explanation: str
    output_topic: str | None
    warnings: tuple[str, ...]
    error: ProgramError | None
    exit_code: int | None
    signal: str | None
    peak_memory_mib: float | None
    cpu_s: float | None
    egress: tuple[EgressRecord, ...]
    durations: Durations
    receipt: Receipt | None
    result: Raw
    additional_data: Raw


class RunDocument(Ending, frozen=True, kw_only=True):
    """A run's whole answer. In `stdout` and `stderr`, bytes that are no UTF-8 stand as backslashes."""

    stdout: str
    stderr: str
    logs: tuple[LogRecord, ...]
    files: tuple[FileDocument, ...]
