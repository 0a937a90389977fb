"""`sandbox doctor`: what this host can enforce, and how to close each gap."""

from __future__ import annotations

import json
from typing import Any

import click
from msgspec.structs import asdict

from sandbox.cli.colour import marked
from sandbox.cli.handover import leave_root
from sandbox.cli.screen import escaped
from sandbox.doctor import Report, examine
from sandbox.errors import NotEnforceable, SandboxError
from sandbox.host import probe as host
from sandbox.host.facts import HostFacts
from sandbox.policy.directories import policy_directories

MARKS = {"ok": ("ok", "green"), "fallback": ("fallback", "yellow"), "missing": ("missing", "red")}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def doctor(obj: dict[str, Any], *, as_json: bool) -> int:
    """Show what this host can enforce: ok, fallback or missing, with the command that corrects it.

    Exit status 4 if no policy can run.
    """
    leave_root(quiet=as_json)
    report = examine(
        policy_dirs=policy_directories(obj["policy_dirs"]),
        facts=lambda directory: host.probe(directory, fresh=True),
        base_image_present=base_image_present,
    )
    if as_json:
        click.echo(json.dumps(document(report), indent=2))
    else:
        show(report)
    return 0 if report.usable else NotEnforceable.exit_status


def base_image_present(facts: HostFacts) -> bool:
    """Ask Podman for the default image, after removing what dead runs left."""
    from sandbox import places
    from sandbox.container.workspace import sweep
    from sandbox.engine.podman import PodmanEngine
    from sandbox.image.admission import REPOSITORY

    engine = PodmanEngine(facts.engine, runtime_dir=places.runtime_dir())
    try:
        sweep(places.runtime_dir(), engine, everything=True)
        engine.image(f"{REPOSITORY}:latest")
    except SandboxError:
        return False
    else:
        return True
    finally:
        engine.close()


def document(report: Report) -> dict[str, Any]:
    """Return the report as JSON-ready data."""
    return {
        "capabilities": [asdict(row) for row in report.capabilities],
        "policies": [{"name": name, "can_run": not why, "why": why} for name, why in report.policies.items()],
        "usable": report.usable,
    }


def show(report: Report) -> None:
    """Print the report for a person."""
    width = max(len(row.name) for row in report.capabilities)
    for row in report.capabilities:
        mark, colour = MARKS[row.status]
        click.echo(f"{row.name:<{width}}  ", nl=False)
        marked(f"{mark:<8}", nl=False, fg=colour)
        click.echo(f"  {escaped(row.detail)}")
        if row.fix:
            click.echo(f"{'':<{width}}            to fix it: {escaped(row.fix)}")
    click.echo()
    for name, why in report.policies.items():
        click.echo(f"policy {name}: ", nl=False)
        marked("can run" if not why else "can't run", nl=False, fg="green" if not why else "red")
        click.echo(f": {escaped(why)}" if why else "")
