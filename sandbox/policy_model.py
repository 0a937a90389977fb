"""What a policy says: every key with its unit, range, built-in default and meaning.

The built-in defaults are strict. `sandbox.policy` loads files into these models.
"""

from __future__ import annotations

import hashlib
import json
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.models import Strict, Tightening

ANY = "*"
BUILT_IN = "built-in"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
IMAGE_PATTERN = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._/:@*?-]{0,254}")
# Variables that steer the interpreter, the dynamic loader, the C library or the thread pools that are
# sized from the CPU limit, and those that the sandbox sets itself. No policy can allow them.
RESERVED = re.compile(
    r"(LD|PYTHON|MALLOC|OMP|GOMP|KMP|OPENBLAS|GOTO|MKL|BLIS|VECLIB|NUMEXPR|NUMBA|RAYON|TBB|SANDBOX)_.*|PYTHON.*"
    r"|OPENCV_FOR_THREADS_NUM|PATH|HOME|TMPDIR|TMP|TEMP|IFS|ENV|BASH_ENV|SHELLOPTS|GLIBC_TUNABLES|GCONV_PATH|LOCPATH|NLSPATH|HOSTALIASES"
    r"|RES_OPTIONS|LOCALDOMAIN|RESOLV_HOST_CONF|(?i:(all|ftp|http|https|no)_proxy)"
)


def _key(default: Any, meaning: str, *, unit: str = "", low: float | None = None, high: float | None = None) -> Any:
    extra: dict[str, Any] = {"unit": unit} if unit else {}
    return Field(default, description=meaning, ge=low, le=high, allow_inf_nan=None if low is None else False,
                 json_schema_extra=extra)  # fmt: skip


def _variable_name(name: str) -> str:
    if name != ANY and not VARIABLE.fullmatch(name):
        raise ValueError('must be "*" or a variable\'s name: letters, digits and _, not starting with a digit')
    if RESERVED.fullmatch(name):
        raise ValueError("is reserved: it steers the interpreter or the sandbox itself, and no policy can allow it")
    return name


def _image_reference(reference: str) -> str:
    if not IMAGE.fullmatch(reference):
        raise ValueError("must be an image reference such as localhost/sandbox-python:latest")
    return reference


def _image_pattern(pattern: str) -> str:
    if not IMAGE_PATTERN.fullmatch(pattern):
        raise ValueError("must be an image reference in which * stands for any text and ? for one character")
    return pattern


def _profile_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        raise ValueError("must be a profile's name: lower-case letters, digits, - and _")
    return name


VariableNames = tuple[Annotated[str, AfterValidator(_variable_name)], ...]


class Isolation(Strict):
    """How runs are kept apart."""

    per_run: Literal["container"] = _key("container", "What each run gets for itself alone.")


class Limits(Strict):
    """How much one run may use."""

    timeout_s: float = _key(10.0, "Time the program may take before it is killed.", unit="s", low=0.1, high=86_400)
    memory_mib: int = _key(256, "Memory of all processes and of the files in /app, /tmp and /dev/shm together.",
                           unit="MiB", low=32, high=1_048_576)  # fmt: skip
    cpus: float = _key(0.5, "Processor time per second of wall time.", unit="CPUs", low=0.05, high=1_024)
    processes: int = _key(32, "Processes and threads at the same time.", unit="processes", low=2, high=32_768)
    open_files: int = _key(256, "Open files and sockets of one process.", unit="files", low=32, high=1_048_576)
    output_mib: int = _key(
        1, "Standard output, standard error and log records together.", unit="MiB", low=1, high=1_024
    )
    result_mib: int = _key(8, "The result, as JSON.", unit="MiB", low=1, high=1_024)
    files_mib: int = _key(16, "All files given to save_file together.", unit="MiB", low=0, high=65_536)
    files_count: int = _key(20, "How many files save_file may keep.", unit="files", low=0, high=10_000)
    payload_mib: int = _key(16, "Payload, message and input files together.", unit="MiB", low=1, high=1_024)
    code_kib: int = _key(256, "The program's text.", unit="KiB", low=1, high=16_384)
    log_records: int = _key(1_000, "How many times log may be called.", unit="records", low=0, high=1_000_000)


