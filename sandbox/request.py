"""What is checked of a request before anything starts: its syntax, its sizes, and what the policy lets through."""

from __future__ import annotations

import re
import sys
import warnings
from typing import TYPE_CHECKING, Protocol

from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.harness import compile_program, name_problem

if TYPE_CHECKING:  # they take long to import, and the syntax is looked at before anything else is done
    from sandbox.models import RunRequest
    from sandbox.policy_model import Policy


class Script(Protocol):
    """What the check of the syntax looks at; a `RunRequest` is one."""

    @property
    def code(self) -> str:
        """The program's text."""

    @property
    def filename(self) -> str:
        """Its name, for messages."""


def syntax_error(request: Script) -> InvalidRequest | None:
    """Return why the code does not compile on this host's Python, with line and column; None when it does."""
    name, code = request.filename, request.code.removeprefix("\ufeff")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the sandbox's own Python gives them, where its text is escaped
            # Under a name that is no path: for some errors Python opens the file of that name, and shows its line.
            compile_program(code, "<script>")
    except SyntaxError as error:
        text = line_of(code, error.lineno or 0).strip()
        return InvalidRequest(
            f"{name} line {error.lineno}, column {error.offset}: {error.msg}" + (f": {text[:200]}" if text else ""),
            hint="nothing was started; correct the script and run it again",
            line=error.lineno, column=error.offset,
        )  # fmt: skip
    except (ValueError, RecursionError, MemoryError) as error:
        return InvalidRequest(
            f"{name} can't be compiled: {str(error) or type(error).__name__}", hint="nothing was started"
        )
    return None


def line_of(code: str, number: int) -> str:
    """Return a line of a program as Python counts them, from 1: form feeds and the like end none."""
    lines = re.split(r"\r\n|\r|\n", code)
    return lines[number - 1] if 0 < number <= len(lines) else ""


def newer_than_ours(version: tuple[int, int] | None) -> bool:
    """Tell whether an image's Python may know syntax that ours doesn't."""
    return version is not None and version > sys.version_info[:2]


def check_request(request: RunRequest, policy: Policy) -> None:
    """Raise `PolicyDenied` or `InvalidRequest` for what the policy does not let through."""
    limits = policy.limits
    sizes = {
        "code_kib": (len(request.code.encode(errors="surrogatepass")), limits.code_kib << 10),
        "payload_mib": (
            len(request.payload_json) + len(request.message_json) + sum(map(len, request.files.values())),
            limits.payload_mib << 20,
        ),
    }
    for key, (size, allowed) in sizes.items():
        if size > allowed:
            raise PolicyDenied(
                f"the request has {size} bytes, policy {policy.name!r} takes {allowed} (limits.{key})",
                hint="send less, or choose a policy that takes more",
            )
    for name in request.files:
        if problem := name_problem(name):
            raise InvalidRequest(
                f"the file name {name[:80]!r} {problem}", hint="give files plain names, without a path"
            )
    for name in request.env:
        policy.env_allowed(name)
    for name in request.secrets:
        policy.secret_allowed(name)
