"""Reports, once in a command, that the service's version is not that of this program."""

from __future__ import annotations

import functools

import click

from sandbox.cli.screen import escaped
from sandbox.client.calls import versions_differ


@functools.cache
def tell_version(version: str) -> None:
    """Say that the service has this version, and what to do."""
    click.echo(f"sandbox: warning: {escaped(versions_differ(version[:40]))}", err=True)