class Filesystem(Strict):
    """The only writable places, in memory; the root is read-only."""

    app_mib: int = _key(32, "Size of /app, the working directory.", unit="MiB", low=1, high=1_048_576)
    tmp_mib: int = _key(32, "Size of /tmp.", unit="MiB", low=1, high=1_048_576)
    shm_mib: int = _key(16, "Size of /dev/shm, which multiprocessing uses.", unit="MiB", low=1, high=1_048_576)
    exec: bool = _key(False, "Whether files written to /app may be executed.")  # noqa: FBT003


class Network(Strict):
    """What the sandbox can reach."""

    mode: Literal["none"] = _key("none", "Which network there is.")


class Seccomp(Strict):
    """Which system calls the program may make."""

    profile: Annotated[str, AfterValidator(_profile_name)] = _key("python", "The list of allowed system calls.")


class Environment(Strict):
    """Variables that a request may set."""

    allow: VariableNames = _key((), "Names of variables that a request may set.")


class Secrets(Strict):
    """Secrets that a request may hand to the program."""

    allow: VariableNames = _key((), "Names of secrets that a request may hand over.")


class Images(Strict):
    """What the sandbox's file system is made of."""

    default: Annotated[str, AfterValidator(_image_reference)] = _key(
        "localhost/sandbox-python:latest", "The image of a request that names none."
    )
    allow: tuple[Annotated[str, AfterValidator(_image_pattern)], ...] = _key(
        ("localhost/*",), "Patterns of the images that a request may name."
    )
    pull: Literal["missing", "never"] = _key("never", "Whether an image that isn't here is fetched from its registry.")


class Enforcement(Strict):
    """What happens on a host that can't hold a limit by cgroup."""

    on_unenforceable: Literal["refuse", "fallback"] = _key(
        "refuse",
        "Whether a limit that the kernel can't hold by cgroup refuses the run or uses its named fallback.",
    )


class ConflictError(ValueError):
    """Two or more keys that can't hold together; `keys` are their dotted names."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


class Sections(Strict):
    """The controls of a policy, by section."""

    isolation: Isolation = Isolation()
    limits: Limits = Limits()
    filesystem: Filesystem = Filesystem()
    network: Network = Network()
    seccomp: Seccomp = Seccomp()
    environment: Environment = Environment()
    secrets: Secrets = Secrets()
    images: Images = Images()
    enforcement: Enforcement = Enforcement()

    def values(self) -> dict[str, Any]:
        """Return every control's value by its dotted key."""
        return {key: getattr(getattr(self, section), name) for key, (section, name) in _PATHS.items()}


class PolicyDocument(Sections):
    """A policy file as written. `open` maps a dotted key to true, or to the loosest value a child may set."""

    description: str = Field("", description="One sentence for `sandbox policy list`.", max_length=500)
    extends: str | None = Field(None, description="The policy whose values hold where this file says nothing.")
    open: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Keys that a policy extending this one may loosen: true, or the loosest value allowed.",
    )


