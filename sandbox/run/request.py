"""The checks of a request before anything starts: its fields, its sizes, and what the policy allows.

Nothing of what is meant for the sandbox is parsed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from sandbox.channel.sent import half_replaced, text_as_sent
from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.inside.harness.json_text import whole_text
from sandbox.inside.harness.text import path_problem
from sandbox.models import RunRequest, Tightening

if TYPE_CHECKING:
    from sandbox.policy.model import Policy


def request_from(fields: Mapping[str, object], *, hint: str) -> RunRequest:
    """Return the request that has these fields, each as it is declared. Raises `InvalidRequest` with the place."""
    try:
        return msgspec.convert(fields, RunRequest, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request can't be used: {reason_of(error)}", hint=hint) from None


def checked(request: RunRequest) -> RunRequest:
    """Return a request whose fields are what they may be; whoever made it, nothing has checked it yet.

    What comes back shares no dictionary with it, and so stays as it was checked. Raises `InvalidRequest`.
    """
    fields = msgspec.structs.asdict(request)
    if isinstance(request.limits, Tightening):
        fields["limits"] = msgspec.structs.asdict(request.limits)
    return as_read(request_from(fields, hint="correct this field of the `RunRequest`"))


def as_read(request: RunRequest) -> RunRequest:
    """Return a request as the service would have read it. What is no JSON stays: the harness says so."""
    if request.warnings is not None:
        return request
    fields: dict[str, Any] = {"topic": whole_text(request.topic)}
    replaced = ["topic"] if fields["topic"] != request.topic else []
    for name, text in (("payload", request.payload_json), ("message", request.message_json)):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            fields[f"{name}_json"], halves = text_as_sent(text)
            replaced += [name] if halves else []
    return msgspec.structs.replace(request, **fields, warnings=tuple(map(half_replaced, replaced)))


def reason_of(error: Exception) -> str:
    """Return what is wrong in which field, as msgspec says it."""
    return str(error).replace("`$.", "`")


def check_code_size(size_bytes: int, policy: str, code_kib: int, *, at_least: bool = False) -> None:
    """Check that a program may be so long under a policy that takes `code_kib`, before anything is made of its text.

    Raises `PolicyDenied`.
    """
    _check_size("code_kib", size_bytes, code_kib << 10, policy, said="at least " if at_least else "")


def check_request(request: RunRequest, policy: Policy) -> None:
    """Raise `PolicyDenied` or `InvalidRequest` for what the policy does not let through."""
    check_code_size(len(request.code.encode(errors="surrogatepass")), policy.name, policy.limits.code_kib)
    data_bytes = len(request.payload_json) + len(request.message_json) + sum(map(len, request.files.values()))
    _check_size("payload_mib", data_bytes, policy.limits.payload_mib << 20, policy.name)
    if not request.filename.isprintable():
        raise InvalidRequest(
            "`filename` has control or invisible characters", hint="give the script a plain name, such as script.py"
        )
    for name in request.files:
        if problem := path_problem(name):
            raise InvalidRequest(
                f"the file name {name[:80]!r} {problem}",
                hint="give files names as they are to lie below the working directory: data.csv, plant/names.json",
            )
    for name in request.env:
        policy.env_allowed(name)
    for name in request.secrets:
        policy.secret_allowed(name)
    for name, value in (*request.env.items(), *request.secrets.items()):
        if "\0" in value:
            raise InvalidRequest(
                f"the value of {name} has a NUL character, which no variable can hold",
                hint="send it in the payload or as a file",
            )


def _check_size(key: str, size_bytes: int, allowed_bytes: int, policy: str, *, said: str = "") -> None:
    if size_bytes > allowed_bytes:
        raise PolicyDenied(
            f"the request has {said}{size_bytes} bytes, policy {policy!r} takes {allowed_bytes} (limits.{key})",
            hint="send less, or choose a policy that takes more",
        )
