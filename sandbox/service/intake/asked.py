"""What a body asks for, in full: checked, and parsed as far as the host parses it at all. Pure.

The parser does it, a process beside the service, or the service itself where a body is short and names no libraries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from pydantic import SecretStr, ValidationError

from sandbox.channel.modules import check_modules
from sandbox.environment.declared import Declared, parse_script
from sandbox.environment.requirements import parse_libraries
from sandbox.errors import InvalidRequest
from sandbox.models import RunRequest, Tightening
from sandbox.printable import printable
from sandbox.service.intake.bodies import (
    Written,
    check_body,
    code_of,
    environment_body,
    fields_of,
    files_of,
    run_body,
)
from sandbox.wire.requests import CheckBody, Options, RunBody

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEADER = "# /// script"


class UnknownPolicy(Exception):
    """The caller may use no policy of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Asked(Options, frozen=True, kw_only=True):
    """What a run, a check or a build of libraries is asked for with.

    `files` are names; for what is large, see `Taken`.
    """

    code: str = ""
    files: tuple[str, ...] = ()


# What is asked for, and the large parts of a run: payload, message, and the contents of its files.
Taken = tuple[Asked, "list[Buffer]"]


def run_asked(body: Written, code_kib: Mapping[str, int]) -> Taken:
    """Return what the body of a run asks for.

    `code_kib` is, for each policy that the caller may use, how long a program may be.

    Raises `UnknownPolicy`, `PolicyDenied`, `InvalidRequest`.
    """
    asked = run_body(body)
    code, libraries = _program(asked, code_kib, asked.requires_python)
    check_modules(asked.preload or ())
    if not bytes(memoryview(asked.message)[:1]).startswith(b"{"):
        raise InvalidRequest("`message` is no JSON object", hint="send the whole message of the flow, or leave it out")
    files = files_of(asked)
    options = {name: getattr(asked, name) for name in Options.__struct_fields__}
    options |= {"requirements": libraries.libraries, "requires_python": libraries.python}
    found = Asked(**options, code=code, files=tuple(files))
    return found, [asked.payload, asked.message, *files.values()]


def check_asked(body: Written, code_kib: Mapping[str, int]) -> Taken:
    """Return what the body of a check asks for. Raises as `run_asked` does."""
    asked = check_body(body)
    code, libraries = _program(asked, code_kib)
    found = Asked(
        code=code,
        filename=asked.filename,
        policy=asked.policy,
        image=asked.image,
        requirements=libraries.libraries,
        requires_python=libraries.python,
    )
    return found, []


def environment_asked(body: Written, code_kib: Mapping[str, int]) -> Taken:
    """Return which libraries a body wants built. Raises as `run_asked` does."""
    asked = environment_body(body)
    if asked.policy not in code_kib:
        raise UnknownPolicy(asked.policy)
    requirements = parse_libraries("\n".join(asked.requirements))
    if not requirements:
        raise InvalidRequest("no library is asked for", hint='send for example {"requirements": ["pandas"]}')
    return Asked(policy=asked.policy, image=asked.image, requirements=requirements), []


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
    """Return the request that this stands for. Raises `InvalidRequest`."""
    fields = msgspec.structs.asdict(asked)
    del fields["wait_for_end"], fields["notify"]
    fields["limits"] = Tightening(**msgspec.structs.asdict(asked.limits))
    fields["secrets"] = {name: SecretStr(value) for name, value in asked.secrets.items()}
    fields["files"] = dict(zip(asked.files, parts[2:], strict=True))
    if parts:
        fields |= {"payload_json": parts[0], "message_json": parts[1]}
    try:
        return RunRequest(**fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"`{place}`: {first['msg']}", hint=fields_of(RunBody)) from None
