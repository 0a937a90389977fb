"""Loading a policy for a command: what its files should say otherwise is told, once each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandbox.cli.screen import escaped

if TYPE_CHECKING:
    from sandbox.policy.load import LoadedPolicy


def load_and_warn(name_or_path: str, *, directories: Sequence[Path]) -> LoadedPolicy:
    """Load a policy as `load_policy` does, and print its warnings."""
    from sandbox.policy.load import load_policy  # late: most commands begin before they need it

    loaded = load_policy(name_or_path, directories=directories)
    for warning in loaded.warnings:
        _tell(warning)
    return loaded


@functools.cache
def _tell(warning: str) -> None:
    click.echo(f"sandbox: warning: {escaped(warning)}", err=True)
