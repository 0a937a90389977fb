"""`sandbox run`: one script, one sandbox, one result."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sandbox.cli import beside, completion
from sandbox.cli.amounts import MAX_COUNT, parse_duration, parse_memory
from sandbox.cli.ending import READER_GONE, conclude
from sandbox.cli.files import read_bytes, read_text
from sandbox.cli.handover import leave_root
from sandbox.cli.libraries import asks_for_libraries, requirements_of
from sandbox.cli.output import Output, reader_gone
from sandbox.cli.run_options import run_options
from sandbox.cli.saved import open_directory
from sandbox.errors import InvalidRequest, SandboxError
from sandbox.inside.harness.text import name_problem

if TYPE_CHECKING:
    from sandbox.cli.answer import Answer
    from sandbox.models import RunRequest

DEFAULT_NAME = "script.py"


def read_payload(text: str | None) -> bytes:
    """Return the payload as it was given, unchecked."""
    if text is None:
        return b"null"
    if text == "-":
        return in_utf8(read_bytes("-", what="the input"))
    if text.startswith("@"):
        return in_utf8(read_bytes(text[1:], what="the input"))
    return text.encode(errors="surrogateescape")


def in_utf8(data: bytes) -> bytes:
    """Return JSON in UTF-8, without a mark at its beginning.

    PowerShell writes UTF-16, and other programs of Windows UTF-8 with a mark. What can't be read so stays as it is.
    """
    encoding = json.detect_encoding(data)
    if encoding == "utf-8":
        return data
    try:
        # Half of a surrogate pair has no UTF-8, but an escape, which is the same in JSON.
        return data.decode(encoding, "surrogatepass").encode("utf-8", "backslashreplace")
    except UnicodeDecodeError:
        return data


def check_payload(data: bytes, text: str | None) -> None:
    """Raise `InvalidRequest`, with line and column, unless the payload is JSON: what the service takes, too."""
    if text is None:
        return
    from msgspec import DecodeError

    from sandbox.channel.sent import text_as_sent

    with contextlib.suppress(DecodeError, UnicodeDecodeError, RecursionError):
        data.decode()
        text_as_sent(data)
        return
    explain_payload(data, text)


def explain_payload(data: bytes, text: str) -> NoReturn:
    """Raise `InvalidRequest` that says why a payload is no JSON."""
    file = text[1:] if text.startswith("@") else None
    source = "--input" if file is None else f"--input @{file}"
    try:
        json.loads(data.decode(), parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{source} is not UTF-8 text: byte {error.start + 1}", hint=as_file(file) or "save it as UTF-8"
        ) from None
    except RecursionError:
        raise InvalidRequest(f"{source} is nested too deeply", hint="send flatter data") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"{source} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}",
            hint=as_file(file) or as_text(text),
        ) from None
    except ValueError as error:
        raise InvalidRequest(f"{source} is not JSON: {error}", hint="send null or text instead") from None
    raise InvalidRequest(f"{source} is not JSON that every reader takes", hint=as_file(file) or as_text(text))


def as_file(file: str | None) -> str:
    """Return how a file that is no JSON is given to the program, or that a file of JSON is to be corrected.

    The text is empty where there is no file.
    """
    if file is None:
        return ""
    if file.endswith((".json", ".geojson")):
        return "correct it there: the payload is JSON"
    name = Path(file).name
    reading = (
        f'pandas.read_csv("{name}"), or open("{name}")'
        if name.lower().endswith((".csv", ".tsv"))
        else f'open("{name}"), or read_file("{name}")'
    )
    return (
        f"the payload is JSON; a file of another kind is given as it is: --file {shlex.quote(file)}, and the program"
        f" reads it: {reading}"
    )


def as_text(text: str | None) -> str:
    """Return how a text that is no JSON is written, or the file that it names."""
    if text is not None and text != "-" and Path(text).is_file():
        return (
            f"to send what is in the file: --input {shlex.quote(f'@{text}')}"
            if text.endswith(".json")
            else as_file(text)
        )
    return (
        "text needs quotes of its own: --input '\"hello\"'; a file of JSON is given as --input @data.json, any other as"
        " --file data.csv"
    )


def refuse_constant(name: str) -> None:
    """Refuse what Python's parser lets through and JSON does not have."""
    raise ValueError(f"it has no {name}")


