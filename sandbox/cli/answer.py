"""What a command shows of a run, which this process carried out, or a service that sent its document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from sandbox.document import as_document
from sandbox.errors import Internal
from sandbox.wire.run import Durations, FileDocument, Outcome, ProgramError, Receipt

if TYPE_CHECKING:
    from sandbox.client.told import Told
    from sandbox.models import RunResult


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a command shows of a run, whoever carried it out; `document` is the whole of it.

    The result stays JSON text.
    """

    run_id: str
    outcome: Outcome
    explanation: str
    result: msgspec.Raw
    files: tuple[FileDocument, ...]
    warnings: tuple[str, ...]
    error: ProgramError | None
    durations: Durations
    receipt: Receipt | None
    document: bytes = b""

    @property
    def result_json(self) -> bytes | None:
        """Return the result's text (UTF-8), or None when the program gave none."""
        return bytes(self.result) if self.outcome == "succeeded" else None


def answer_of(result: RunResult) -> Answer:
    """Return what a command shows of a result."""
    return Answer(
        run_id=result.run_id,
        outcome=result.outcome,
        explanation=result.explanation,
        result=msgspec.Raw(result.result_json or b"null"),
        files=tuple(
            FileDocument(name=file.name, size_bytes=len(file.content), content=file.content) for file in result.files
        ),
        warnings=result.warnings,
        error=result.error,
        durations=result.durations,
        receipt=result.receipt,
        document=as_document(result),
    )


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
