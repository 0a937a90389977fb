"""Policies in plain words: what each value means, and what is wrong with an invalid one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandbox.policy.model import ANY, BUILT_IN, KEYS, PolicyDocument, unit_of
from sandbox.policy.sections import INDEX
from sandbox.toml_file import toml_value

if TYPE_CHECKING:
    from sandbox.policy.load import LoadedPolicy


# ---- what a value means --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PolicyRow:
    """One line of an explanation. `open` is None where a child may only tighten, else True or the bound."""

    key: str
    value: Any
    unit: str
    origin: str
    meaning: str
    open: Any = None


def explain(loaded: LoadedPolicy) -> list[PolicyRow]:
    """Return one row per control, in the order of the model."""
    return [
        PolicyRow(
            key=key,
            value=value,
            unit=unit_of(key),
            origin=loaded.origins.get(key, BUILT_IN),
            meaning=meaning(key, value),
            open=loaded.open.get(key),
        )
        for key, value in loaded.policy.values().items()
    ]


def meaning(key: str, value: Any) -> str:
    """Return what a key with this value means for a run, as one sentence."""
    sentence = MEANINGS[key]
    if callable(sentence):
        return sentence(value)
    if isinstance(sentence, dict):
        return sentence[value]
    number = f"{value:g}" if isinstance(value, float) else str(value)
    return sentence.replace("{}", number)


def _names(verb: str, what: str) -> Callable[[tuple[str, ...]], str]:
    def sentence(allowed: tuple[str, ...]) -> str:
        if ANY in allowed:
            return f"A request may {verb} any {what}, except reserved names."
        return f"A request may {verb} these: {', '.join(allowed)}." if allowed else f"A request may {verb} no {what}."

    return sentence


def _images(allowed: tuple[str, ...]) -> str:
    if ANY in allowed:
        return "Any image may be used."
    return f"Images that match may be used: {', '.join(allowed)}." if allowed else "No image may be used."


def _run_hosts(allowed: tuple[str, ...]) -> str:
    if not allowed:
        return "The program can reach no host."
    return f"The egress proxy connects to {', '.join(allowed)} and nothing else; what is sent there is not looked at."


def _build_hosts(allowed: tuple[str, ...]) -> str:
    if not allowed:
        return "A build reaches no host; libraries can only come from this host's own directories."
    index = "the package indexes that pip on this host is set up for, and the hosts that their files are on"
    hosts = ", ".join(index if entry == INDEX else entry for entry in allowed)
    return f"While libraries are installed, the egress proxy connects to these and nothing else: {hosts}."


def _addresses(allowed: tuple[str, ...]) -> str:
    if not allowed:
        return "Allowed hosts are refused where their address is private, loopback or special in another way."
    return f"Allowed hosts may also have addresses of {', '.join(allowed)}, were they private or loopback."


def _libraries(allowed: tuple[str, ...]) -> str:
    if ANY in allowed:
        return "Any library may be installed."
    if not allowed:
        return "No library may be installed."
    return f"Libraries that match may be installed, dependencies included: {', '.join(allowed)}."


def _preloaded(modules: tuple[str, ...]) -> str:
    if not modules:
        return "No module is imported before a run but those that its own text names."
    return f"Sandboxes that stand ready have imported: {', '.join(modules)}."


RESOLVERS: dict[Any, str] = {
    "host": "Names of allowed hosts are looked up on this host, and an HTTP proxy is asked for the checked address.",
    "proxy": (
        "Where this host goes through an HTTP proxy, that proxy looks names up: nobody here checks which address it"
        " connects to, which may be private."
    ),
}

MEANINGS: dict[str, str | dict[Any, str] | Callable[[Any], str]] = {
    "isolation.per_run": {
        "container": "Each run gets a container of its own, which is thrown away afterwards.",
        "auto": (
            "Each run gets a container of its own; while a node's messages come faster than containers are made, they"
            " get cells of a warm one."
        ),
        "cell": (
            "Each run gets namespaces of its own in a warm container of its caller's node; they are gone with the run."
        ),
    },
    "isolation.preload": _preloaded,
    "limits.timeout_s": "A program that still runs after {} seconds is killed; it ends as timed_out.",
    "limits.memory_mib": "Processes and in-memory files may hold {} MiB together; beyond, it ends as out_of_memory.",
    "limits.cpus": "The program gets the processor time of {} CPUs, shared by all its processes.",
    "limits.processes": "At most {} processes and threads at a time; starting more fails.",
    "limits.open_files": "Each process may hold {} files and sockets open; opening more fails.",
    "limits.output_mib": "Printed text and logs may reach {} MiB together; beyond, it ends as output_limit.",
    "limits.result_mib": "The result may be {} MiB of JSON; beyond, it ends as output_limit.",
    "limits.files_mib": "Saved files may reach {} MiB together; beyond, it ends as output_limit.",
    "limits.files_count": "At most {} files may be saved.",
    "limits.payload_mib": "Payload, message and input files may be {} MiB together; larger ones are refused.",
    "limits.code_kib": "The program may be {} KiB long; longer ones are refused.",
    "limits.log_records": "log may be called {} times; beyond, it ends as output_limit.",
    "filesystem.app_mib": "/app, the working directory, holds {} MiB, in memory, and is gone after the run.",
    "filesystem.tmp_mib": ("/tmp holds {} MiB, in memory, and is gone after the run."),  # noqa: S108 - a name inside the sandbox
    "filesystem.shm_mib": "/dev/shm holds {} MiB, in memory, and is gone after the run.",  # noqa: S108 - as above
    "filesystem.exec": {
        False: "Files that the program writes can't be executed.",
        True: "Files that the program writes to /app may be executed.",
    },
    "network.mode": {
        "none": "There is no network: no address outside the sandbox can be reached.",
        "allowlist": "There is no network; the only way out is the egress proxy, to the hosts of network.allow.",
    },
    "network.allow": _run_hosts,
    "network.allow_addresses": _addresses,
    "network.resolver": RESOLVERS,
    "network.transfer_mib": "Through the proxy, {} MiB may be sent and received together; beyond, it cuts connections.",
    "network.connections": "One run may make {} connections through the proxy; it refuses more.",
    "seccomp.profile": (
        "Only the system calls of the profile {} work; all others fail, or are answered and not carried out where the"
        " profile says so."
    ),
    "variables.allow": _names("set", "environment variable"),
    "secrets.allow": _names("hand over", "secret"),
    "images.default": "A request that names no image gets {}.",
    "images.allow": _images,
    "images.pull": {
        "never": "Only images that are already on this host are used.",
        "missing": "An allowed image that is not on this host is fetched from its registry.",
    },
    "build.libraries": _libraries,
    "build.allow": _build_hosts,
    "build.allow_addresses": _addresses,
    "build.resolver": RESOLVERS,
    "build.allow_sdists": {
        False: "Libraries are installed from wheels alone, which run no code of theirs while they are installed.",
        True: "Source archives may be installed: their own code runs, in the sandbox of the build.",
    },
    "build.allow_pth": {
        False: "A library is refused when it installs a .pth file whose code would run at every start of Python.",
        True: ".pth files of libraries may run code at every start of Python, in the sandbox of each run.",
    },
    "build.timeout_s": "A sandbox of the build that still runs after {} seconds is killed, and the build fails.",
    "build.memory_mib": "Processes and installed files may hold {} MiB of memory together; beyond, the build fails.",
    "build.cpus": "A build gets the processor time of {} CPUs.",
    "build.processes": "At most {} processes and threads at a time; starting more fails.",
    "build.download_mib": "One build may fetch {} MiB; beyond, it fails.",
    "build.installed_mib": "Installed files may have {} MiB together; beyond, the build fails.",
    "build.files_count": "At most {} files may be installed; beyond, the build fails.",
    "history.output": {
        "none": "The service's history keeps nothing of what runs print, log or raise.",
        "failed": (
            "Of a run that fails, the service's history keeps traceback, log records and the end of its output, without"
            " secrets."
        ),
        "all": (
            "Of every run, the service's history keeps traceback, log records and the end of its output, without"
            " secrets."
        ),
    },
    "history.payloads": {
        False: "The service's history keeps names, sizes and times of a run, and nothing of its payload.",
        True: "The service's history keeps the payload of each run, for its caller and for who maintains the service.",
    },
    "enforcement.on_unenforceable": {
        "refuse": "A host that can't hold memory, CPUs or processes by cgroup v2 runs nothing.",
        "fallback": "Where cgroup v2 is missing, weaker mechanisms hold the limits, and the receipt names them.",
    },
}


def as_toml(loaded: LoadedPolicy) -> str:
    """Return the effective policy as a file that extends nothing and means the same."""
    policy = loaded.policy
    lines = [
        *(f"# {'from' if not index else 'extends'} {path}" for index, path in enumerate(loaded.files)),
        f"# {policy.hash}",
        "",
        f"description = {toml_value(policy.description)}",
    ]
    section = ""
    for key, value in policy.values().items():
        table, _, name = key.partition(".")
        if table != section:
            lines += ["", f"[{table}]"]
            section = table
        lines.append(f"{name} = {toml_value(value)}")
    if loaded.open:
        lines += ["", "[open]", *(f"{key} = {toml_value(bound)}" for key, bound in loaded.open.items())]
    return "\n".join(lines) + "\n"


# ---- what a value may be -------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """Return the JSON schema of a policy file."""
    bounds = {key: {"description": f"True, or the loosest {key} that a child may set."} for key in KEYS}
    document = PolicyDocument.model_json_schema()
    document["title"] = "Policy of podman-sandbox-runner"
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    tables: dict[str, Any] = {}
    for key, description in bounds.items():
        section, _, name = key.partition(".")
        table = tables.setdefault(section, {"type": "object", "additionalProperties": False, "properties": {}})
        table["properties"][name] = description
    # A bound may be written as limits.cpus = 4 (a table in a table) or "limits.cpus" = 4 (one key).
    document["properties"]["open"] |= {"additionalProperties": False, "properties": {**tables, **bounds}}
    return document