def pairs(values: tuple[str, ...], *, option: str) -> dict[str, str]:
    """Return NAME=VALUE pairs; a bare NAME takes the caller's own variable."""
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name.isascii() and name.isidentifier()):
            raise InvalidRequest(
                f"{option} {name[:80]!r} is not the name of a variable",
                hint="use letters, digits and _, not starting with a digit",
            )
        if not equals:
            if name not in os.environ:
                given = f"{name}=… sandbox run …" if option == "--secret" else f"{option} {name}=VALUE"
                raise InvalidRequest(f"{option} {name}: there is no such variable here", hint=f"write {given}")
            value = os.environ[name]
        if name in found:
            raise InvalidRequest(f"{option} {name} is given twice", hint="give each name once")
        found[name] = value
    return found


def read_files(values: tuple[str, ...]) -> dict[str, bytes]:
    """Return the content of files given as NAME=PATH, or as PATH alone, whose last part is the name then."""
    found = {}
    for text in values:
        name, equals, path = text.partition("=")
        if not equals or ("/" in name and Path(text).exists()):
            name, path = Path(text).name, text
        if not name or not path:
            raise InvalidRequest(
                f"--file {text!r} is neither PATH nor NAME=PATH",
                hint="for example --file data.csv, or --file data.csv=/srv/today.csv",
            )
        if name in found:
            raise InvalidRequest(f"--file {name} is given twice", hint="give each name once: --file other.csv=PATH")
        found[name] = read_bytes(path, what="the file")
    return found


@dataclass(frozen=True)
class Inputs:
    """Everything that is read with the caller's own rights, not yet looked at."""

    code: str
    payload: bytes
    files: dict[str, bytes]
    requirements: tuple[str, ...] = ()
    requires_python: str = ""


