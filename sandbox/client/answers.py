"""What the service answers, as types: each is a JSON object as it came, see docs/service.md.

Times are seconds since 1970.

Written by scripts/generate-docs from `sandbox.wire`: change it there.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Outcome = Literal[
    "succeeded",
    "failed",
    "no_result",
    "timed_out",
    "out_of_memory",
    "too_many_processes",
    "output_limit",
    "killed",
    "cancelled",
]


class ProgramError(TypedDict):
    """The exception that ended the program; `line`/`column` are the user's own, 1-based."""

    type: str
    message: str
    line: int | None
    column: int | None
    traceback: str


class LogRecord(TypedDict):
    """One call of `log(message, level)`; `elapsed_s` counts from the start of the program."""

    level: Literal["debug", "error", "info", "warning"]
    message: str
    elapsed_s: float


class NamedFile(TypedDict):
    """A file that a run saved, by its name."""

    name: str
    size_bytes: int


class FileDocument(NamedFile):
    """The same with its content, which is base64 on the wire."""

    content_base64: str


class ControlEvidence(TypedDict):
    """One control of the policy: what was asked, what holds it, and what was read back.

    `status` is `proven` (the kernel's own account, read from outside the sandbox, agrees with the
    specification), `fallback` (proven too, but by a weaker named mechanism), or `not_applicable`.
    """

    control: str
    wanted: str
    status: Literal["fallback", "not_applicable", "proven"]
    mechanism: str
    evidence: str


class EgressRecord(TypedDict):
    """One connection that a program asked the egress proxy for, and what became of it.

    `allowed` says whether the policy let it through; `reason` says in words why it was refused or broke off, and is
    empty when all went well. `host` is printable, and empty when none was asked for; `address` is where it went, if
    anywhere. `proxy` is the host's own proxy that it went through; with one and no `address`, the proxy chose that.
    """

    host: str
    port: int
    allowed: bool
    reason: str
    address: str
    proxy: str
    bytes_up: int
    bytes_down: int


class Durations(TypedDict):
    """Where the time of one run went, in milliseconds.

    `sandbox_ms` is the wait for the sandbox: creating, starting, readying and verifying one, or taking a `warm` one,
    which was made before anybody asked.
    """

    warm: bool
    queue_ms: float
    prepare_ms: float
    environment_ms: float
    sandbox_ms: float
    create_ms: float
    start_ms: float
    ready_ms: float
    verify_ms: float
    program_ms: float
    remove_ms: float
    total_ms: float


class Receipt(TypedDict):
    """What was enforced during one run, and how it was known.

    `environment` and `lock_hash` name the libraries; None for a run without any.
    """

    run_id: str
    started_at: str
    policy: str
    policy_hash: str
    image: str
    image_digest: str
    environment: str | None
    lock_hash: str | None
    code_hash: str
    payload_hash: str
    engine: str
    runtime: str
    kernel: str
    controls: list[ControlEvidence]
    outcome: Outcome
    durations: Durations


class Ending(TypedDict):
    """How a run ended. `result` and `additional_data` are the JSON that the program gave, untouched; None without any.

    `explanation` says in words why there is no result. `output_topic` is the topic that the program set.
    """

    run_id: str
    outcome: Outcome
    explanation: str
    output_topic: str | None
    warnings: list[str]
    error: ProgramError | None
    exit_code: int | None
    signal: str | None
    peak_memory_mib: float | None
    cpu_s: float | None
    egress: list[EgressRecord]
    durations: Durations
    receipt: Receipt | None
    result: Any
    additional_data: Any


class RunDocument(Ending):
    """A run's whole answer. In `stdout` and `stderr`, bytes that are no UTF-8 stand as backslashes."""

    stdout: str
    stderr: str
    logs: list[LogRecord]
    files: list[FileDocument]


class GoingOn(TypedDict):
    """A run that has not ended; its result comes from `GET /v1/runs/{id}/result`."""

    run_id: str
    state: str


class Cancelling(TypedDict):
    """A run that is being ended."""

    run_id: str
    cancelling: bool


class KeptError(TypedDict):
    """The exception that ended a program, as the history has it."""

    type: str
    message: str
    line: int | None
    traceback: str


class LeftOut(TypedDict):
    """How much more there was than is kept: bytes of stdout and stderr, numbers of records."""

    stdout_bytes: int
    stderr_bytes: int
    logs: int


