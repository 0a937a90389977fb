"""What the service answers beside the results of runs. Times are seconds since 1970."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from sandbox.wire.given import Given
from sandbox.wire.run import LogRecord, NamedFile

# ---- runs


class GoingOn(Given, frozen=True, kw_only=True):
    """A run that has not ended; its result comes from `GET /v1/runs/{id}/result`."""

    run_id: str
    state: str


class Cancelling(Given, frozen=True, kw_only=True):
    """A run that is being ended."""

    run_id: str
    cancelling: bool


class KeptError(Given, frozen=True, kw_only=True):
    """The exception that ended a program, as the history has it."""

    type: str
    message: str
    line: int | None
    traceback: str


class LeftOut(Given, frozen=True, kw_only=True):
    """How much more there was than is kept: bytes of stdout and stderr, numbers of records."""

    stdout_bytes: int
    stderr_bytes: int
    logs: int


class KeptOutput(Given, frozen=True, kw_only=True):
    """What a run told, as far as the history keeps it: of each the end, without secrets."""

    error: KeptError | None
    logs: tuple[LogRecord, ...]
    stdout: str
    stderr: str
    left_out: LeftOut


class RecordedRun(Given, frozen=True, kw_only=True):
    """A run of the history, or one that goes on.

    The history does not know such a run yet: it has the first fields alone. `caller` is a user id.

    `state` is `ended`, or what goes on; `outcome` is that of the program, or the code of the error where the program
    has none. Numbers, times and "" stand for what isn't known (yet). `payload` and `output` are there where the policy
    has them kept.
    """

    run_id: str
    caller: int
    caller_name: str
    node_id: str
    policy: str
    requirements: str
    received: float
    state: str
    outcome: str | None
    policy_hash: str | UnsetType = UNSET
    image: str | UnsetType = UNSET
    environment: str | UnsetType = UNSET
    preload: str | UnsetType = UNSET
    code_hash: str | UnsetType = UNSET
    explanation: str | UnsetType = UNSET
    started: float | UnsetType | None = UNSET
    ended: float | UnsetType | None = UNSET
    queue_ms: float | UnsetType | None = UNSET
    environment_ms: float | UnsetType | None = UNSET
    sandbox_ms: float | UnsetType | None = UNSET
    program_ms: float | UnsetType | None = UNSET
    total_ms: float | UnsetType | None = UNSET
    warm: bool | UnsetType = UNSET
    peak_memory_mib: float | UnsetType | None = UNSET
    cpu_s: float | UnsetType | None = UNSET
    payload_bytes: int | UnsetType = UNSET
    result_bytes: int | UnsetType = UNSET
    output_bytes: int | UnsetType = UNSET
    files_bytes: int | UnsetType = UNSET
    detached: bool | UnsetType = UNSET
    payload: str | UnsetType = UNSET
    output: KeptOutput | UnsetType = UNSET


class RunList(Given, frozen=True, kw_only=True):
    """Runs, newest first."""

    runs: tuple[RecordedRun, ...]


class FileList(Given, frozen=True, kw_only=True):
    """The files of a run that are kept."""

    files: tuple[NamedFile, ...]


class Problem(Given, frozen=True, kw_only=True):
    """Why code does not compile: where (from 1, in characters), in Python's words, and the beginning of that line."""

    line: int
    column: int
    message: str
    text: str


class MissingModule(Given, frozen=True, kw_only=True):
    """A top-level name that the code imports and nothing has, and where first; a relative import is one, too.

    `install` is what to install for it, None where no reviewed table says so.
    """

    module: str
    line: int
    install: str | None


class CodeCheck(Given, frozen=True, kw_only=True):
    """What is found in a piece of code; `python` is the version that it was compiled with.

    Code with a `problem` has neither `missing` nor `imports`. `missing` leaves out imports whose failure the code
    expects. Only the first 500 imported names and 100 missing modules are listed.
    """

    python: str
    problem: Problem | None
    missing: tuple[MissingModule, ...]
    imports: tuple[str, ...]


# ---- environments


