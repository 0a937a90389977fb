"""The sections of a policy: every key with its unit, range, built-in default and meaning.

The built-in defaults are strict. `sandbox.policy.model` puts the sections together and checks requests against them.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from sandbox.toml_mistakes import Strict

ANY = "*"
INDEX = "@index"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
IMAGE_PATTERN = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._/:@*?-]{0,254}")
LIBRARY_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
LIBRARY_PATTERN = re.compile(r"[A-Za-z0-9*?]([A-Za-z0-9._*?-]{0,126}[A-Za-z0-9*?])?")
MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}(\.[A-Za-z_][A-Za-z0-9_]{0,63}){0,3}")
NETWORK = re.compile(r"[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?")
# Variables that steer the interpreter, the dynamic loader, the C library or the thread pools that are
# sized from the CPU limit, and those that the sandbox sets itself. No policy can allow them.
RESERVED = re.compile(
    r"(LD|PYTHON|MALLOC|OMP|GOMP|KMP|OPENBLAS|GOTO|MKL|BLIS|VECLIB|NUMEXPR|NUMBA|RAYON|TBB|SANDBOX)_.*|PYTHON.*"
    r"|OPENCV_FOR_THREADS_NUM|PATH|HOME|TMPDIR|TMP|TEMP|IFS|ENV|BASH_ENV|SHELLOPTS|GLIBC_TUNABLES|GCONV_PATH|LOCPATH|NLSPATH|HOSTALIASES"
    r"|RES_OPTIONS|LOCALDOMAIN|RESOLV_HOST_CONF|(?i:(all|ftp|http|https|no)_proxy)"
)


def _key(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    example: tuple[str, ...] | None = None,
) -> Any:
    extra: dict[str, Any] = {"unit": unit} if unit else {}
    return Field(
        default,
        description=meaning,
        ge=low,
        le=high,
        allow_inf_nan=None if low is None else False,
        examples=[list(example)] if example else None,
        json_schema_extra=extra,
    )


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


def library_name(name: str) -> str:
    """Return a library's name, or a pattern of names, in the one spelling of PEP 503: `Foo_Bar` is `foo-bar`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _library_pattern(pattern: str) -> str:
    if not LIBRARY_PATTERN.fullmatch(pattern):
        raise ValueError("must be a library's name in which * stands for any text and ? for one character")
    return library_name(pattern)


def _rule(text: str) -> str:
    # Not at the top: most policies have no rules, and every run would wait for the import.
    from sandbox.egress.rules import parse_rule

    try:
        return str(parse_rule(text))
    except ValueError as error:
        raise ValueError(f"is not a rule: {error}") from None


def _build_rule(text: str) -> str:
    return text if text == INDEX else _rule(text)


def _network(text: str) -> str:
    try:
        if not NETWORK.fullmatch(text):
            raise ValueError
        return str(ip_network(text))
    except ValueError:
        raise ValueError(
            "must be an IP address or a network such as 192.168.1.20 or 192.168.1.0/24, with no bit set behind the"
            " prefix"
        ) from None


def _module(name: str) -> str:
    if not MODULE.fullmatch(name):
        raise ValueError("must be the name of a module, such as numpy or sklearn.cluster")
    return name


def _profile_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        raise ValueError("must be a profile's name: lower-case letters, digits, - and _")
    return name


VariableNames = tuple[Annotated[str, AfterValidator(_variable_name)], ...]
Networks = tuple[Annotated[str, AfterValidator(_network)], ...]


class Isolation(Strict):
    """How runs are kept apart."""

    per_run: Literal["container", "auto", "cell"] = _key("container", "What each run gets for itself alone.")
    preload: tuple[Annotated[str, AfterValidator(_module)], ...] = _key(
        (), "Modules that the service has imported in sandboxes before a run gets them.", example=("numpy", "pandas")
    )


