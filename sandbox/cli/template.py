"""`sandbox template`: built-in scripts to look at, to run, and to start from."""

from __future__ import annotations

from typing import Any

import click

from sandbox import templates
from sandbox.cli import completion
from sandbox.cli.run import run_template
from sandbox.cli.run_options import run_options


@click.group("template")
def template() -> None:
    """List, show and run built-in scripts with sample data."""


@template.command("list")
def list_command() -> None:
    """List the built-in scripts."""
    found = [templates.get(name) for name in templates.names()]
    width = max(len(entry.name) for entry in found)
    for entry in found:
        click.echo(f"{entry.name:<{width}}  {entry.summary}")


@template.command("show")
@click.argument("name", shell_complete=completion.templates)
@click.option("--data", is_flag=True, help="Print the sample payload instead of the script.")
def show_command(name: str, *, data: bool) -> None:
    """Print the script NAME."""
    entry = templates.get(name)
    click.echo(entry.payload_json.decode() if data else entry.code, nl=False)


@template.command("run")
@click.argument("name", shell_complete=completion.templates)
@run_options
@click.pass_obj
def run_command(obj: dict[str, Any], /, *, name: str, **options: Any) -> int:
    """Run the script NAME, on its sample payload unless --input gives another."""
    return run_template(obj, name, options)
