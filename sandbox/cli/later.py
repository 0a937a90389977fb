"""`sandbox run --detach` and `sandbox result`: start a run now, and show its result later."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sandbox.cli import colour, completion
from sandbox.cli.amounts import parse_duration
from sandbox.cli.answer import answer_from
from sandbox.cli.ending import READER_GONE, conclude
from sandbox.cli.output import Output, reader_gone
from sandbox.cli.runs import MAX_LISTED, connected, full_id
from sandbox.cli.saved import open_directory
from sandbox.client.reading import unreadable
from sandbox.errors import EngineUnavailable, InvalidRequest, SandboxError
from sandbox.wire.run import RunDocument

if TYPE_CHECKING:
    from sandbox.client import Client

GOES_ON = os.EX_TEMPFAIL
# One request waits for so long; then it is asked again.
WAIT_S = 30.0


def check_detached(options: dict[str, Any], policy_dirs: list[Path]) -> None:
    """Check that a run can be left to a service. Raises `InvalidRequest`."""
    if options["no_service"] or policy_dirs or "/" in options["policy"] or options["policy"].endswith(".toml"):
        raise InvalidRequest(
            "--detach leaves the run to a service, and --no-service, --policy-dir and the path of a policy keep it in"
            " this process",
            hint=(
                "name a policy that the service has, leave the others out, and unset SANDBOX_NO_SERVICE, which means"
                " --no-service"
            ),
        )
    if options.get("save_new"):
        raise InvalidRequest(
            "--save-new DIR writes files once the run is over, and --detach does not wait for that",
            hint="leave --detach out, or have the program call save_file() and fetch the files: sandbox result",
        )
    if options["save_files"]:
        raise InvalidRequest("--save-files goes with `sandbox result`, once the run is over", hint="leave it out here")


def start(client: Client | None, fields: dict[str, Any], payload_json: bytes, options: dict[str, Any]) -> int:
    """Have the service start a run, and print its id. Raises a `SandboxError`."""
    if client is None:
        raise EngineUnavailable(
            "--detach needs a service that carries the run out, and none is running", hint="start it: sandbox serve"
        )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # secrets pass through this process
    with client:
        named = {name: value for name, value in fields.items() if name != "code"}
        run_id = client.start(fields["code"], payload_json=payload_json, **named)
    click.echo(json.dumps({"run_id": run_id}) if options["as_json"] else run_id)
    if sys.stderr.isatty() and not options["quiet"]:
        colour.marked(f"· started; sandbox result {run_id[:12]} --wait", err=True, dim=True)
    return 0


@click.command("result")
@click.argument("run_id", metavar="RUN", shell_complete=completion.runs)
@click.option("--wait", is_flag=True, help="Wait for the end of the run.")
@click.option("--timeout", metavar="DURATION", help="Wait at most this long: 30s, 500ms, 2m.")
@click.option(
    "--save-files",
    metavar="DIR",
    help="Directory for files saved with save_file(). Names that programs act upon are changed.",
)
@click.option("--keep-names", is_flag=True, help="Save files under exactly the names that the program gave them.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result and its receipt as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Show only the program's output and its result.")
def result(*, run_id: str, wait: bool, timeout: str | None, save_files: str | None, **options: Any) -> int:
    """Show the result of RUN, which `sandbox run --detach` started. RUN is an id, or its first characters.

    Output and exit status are those that `sandbox run` would have had. While the run goes on, the exit status is 75.
    """
    output = Output(as_json=options["as_json"], quiet=options["quiet"])
    try:
        limit_s = parse_duration(timeout) if timeout is not None else float("inf") if wait else 0.0
        directory = open_directory({"save_files": save_files})
        with connected() as client:
            run_id = full_id(run_id, lambda: client.runs(limit=MAX_LISTED))
            document = ended(client, run_id, limit_s)
        if document is None:
            click.echo(
                json.dumps({"run_id": run_id, "state": "running"}) if options["as_json"] else "", nl=options["as_json"]
            )
            click.echo(f"sandbox: {run_id[:12]} goes on; --wait waits for its end", err=True)
            return GOES_ON
        show(document, output)
        return conclude(answer_from(document), output, directory, options)
    except SandboxError as error:
        if options["as_json"] and not output.finished:
            from sandbox.document import error_document

            sys.stdout.buffer.write(error_document(error) + b"\n")
        raise
    except BrokenPipeError:
        reader_gone()
        return READER_GONE


def ended(client: Client, run_id: str, limit_s: float) -> bytes | None:
    """Return the document of a run, waited for at most so long; None while it goes on. Raises its error."""
    until = time.monotonic() + limit_s
    while True:
        left_s = max(0.0, until - time.monotonic())
        document = client.result_text(run_id, min(left_s, WAIT_S))
        if document is not None or left_s <= 0:
            return document


def show(document: bytes, output: Output) -> None:
    """Show what the program printed and logged. Raises `Internal`."""
    try:
        told = msgspec.json.decode(document, type=RunDocument)
    except msgspec.DecodeError as error:
        raise unreadable(error) from None
    for kind, text in (("stdout", told.stdout), ("stderr", told.stderr)):
        if text:
            output.live(kind, text.encode(errors="backslashreplace"))
    for record in told.logs:
        output.log(record.level, record.message)