class Limits(Strict):
    """How much one run may use."""

    timeout_s: float = _key(10.0, "Time the program may take before it is killed.", unit="s", low=0.1, high=86_400)
    memory_mib: int = _key(
        256,
        "Memory of all processes and of the files in /app, /tmp and /dev/shm together.",
        unit="MiB",
        low=32,
        high=1_048_576,
    )
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
    """What the program can reach."""

    mode: Literal["none", "allowlist"] = _key("none", "Which way out there is: none, or the egress proxy.")
    allow: tuple[Annotated[str, AfterValidator(_rule)], ...] = _key(
        (), "What the proxy connects to, as host:port.", example=("api.example.com:443",)
    )
    allow_addresses: Networks = _key(
        (),
        "Addresses that are refused otherwise (private, loopback, ...) and that allowed hosts may have.",
        example=("192.168.1.20", "10.0.0.0/8"),
    )
    resolver: Literal["host", "proxy"] = _key(
        "host",
        "Who looks up the names of allowed hosts, where this host goes through an HTTP proxy: this host, which then"
        " judges each address, or that proxy.",
    )
    transfer_mib: int = _key(64, "Sent and received through the proxy together.", unit="MiB", low=1, high=1_048_576)
    connections: int = _key(100, "Connections that one run may make.", unit="connections", low=1, high=100_000)


class Seccomp(Strict):
    """Which system calls the program may make."""

    profile: Annotated[str, AfterValidator(_profile_name)] = _key("python", "The list of allowed system calls.")


class Variables(Strict):
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


class Build(Strict):
    """What installing libraries may do: where they come from, and how much the sandbox that installs them may use."""

    libraries: tuple[Annotated[str, AfterValidator(_library_pattern)], ...] = _key(
        (), "Patterns of the libraries that may be installed, dependencies included.", example=("numpy", "scikit-*")
    )
    allow: tuple[Annotated[str, AfterValidator(_build_rule)], ...] = _key(
        (INDEX,),
        f"What the proxy connects to, as host:port; {INDEX} is the hosts of the host's own pip configuration.",
        example=(INDEX, "files.example.com:443"),
    )
    allow_addresses: Networks = _key(
        (),
        "Addresses that are refused otherwise (private, loopback, ...) and that allowed hosts may have.",
        example=("192.168.1.20", "10.0.0.0/8"),
    )
    resolver: Literal["host", "proxy"] = _key(
        "host",
        "Who looks up the names of allowed hosts, where this host goes through an HTTP proxy: this host, which then"
        " judges each address, or that proxy.",
    )
    allow_sdists: bool = _key(False, "Whether source archives, whose build runs their code, may be installed.")  # noqa: FBT003
    allow_pth: bool = _key(False, "Whether .pth files may run code at every start of Python.")  # noqa: FBT003
    timeout_s: float = _key(
        300.0, "Time a sandbox of the build may take before it is killed.", unit="s", low=1, high=86_400
    )
    memory_mib: int = _key(
        2_048, "Memory of all processes and of the installed files together.", unit="MiB", low=128, high=1_048_576
    )
    cpus: float = _key(2.0, "Processor time per second of wall time.", unit="CPUs", low=0.05, high=1_024)
    processes: int = _key(128, "Processes and threads at the same time.", unit="processes", low=2, high=32_768)
    download_mib: int = _key(1_024, "What is fetched for one build.", unit="MiB", low=1, high=65_536)
    installed_mib: int = _key(1_024, "All installed files together.", unit="MiB", low=1, high=65_536)
    files_count: int = _key(100_000, "How many files may be installed.", unit="files", low=1, high=1_000_000)


class HistoryRules(Strict):
    """What the service's history keeps of a run."""

    output: Literal["none", "failed", "all"] = _key("failed", "Of which runs the history keeps what they told.")
    payloads: bool = _key(False, "Whether the history keeps the payload of each run.")  # noqa: FBT003


class Enforcement(Strict):
    """What happens on a host that can't hold a limit by cgroup."""

    on_unenforceable: Literal["refuse", "fallback"] = _key(
        "refuse",
        "Whether a limit that the kernel can't hold by cgroup refuses the run or uses its named fallback.",
    )
