"""What the history gets to know of a run: sizes, times and names, a payload where the policy asks, never code, output or secrets."""

from __future__ import annotations

import time
from dataclasses import replace

from sandbox import errors
from sandbox.errors import SandboxError
from sandbox.execution import digest
from sandbox.history import Row
from sandbox.models import Outcome, RunRequest, RunResult
from sandbox.policy_model import Policy
from sandbox.runner import preload_of
from sandbox.service.live import LiveRun

MAX_EXPLANATION_CHARS = 500
MAX_PAYLOAD_BYTES = 65_536
# What the history has as the outcome of a run: that of its program, or the code of the error that it ended with.
ENDINGS = (*sorted(outcome.value for outcome in Outcome), *sorted(kind.code for kind in vars(errors).values() if hasattr(kind, "code")))


def new_row(live: LiveRun, wanted: RunRequest, policy: Policy | None) -> Row:
    """Return the row of a run that was just asked for, under a policy that is not there (None) or keeps payloads, maybe."""
    keeps = policy is not None and policy.history.payloads
    return Row(
        run_id=live.run_id, caller=live.caller_uid, caller_name=live.caller, received=live.received, node_id=wanted.node_id,
        policy=wanted.policy, requirements=", ".join(wanted.requirements),
        preload=", ".join(preload_of(wanted, policy)) if policy is not None else "",
        payload=wanted.payload_json[:MAX_PAYLOAD_BYTES].decode(errors="replace") if keeps else "",
        code_hash=digest(wanted.code.encode(errors="surrogatepass")),
        payload_bytes=len(wanted.payload_json) + len(wanted.message_json),
    )  # fmt: skip


def ended_row(row: Row, result: RunResult) -> Row:
    """Return the row of a run that has a result."""
    receipt, spent = result.receipt, result.durations
    row = replace(
        row, state="ended", outcome=result.outcome.value, explanation=result.explanation[:MAX_EXPLANATION_CHARS],
        ended=time.time(), queue_ms=spent.queue_ms, environment_ms=spent.environment_ms, sandbox_ms=spent.sandbox_ms,
        program_ms=spent.program_ms, total_ms=spent.total_ms, warm=spent.warm, peak_memory_mib=result.peak_memory_mib,
        cpu_s=result.cpu_s, result_bytes=len(result.result_json or b""),
        output_bytes=len(result.stdout) + len(result.stderr), files_bytes=sum(len(file.content) for file in result.files),
    )  # fmt: skip
    if receipt is None:
        return row
    return replace(
        row, started=row.received + spent.queue_ms / 1000, policy_hash=receipt.policy_hash, image=receipt.image,
        environment=receipt.environment or "",
    )  # fmt: skip


def failed_row(row: Row, error: SandboxError | None) -> Row:
    """Return the row of a run that ended with an error, or whose client went away (None)."""
    outcome = error.code if error else Outcome.CANCELLED.value
    explanation = str(error) if error else "the client went away"
    return replace(row, state="ended", outcome=outcome, explanation=explanation[:MAX_EXPLANATION_CHARS], ended=time.time())
