"""`sandbox uninstall`: removes what the set-up installed."""

from __future__ import annotations

import click

from sandbox.cli.screen import escaped
from sandbox.errors import EngineUnavailable, SandboxError


@click.command("uninstall")
@click.option("--dry-run", is_flag=True, help="Remove nothing; list what would be removed, and what would stay.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def uninstall(*, dry_run: bool, yes: bool) -> int:
    """Remove this installation: service, sandboxes, images, environments, caches, settings, history, program.

    Root removes root's installation, with the user `sandbox`. Another user removes their own installation, with `sudo`
    for the command in /usr/local/bin. Packages stay. A second call continues where the first one failed.
    """
    from sandbox.installed.removal import plan

    planned = plan()
    if not planned.steps:
        click.echo("There is nothing to remove.")
    elif dry_run or not yes:
        click.echo("This would go, in this order:" if dry_run else "This goes, in this order:")
        for step in planned.steps:
            click.echo(f"  {escaped(step.sentence)}")
    if not dry_run and planned.steps:
        if not yes:
            click.confirm("Go on?", abort=True, err=True)
        for step in planned.steps:
            click.echo(f"  {escaped(step.sentence)} …", err=True)
            try:
                step.act()
            except SandboxError as error:
                planned.stays.append(f"{error.message} ({error.hint})")
                planned.failed = True
    for sentence in planned.stays:
        click.echo(f"stays: {escaped(sentence)}")
    return EngineUnavailable.exit_status if planned.failed else 0
