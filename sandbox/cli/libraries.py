"""Which libraries a command is asked for: options, files, and the header of a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sandbox.cli.files import MAX_TEXT_BYTES, read_text


def library_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name libraries."""
    options = (
        click.option("--with", "libraries", multiple=True, metavar="LIBRARY", help="A library to install: pandas, 'numpy>=1.26,<3'. May be given more than once."),
        click.option("--requirements", "requirement_files", multiple=True, metavar="FILE", help="A requirements.txt or pyproject.toml with libraries to install."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def requirements_of(options: dict[str, Any], *, code: str = "") -> tuple[str, ...]:
    """Return what the options ask for, or else the header of the script (PEP 723). Raises `InvalidRequest`, `NotFound`."""
    found: list[str] = []
    if options["libraries"] or options["requirement_files"]:
        from sandbox.requirements import parse_libraries

        found += parse_libraries("\n".join(options["libraries"]))
        for path in options["requirement_files"]:
            found += read_requirements(path)
    elif "# /// script" in code:
        from sandbox.requirements import parse_script

        found += parse_script(code) or ()
    return tuple(sorted(set(found)))


def read_requirements(path: str) -> tuple[str, ...]:
    """Return the requirements of one file, by its name."""
    from sandbox.requirements import parse_pyproject, parse_requirements_txt

    text = read_text(path, what="the requirements file", max_bytes=MAX_TEXT_BYTES)
    name = Path(path).name
    return parse_pyproject(text, name=name) if name.endswith(".toml") else parse_requirements_txt(text, name=name)