class KeptOutput(TypedDict):
    """What a run told, as far as the history keeps it: of each the end, without secrets."""

    error: KeptError | None
    logs: list[LogRecord]
    stdout: str
    stderr: str
    left_out: LeftOut


class _RecordedRun(TypedDict):
    """What every `RecordedRun` has."""

    run_id: str
    caller: int
    caller_name: str
    node_id: str
    policy: str
    requirements: str
    received: float
    state: str
    outcome: str | None


class RecordedRun(_RecordedRun, total=False):
    """A run of the history, or one that goes on.

    The history does not know such a run yet: it has the first fields alone. `caller` is a user id.

    `state` is `ended`, or what goes on; `outcome` is that of the program, or the code of the error where the program
    has none. Numbers, times and "" stand for what isn't known (yet). `payload` and `output` are there where the policy
    has them kept.
    """

    policy_hash: str
    image: str
    environment: str
    preload: str
    code_hash: str
    explanation: str
    started: float | None
    ended: float | None
    queue_ms: float | None
    environment_ms: float | None
    sandbox_ms: float | None
    program_ms: float | None
    total_ms: float | None
    warm: bool
    peak_memory_mib: float | None
    cpu_s: float | None
    payload_bytes: int
    result_bytes: int
    output_bytes: int
    files_bytes: int
    detached: bool
    payload: str
    output: KeptOutput


class RunList(TypedDict):
    """Runs, newest first."""

    runs: list[RecordedRun]


class FileList(TypedDict):
    """The files of a run that are kept."""

    files: list[NamedFile]


class Problem(TypedDict):
    """Why code does not compile: where (from 1, in characters), in Python's words, and the beginning of that line."""

    line: int
    column: int
    message: str
    text: str


class MissingModule(TypedDict):
    """A top-level name that the code imports and nothing has, and where first; a relative import is one, too.

    `install` is what to install for it, None where no reviewed table says so.
    """

    module: str
    line: int
    install: str | None


class CodeCheck(TypedDict):
    """What is found in a piece of code; `python` is the version that it was compiled with.

    Code with a `problem` has neither `missing` nor `imports`. `missing` leaves out imports whose failure the code
    expects. Only the first 500 imported names and 100 missing modules are listed.
    """

    python: str
    problem: Problem | None
    missing: list[MissingModule]
    imports: list[str]


class BuiltEnvironment(TypedDict):
    """An environment that was asked for; `packages` are `name==version`."""

    id: str
    image: str
    digest: str
    lock_hash: str
    packages: list[str]


class ListedEnvironment(TypedDict):
    """An environment of the service's host; `size_bytes` is what its libraries add to the base image.

    `left_out` are the start-up files of packages that Python does not run there, each with what is lost so.
    """

    id: str
    image: str
    image_id: str
    base: str
    base_digest: str
    lock_hash: str
    build_hash: str
    packages: list[str]
    requirements: list[str]
    size_bytes: int
    created: float
    last_used: float
    left_out: list[str]


class BuildConnections(TypedDict):
    """Connections of one kind that a step of a build asked the egress proxy for; `last` is when the last one was."""

    step: str
    host: str
    port: int
    allowed: bool
    reason: str
    address: str
    proxy: str
    connections: int
    bytes_up: int
    bytes_down: int
    last: float


class ShownEnvironment(ListedEnvironment):
    """The same with its lock, as TOML, and what its build asked the egress proxy for."""

    lock: str
    egress: list[BuildConnections]


class EnvironmentList(TypedDict):
    """Environments, most recently used first."""

    environments: list[ListedEnvironment]


class Removed(TypedDict):
    """The id of what was removed."""

    removed: str


class Pruned(TypedDict):
    """What went, or would go: environments by id; cached files, and their bytes."""

    environments: list[str]
    files: int
    bytes: int
    dry_run: bool


class Stopped(TypedDict):
    """How many runs were ended, and how many builds and checks beside them."""

    stopped: int
    builds_and_checks: int


class ListedPolicy(TypedDict):
    """A policy that the caller may use."""

    name: str
    description: str
    hash: str


class PolicyValue(TypedDict):
    """One value of a policy, and the file that it comes from."""

    key: str
    value: Any
    unit: str
    meaning: str
    origin: str


class ShownPolicy(ListedPolicy):
    """A policy with every value."""

    values: list[PolicyValue]


class PolicyList(TypedDict):
    """The policies that the caller may use."""

    policies: list[ListedPolicy]


class ListedTemplate(TypedDict):
    """A built-in script."""

    name: str
    summary: str


