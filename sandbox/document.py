"""A run's result, and an error, in the one JSON shape that the command line and the service give."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sandbox.errors import SandboxError

if TYPE_CHECKING:  # they take long to import, and a command that a service serves needs none of them
    from sandbox.models import RunResult


def as_document(result: RunResult) -> bytes:
    """Return the whole result as one JSON text. The program's own JSON goes in unchanged, never parsed again."""
    plain: dict[str, Any] = {
        "run_id": result.run_id,
        "outcome": result.outcome.value,
        "explanation": result.explanation,
        "output_topic": result.output_topic,
        "stdout": result.stdout.decode("utf-8", "backslashreplace"),
        "stderr": result.stderr.decode("utf-8", "backslashreplace"),
        "logs": [record.model_dump() for record in result.logs],
        "files": [file.as_json() for file in result.files],
        "warnings": list(result.warnings),
        "error": result.error.model_dump() if result.error else None,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "peak_memory_mib": result.peak_memory_mib,
        "cpu_s": result.cpu_s,
        "egress": [record.model_dump() for record in result.egress],
        "durations": result.durations.model_dump(),
        "receipt": result.receipt.model_dump(mode="json") if result.receipt else None,
    }
    head = json.dumps(plain, ensure_ascii=True)[:-1].encode()
    return b"".join(
        (
            head,
            b', "result": ',
            result.result_json or b"null",
            b', "additional_data": ',
            result.additional_data_json or b"null",
            b"}",
        )
    )


def error_document(error: SandboxError, *, run_id: str | None = None) -> bytes:
    """Return an error in its one JSON shape."""
    from sandbox.models import ErrorBody

    facts = json.loads(json.dumps(error.facts, default=str))
    body = ErrorBody(code=error.code, message=error.message, hint=error.hint, run_id=run_id, facts=facts)
    return json.dumps({"error": body.model_dump(exclude_none=True)}).encode()
