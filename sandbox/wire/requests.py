"""What clients send. What is meant for the sandbox stays the bytes that it came as (`Raw`)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, field

from sandbox.wire.bounds import Count, Filename, Name, Number, Seconds, Topic

# Stands for the value of a secret wherever a request is shown, such as in a test that fails or in a debugger.
HIDDEN = "…"


class Tightening(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Limits of one request; each may only be lower than the policy's, which holds where none is given."""

    timeout_s: Seconds | None = None
    memory_mib: Count | None = None
    cpus: Number | None = None
    processes: Count | None = None


class NotifyBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Who is told when the run has ended: an address that `webhooks.allowed` of the configuration covers."""

    url: Annotated[str, Meta(min_length=1)]


class RunOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a run is asked for with beside its code and its data.

    With `save_new`, each file that the program leaves in its working directory is saved.
    """

    topic: Topic = ""
    node_id: Annotated[str, Meta(max_length=512)] = ""
    filename: Filename = "script.py"
    policy: Name = "default"
    image: Name | None = None
    requirements: tuple[str, ...] = ()
    requires_python: str = ""
    preload: tuple[str, ...] | None = None
    limits: Tightening = Tightening()
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    save_new: bool = False

    def __rich_repr__(self) -> list[tuple[str, object]]:
        secrets: Any = self.secrets  # nothing checks that it is one
        shown = dict.fromkeys(secrets, HIDDEN) if isinstance(secrets, dict) else HIDDEN
        return list({**msgspec.structs.asdict(self), "secrets": shown}.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class RunBody(RunOptions, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A run: the code, the message it runs on, and under which policy with which libraries.

    `payload` is any JSON, `message` a JSON object; `files` maps names, which may have directories, to base64;
    `wait_for_end` lets the run go on when the client goes away; `notify` goes with `Prefer: respond-async`.
    """

    code: Raw
    payload: Raw = field(default_factory=lambda: Raw(b"null"))
    message: Raw = field(default_factory=lambda: Raw(b"{}"))
    files: Raw = field(default_factory=lambda: Raw(b"{}"))
    wait_for_end: bool = False
    notify: NotifyBody | None = None


class EnvironmentBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Libraries to install on a policy's base image."""

    requirements: tuple[str, ...]
    policy: Name = "default"
    image: Name | None = None


class CheckBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Code to look at, and the libraries it would run with."""

    code: Raw
    filename: Filename = "script.py"
    policy: Name = "default"
    image: Name | None = None
    requirements: tuple[str, ...] = ()


class PruneBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which environments go: older than, unused for (seconds), or beyond a size (MiB)."""

    older_s: Seconds | None = None
    unused_s: Seconds | None = None
    budget_mib: Count | None = None
    dry_run: bool = False
