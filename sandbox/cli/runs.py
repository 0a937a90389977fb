"""`sandbox ps`, `runs` and `stop`: what the service does now, what it did, and ending it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from sandbox.cli import completion
from sandbox.cli.handover import leave_root
from sandbox.cli.past import TIMEOUT_S, past
from sandbox.cli.screen import escaped
from sandbox.cli.versions import tell_version
from sandbox.client import Client
from sandbox.errors import InvalidRequest, NotFound

ID_CHARS = 12
FULL_ID_CHARS = 32
MAX_LISTED = 500
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
MAX_CELL_CHARS = 40

Row = Mapping[str, Any]


@contextlib.contextmanager
def connected() -> Iterator[Client]:
    """Give a client of this user's service; as root, of the one that the user `sandbox` has."""
    leave_root(quiet=True)
    with Client(timeout_s=TIMEOUT_S, on_other_version=tell_version) as client:
        client.connect()
        yield client


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@click.command("ps")
@json_option
def ps(*, as_json: bool) -> None:
    """List the service's runs that wait or go on."""
    with connected() as client:
        found = going_on(client.runs(limit=1))
    if as_json:
        click.echo(json.dumps({"runs": found}, indent=2))
    elif found:
        click.echo("\n".join(going_on_table(found, now=time.time())))


@click.command("runs")
@click.option("--node", help="Only runs of this node.")
@click.option("--outcome", shell_complete=completion.outcomes, help="Only runs with this outcome or error code.")
@click.option(
    "--limit", type=click.IntRange(1, MAX_LISTED), default=20, show_default=True, help="List at most this many."
)
@json_option
def runs(*, node: str | None, outcome: str | None, limit: int, as_json: bool) -> None:
    """List the runs in the service's history, newest first.

    If no service runs, the command reads the history's file.
    """
    filters = {name: value for name, value in (("node", node), ("outcome", outcome)) if value is not None}
    with past() as known:
        found = known.runs(limit=limit, **filters)
    if as_json:
        click.echo(json.dumps({"runs": found}, indent=2))
    elif found:
        click.echo("\n".join(history_table(found)))


@click.command("stop")
@click.argument("run_id", metavar="[RUN]", required=False, shell_complete=completion.runs_that_go_on)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="End every run, build and check, and retire every ready sandbox.",
)
@json_option
def stop(*, run_id: str | None, everything: bool, as_json: bool) -> None:
    """End RUN at once. RUN is an id, or its first characters.

    A client that waits for the run gets the outcome `cancelled`.
    """
    if (run_id is None) != everything:
        raise InvalidRequest("stop takes a run or --all", hint="sandbox ps lists the runs that go on")
    with connected() as client:
        if run_id is None:
            ended = client.stop_all()
            others = ended["builds_and_checks"]
            said = f"{ended['stopped']} run(s) ended" + (f", and {others} build(s) or check(s)" if others else "")
            done: Mapping[str, object] = ended
        else:
            asked = full_id(run_id, lambda: going_on(client.runs(limit=1)))
            client.cancel(asked)
            done, said = {"run_id": asked, "cancelling": True}, f"{asked} is being ended"
    click.echo(json.dumps(done) if as_json else said)


# ---- runs in words


def going_on(listed: Sequence[Row]) -> list[Row]:
    """Return the runs that have not ended, oldest first. A list of the service has all of them, however short it is."""
    found = [
        {
            "run_id": row["run_id"],
            "received": row["received"],
            "caller_name": row.get("caller_name") or row["caller"],
            "node_id": row["node_id"],
            "policy": row["policy"],
            "state": row["state"],
        }
        for row in listed
        if row["state"] != "ended"
    ]
    return sorted(found, key=lambda row: row["received"])


def full_id(text: str, listed: Callable[[], Sequence[Row]]) -> str:
    """Return the id of the one run among those `listed` whose id begins so. Raises `NotFound`, `InvalidRequest`."""
    if len(text) == FULL_ID_CHARS:
        return text
    found = sorted({str(row["run_id"]) for row in listed() if text and row["run_id"].startswith(text)})
    if not found:
        raise NotFound(
            f"there is no run {text[:FULL_ID_CHARS]!r}", hint="sandbox runs lists them, sandbox ps those that go on"
        )
    if len(found) > 1:
        raise InvalidRequest(f"{len(found)} runs begin with {text!r}", hint=f"write more of it: {', '.join(found[:5])}")
    return found[0]


def going_on_table(found: Sequence[Row], *, now: float) -> list[str]:
    """Return the lines that show runs that have not ended."""
    head = ("RUN", "AGE", "WHO", "NODE", "POLICY", "STEP")
    return table(
        head,
        [
            (
                row["run_id"][:ID_CHARS],
                age(now - row["received"]),
                row["caller_name"],
                row["node_id"],
                row["policy"],
                row["state"],
            )
            for row in found
        ],
    )


def history_table(found: Sequence[Row]) -> list[str]:
    """Return the lines that show runs of the history."""
    return table(
        ("RUN", "WHEN", "WHO", "NODE", "POLICY", "OUTCOME", "TIME", "START", "MEMORY"), list(map(history_cells, found))
    )


def history_cells(row: Row) -> tuple[str, ...]:
    """Return one run for the table; the list of the service begins with those that wait, of which it knows less."""
    memory, total_ms = row.get("peak_memory_mib"), row.get("total_ms")
    return (
        row["run_id"][:ID_CHARS],
        moment(row["received"]),
        row.get("caller_name") or row["caller"],
        row["node_id"],
        row["policy"],
        row["outcome"] or row["state"],
        f"{total_ms:,.0f} ms" if total_ms is not None else "",
        ("warm" if row.get("warm") else "cold") if total_ms is not None else "",
        f"{memory:,.0f} MiB" if memory is not None else "",
    )


def spelled(name: str, value: Any) -> str:
    """Return a value of the history for a person."""
    if name in ("received", "started", "ended"):
        return moment(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def moment(at: float) -> str:
    """Return a time in the zone of who reads it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def age(seconds: float) -> str:
    """Return how long ago something was, in its largest unit."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), (1, "s"))
    return f"{max(0, int(seconds // size))} {unit}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its columns as wide as their content; what callers named can't steer a terminal."""
    cut = [[one_line(cell) for cell in line] for line in (head, *lines)]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cut]


def one_line(text: str) -> str:
    """Return text of a caller for one cell."""
    plain = escaped(text).replace("\n", " ").replace("\t", " ")
    return plain if len(plain) <= MAX_CELL_CHARS else f"{plain[: MAX_CELL_CHARS - 1]}…"