class Policy(Sections):
    """The effective policy of a run. Every check below answers by raising `PolicyDenied`."""

    name: str
    description: str = ""
    seccomp_sha256: str = ""

    @model_validator(mode="after")
    def _values_fit_together(self) -> Policy:
        files = self.filesystem
        total = files.app_mib + files.tmp_mib + files.shm_mib
        if total > self.limits.memory_mib:
            raise ConflictError(
                f"app_mib, tmp_mib and shm_mib make {total} MiB together, more than the {self.limits.memory_mib} MiB of "
                "limits.memory_mib that their content counts against",
                "filesystem.app_mib", "filesystem.tmp_mib", "filesystem.shm_mib", "limits.memory_mib",
            )  # fmt: skip
        if not _matches(self.images.default, self.images.allow):
            raise ConflictError(
                f"images.default is {self.images.default}, which no pattern of images.allow matches",
                "images.default", "images.allow",
            )  # fmt: skip
        return self

    @property
    def hash(self) -> str:
        """`sha256:` and a hash of what is enforced: every value and the seccomp profile, not name and description."""
        content = {
            **self.model_dump(mode="json", include=set(Sections.model_fields)),
            "seccomp_sha256": self.seccomp_sha256,
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def tightened(self, limits: Tightening) -> Policy:
        """Return this policy with the lower limits of one request.

        A lower `memory_mib` shrinks the file systems in proportion where they would no longer fit. Raises
        `PolicyDenied` for a limit above the policy's, `InvalidRequest` for one below what can run.
        """
        asked = {name: value for name, value in limits.model_dump().items() if value is not None}
        for name, value in asked.items():
            self._check_lower(f"limits.{name}", value)
        if not asked:
            return self
        tightened = self.limits.model_copy(update=asked)
        content = {name: getattr(self, name) for name in type(self).model_fields}
        return Policy(**{**content, "limits": tightened, "filesystem": self._shrunk(tightened.memory_mib)})

    def _check_lower(self, key: str, value: float) -> None:
        allowed = self.values()[key]
        unit = unit_of(key)
        if value > allowed:
            raise PolicyDenied(
                f"the request asks for {key} = {value:g} {unit}; policy {self.name!r} allows at most {allowed:g} {unit}",
                hint=f"ask for {allowed:g} or less, or use a policy that allows more (`sandbox policy list`)",
                key=key, asked=value, allowed=allowed,
            )  # fmt: skip
        low, _ = range_of(key)
        if low is not None and value < low:
            raise InvalidRequest(
                f"the request asks for {key} = {value:g} {unit}; no program runs with less than {low:g} {unit}",
                hint=f"ask for {low:g} {unit} or more",
                key=key, asked=value,
            )  # fmt: skip

    def _shrunk(self, memory_mib: int) -> Filesystem:
        sizes = {name: getattr(self.filesystem, name) for name in ("app_mib", "tmp_mib", "shm_mib")}
        total = sum(sizes.values())
        if total <= memory_mib:
            return self.filesystem
        # Each keeps its share of all but 3 MiB, and one of those: never 0, which tmpfs takes as "unlimited".
        room = memory_mib - len(sizes)
        return self.filesystem.model_copy(
            update={name: min(size, 1 + size * room // total) for name, size in sizes.items()}
        )

    def env_allowed(self, name: str) -> None:
        """Check that a request may set this variable. Raises `PolicyDenied`, or `InvalidRequest` for a non-name."""
        self._check_variable(name, self.environment.allow, "environment.allow", "variable")

    def secret_allowed(self, name: str) -> None:
        """Check that a request may hand this secret over. Raises like `env_allowed`."""
        self._check_variable(name, self.secrets.allow, "secrets.allow", "secret")

    def _check_variable(self, name: str, allow: tuple[str, ...], key: str, what: str) -> None:
        shown = json.dumps(name[:80])
        if not VARIABLE.fullmatch(name):
            raise InvalidRequest(
                f"{shown} is not a name for a {what}",
                hint="use letters, digits and _, not starting with a digit",
            )
        if RESERVED.fullmatch(name):
            raise PolicyDenied(
                f"the {what} {shown} is reserved: it steers the interpreter or the sandbox itself",
                hint="choose another name", key=key, asked=name,
            )  # fmt: skip
        if ANY not in allow and name not in allow:
            raise PolicyDenied(
                f"policy {self.name!r} does not let a request set the {what} {shown}",
                hint=f"allowed: {', '.join(allow) or 'none'}; the key is {key}",
                key=key, asked=name, allowed=list(allow),
            )  # fmt: skip

    def image_allowed(self, reference: str) -> None:
        """Check that a request may use this image, by its full reference. Raises like `env_allowed`."""
        shown = json.dumps(reference[:255])
        if not IMAGE.fullmatch(reference):
            raise InvalidRequest(f"{shown} is not an image reference", hint="write it like registry/name:tag")
        if not _matches(reference, self.images.allow):
            raise PolicyDenied(
                f"policy {self.name!r} does not allow the image {shown}",
                hint=f"allowed: {', '.join(self.images.allow) or 'none'}; the key is images.allow",
                key="images.allow", asked=reference, allowed=list(self.images.allow),
            )  # fmt: skip


_PATHS: dict[str, tuple[str, str]] = {
    f"{section}.{name}": (section, name)
    for section, field in Sections.model_fields.items()
    for name in type(field.default).model_fields
}
KEYS: dict[str, FieldInfo] = {
    key: type(Sections.model_fields[section].default).model_fields[name] for key, (section, name) in _PATHS.items()
}


def unit_of(key: str) -> str:
    """Return the unit of a dotted key, or an empty text."""
    extra = KEYS[key].json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def range_of(key: str) -> tuple[float | None, float | None]:
    """Return the lowest and highest value of a dotted key; None where it isn't a number."""
    bounds = {name: getattr(m, name) for m in KEYS[key].metadata for name in ("ge", "le") if hasattr(m, name)}
    return bounds.get("ge"), bounds.get("le")


def _matches(reference: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(reference, pattern) for pattern in patterns)
