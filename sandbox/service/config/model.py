"""The service's configuration: every key with its default, its range and its meaning.

`sandbox.service.config.load` reads it from a file and the environment; `sandbox config show` prints the meanings.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sandbox.places import usual_data_dir, usual_socket
from sandbox.service.admission import AdmissionLimits
from sandbox.service.config.proxy import Proxy
from sandbox.service.config.values import (
    directory_value,
    granted,
    group_value,
    key_file_value,
    mode_value,
    module_value,
    policy_value,
    restricted_path,
    socket_path,
    webhook_value,
    who,
)
from sandbox.toml_mistakes import ConflictError, Strict

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def _key(default: Any, meaning: str, expected: str = "", *, least: int | None = None) -> Any:
    """Return a field. `expected` says what it must be, better than its type does.

    A callable `default` is called for each object.
    """
    factory: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return Field(
        **factory, description=meaning, min_length=least, json_schema_extra={"expected": expected} if expected else None
    )


def _number(default: Any, meaning: str, unit: str, *, low: int, high: int) -> Any:
    factory: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**factory, description=meaning, ge=low, le=high, allow_inf_nan=False, json_schema_extra={"unit": unit})


def _count(default: Any, meaning: str, of: str = "runs", *, low: int = 0) -> Any:
    return _number(default, meaning, of, low=low, high=100_000)


def _mib(default: int, meaning: str, *, low: int = 0) -> Any:
    return _number(default, meaning, "MiB", low=low, high=1_048_576)


def _seconds(default: float, meaning: str, *, low: int = 0) -> Any:
    return _number(default, meaning, "seconds", low=low, high=31_536_000)


def _usual_socket() -> str:
    return usual_socket(os.environ)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _two_per_core() -> int:
    return 2 * _cores()


Who = Annotated[str, AfterValidator(who)]


class Socket(Strict):
    """Where the service listens, and who can reach it there."""

    path: Annotated[str, AfterValidator(socket_path)] = _key(
        _usual_socket, "The socket. Its directory is created if it is missing.", "an absolute path"
    )
    mode: Annotated[str | None, AfterValidator(mode_value)] = _key(
        None, "The socket's mode. Default: 0660 if a group is named, otherwise 0600.", 'a text such as "0660"'
    )
    group: Annotated[str | None, AfterValidator(group_value)] = _key(
        None,
        "The members of this group may reach the socket. Without it, only the service's own user and root can.",
        "a group's name",
    )

    @model_validator(mode="after")
    def _mode_needs_group(self) -> Socket:
        if self.group is None and self.permissions & 0o060:
            mistake = f'socket.mode is "{self.mode}" and lets a group in, but socket.group names none'
            raise ConflictError(mistake, "socket.mode")
        return self

    @property
    def permissions(self) -> int:
        """Return the mode that the socket gets."""
        return int(self.mode or ("0600" if self.group is None else "0660"), 8)


class Runners(Strict):
    """Who may run, under which policies, and how much at once."""

    users: tuple[Who, ...] = _key(
        ...,
        'Users, "@" and a group, or "uid 1234" for a user without a name here.',
        'a list of users and "@group", at least one',
        least=1,
    )
    policies: tuple[Annotated[str, AfterValidator(granted)], ...] = _key(
        ..., 'Names of policies, or "*" for all.', "a list of names of policies, at least one", least=1
    )
    max_running: int | None = _count(
        None, "Runs of each of these users at once. Default: queue.per_caller_running.", low=1
    )
    max_queued: int | None = _count(None, "Waiting runs of each of these users. Default: queue.per_caller_waiting.")


class AccessRules(Strict):
    """Who may do what. The service's own user and root may always do everything."""

    maintainers: tuple[Who, ...] = _key(
        (),
        "Who may maintain the service: prune, stop all, see every run. This gives no right to run code.",
        'a list of users and "@group"',
    )
    runners: tuple[Runners, ...] = _key(
        (),
        "Who may run code, and under which policies. The first entry that names a user or one of their groups counts. "
        "Without entries, the members of socket.group may run under every policy.",
        "tables, each with users and policies: [[access.runners]]",
    )


