"""What a command shows of a run, which this process carried out, or a service that sent its document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from sandbox.document import as_document
from sandbox.errors import Internal

if TYPE_CHECKING:
    from sandbox.client.told import Told
    from sandbox.models import RunResult


class File(msgspec.Struct, frozen=True):
    """One saved file."""

    name: str
    content: bytes = msgspec.field(name="content_base64")


class Failure(msgspec.Struct, frozen=True):
    """The exception that ended the program."""

    traceback: str = ""


class Times(msgspec.Struct, frozen=True):
    """Where the time went."""

    total_ms: float = 0.0


class Control(msgspec.Struct, frozen=True):
    """One control of the receipt."""

    status: str


class Proof(msgspec.Struct, frozen=True):
    """What was enforced."""

    controls: tuple[Control, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a command shows of a run, whoever carried it out; `document` is the whole of it.

    The result stays JSON text.
    """

    run_id: str
    outcome: str
    explanation: str
    result: msgspec.Raw
    files: tuple[File, ...]
    warnings: tuple[str, ...]
    error: Failure | None
    durations: Times
    receipt: Proof | None
    document: bytes = b""

    @property
    def result_json(self) -> bytes | None:
        """Return the result's text (UTF-8), or None when the program gave none."""
        return bytes(self.result) if self.outcome == "succeeded" else None


def answer_of(result: RunResult) -> Answer:
    """Return what a command shows of a result."""
    receipt = result.receipt
    return Answer(
        run_id=result.run_id, outcome=result.outcome.value, explanation=result.explanation,
        result=msgspec.Raw(result.result_json or b"null"),
        files=tuple(File(file.name, file.content) for file in result.files), warnings=result.warnings,
        error=Failure(result.error.traceback) if result.error else None, durations=Times(result.durations.total_ms),
        receipt=Proof(tuple(Control(control.status) for control in receipt.controls)) if receipt else None,
        document=as_document(result),
    )  # fmt: skip


def answer_from(document: bytes) -> Answer:
    """Return what a command shows of a run whose document a service sent. Raises `Internal`."""
    try:
        answer = msgspec.json.decode(document, type=Answer)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Internal(
            f"the service's answer can't be read: {str(error) or type(error).__name__}",
            hint="restart the service if it is of another version, or run with --no-service",
        ) from None
    return msgspec.structs.replace(answer, document=document)


def fields_of(line: bytes) -> dict[str, msgspec.Raw]:
    """Return the fields of an event, each as the text that it came as. Raises `Internal`."""
    try:
        return msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Internal(
            f"the service sent no event: {str(error) or type(error).__name__}", hint="look at its log"
        ) from None


def answer_of_stream(last: dict[str, msgspec.Raw], told: Told) -> Answer:
    """Return what a command shows of a run whose stream ends so; values of the program are taken over as they are.

    Raises `Internal`.
    """
    whole = told.whole(
        last, read=lambda value: json.loads(bytes(value)), form=lambda value: msgspec.Raw(json.dumps(value).encode())
    )
    values = (b"%s: %s" % (json.dumps(name).encode(), bytes(value)) for name, value in whole.items() if name != "event")
    return answer_from(b"{%s}" % b", ".join(values))
