"""What clients send, taken apart without parsing what is meant for the sandbox.

The payload and the message of a run are cut out of the request's body as bytes: their JSON is checked for its form
while it is skipped, and becomes objects in the sandbox only.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, TypeVar

import msgspec
from pydantic import SecretStr, ValidationError

from sandbox.aside import copied
from sandbox.errors import InvalidRequest
from sandbox.models import RunRequest, Tightening

Body = TypeVar("Body")
PIECE_CHARS = 64 << 10  # a multiple of four, so that each piece of base64 is whole
Positive = Annotated[float, msgspec.Meta(gt=0)]
PositiveInt = Annotated[int, msgspec.Meta(gt=0)]


class LimitsBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Limits of one request; each may only be lower than the policy's."""

    timeout_s: Positive | None = None
    memory_mib: PositiveInt | None = None
    cpus: Positive | None = None
    processes: PositiveInt | None = None


class NotifyBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Who is told when the run has ended: an address that `webhooks.allowed` of the configuration covers."""

    url: str


class RunBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A run: the code, the message it runs on, and under which policy with which libraries.

    `payload` is any JSON, `message` a JSON object; `files` maps plain names to base64; `wait_for_end` lets the run go on
    when the client goes away; `notify` goes with `Prefer: respond-async`.
    """

    code: str
    payload: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    message: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    topic: str = ""
    node_id: str = ""
    filename: str = "script.py"
    policy: str = "default"
    image: str | None = None
    requirements: tuple[str, ...] = ()
    requires_python: str = ""
    preload: tuple[str, ...] | None = None
    limits: LimitsBody = LimitsBody()
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    files: dict[str, str] = {}
    wait_for_end: bool = False
    notify: NotifyBody | None = None


class EnvironmentBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Libraries to install on a policy's base image."""

    requirements: tuple[str, ...]
    policy: str = "default"
    image: str | None = None


class CheckBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Code to look at, and the libraries it would run with."""

    code: str
    filename: str = "script.py"
    policy: str = "default"
    image: str | None = None
    requirements: tuple[str, ...] = ()


class PruneBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which environments go: older than, unused for (seconds), or beyond a size (MiB)."""

    older_s: Positive | None = None
    unused_s: Positive | None = None
    budget_mib: PositiveInt | None = None
    dry_run: bool = False


_RUN = msgspec.json.Decoder(RunBody)
_ENVIRONMENT = msgspec.json.Decoder(EnvironmentBody)
_CHECK = msgspec.json.Decoder(CheckBody)
_PRUNE = msgspec.json.Decoder(PruneBody)


def run_body(body: bytes) -> RunBody:
    """Return what a client wants run. Raises `InvalidRequest` with the place in the body."""
    return _decoded(_RUN, body)


def environment_body(body: bytes) -> EnvironmentBody:
    """Return which libraries a client wants. Raises `InvalidRequest`."""
    return _decoded(_ENVIRONMENT, body)


def check_body(body: bytes) -> CheckBody:
    """Return which code a client wants checked. Raises `InvalidRequest`."""
    return _decoded(_CHECK, body)


def prune_body(body: bytes) -> PruneBody:
    """Return what a client wants removed. Raises `InvalidRequest`."""
    return _decoded(_PRUNE, body or b"{}")


def run_request(body: RunBody) -> RunRequest:
    """Return the request that a body stands for. Raises `InvalidRequest`."""
    if not bytes(body.message).lstrip().startswith(b"{"):
        raise InvalidRequest("`message` is no JSON object", hint="send the whole message of the flow, or leave it out")
    limits = Tightening(
        timeout_s=body.limits.timeout_s,
        memory_mib=body.limits.memory_mib,
        cpus=body.limits.cpus,
        processes=body.limits.processes,
    )
    try:
        return RunRequest(
            code=body.code, filename=body.filename, payload_json=copied(body.payload), message_json=copied(body.message),
            topic=body.topic, node_id=body.node_id, policy=body.policy, image=body.image, requirements=body.requirements,
            requires_python=body.requires_python, preload=body.preload, limits=limits, env=body.env, secrets={name: SecretStr(value) for name, value in body.secrets.items()},
            files={name: _content(name, text) for name, text in body.files.items()},
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"`{place}`: {first['msg']}", hint=fields_of(RunBody)) from None


def fields_of(kind: type[msgspec.Struct]) -> str:
    """Return which fields a body has, as a hint."""
    return f"its fields are {', '.join(kind.__struct_fields__)}"


def _content(name: str, text: str) -> bytes:
    """Return a file's content, decoded in pieces, between which other threads run."""
    pieces = range(0, len(text), PIECE_CHARS)
    try:
        if "=" in text[: pieces[-1]] if pieces else False:
            raise ValueError
        return b"".join(base64.b64decode(text[start : start + PIECE_CHARS], validate=True) for start in pieces)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"the file {name[:80]!r} is not base64", hint="encode its content as base64") from None


def _decoded(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        reason = str(error).replace("`$.", "`") or "nested too deeply"
        raise InvalidRequest(f"the request's body can't be read: {reason}", hint=fields_of(decoder.type)) from None