class Restricted(Strict):
    """A second socket, on which nobody is more than a caller: for the service's own user in a container, above all."""

    path: Annotated[str | None, AfterValidator(restricted_path)] = _key(
        None,
        "The second socket. Without this key there is none. It has a directory of its own, which may be mounted into a"
        " container.",
        "an absolute path",
    )
    group: Annotated[str | None, AfterValidator(group_value)] = _key(
        None,
        "The members of this group may reach the second socket. Without it, only the service's own user and root can.",
        "a group's name",
    )
    policies: tuple[Annotated[str, AfterValidator(granted)], ...] = _key(
        (),
        'Policies that a caller on the second socket may run under: names, or "*" for all.',
        "a list of names of policies",
    )
    max_running: int | None = _count(
        None, "Runs of each caller on the second socket at once. Default: queue.per_caller_running.", low=1
    )
    max_queued: int | None = _count(
        None, "Waiting runs of each caller on the second socket. Default: queue.per_caller_waiting."
    )

    @model_validator(mode="after")
    def _path_needs_policies(self) -> Restricted:
        if (self.path is None) != (not self.policies):
            raise ConflictError("restricted.path and restricted.policies need each other", "restricted.policies")
        return self


class Queue(Strict):
    """How much runs and waits at once."""

    running: int = _count(_two_per_core, "Runs at once.", low=1)
    waiting: int = _count(200, "Runs that may wait for their turn. More are refused at once.")
    per_caller_running: int | None = _count(None, "Runs of one caller at once. Default: queue.running.", low=1)
    per_caller_waiting: int = _count(
        100, "Runs of one caller that may wait. If this is less than queue.waiting, it leaves room for other callers."
    )
    wait_s: float = _seconds(30.0, "The longest wait for a turn, in seconds. After that, the run is refused.")
    detached_wait_s: float = _seconds(
        3_600.0, "The same for a run whose result is fetched later, because no client waits for it."
    )
    bodies_mib: int = _mib(
        512,
        "Bodies of requests that wait or run, and answers that were not read yet, in MiB together. One caller alone may"
        " hold half. More are refused at once, except from a caller that holds nothing.",
        low=1,
    )

    @property
    def limits(self) -> AdmissionLimits:
        """Return the same in the terms of the queue itself."""
        return AdmissionLimits(
            running=self.running,
            waiting=self.waiting,
            per_caller_running=self.per_caller_running or self.running,
            per_caller_waiting=self.per_caller_waiting,
            wait_s=self.wait_s,
        )


class Warm(Strict):
    """One kind of sandbox that is started with the service."""

    policy: Annotated[str, AfterValidator(policy_value)] = _key(..., "The policy of its runs.", "the name of a policy")
    requirements: tuple[str, ...] = _key(
        (), "Its libraries, as in a requirements file.", 'a list of requirements, such as ["numpy>=2"]'
    )
    preload: tuple[Annotated[str, AfterValidator(module_value)], ...] = _key(
        (), "Modules that are imported before a run.", "a list of names of modules"
    )


class Pool(Strict):
    """Sandboxes that are started ahead of need. Each is used for one run."""

    memory_mib: int = _mib(512, "Memory that all ready sandboxes may take together, in MiB. 0 keeps none ready.")
    per_setting: int = _count(
        4, "Ready sandboxes of one kind, which means the same environment, policy and preloaded modules.", "sandboxes"
    )
    idle_s: float = _seconds(300.0, "A ready sandbox is removed if nobody needed it for this many seconds.", low=1)
    starters: int = _count(
        _cores,
        "Sandboxes that may be starting ahead of need at the same time, if runs come that fast.",
        "sandboxes",
        low=1,
    )
    warm_seen: int = _count(
        2,
        "How many kinds of sandboxes are made ready when the service starts: those that were requested most often in"
        " the last week.",
        "kinds",
    )
    warm: tuple[Warm, ...] = _key(
        (),
        "Kinds of sandboxes that are made ready when the service starts.",
        "tables, each with a policy: [[pool.warm]]",
    )


class Cells(Strict):
    """Warm containers, for policies whose runs get cells. Each makes a cell for every run of one caller's node."""

    memory_mib: int = _mib(512, "Memory that all warm containers may take together, in MiB.")
    per_node: int = _count(
        2, "Warm containers of one node. This is also how many of its runs go on at once.", "containers", low=1
    )
    idle_s: float = _seconds(300.0, "A warm container is removed if nobody needed it for this many seconds.", low=1)


