"""Colours and faint text, where they are wanted.

NO_COLOR, FORCE_COLOR and TERM=dumb decide; without them, whether the output is a terminal does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click


def wanted(environ: Mapping[str, str]) -> bool | None:
    """Tell whether escape sequences are wanted, whatever the stream is; None where the stream decides.

    See https://no-color.org: a variable that is empty says nothing. NO_COLOR comes first: it is the wish of a person.
    """
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return environ["FORCE_COLOR"] != "0"
    return False if environ.get("TERM") == "dumb" else None


def marked(text: str, **style: Any) -> None:
    """Print text in a style; `err` and `nl` as in `click.echo`. Every escape sequence for looks goes through here."""
    click.secho(text, color=wanted(os.environ), **style)