def request_fields(inputs: Inputs, filename: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the request that the inputs and options describe, but for its payload.

    Raises `InvalidRequest`.
    """
    names = options["secrets"]
    if named := [text for text in names if "=" in text]:
        raise InvalidRequest(
            f"--secret {named[0].partition('=')[0]} carries its value, which every user of this host can read in the"
            " process list",
            hint="set an environment variable of that name and write --secret NAME",
        )
    check_payload(inputs.payload, options["input_text"])
    check_amounts(options)
    limits = {
        "timeout_s": None if options["timeout"] is None else parse_duration(options["timeout"]),
        "memory_mib": None if options["memory"] is None else parse_memory(options["memory"]),
        "cpus": options["cpus"],
        "processes": options["pids"],
    }
    return {
        "code": inputs.code,
        "filename": filename,
        "topic": options["topic"],
        "policy": options["policy"],
        "image": options["image"],
        "requirements": inputs.requirements,
        "requires_python": inputs.requires_python,
        "limits": limits,
        "env": pairs(options["env"], option="--env"),
        "secrets": pairs(names, option="--secret"),
        "files": inputs.files,
        "save_new": options.get("save_new") is not None,
    }


def check_amounts(options: dict[str, Any]) -> None:
    """Raise `InvalidRequest` for numbers that no machine has, and for an image without a name."""
    if options["cpus"] is not None and not 0 < options["cpus"] <= MAX_COUNT:
        raise InvalidRequest(f"--cpus {options['cpus']:g} is not a number of CPUs", hint="write for example 0.5 or 2")
    if options["pids"] is not None and options["pids"] > MAX_COUNT:
        raise InvalidRequest(
            f"--pids {str(options['pids'])[:20]}…: no machine has so many processes", hint="write for example 16"
        )
    if options["image"] == "":
        raise InvalidRequest("--image is empty", hint="name an image, or leave --image out for the policy's own")


def build_request(fields: dict[str, Any], payload_json: bytes) -> RunRequest:
    """Return the request that has these fields. Raises `InvalidRequest`."""
    from sandbox.run.request import request_from

    return request_from({**fields, "payload_json": payload_json}, hint="see sandbox run --help")


@click.command("run", context_settings={"ignore_unknown_options": False})
@click.argument("file", metavar="FILE|-|template:NAME", shell_complete=completion.scripts)
@run_options
@click.option("--no-local", is_flag=True, help="Send none of the modules that lie beside the script along.")
@click.pass_obj
def run(obj: dict[str, Any], /, *, file: str, no_local: bool, **options: Any) -> int:
    """Run the Python script FILE in a sandbox of its own.

    FILE may be a directory with a __main__.py, - for standard input, or template:NAME for a built-in script. Modules
    that lie beside the script, and that its imports name, are sent along.
    """
    if file.startswith("template:"):
        return run_template(obj, file.removeprefix("template:"), options)
    if file == "-" and options["input_text"] == "-":
        raise InvalidRequest(
            "the script and the input can't both come from standard input", hint="give one of them as a file"
        )
    file = beside.script_of(file)
    filename = DEFAULT_NAME if file == "-" or name_problem(Path(file).name) else Path(file).name
    return run_code(
        obj,
        lambda: read_text(file, what="the script"),
        filename=filename,
        options=options,
        script=None if file == "-" or no_local else file,
    )


def run_template(obj: dict[str, Any], name: str, options: dict[str, Any]) -> int:
    """Run a built-in script with its sample payload and its libraries, unless the options give others."""
    from sandbox import templates

    entry = templates.get(name)
    if options["input_text"] is None:
        options["input_text"] = entry.payload_json.decode()
    return run_code(obj, lambda: entry.code, filename=f"{entry.name}.py", options=options)


def run_code(
    obj: dict[str, Any], read: Callable[[], str], *, filename: str, options: dict[str, Any], script: str | None = None
) -> int:
    """Run the code that `read` gives, with the options of `run_options`; return the exit status.

    What lies beside the file `script` may go along.
    """
    output = Output(as_json=options["as_json"], quiet=options["quiet"])
    try:
        # Inputs are read before root is given up: they are the caller's to read. They are parsed afterwards.
        code = read()
        payload, files = read_payload(options["input_text"]), read_files(options["files"])
        if script is not None:
            files = {**beside.modules_for(script, code, without=files, quiet=options["quiet"]), **files}
        asked = requirements_of(options, code=code, filename=filename) if asks_for_libraries(options, code=code) else ()
        inputs = Inputs(code, payload, files, *asked)
        if obj.get("own_process"):
            leave_root(quiet=options["quiet"], with_index=bool(inputs.requirements))
        fields = request_fields(inputs, filename, options)
        if options["detach"]:
            return detached(obj, fields, inputs.payload, options)
        directory = open_directory(options)
        answer = carried_out(obj, fields, inputs.payload, options=options, output=output)
        return conclude(answer, output, directory, options)
    except SandboxError as error:
        if options["as_json"] and not output.finished:
            from sandbox.document import error_document

            sys.stdout.buffer.write(error_document(error) + b"\n")
        raise
    except BrokenPipeError:
        reader_gone()
        return READER_GONE


def detached(obj: dict[str, Any], fields: dict[str, Any], payload: bytes, options: dict[str, Any]) -> int:
    """Have the service start the run, and wait for nothing. Raises a `SandboxError`."""
    from sandbox.cli import later, remote

    later.check_detached(options, obj["policy_dirs"])
    return later.start(remote.service_for(options, obj["policy_dirs"]), fields, payload, options)


def carried_out(
    obj: dict[str, Any], fields: dict[str, Any], payload: bytes, *, options: dict[str, Any], output: Output
) -> Answer:
    """Have the service carry the run out where one is running, or else this process. Raises a `SandboxError`."""
    from sandbox.cli import remote

    client = remote.service_for(options, obj["policy_dirs"])
    if client is not None:
        with client:
            return remote.carry_out(client, fields, payload, output)
    request = build_request(fields, payload)
    from sandbox.cli import embedded

    return embedded.carry_out(request, policy_dirs=obj["policy_dirs"], output=output, quiet=options["quiet"])
