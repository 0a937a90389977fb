"""A run's result, and an error, in the one JSON shape that the command line and the service give."""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from sandbox.errors import SandboxError
from sandbox.wire.errors import ErrorBody, ErrorDocument
from sandbox.wire.given import encoded
from sandbox.wire.run import NamedFile

if TYPE_CHECKING:  # they take long to import, and a command that a service serves needs none of them
    from sandbox.models import RunResult

PIECE_BYTES = 48 << 10  # a multiple of three, so that the base64 of pieces can be joined


def as_document(result: RunResult) -> bytes:
    """Return the whole result as one JSON text. The program's own JSON goes in unchanged, never parsed again."""
    return b"".join(document_pieces(result))


def document_pieces(result: RunResult, *, streamed: bool = False) -> Iterator[bytes]:
    """Give the same text in pieces, of which all but the program's own JSON are small: none takes long to make.

    What a stream has carried by itself is not in its last event (`streamed`): output, log records, contents of files.
    """
    yield _members(
        run_id=result.run_id,
        outcome=result.outcome.value,
        explanation=result.explanation,
        output_topic=result.output_topic,
    )[:-1]
    if streamed:
        files = [NamedFile(name=file.name, size_bytes=len(file.content)) for file in result.files]
        yield b", " + _members(files=files)[1:-1]
    else:
        yield from _carried_pieces(result)
    yield (
        b", "
        + _members(
            warnings=result.warnings,
            error=result.error,
            exit_code=result.exit_code,
            signal=result.signal,
            peak_memory_mib=result.peak_memory_mib,
            cpu_s=result.cpu_s,
            egress=result.egress,
            durations=result.durations,
            receipt=result.receipt,
        )[1:-1]
    )
    yield b', "result": '
    yield result.result_json or b"null"
    yield b', "additional_data": '
    yield result.additional_data_json or b"null"
    yield b"}"


def _carried_pieces(result: RunResult) -> Iterator[bytes]:
    for name, output in (("stdout", result.stdout), ("stderr", result.stderr)):
        yield b', "%s": "' % name.encode()
        yield from text_pieces(output)
        yield b'"'
    yield b', "logs": ['
    for number, record in enumerate(result.logs):
        yield b", "[: 2 * bool(number)] + encoded(record)
    yield b'], "files": ['
    for number, file in enumerate(result.files):
        yield b", "[: 2 * bool(number)]
        yield from file_pieces(file.name, file.content)
    yield b"]"


def text_pieces(data: bytes) -> Iterator[bytes]:
    """Give output as the inside of a JSON string; what is no UTF-8 becomes backslashes."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    for start in range(0, len(data), PIECE_BYTES):
        text = decoder.decode(data[start : start + PIECE_BYTES], final=start + PIECE_BYTES >= len(data))
        yield json.dumps(text)[1:-1].encode()


def file_pieces(name: str, content: bytes | bytearray) -> Iterator[bytes]:
    """Give a saved file as a JSON object: `{"name", "size_bytes", "content_base64"}`."""
    yield _members(name=name, size_bytes=len(content), content_base64="")[:-2]
    view = memoryview(content)
    for start in range(0, len(view), PIECE_BYTES):
        yield base64.b64encode(view[start : start + PIECE_BYTES])
    yield b'"}'


def _members(**values: Any) -> bytes:
    return encoded(values)


def error_document(error: SandboxError, *, run_id: str | None = None) -> bytes:
    """Return an error in its one JSON shape."""
    facts = json.loads(json.dumps(error.facts, default=str))
    run_id = facts.pop("run_id", None) or run_id
    body = ErrorBody(code=error.code, message=error.message, hint=error.hint, run_id=run_id or UNSET, facts=facts)
    return encoded(ErrorDocument(error=body))
