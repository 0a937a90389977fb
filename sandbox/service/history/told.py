"""The output of a run, as far as the history keeps it, without secrets.

It tells its message, traceback, log records, and the ends of stdout and stderr. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, takewhile

from sandbox.models import LogRecord, Outcome, RunResult
from sandbox.policy.model import Policy
from sandbox.service.history.secret_mask import Mask
from sandbox.wire.answers import KeptError, KeptOutput, LeftOut
from sandbox.wire.given import encoded

MAX_MESSAGE_CHARS = 2_000
MAX_TYPE_CHARS = 200


def is_kept(policy: Policy | None, outcome: Outcome) -> bool:
    """Tell whether a policy has the history keep what a run told that ended so."""
    kept = policy.history.output if policy is not None else "none"
    return kept == "all" or (kept == "failed" and outcome is not Outcome.SUCCEEDED)


def told(result: RunResult, mask: Mask, part_bytes: int) -> str:
    """Return what a run told as a JSON object of plain ASCII: `error`, `logs`, `stdout`, `stderr`.

    Each has at most `part_bytes`. `left_out` says how much more there was: bytes of stdout and stderr, numbers of
    records. The text is "" where the run told nothing.
    """
    error = result.error
    logs, older = last_records(result.logs, mask, part_bytes)
    stdout, stderr = (end_of(data, mask, part_bytes) for data in (result.stdout, result.stderr))
    kept = (
        error
        if error is None
        else KeptError(
            type=mask.beginning(error.type, MAX_TYPE_CHARS),
            message=mask.beginning(error.message, MAX_MESSAGE_CHARS),
            line=error.line,
            traceback=mask.end(error.traceback, part_bytes),
        )
    )
    document = KeptOutput(
        error=kept,
        logs=tuple(logs),
        stdout=stdout,
        stderr=stderr,
        left_out=LeftOut(
            stdout_bytes=max(0, len(result.stdout) - part_bytes),
            stderr_bytes=max(0, len(result.stderr) - part_bytes),
            logs=older,
        ),
    )
    return encoded(document).decode() if error or logs or stdout or stderr else ""


def end_of(data: bytes, mask: Mask, part_bytes: int) -> str:
    """Return the end of output as text; what is no UTF-8 becomes backslashes."""
    if len(data) > part_bytes:
        window = data[-(part_bytes + 4 * mask.reach) :]
        shared = next(
            (n for n, byte in enumerate(window[:4]) if byte & 0xC0 != 0x80), 0
        )  # a character that was cut in two
        data = window[shared:]
    return mask.end(data.decode(errors="backslashreplace"), part_bytes)


def last_records(records: Sequence[LogRecord], mask: Mask, part_bytes: int) -> tuple[list[LogRecord], int]:
    """Return the last log records that fit, and how many are older."""
    sizes = accumulate(len(record.message) + len(record.level) for record in reversed(records))
    last = records[len(records) - sum(1 for _ in takewhile((2 * part_bytes).__ge__, sizes)) :]
    # Together: there may be thousands, and each would be looked through for every form of every secret. Without them,
    # most are shorter.
    messages = mask.each([record.message for record in last])
    kept: list[LogRecord] = []
    left = part_bytes
    for record, message in zip(reversed(last), reversed(messages), strict=True):
        left -= len(message) + len(record.level)
        if left < 0:
            break
        kept.append(LogRecord(level=record.level, message=message, elapsed_s=record.elapsed_s))
    return kept[::-1], len(records) - len(kept)
