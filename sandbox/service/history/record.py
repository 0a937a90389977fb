"""What the history records of a run: sizes, times and names, never code, results or secrets.

It gets the payload and what the run told where the policy asks for that.
"""

from __future__ import annotations

import time
from dataclasses import replace

from sandbox import errors
from sandbox.environment.requirements import without_hashes
from sandbox.errors import InvalidRequest, SandboxError
from sandbox.models import Outcome, RunRequest, RunResult
from sandbox.policy.model import Policy
from sandbox.run.execution import digest
from sandbox.runner import preload_of
from sandbox.service.history.row import SERVICE_ENDED, RunRow
from sandbox.service.history.secret_mask import Mask
from sandbox.service.live import LiveRun

MAX_EXPLANATION_CHARS = 500
MAX_PAYLOAD_BYTES = 65_536
# What the history has as the outcome of a run: that of its program, or the code of the error that it ended with.
ENDINGS = (
    *sorted(outcome.value for outcome in Outcome),
    *sorted(kind.code for kind in vars(errors).values() if hasattr(kind, "code")),
)


def ending(text: str | None) -> str | None:
    """Return the outcome that a client wants listed. Raises `InvalidRequest` for what no run can have."""
    if text is not None and text not in ENDINGS:
        raise InvalidRequest(
            f"no run ends as {text[:40]!r}", hint=f"outcomes, and codes of errors: {', '.join(ENDINGS)}"
        )
    return text


def mask_of(wanted: RunRequest) -> Mask:
    """Return what takes a run's secrets out of what is kept of it."""
    return Mask(wanted.secrets.values())


def kept_payload(wanted: RunRequest, mask: Mask) -> str:
    """Return the beginning of a payload, without secrets."""
    text = wanted.payload_json[: MAX_PAYLOAD_BYTES + 4 * mask.reach].decode(errors="replace")
    return mask.beginning(text, MAX_PAYLOAD_BYTES)


def new_row(live: LiveRun, wanted: RunRequest, policy: Policy, mask: Mask) -> RunRow:
    """Return the row of a run that was just asked for, whose code is no longer than its policy takes."""
    keeps = policy.history.payloads
    return RunRow(
        run_id=live.run_id,
        caller=live.caller_uid,
        caller_name=live.caller,
        received=live.received,
        node_id=wanted.node_id,
        policy=wanted.policy,
        requirements=", ".join(map(without_hashes, wanted.requirements)),
        preload=", ".join(preload_of(wanted, policy)),
        payload=kept_payload(wanted, mask) if keeps else "",
        detached=live.detached,
        code_hash=digest(wanted.code.encode(errors="surrogatepass")),
        payload_bytes=len(wanted.payload_json) + len(wanted.message_json),
    )


def ended_row(row: RunRow, result: RunResult, mask: Mask, output: str = "") -> RunRow:
    """Return the row of a run that has a result; `output` is what it told, as far as that is kept."""
    receipt, spent = result.receipt, result.durations
    row = replace(
        row,
        state="ended",
        outcome=result.outcome.value,
        output=output,
        explanation=mask.beginning(result.explanation, MAX_EXPLANATION_CHARS),
        ended=time.time(),
        queue_ms=spent.queue_ms,
        environment_ms=spent.environment_ms,
        sandbox_ms=spent.sandbox_ms,
        program_ms=spent.program_ms,
        total_ms=spent.total_ms,
        warm=spent.warm,
        peak_memory_mib=result.peak_memory_mib,
        cpu_s=result.cpu_s,
        result_bytes=len(result.result_json or b""),
        output_bytes=len(result.stdout) + len(result.stderr),
        files_bytes=sum(len(file.content) for file in result.files),
    )
    if receipt is None:
        return row
    return replace(
        row,
        started=row.received + spent.queue_ms / 1000,
        policy_hash=receipt.policy_hash,
        image=receipt.image,
        environment=receipt.environment or "",
    )


def failed_row(row: RunRow, error: SandboxError | None, mask: Mask) -> RunRow:
    """Return the row of a run that ended with an error, or whose client went away (None)."""
    explanation = str(error) if error else "the client went away"
    outcome = error.code if error else Outcome.CANCELLED.value
    if error is None and row.detached:  # nobody's going away ends it
        outcome, explanation = Outcome.KILLED.value, SERVICE_ENDED
    explanation = mask.beginning(explanation, MAX_EXPLANATION_CHARS)
    return replace(row, state="ended", outcome=outcome, explanation=explanation, ended=time.time())