class ShownTemplate(ListedTemplate):
    """A built-in script with its code and its sample payload."""

    code: str
    payload: Any


class TemplateList(TypedDict):
    """The built-in scripts."""

    templates: list[ListedTemplate]


class ListedImage(TypedDict):
    """An image of the service's host."""

    name: str
    digest: str


class ImageList(TypedDict):
    """The images of the service's host, without environments."""

    images: list[ListedImage]


class RunCounts(TypedDict):
    """How many runs go on, and how many wait for their turn."""

    running: int
    waiting: int


class PoolCounts(TypedDict):
    """What the pool has, and what it has done since it began."""

    ready: int
    starting: int
    kinds: int
    memory_mib: float
    started: int
    taken: int
    cold: int
    retired: int
    failed: int


class CellCounts(TypedDict):
    """What there is of cells, and what was done since the beginning."""

    containers: int
    memory_mib: float
    cells: int
    started: int
    retired: int
    broken: int
    refused: int


class Health(TypedDict):
    """How the service is at this moment; `memory_mib` is its own process alone."""

    status: Literal["degraded", "ok", "stopping"]
    problems: list[str]
    version: str
    since: float
    uptime_s: float
    runs: RunCounts
    pool: PoolCounts
    cells: CellCounts
    memory_mib: float


class Capability(TypedDict):
    """One row of the doctor's report. `fix` is the exact command that mends it, or empty."""

    name: str
    status: Literal["fallback", "missing", "ok"]
    detail: str
    fix: str


class HostReport(TypedDict):
    """What the host can enforce. `policies` maps each policy to why it can't run there ("" = it can)."""

    usable: bool
    capabilities: list[Capability]
    policies: dict[str, str]


class Description(TypedDict):
    """The description of the whole interface, as OpenAPI 3.1."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    webhooks: dict[str, Any]
    components: dict[str, Any]


class _ErrorBody(TypedDict):
    """What every `ErrorBody` has."""

    code: str
    message: str
    hint: str
    facts: dict[str, Any]


class ErrorBody(_ErrorBody, total=False):
    """What went wrong and why (`message`), and what to do next (`hint`).

    `code` is stable, see docs/errors.md; `facts` depend on it.
    """

    run_id: str


class ErrorDocument(TypedDict):
    """An answer that is an error."""

    error: ErrorBody


class Accepted(TypedDict):
    """The run begins; its first event."""

    event: Literal["accepted"]
    run_id: str


class _Progressed(TypedDict):
    """What every `Progressed` has."""

    event: Literal["progress"]
    step: Literal["downloading", "image", "installing", "resolving", "running", "starting", "storing"]
    text: str


class Progressed(_Progressed, total=False):
    """A step towards the run or the environment, with its bytes if they are known.

    `text` is a short phrase for people.
    """

    done_bytes: int
    total_bytes: int


class _Stdout(TypedDict):
    """What every `Stdout` has."""

    event: Literal["stdout"]
    text: str


class Stdout(_Stdout, total=False):
    """Output; what is no UTF-8 stands in `text` as backslashes, and exactly in `base64`."""

    base64: str


class _Stderr(TypedDict):
    """What every `Stderr` has."""

    event: Literal["stderr"]
    text: str


class Stderr(_Stderr, total=False):
    """The same of the other stream."""

    base64: str


class Logged(TypedDict):
    """One call of `log(message, level)`; `text` is the message."""

    event: Literal["log"]
    level: Literal["debug", "error", "info", "warning"]
    text: str
    elapsed_s: float


class FileSaved(FileDocument):
    """A file that the program saved."""

    event: Literal["file"]


class RunEnded(Ending):
    """The last event of a run: how it ended.

    It has no output, log records and contents of files, which came before it.
    """

    event: Literal["result"]
    files: list[NamedFile]


class EnvironmentReady(BuiltEnvironment):
    """The last event of a build."""

    event: Literal["result"]


class Failed(TypedDict):
    """An error, after which nothing comes."""

    event: Literal["error"]
    error: ErrorBody


class Notification(TypedDict):
    """What a webhook is told: the run has ended, and `result` is the path to ask at.

    `outcome` may also be an error's code.
    """

    run_id: str
    outcome: str
    result: str


RunEvent = Accepted | Progressed | Stdout | Stderr | Logged | FileSaved | RunEnded | Failed
BuildEvent = Progressed | EnvironmentReady | Failed
