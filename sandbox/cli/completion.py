"""`sandbox completion`: what a shell needs to complete commands, options, policies, templates, runs and environments.

While somebody types, nothing may be said, and nothing may take long: what can't be had is not offered.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

SHELLS = ("bash", "fish", "zsh")
VARIABLE = "_SANDBOX_COMPLETE"
TIMEOUT_S = 1.0
LISTED = 50
ID_CHARS = 12

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(*, shell: str) -> None:
    """Print the completion script for a shell.

    scripts/setup installs these scripts. By hand: `eval "$(sandbox completion bash)"`.
    """
    click.echo(source(shell, click.get_current_context().find_root().command), nl=False)


def source(shell: str, cli: click.Command) -> str:
    """Return the script that has a shell ask for completions of `cli`, the whole command line."""
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"there is no completion for {shell}")
    made = found(cli, {}, "sandbox", VARIABLE)
    # Not `source()`: for bash it calls the bash that is found here, to see whether it is new enough.
    return made.source_template % made.source_vars()


def answer(cli: click.Command) -> int:
    """Answer a shell that asks for completions of `cli`, and return the exit status; say nothing of what fails."""
    # No file: a command that root hands over goes on in a process in which every other descriptor is closed.
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            cli(prog_name="sandbox", complete_var=VARIABLE, obj={})
        except SystemExit as end:
            return int(end.code or 0)
        except Exception:  # noqa: BLE001 - a shell is asking: a traceback would land in the middle of what is typed
            return 1
    return 0


def asked() -> bool:
    """Tell whether a shell asks for completions."""
    return VARIABLE in os.environ


# ---- what is offered


def offered(found: Callable[[click.Context, str], Iterable[CompletionItem]]) -> Completer:
    """Return a completer that offers what begins as typed, and nothing where it can't be had."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del parameter
        with contextlib.suppress(Exception):  # see the module
            return [
                item
                for item in found(context, incomplete)
                if item.type != "plain" or str(item.value).startswith(incomplete)
            ]
        return []

    return complete


@offered
def policies(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Offer policies by name, and files."""
    from sandbox.policy.load import policy_directories, policy_files

    given = [
        directory
        for each in lineage(context)
        for directory in each.params.get("policy_dirs") or ()
        if directory.is_dir()
    ]
    yield from (CompletionItem(name) for name in policy_files(policy_directories(given)))
    if "/" in incomplete or incomplete.startswith("."):
        yield CompletionItem(incomplete, type="file")


@offered
def templates(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Offer the built-in scripts by name."""
    del context, incomplete
    from sandbox import templates as built_in

    return [CompletionItem(name) for name in built_in.names()]


@offered
def scripts(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Offer files, and the built-in scripts as `template:NAME`."""
    del context
    from sandbox import templates as built_in

    yield from (CompletionItem(f"template:{name}") for name in built_in.names() if incomplete.startswith("t"))
    yield CompletionItem(incomplete, type="file")


@offered
def runs(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Offer the latest runs."""
    del context, incomplete
    return [run_item(row) for row in latest()]


@offered
def runs_that_go_on(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Offer the runs that can be ended."""
    del context, incomplete
    return [run_item(row) for row in latest() if row["state"] != "ended"]


@offered
def outcomes(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Offer how a run may end."""
    del context, incomplete
    from sandbox.service.history.record import ENDINGS

    return [CompletionItem(name) for name in ENDINGS]


@offered
def environments(context: click.Context, incomplete: str) -> Iterable[CompletionItem]:
    """Offer the environments of this host; as root, those of the user `sandbox`."""
    del context, incomplete
    from sandbox.cli.handover import leave_root
    from sandbox.environment.requirements import without_hashes
    from sandbox.environment.store import Store
    from sandbox.places import data_dir

    leave_root(quiet=True)
    return [
        item(record.id, " ".join(map(without_hashes, record.requirements)))
        for record in Store(data_dir()).records()[:LISTED]
    ]


def latest() -> Sequence[Mapping[str, Any]]:
    """Return the latest runs, as `sandbox runs` would list them."""
    from sandbox.cli.past import past

    with past(timeout_s=TIMEOUT_S, on_other_version=lambda _: None) as known:
        return known.runs(limit=LISTED)


def run_item(row: Mapping[str, Any]) -> CompletionItem:
    """Return what is offered of one run, with how it is."""
    said = " ".join(str(word) for word in (row["node_id"], row["policy"], row.get("outcome") or row["state"]) if word)
    return item(row["run_id"], said)


def item(identity: str, said: str) -> CompletionItem:
    """Return what is offered of something with a long id, and what is said of it."""
    plain = "".join(sign if sign.isprintable() else "?" for sign in said)
    return CompletionItem(identity[:ID_CHARS], help=plain[:60].replace(":", " "))


def lineage(context: click.Context | None) -> Iterable[click.Context]:
    """Give a context and those above it."""
    while context is not None:
        yield context
        context = context.parent