class History(Strict):
    """What is remembered of runs, and for how long."""

    directory: Annotated[str, AfterValidator(directory_value)] = _key(
        lambda: str(usual_data_dir()),
        "Where the history, saved files and results are kept. Only one service may use it; a second one of the same"
        " user needs another.",
        "an absolute path",
    )
    age_days: float = _number(30.0, "Runs older than this many days are forgotten.", "days", low=0, high=36_500)
    size_mib: int = _mib(64, "Size of the history, in MiB. The oldest runs are removed first.", low=1)
    output_kib: int = _number(
        16,
        "How much is kept of a run's traceback, log records, and the ends of stdout and stderr, in KiB each (see"
        " history.output of the policy).",
        "KiB",
        low=1,
        high=1_024,
    )
    output_mib: int = _mib(
        32,
        "Output of runs that is kept, in MiB together. The oldest output of the caller with the most data is removed"
        " first. 0 keeps none.",
    )
    output_age_days: float = _number(
        7.0,
        "Output of runs is forgotten after this many days.",
        "days",
        low=0,
        high=36_500,
    )
    files_mib: int = _mib(
        64,
        "Saved files that are kept for their callers, in MiB together. The oldest files of the caller with the most"
        " data are removed first. 0 keeps none.",
    )
    files_age_s: float = _seconds(3_600.0, "Saved files are kept for this many seconds.")
    results_mib: int = _mib(
        64,
        "Results that are fetched later, in MiB together. The oldest result of the caller with the most data is removed"
        " first. 0 keeps none.",
    )
    results_age_s: float = _seconds(3_600.0, "Results that are fetched later are kept for this many seconds.")


class Webhooks(Strict):
    """Who may be told that a run has ended."""

    allowed: tuple[Annotated[str, AfterValidator(webhook_value)], ...] = _key(
        (),
        "Addresses that a request may name in `notify`, each with scheme, host, port and path. Paths below that path"
        " are allowed, too. A name other than localhost must lead to a public address. Write a private address as a"
        " number.",
        'a list of URLs, such as ["http://127.0.0.1:1880/ended"]',
    )
    key_file: Annotated[str | None, AfterValidator(key_file_value)] = _key(
        None,
        "A file with the key that signs webhooks (HMAC-SHA256 of the body, in X-Sandbox-Signature).",
        "an absolute path",
    )


class Stop(Strict):
    """How the service ends."""

    drain_s: float = _seconds(
        20.0, "When the service is told to stop, runs get this many seconds to end. After that, they are cancelled."
    )


class Log(Strict):
    """What the service writes about itself."""

    format: Literal["auto", "human", "json"] = _key("auto", "auto means human on a terminal, and json elsewhere.")
    level: Literal["debug", "info", "warning", "error"] = _key("info", "Lines below this level are not written.")


class ServiceConfig(Strict):
    """The whole configuration."""

    socket: Socket = Field(default_factory=Socket)
    access: AccessRules = Field(default_factory=AccessRules)
    restricted: Restricted = Field(default_factory=Restricted)
    queue: Queue = Field(default_factory=Queue)
    pool: Pool = Field(default_factory=Pool)
    cells: Cells = Field(default_factory=Cells)
    history: History = Field(default_factory=History)
    webhooks: Webhooks = Field(default_factory=Webhooks)
    proxy: Proxy = Field(default_factory=Proxy)
    stop: Stop = Field(default_factory=Stop)
    log: Log = Field(default_factory=Log)

    @model_validator(mode="after")
    def _sockets_are_apart(self) -> ServiceConfig:
        other = self.restricted.path
        # Without `..`, which a Path keeps.
        directories = {os.path.normpath(f"{path}/..") for path in (other, self.socket.path) if path is not None}
        if other is not None and len(directories) == 1:
            mistake = (
                "restricted.path and socket.path are in one directory, and who is shown the one would be shown the"
                " other"
            )
            raise ConflictError(mistake, "restricted.path")
        return self

    def effective(self) -> dict[str, Any]:
        """Return each value that holds by its dotted key; None for a group, a second socket or an absent key."""
        sections = self.model_dump(mode="json")
        values = {f"{section}.{name}": value for section, keys in sections.items() for name, value in keys.items()}
        return values | {
            "socket.mode": f"{self.socket.permissions:04o}",
            "queue.per_caller_running": self.queue.limits.per_caller_running,
        }


def tables_of(field: FieldInfo) -> type[Strict] | None:
    """Return the model of a section, or of the tables that a key lists; None for other keys."""
    arguments = getattr(field.annotation, "__args__", ())
    return next(
        (kind for kind in (field.annotation, *arguments) if isinstance(kind, type) and issubclass(kind, Strict)), None
    )


SECTIONS: dict[str, type[Strict]] = {
    name: model for name, field in ServiceConfig.model_fields.items() if (model := tables_of(field))
}
KEYS: dict[str, FieldInfo] = {
    f"{section}.{name}": field for section, model in SECTIONS.items() for name, field in model.model_fields.items()
}
