"""The JSON records that a sandbox sends. A record that does not have exactly its shape is not read."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from sandbox.channel.canonical import Canonical, NotCanonical, canonical
from sandbox.channel.modules import MAX_MODULE_CHARS, MAX_MODULES, MODULE
from sandbox.errors import Internal
from sandbox.models import MAX_SECONDS, ProgramError, Strict

MAX_KIB = 1 << 40
MAX_LINE = 1 << 31

Ended = Literal["exited", "output_limit", "result_limit", "files_limit", "log_limit", "cancelled", "channel"]
Cause = Literal["memory", "processes", "channel"]
Count = Annotated[int, Field(ge=0)]
Line = Annotated[int, Field(ge=0, le=MAX_LINE)]
Module = Annotated[str, Field(max_length=MAX_MODULE_CHARS, pattern=f"^{MODULE.pattern}$")]
Shape = TypeVar("Shape", bound=Strict)


class ProtocolViolation(Internal):
    """The sandbox sent what the protocol does not allow: it is broken, or lying."""


class Ready(Strict):
    """The harness is up and waits for a job.

    `preloaded` are the modules that it has imported by then; `unfit` is one that left a thread or a process running.
    """

    protocol: Literal[1]
    python: list[Count] = Field(min_length=3, max_length=3)
    implementation: Annotated[str, Field(max_length=40)]
    preloaded: Annotated[list[Module], Field(max_length=MAX_MODULES)] = Field(default_factory=list)
    unfit: Module | None = None


class Quit(Strict):
    """How the program's process ended, by the harness's account."""

    exit_code: Annotated[int, Field(ge=0, le=255)] | None
    signal: Annotated[str, Field(pattern=r"^SIG[A-Z0-9+-]{1,12}$")] | None
    ended: Ended
    max_rss_kib: Annotated[int, Field(ge=0, le=MAX_KIB)]
    cpu_s: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
    wall_s: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]


class Meta(Strict):
    """What a program set besides its result."""

    output_topic: str | None = None
    warnings: Annotated[list[str], Field(max_length=100)] = Field(default_factory=list)


class ProgramFailure(ProgramError):
    """An error of the program together with the cap that explains it."""

    line: Line | None = None
    column: Line | None = None
    cause: Cause | None = None


class FileHeader(Strict):
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
        return shape.model_validate_json(in_form(body, f"a record {shape.__name__}").text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ProtocolViolation(f"the sandbox sent a malformed {shape.__name__} record: {first['msg']}") from None
