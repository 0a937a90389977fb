"""What a command shows of a run, whoever carried it out: this process, or a service that sent its document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sandbox.document import as_document
from sandbox.errors import Internal
from sandbox.wire.run import Durations, FileDocument, ProgramError, Receipt

if TYPE_CHECKING:
    from sandbox.models import RunResult


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a command shows of a run, whoever carried it out; `document` is the whole of it. The result stays JSON text."""

    run_id: str
    outcome: str
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
        run_id=result.run_id, outcome=result.outcome.value, explanation=result.explanation,
        result=msgspec.Raw(result.result_json or b"null"),
        files=tuple(
            FileDocument(name=file.name, size_bytes=len(file.content), content=file.content) for file in result.files
        ), warnings=result.warnings,
        error=result.error, durations=result.durations, receipt=result.receipt, document=as_document(result),
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


def without_event(line: bytes) -> tuple[str, bytes]:
    """Return an event's kind, and the document that it carries, whose values are taken over as they are. Raises `Internal`."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        kind = msgspec.json.decode(fields.pop("event"), type=str)
    except (msgspec.DecodeError, RecursionError, KeyError) as error:
        raise Internal(
            f"the service sent no event: {str(error) or type(error).__name__}", hint="look at its log"
        ) from None
    values = (b"%s: %s" % (msgspec.json.encode(name), bytes(value)) for name, value in fields.items())
    return kind, b"{%s}" % b", ".join(values)
