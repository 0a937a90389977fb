"""The JSON records that a sandbox sends. A record that does not have exactly its shape is not read."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from sandbox.channel.canonical import Canonical, NotCanonical, canonical
from sandbox.channel.modules import MAX_MODULE_CHARS, MAX_MODULES, MODULE
from sandbox.errors import Internal
from sandbox.printable import printable
from sandbox.wire.bounds import Elapsed
from sandbox.wire.run import ProgramError

MAX_KIB = 1 << 40
MAX_LINE = 1 << 31

Ended = Literal["exited", "output_limit", "result_limit", "files_limit", "log_limit", "cancelled", "channel"]
Cause = Literal["memory", "processes", "channel"]
Count = Annotated[int, msgspec.Meta(ge=0)]
Line = Annotated[int, msgspec.Meta(ge=0, le=MAX_LINE)]
Module = Annotated[str, msgspec.Meta(max_length=MAX_MODULE_CHARS, pattern=rf"\A(?:{MODULE.pattern})\Z")]
Shape = TypeVar("Shape", bound=msgspec.Struct)


class ProtocolViolation(Internal):
    """The sandbox sent what the protocol does not allow: it is broken, or lying."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The harness is up and waits for a job.

    `preloaded` are the modules that it has imported by then; `unfit` is one that left a thread or a process running.
    """

    protocol: Literal[1]
    python: Annotated[list[Count], msgspec.Meta(min_length=3, max_length=3)]
    implementation: Annotated[str, msgspec.Meta(max_length=40)]
    preloaded: Annotated[list[Module], msgspec.Meta(max_length=MAX_MODULES)] = []
    unfit: Module | None = None


class Quit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the program's process ended, by the harness's account."""

    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] | None
    signal: Annotated[str, msgspec.Meta(pattern=r"\ASIG[A-Z0-9+-]{1,12}\Z")] | None
    ended: Ended
    max_rss_kib: Annotated[int, msgspec.Meta(ge=0, le=MAX_KIB)]
    cpu_s: Elapsed
    wall_s: Elapsed


class Meta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a program set besides its result."""

    output_topic: str | None = None
    warnings: Annotated[list[str], msgspec.Meta(max_length=100)] = []


class ProgramFailure(ProgramError, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An error of the program together with the cap that explains it."""

    line: Line | None = None
    column: Line | None = None
    cause: Cause | None = None


class FileHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The name and the exact size in bytes of a file that follows."""

    name: str
    size: Count


def in_form(text: bytes, what: str) -> Canonical:
    """Return JSON in its one form, whether it stays a text or is read here. Raises ProtocolViolation."""
    try:
        return canonical(text)
    except NotCanonical as problem:
        raise ProtocolViolation(f"the sandbox sent {what} that {problem}") from None


def shaped(shape: type[Shape], body: bytes) -> Shape:
    """Return the record that `body` holds, checked. Raises ProtocolViolation."""
    try:
        return msgspec.json.decode(in_form(body, f"a record {shape.__name__}").text, type=shape)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolViolation(
            f"the sandbox sent a malformed {shape.__name__} record: {printable(str(error))}"
        ) from None
