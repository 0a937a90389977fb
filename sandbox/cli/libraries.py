"""Which libraries a command is asked for: options, files, and the header of a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandbox.cli.files import MAX_TEXT_BYTES, read_text

if TYPE_CHECKING:
    from sandbox.requirements import Declared


def library_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name libraries."""
    options = (
        click.option("--with", "libraries", multiple=True, metavar="LIBRARY", help="A library to install: pandas, 'numpy>=1.26,<3'. May be given more than once."),
        click.option("--requirements", "requirement_files", multiple=True, metavar="FILE", help="A requirements.txt or pyproject.toml with libraries to install."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def asks_for_libraries(options: dict[str, Any], *, code: str = "") -> bool:
    """Tell whether options, or else the header of the script (PEP 723), may name libraries."""
    return bool(options["libraries"] or options["requirement_files"]) or "# /// script" in code


def requirements_of(options: dict[str, Any], *, code: str = "") -> Declared:
    """Return what the options ask for, or else the header of the script (PEP 723). Raises `InvalidRequest`, `NotFound`."""
    from sandbox.requirements import Declared, parse_libraries, parse_script

    if not options["libraries"] and not options["requirement_files"]:
        return parse_script(code) or Declared()
    found = [Declared(parse_libraries("\n".join(options["libraries"]))), *map(read_requirements, options["requirement_files"])]
    libraries = {library for one in found for library in one.libraries}
    return Declared(tuple(sorted(libraries)), ",".join(dict.fromkeys(one.python for one in found if one.python)))


def read_requirements(path: str) -> Declared:
    """Return the requirements of one file, by its name."""
    from sandbox.requirements import Declared, parse_pyproject, parse_requirements_txt

    text = read_text(path, what="the requirements file", max_bytes=MAX_TEXT_BYTES)
    name = Path(path).name
    return parse_pyproject(text, name=name) if name.endswith(".toml") else Declared(parse_requirements_txt(text, name=name))
