"""What a body asks for, in full: checked, and parsed as far as the host parses it at all. Pure.

The parser does it, a process beside the service, or the service itself where a body is short and names no libraries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from sandbox.channel.modules import check_modules
from sandbox.channel.sent import half_replaced
from sandbox.environment.declared import Declared, parse_script
from sandbox.environment.requirements import parse_libraries
from sandbox.errors import InvalidRequest
from sandbox.models import RunRequest
from sandbox.printable import printable
from sandbox.service.intake.bodies import (
    Written,
    check_body,
    code_of,
    environment_body,
    files_of,
    run_body,
)
from sandbox.wire.requests import CheckBody, NotifyBody, RunBody, RunOptions

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEADER = "# /// script"


class UnknownPolicy(Exception):
    """The caller may use no policy of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a run, a check or a build of libraries is asked for with, and how a run is to be answered.

    `request` lacks what is large, see `Taken`; `files` are the names of its files.
    """

    request: RunRequest
    files: tuple[str, ...] = ()
    wait_for_end: bool = False
    notify: NotifyBody | None = None


# What is asked for, and the large parts of a run: payload, message, and the contents of its files.
Taken = tuple[Asked, "list[Buffer]"]


def run_asked(body: Written, code_kib: Mapping[str, int]) -> Taken:
    """Return what the body of a run asks for.

    `code_kib` is, for each policy that the caller may use, how long a program may be.

    Raises `UnknownPolicy`, `PolicyDenied`, `InvalidRequest`.
    """
    asked, replaced = run_body(body)
    code, libraries = _program(asked, code_kib, asked.requires_python)
    check_modules(asked.preload or ())
    if not bytes(memoryview(asked.message)[:1]).startswith(b"{"):
        raise InvalidRequest("`message` is no JSON object", hint="send the whole message of the flow, or leave it out")
    files = files_of(asked)
    options = {name: getattr(asked, name) for name in RunOptions.__struct_fields__}
    options |= {"requirements": libraries.libraries, "requires_python": libraries.python}
    request = RunRequest(**options, code=code, warnings=tuple(map(half_replaced, replaced)))
    found = Asked(request=request, files=tuple(files), wait_for_end=asked.wait_for_end, notify=asked.notify)
    return found, [asked.payload, asked.message, *files.values()]


def check_asked(body: Written, code_kib: Mapping[str, int]) -> Taken:
    """Return what the body of a check asks for. Raises as `run_asked` does."""
    asked = check_body(body)
    code, libraries = _program(asked, code_kib)
    request = RunRequest(
        code=code,
        filename=asked.filename,
        policy=asked.policy,
        image=asked.image,
        requirements=libraries.libraries,
        requires_python=libraries.python,
    )
    return Asked(request=request), []


def environment_asked(body: Written, code_kib: Mapping[str, int]) -> Taken:
    """Return which libraries a body wants built. Raises as `run_asked` does."""
    asked = environment_body(body)
    if asked.policy not in code_kib:
        raise UnknownPolicy(asked.policy)
    requirements = parse_libraries("\n".join(asked.requirements))
    if not requirements:
        raise InvalidRequest("no library is asked for", hint='send for example {"requirements": ["pandas"]}')
    request = RunRequest(code="", policy=asked.policy, image=asked.image, requirements=requirements)
    return Asked(request=request), []


def _program(asked: RunBody | CheckBody, code_kib: Mapping[str, int], python: str = "") -> tuple[str, Declared]:
    """Return a program and its libraries, for `python`: those of the body, else those of the script's header."""
    if asked.policy not in code_kib:
        raise UnknownPolicy(asked.policy)
    code = code_of(asked, code_kib[asked.policy])
    named = parse_libraries("\n".join(asked.requirements)) if asked.requirements else ()
    if not named and HEADER in code:
        return code, parse_script(code, name=printable(asked.filename)) or Declared()
    return code, Declared(named, python)


def request_of(asked: Asked, parts: Sequence[bytes]) -> RunRequest:
    """Return the whole request that this stands for."""
    if not parts:
        return asked.request
    payload_json, message_json, *contents = parts
    files = dict(zip(asked.files, contents, strict=True))
    return msgspec.structs.replace(asked.request, payload_json=payload_json, message_json=message_json, files=files)
