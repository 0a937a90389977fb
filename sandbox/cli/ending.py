"""How a command that ran a program ends: its last messages, and its exit status."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import click

from sandbox.cli.output import Output, reader_gone
from sandbox.cli.saved import save_files
from sandbox.printable import printable

if TYPE_CHECKING:
    from sandbox.cli.answer import Answer


READER_GONE = 128 + signal.SIGPIPE
CANCELLED_OUTPUT_S = 1.0
NAMED_FILES = 5  # of those that are not kept


def conclude(answer: Answer, output: Output, directory: int | None, options: dict[str, Any]) -> int:
    """Show the result, keep the saved files, and return the exit status.

    The result comes first: nothing may lose it.
    """
    status = exit_status(answer.outcome)
    if not output.settle(timeout_s=CANCELLED_OUTPUT_S if answer.outcome == "cancelled" else None):
        return status  # cancelled, and nobody reads: there is nowhere to write to
    if output.gone:
        reader_gone()
        return READER_GONE
    output.finish(answer)
    if directory is not None:
        save_files(answer.files, directory, keep_names=options["keep_names"])
        os.close(directory)
    elif answer.files and not options["as_json"] and not options["quiet"]:
        names = ", ".join(printable(file.name) for file in answer.files[:NAMED_FILES])
        more = f" and {len(answer.files) - NAMED_FILES} more" if len(answer.files) > NAMED_FILES else ""
        click.echo(
            f"sandbox: {len(answer.files)} file(s) not kept ({names}{more}); --save-files DIR keeps them", err=True
        )
    return status


def exit_status(outcome: str) -> int:
    """Return the exit status of an outcome."""
    if outcome == "succeeded":
        return 0
    from sandbox.models import EXIT_STATUS, Outcome  # late: they take longer to import than most runs to run

    return EXIT_STATUS[Outcome(outcome)]
