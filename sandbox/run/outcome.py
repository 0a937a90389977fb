"""Decide how a run ended. Pure: evidence in, `(Outcome, explanation)` out."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from sandbox.models import Outcome, ProgramError
from sandbox.policy.model import Policy
from sandbox.printable import printable
from sandbox.run.advice import advice, last_advice
from sandbox.run.limit_advice import Circumstances, no_room

MAX_TYPE_CHARS = 200
MAX_SAID_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known at the end of a run.

    `ended` is the harness's own word (see `sandbox.channel.frames`), None when it could not say one. `cause` is what
    the harness saw behind the program's exception: "memory", "processes", "channel" or None. `violation` is what the
    runner itself found wrong with what came, in words of ours. `last_words` are the end of standard error. For `full`
    and `address_space_mib` see `sandbox.run.limit_advice`.
    """

    cancelled: bool = False
    timed_out: bool = False
    memory_exceeded: bool = False
    memory_excess: str = ""
    processes_exceeded: bool = False
    ended: str | None = None
    violation: str = ""
    exit_code: int | None = None
    signal_name: str | None = None
    error: ProgramError | None = None
    cause: str | None = None
    has_result: bool = False
    last_words: str = ""
    full: tuple[str, ...] = ()
    address_space_mib: int | None = None


def decide(seen: Evidence, policy: Policy) -> tuple[Outcome, str]:
    """Return the outcome and one sentence that says what it means and what to do."""
    limits = policy.limits
    finished = seen.ended == "exited" and seen.exit_code == 0 and seen.error is None
    if seen.cancelled and not seen.timed_out:
        return Outcome.CANCELLED, "the run was cancelled"
    if seen.memory_exceeded or seen.cause == "memory":
        if seen.memory_excess:
            return Outcome.OUT_OF_MEMORY, f"the program needed {seen.memory_excess}, which take memory of the kernel"
        return Outcome.OUT_OF_MEMORY, out_of_memory(seen, policy)
    too_many = f"the program needed more than {limits.processes} processes and threads (limits.processes)"
    if seen.cause == "processes":
        return Outcome.TOO_MANY_PROCESSES, too_many
    if seen.timed_out:
        if seen.processes_exceeded:
            return Outcome.TOO_MANY_PROCESSES, too_many
        return Outcome.TIMED_OUT, f"the program was stopped after {limits.timeout_s:g} s (limits.timeout_s)"
    if (limit := LIMITS.get(seen.ended or "")) is not None:
        return Outcome.OUTPUT_LIMIT, limit
    if seen.ended == "cancelled":
        # Told to end in these words by the runner, whose own limit it did not reach.
        return Outcome.KILLED, "the kernel killed a process of the program: the host as a whole is out of memory"
    return decide_end(seen, policy, finished=finished, too_many=too_many)


def out_of_memory(seen: Evidence, policy: Policy) -> str:
    """Return in words what there was too little of."""
    more = f"the program needed more than {policy.limits.memory_mib} MiB (limits.memory_mib)"
    if seen.memory_exceeded or seen.address_space_mib is None:
        return more
    return (
        f"{more}, or reserved more than {seen.address_space_mib} MiB for one process, which counts on this host without"
        " cgroup v2, used or not"
    )


# Exceptions whose reason was said elsewhere: by a command or a worker, or before the program left.
SAYS_LITTLE = r"SystemExit|[\w.]*(?:Process|Worker|Pool)\w*"
DOES_NOT_COMPILE = ("SyntaxError", "IndentationError", "TabError")
LIMITS = {
    "output_limit": "the program printed more than limits.output_mib allows",
    "result_limit": "the result is larger than limits.result_mib allows",
    "files_limit": "the saved files are larger or more than limits.files_mib and limits.files_count allow",
    "log_limit": "the program logged more than limits.log_records allows",
}


def decide_end(seen: Evidence, policy: Policy, *, finished: bool, too_many: str) -> tuple[Outcome, str]:
    """Decide a run that ended by itself, or by the harness's hand for what it wrote to the channel."""
    place = Circumstances(policy=policy, full=seen.full, address_space_mib=seen.address_space_mib)
    if seen.ended == "channel":
        return Outcome.FAILED, "the program wrote to the runner's own channel" + (
            f": {seen.violation}" if seen.violation else ""
        )
    if seen.signal_name == signal.SIGXCPU.name:
        seconds = policy.limits.timeout_s * policy.limits.cpus
        return (
            Outcome.TIMED_OUT,
            f"one process used more than {seconds:g} s of CPU time (limits.timeout_s x limits.cpus)",
        )
    if seen.signal_name == signal.SIGSYS.name:
        return Outcome.KILLED, "the program made a system call of another architecture, which is denied (SIGSYS)"
    # An error that was told before comes first: whoever told it may have ended the program, see `child_start`.
    if seen.ended is None or (seen.signal_name is not None and seen.error is None):
        if seen.processes_exceeded:
            return Outcome.TOO_MANY_PROCESSES, too_many
        return (
            Outcome.KILLED,
            f"the program was killed by {seen.signal_name or 'an unknown signal'}{why_killed(seen, place)}",
        )
    if seen.error is not None:
        line = f" at line {seen.error.line}" if seen.error.line else ""
        kind = printable(seen.error.type, MAX_TYPE_CHARS)
        if kind in DOES_NOT_COMPILE:
            column = f", column {seen.error.column}" if seen.error.line and seen.error.column else ""
            return (
                Outcome.FAILED,
                f"the program raised {kind}{line}{column}: {printable(seen.error.message, MAX_SAID_CHARS)}",
            )
        told = advice(seen.error, place)
        if not told and re.fullmatch(SAYS_LITTLE, kind):
            told = last_advice(seen.last_words, place)
        return Outcome.FAILED, f"the program raised {kind}{line}{told}"
    if not finished:
        return (
            Outcome.FAILED,
            f"the program ended with exit status {seen.exit_code}{last_advice(seen.last_words, place)}",
        )
    if not seen.has_result:
        return Outcome.NO_RESULT, "the program ended without setting `result`"
    return Outcome.SUCCEEDED, ""


def why_killed(seen: Evidence, place: Circumstances) -> str:
    """Return what the signal, or the program's last words, say of the reason."""
    if seen.signal_name == signal.SIGBUS.name:
        return f", as happens when there is no room for what is written to mapped memory; {no_room('', place)}"
    return last_advice(seen.last_words, place)