class BuiltEnvironment(Given, frozen=True, kw_only=True):
    """An environment that was asked for; `packages` are `name==version`."""

    id: str
    image: str
    digest: str
    lock_hash: str
    packages: tuple[str, ...]


class ListedEnvironment(Given, frozen=True, kw_only=True):
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
    packages: tuple[str, ...]
    requirements: tuple[str, ...]
    size_bytes: int
    created: float
    last_used: float
    left_out: tuple[str, ...]


class BuildConnections(Given, frozen=True, kw_only=True):
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


class ShownEnvironment(ListedEnvironment, frozen=True, kw_only=True):
    """The same with its lock, as TOML, and what its build asked the egress proxy for."""

    lock: str
    egress: tuple[BuildConnections, ...]


class EnvironmentList(Given, frozen=True, kw_only=True):
    """Environments, most recently used first."""

    environments: tuple[ListedEnvironment, ...]


class Removed(Given, frozen=True, kw_only=True):
    """The id of what was removed."""

    removed: str


class Pruned(Given, frozen=True, kw_only=True):
    """What went, or would go: environments by id; cached files, and their bytes."""

    environments: tuple[str, ...]
    files: int
    bytes: int
    dry_run: bool


class Stopped(Given, frozen=True, kw_only=True):
    """How many runs were ended, and how many builds and checks beside them."""

    stopped: int
    builds_and_checks: int


# ---- what a caller may use


class ListedPolicy(Given, frozen=True, kw_only=True):
    """A policy that the caller may use."""

    name: str
    description: str
    hash: str


class PolicyValue(Given, frozen=True, kw_only=True):
    """One value of a policy, and the file that it comes from."""

    key: str
    value: Any
    unit: str
    meaning: str
    origin: str


class ShownPolicy(ListedPolicy, frozen=True, kw_only=True):
    """A policy with every value."""

    values: tuple[PolicyValue, ...]


class PolicyList(Given, frozen=True, kw_only=True):
    """The policies that the caller may use."""

    policies: tuple[ListedPolicy, ...]


class ListedTemplate(Given, frozen=True, kw_only=True):
    """A built-in script."""

    name: str
    summary: str


class ShownTemplate(ListedTemplate, frozen=True, kw_only=True):
    """A built-in script with its code and its sample payload."""

    code: str
    payload: Any


class TemplateList(Given, frozen=True, kw_only=True):
    """The built-in scripts."""

    templates: tuple[ListedTemplate, ...]


class ListedImage(Given, frozen=True, kw_only=True):
    """An image of the service's host."""

    name: str
    digest: str


class ImageList(Given, frozen=True, kw_only=True):
    """The images of the service's host, without environments."""

    images: tuple[ListedImage, ...]


# ---- how the service and its host are


class RunCounts(Given, frozen=True, kw_only=True):
    """How many runs go on, and how many wait for their turn."""

    running: int
    waiting: int


class PoolCounts(Given, frozen=True, kw_only=True):
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


class CellCounts(Given, frozen=True, kw_only=True):
    """What there is of cells, and what was done since the beginning."""

    containers: int
    memory_mib: float
    cells: int
    started: int
    retired: int
    broken: int
    refused: int


class Health(Given, frozen=True, kw_only=True):
    """How the service is at this moment; `memory_mib` is its own process alone."""

    status: Literal["ok", "degraded", "stopping"]
    problems: tuple[str, ...]
    version: str
    since: float
    uptime_s: float
    runs: RunCounts
    pool: PoolCounts
    cells: CellCounts
    memory_mib: float


class Capability(Given, frozen=True, kw_only=True):
    """One row of the doctor's report. `fix` is the exact command that mends it, or empty."""

    name: str
    status: Literal["ok", "fallback", "missing"]
    detail: str
    fix: str = ""


class HostReport(Given, frozen=True, kw_only=True):
    """What the host can enforce. `policies` maps each policy to why it can't run there ("" = it can)."""

    usable: bool
    capabilities: tuple[Capability, ...]
    policies: dict[str, str]


class Description(Given, frozen=True, kw_only=True):
    """The description of the whole interface, as OpenAPI 3.1."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    webhooks: dict[str, Any]
    components: dict[str, Any]
