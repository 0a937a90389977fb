"""The options that `sandbox run` and `sandbox template run` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from sandbox.cli import completion
from sandbox.cli.libraries import library_options

RUN_OPTIONS = (
    click.option(
        "--input",
        "input_text",
        metavar="JSON|@FILE|-",
        help="The payload: JSON, a file with JSON, or standard input.",
    ),
    click.option("--topic", default="", help="The message's topic."),
    click.option(
        "--policy",
        default="default",
        show_default=True,
        shell_complete=completion.policies,
        help="Name or path of the policy.",
    ),
    click.option("--image", help="Image to run in. Default: the one of the policy."),
    click.option("--timeout", metavar="DURATION", help="A shorter time than the policy allows: 30s, 500ms, 2m."),
    click.option("--memory", metavar="SIZE", help="Less memory than the policy allows: 256m, 1g."),
    click.option("--cpus", type=click.FloatRange(min=0, min_open=True), help="Fewer CPUs than the policy allows."),
    click.option("--pids", type=click.IntRange(min=1), help="Fewer processes than the policy allows."),
    click.option(
        "--env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="A variable for the program. NAME alone takes the value of your own variable.",
    ),
    click.option(
        "--secret",
        "secrets",
        multiple=True,
        metavar="NAME",
        help="One of your own variables for the program, whose value no record keeps.",
    ),
    click.option(
        "--file",
        "files",
        multiple=True,
        metavar="[NAME=]PATH",
        help=(
            "A file for the program. It finds the file in its working directory, with open(NAME) or read_file(NAME)."
        ),
    ),
    click.option(
        "--save-files",
        metavar="DIR",
        help="Directory for files saved with save_file(). Names that programs act upon are changed.",
    ),
    click.option(
        "--save-new",
        metavar="DIR",
        help="The same for every file that the program leaves in its working directory.",
    ),
    click.option("--keep-names", is_flag=True, help="Save files under exactly the names that the program gave them."),
    click.option("--json", "as_json", is_flag=True, help="Print the whole result and its receipt as JSON."),
    click.option("--quiet", "-q", is_flag=True, help="Show only the program's output and its result."),
    click.option(
        "--detach",
        is_flag=True,
        help="Leave the run to the service, and print its id. `sandbox result` shows its result.",
    ),
    click.option(
        "--no-service",
        is_flag=True,
        envvar="SANDBOX_NO_SERVICE",
        help="Run in this process, even if a service is running or named. SANDBOX_NO_SERVICE=1 does the same.",
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `run` and `template run` share."""
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return library_options(command)
