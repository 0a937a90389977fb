"""`sandbox policy`: list, show, explain and check policies; their schema; the system-call list."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from sandbox.cli import completion
from sandbox.cli.handover import leave_root
from sandbox.cli.policy_warnings import load_and_warn
from sandbox.cli.screen import escaped
from sandbox.errors import InvalidRequest, SandboxError
from sandbox.policy.explain import PolicyRow, as_toml, explain, schema
from sandbox.policy.load import LoadedPolicy, policy_directories, policy_files, shipped_directory
from sandbox.policy.seccomp import compile_source, render
from sandbox.toml_file import shown

AS_RUNS_SEE_IT = ("list", "show", "explain", "check")


@click.group("policy")
@click.option(
    "--policy-dir",
    "policy_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Look for policies here first. May be given more than once.",
)
@click.pass_context
def policy(ctx: click.Context, *, policy_dirs: tuple[Path, ...]) -> None:
    """List, explain and check policies: what a run may do."""
    if (ctx.obj or {}).get("own_process") and ctx.invoked_subcommand in AS_RUNS_SEE_IT:
        leave_root()  # so that root sees the policies that its runs would use
    given = [*policy_dirs, *(ctx.obj or {}).get("policy_dirs", [])]
    ctx.obj = {**(ctx.obj or {}), "directories": policy_directories(given)}


@policy.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def list_(obj: dict[str, Any], *, as_json: bool) -> None:
    """Print every policy: name, file and what it is for."""
    found = [_summary(name, path, obj["directories"]) for name, path in policy_files(obj["directories"]).items()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _columns((entry["name"], entry["path"], entry["description"] or entry["error"]) for entry in found)


def _summary(name: str, path: Path, directories: list[Path]) -> dict[str, str]:
    try:
        loaded = load_and_warn(str(path), directories=directories)
    except SandboxError as error:
        return {"name": name, "path": str(path), "description": "", "error": f"unusable: {error.message}"}
    return {"name": name, "path": str(path), "description": loaded.policy.description, "error": ""}


@policy.command("show")
@click.argument("name", shell_complete=completion.policies)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the origin of each value and the hash.")
@click.pass_obj
def show(obj: dict[str, Any], *, name: str, as_json: bool) -> None:
    """Print the effective values of the policy NAME (or of a file), as TOML."""
    loaded = load_and_warn(name, directories=obj["directories"])
    if as_json:
        click.echo(json.dumps(_document(loaded), indent=2))
    else:
        click.echo(escaped(as_toml(loaded)), nl=False)


def _document(loaded: LoadedPolicy) -> dict[str, Any]:
    return {
        "name": loaded.policy.name,
        "path": str(loaded.path),
        "files": [str(path) for path in loaded.files],
        "hash": loaded.policy.hash,
        "policy": loaded.policy.model_dump(mode="json"),
        "origins": loaded.origins,
        "open": loaded.open,
        "seccomp": {"name": loaded.seccomp.name, "path": str(loaded.seccomp.path), "sha256": loaded.seccomp.sha256},
    }


@policy.command("explain")
@click.argument("name", shell_complete=completion.policies)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def explain_(obj: dict[str, Any], *, name: str, as_json: bool) -> None:
    """Explain in plain words what the policy NAME (or a file) means, and where each value comes from."""
    loaded = load_and_warn(name, directories=obj["directories"])
    rows = explain(loaded)
    if as_json:
        click.echo(json.dumps([vars(row) for row in rows], indent=2))
        return
    click.echo(escaped(f"policy {loaded.policy.name}: {loaded.policy.description}"))
    click.echo(escaped("\n".join(f"  {'from' if not i else 'extends'} {path}" for i, path in enumerate(loaded.files))))
    click.echo(f"  {loaded.policy.hash}\n")
    clear = len({path.name for path in loaded.files}) == len(loaded.files)
    _columns((row.key, _amount(row), _origin(row, short=clear), _sentence(row)) for row in rows)


def _amount(row: PolicyRow) -> str:
    return f"{shown(row.value)} {row.unit}".rstrip()


def _origin(row: PolicyRow, *, short: bool) -> str:
    return Path(row.origin).name if short else row.origin


def _sentence(row: PolicyRow) -> str:
    if row.open is None:
        return row.meaning
    bound = "to any value" if row.open is True else f"up to {shown(row.open)} {row.unit}".rstrip()
    return f"{row.meaning} Open to child policies, {bound}."


@policy.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.pass_context
def check(ctx: click.Context, *, files: tuple[Path, ...]) -> None:
    """Check policy FILES, with everything that they extend. Exit status 2 if one is wrong."""
    wrong = False
    for file in files:
        try:
            loaded = load_and_warn(str(file.absolute()), directories=ctx.obj["directories"])
        except SandboxError as error:
            wrong = True
            for sentence in error.facts.get("mistakes", [error.message]):
                click.echo(escaped(sentence), err=True)
            click.echo(escaped(f"  what to do: {error.hint}"), err=True)
        else:
            click.echo(escaped(f"{file}: ok, {loaded.policy.hash}"))
    ctx.exit(2 if wrong else 0)


@policy.command("schema")
def schema_() -> None:
    """Print the JSON schema of a policy file."""
    click.echo(json.dumps(schema(), indent=2))


@policy.command("seccomp")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit status 2 if the JSON is not up to date.")
def seccomp(*, source: Path | None, only_check: bool) -> None:
    """Generate the JSON profile of a system-call list: SOURCE.toml becomes SOURCE.json.

    Without SOURCE, the shipped seccomp/python.toml is used.
    """
    source = (source or shipped_directory() / "seccomp" / "python.toml").absolute()
    target = source.with_suffix(".json")
    text = render(compile_source(source))
    current = target.read_text() if target.exists() else ""
    if only_check and current != text:
        raise InvalidRequest(f"{target} is not what {source.name} describes", hint="run `sandbox policy seccomp`")
    if current != text:
        try:
            target.write_text(text)
        except OSError as error:
            raise InvalidRequest(
                f"{target} cannot be written: {error.strerror}", hint="call this as the owner of the file"
            ) from None
    click.echo(escaped(f"{target}: {'up to date' if current == text else 'written'}"))


def _columns(rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows in aligned columns; the last one runs free."""
    cells = [[escaped(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]) - 1)] if cells else []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*padded, row[-1]]).rstrip())
