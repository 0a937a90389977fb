"""`sandbox logs`: what the history knows of one run, and the run's output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from textwrap import indent
from typing import Any

import click

from sandbox.cli import completion
from sandbox.cli.past import past
from sandbox.cli.runs import MAX_LISTED, full_id, json_option, spelled
from sandbox.cli.screen import escaped
from sandbox.printable import printable


@click.command("logs")
@click.argument("run_id", metavar="RUN", shell_complete=completion.runs)
@json_option
def logs(*, run_id: str, as_json: bool) -> None:
    """Show what the history knows of RUN, with its traceback, its log records and the end of its output.

    RUN is an id, or its first characters. The policy decides whether the history keeps the output of a run
    (history.output: by default only if the run fails) and its payload (history.payloads). Secrets of the run are
    masked. Code and result are never kept. If no service runs, the command reads the history's file.
    """
    with past() as known:
        found = dict(known.recorded(full_id(run_id, lambda: known.runs(limit=MAX_LISTED))))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    output = found.pop("output", None)
    width = max(map(len, found))
    for name, value in found.items():
        if value not in (None, "", [], False):
            click.echo(f"{name:<{width}}  {printable(spelled(name, value))}")
    if output is None:
        click.echo(
            "what it told is not kept: that depends on its policy (history.output), on its age, and on its service,"
            " which must live to the run's end",
            err=True,
        )
        return
    for title, text in parts(output):
        # What a program told stands apart, so that no line of it passes for one of ours.
        click.echo(f"\n--- {title}\n{indent(escaped(text).rstrip(), '  ')}")


def parts(output: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Give what a run told, in parts with a title each."""
    error, left_out = output.get("error") or {}, output.get("left_out") or {}
    if error:
        yield "error", error.get("traceback") or f"{error.get('type')}: {error.get('message')}"
    if records := output.get("logs"):
        text = "\n".join(
            f"{record['elapsed_s']:9.3f} s [{record['level']}] {indent(record['message'], '  ').strip()}"
            for record in records
        )
        yield f"log{without(left_out.get('logs'), 'records')}", text
    for name in ("stdout", "stderr"):
        if output.get(name):
            yield f"{name}{without(left_out.get(f'{name}_bytes'), 'bytes')}", output[name]


def without(count: int | None, what: str) -> str:
    """Return how much is left out, for a title."""
    return f" (the end; {count} {what} before it are not kept)" if count else ""
