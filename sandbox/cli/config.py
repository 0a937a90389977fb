"""`sandbox config`: which settings the service would have, and whether a file is right."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from sandbox.cli.handover import leave_root
from sandbox.cli.screen import escaped
from sandbox.client import default_socket
from sandbox.errors import SandboxError
from sandbox.policy.directories import policy_directories
from sandbox.policy.load import policy_files
from sandbox.service.config.load import DEFAULT, KEYS, LoadedConfig, load_config, variable_of
from sandbox.service.config.model import tables_of
from sandbox.service.config.names import unknown_names
from sandbox.toml_file import toml_value


@click.group("config")
@click.pass_obj
def config(obj: dict[str, Any] | None) -> None:
    """Show and check the configuration of the service (`sandbox serve`)."""
    if (obj or {}).get("own_process"):
        leave_root()  # so that root sees the configuration that its service would have


@config.command("show")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="The file to read, instead of $SANDBOX_CONFIG or the file at the usual place.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the origin of each value.")
def show(*, file: Path | None, as_json: bool) -> None:
    """Print every key as TOML, with its meaning, its value and where the value comes from.

    Values come from the defaults, one file, and variables such as SANDBOX_QUEUE__RUNNING.
    """
    loaded = load_config(file, os.environ)
    if as_json:
        click.echo(json.dumps(_document(loaded), indent=2))
    else:
        click.echo(escaped(_as_toml(loaded)), nl=False)


@config.command("socket")
def socket() -> None:
    """Print the path of the socket where this user's clients look for the service."""
    click.echo(default_socket())


@config.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.pass_context
def check(ctx: click.Context, *, file: Path | None) -> None:
    """Check FILE, or the configuration that the service would use. Exit status 2 if it is wrong.

    Variables such as SANDBOX_QUEUE__RUNNING are checked as well.
    """
    try:
        loaded = load_config(file, os.environ)
    except SandboxError as error:
        for sentence in error.facts.get("mistakes", [error.message]):
            click.echo(escaped(sentence), err=True)
        click.echo(escaped(f"  what to do: {error.hint}"), err=True)
        ctx.exit(2)
    names = unknown_names(loaded.config, policy_files(policy_directories((ctx.obj or {}).get("policy_dirs", []))))
    for name in names:
        click.echo(escaped(f"{'error' if name.error else 'warning'}: {name.message}"), err=True)
    if any(name.error for name in names):
        ctx.exit(2)
    click.echo(escaped(f"{loaded.path or 'no file, the defaults hold'}: ok"))


def _document(loaded: LoadedConfig) -> dict[str, Any]:
    return {
        "path": None if loaded.path is None else str(loaded.path),
        "config": loaded.config.effective(),
        "origins": loaded.origins,
    }


def _as_toml(loaded: LoadedConfig) -> str:
    """Return the effective configuration as a file that means the same."""
    lines = [f"# {f'from {loaded.path}' if loaded.path else 'no file: the defaults'}"]
    section = ""
    for key, value in loaded.config.effective().items():
        table, _, name = key.partition(".")
        if table != section:
            lines += ["", f"[{table}]"]
            section = table
        lines += [f"# {KEYS[key].description} ({_origin(loaded.origins[key], key)})", *_parts(key)]
        lines += _assignment(name, value)
    return "\n".join(lines) + "\n"


def _parts(key: str) -> list[str]:
    """Return a comment for each key of the tables that a key lists."""
    table = tables_of(KEYS[key])
    return [f"#   {name}: {field.description}" for name, field in table.model_fields.items()] if table else []


def _origin(origin: str, key: str) -> str:
    return f"{DEFAULT}; ${variable_of(key)}" if origin == DEFAULT else f"from {origin}"


def _assignment(name: str, value: Any) -> list[str]:
    if value is None:
        return [f"# {name} is not set"]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [f"{name} = [", *(f"    {_inline(table)}," for table in value), "]"]
    return [f"{name} = {toml_value(value)}"]


def _inline(table: dict[str, Any]) -> str:
    """Return one table of a list on one line; TOML has no way to write that a key is not set but to leave it out."""
    return f"{{ {', '.join(f'{name} = {toml_value(value)}' for name, value in table.items() if value is not None)} }}"
