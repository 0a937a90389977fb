"""Checking code without running it: whether it compiles on an environment's own Python, and what its imports lack.

Nothing is parsed on this host. The code goes into an ordinary verified sandbox as the payload of
`sandbox.inside.code_check_program`; what comes back is believed no more than the result of any run.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import asdict

from sandbox.errors import Internal, InvalidRequest
from sandbox.index.absent_modules import ELSEWHERE, STANDARD, WINDOWS
from sandbox.index.package_names import package_of_module
from sandbox.inside.code_check_program import MAX_IMPORTS, MAX_MISSING, MAX_NAME_CHARS, MAX_TEXT_CHARS
from sandbox.models import Outcome, RunRequest, RunResult
from sandbox.run.decision import DecidedRun, Run
from sandbox.wire.answers import CodeCheck, MissingModule, Problem

PROGRAM = Path(__file__).parents[1] / "inside/code_check_program.py"
MAX_ANSWER_BYTES = 1 << 20
MAX_PLACE = 1 << 31
CUT_CHARS = 20  # the mark of a text that was cut
# How a compiler ends that a program drove too deep, rather than one that was ended.
CRASHES = {"SIGSEGV", "SIGABRT", "SIGBUS"}

Execute = Callable[[DecidedRun], Awaitable[RunResult]]
Place = Annotated[int, Meta(ge=1, le=MAX_PLACE)]
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS + CUT_CHARS)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]


# ---- what the program in the sandbox may say


class _Problem(Problem, frozen=True, kw_only=True, forbid_unknown_fields=True):
    line: Place
    column: Place
    message: Text
    text: Text


class _Missing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    module: Name
    line: Place


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    python: Annotated[str, Meta(pattern=r"\A[0-9]{1,3}(\.[0-9]{1,3}){2}\Z")]
    problem: _Problem | None
    missing: Annotated[tuple[_Missing, ...], Meta(max_length=MAX_MISSING)]
    imports: Annotated[tuple[Name, ...], Meta(max_length=MAX_IMPORTS)]


async def check_code(decided: DecidedRun, execute: Execute) -> CodeCheck:
    """Check the code of a run in the sandbox that it would get, under the same limits, instead of running it.

    Raises `InvalidRequest` for code that Python can't be made to judge within the limits, `Internal` for a sandbox that
    gave no answer, and whatever `execute` raises.
    """
    asked = decided.run.request
    # The text as a harness would decode it. No two halves of a character are left that JSON would join.
    text = asked.code.encode(errors="surrogatepass").decode(errors="surrogateescape")
    request = RunRequest(
        code=PROGRAM.read_text(),
        filename=PROGRAM.name,
        policy=asked.policy,
        payload_json=json.dumps({"code": text}).encode(),
    )
    # The setting stays that of the run, so that a sandbox which stands ready for one will do.
    return answer_of(await execute(decided.instead(Run(request=request))), asked.filename)


def answer_of(result: RunResult, filename: str) -> CodeCheck:
    """Return what a check came to. Raises `InvalidRequest` or `Internal`, see `check_code`."""
    name = repr(filename[:80])
    exhausted = result.outcome in (Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY)
    if exhausted or (result.outcome is Outcome.KILLED and result.signal in CRASHES):
        reason = result.explanation.removeprefix("the program ")
        raise InvalidRequest(
            f"{name} can't be checked: compiling it {reason}",
            hint="divide large or deeply nested expressions; the limits are those of a run under this policy",
            outcome=result.outcome.value,
        )
    if result.outcome is not Outcome.SUCCEEDED:
        raise Internal(
            f"the check of {name} ended without an answer: {result.explanation}",
            hint="try again; report this if it repeats",
            outcome=result.outcome.value,
        )
    text = result.result_json or b""
    try:
        if len(text) > MAX_ANSWER_BYTES:
            raise ValueError
        said = msgspec.json.decode(text, type=_Answer)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        raise Internal(f"the sandbox gave no valid answer on {name}", hint="report this") from None
    missing = tuple(
        MissingModule(module=one.module, line=one.line, install=distribution_of(one.module)) for one in said.missing
    )
    problem = Problem(**asdict(said.problem)) if said.problem else None
    return CodeCheck(python=said.python, problem=problem, missing=missing, imports=said.imports)


def distribution_of(module: str) -> str | None:
    """Return what to install for a module that is missing, or None when nobody knows for sure what has it."""
    top = module.partition(".")[0]
    return None if top in STANDARD or top in WINDOWS or top in ELSEWHERE else package_of_module(top)
