"""Which libraries the user of a command asks for: in options, files, and the header of a script."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandbox.cli.files import MAX_TEXT_BYTES, read_bytes
from sandbox.errors import InvalidRequest

if TYPE_CHECKING:
    from sandbox.environment.declared import Declared

MAX_DEPTH = 10
# The longer ones first: UTF-32's begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CODING = re.compile(rb"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]{1,40})")


def library_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name libraries."""
    options = (
        click.option(
            "--with",
            "libraries",
            multiple=True,
            metavar="LIBRARY",
            help="A library to install: pandas, 'numpy>=1.26,<3'. May be given more than once.",
        ),
        click.option(
            "--requirements",
            "requirement_files",
            multiple=True,
            metavar="FILE",
            help="A requirements.txt or pyproject.toml with libraries to install. May be given more than once.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def asks_for_libraries(options: dict[str, Any], *, code: str = "") -> bool:
    """Tell whether options, or else the header of the script (PEP 723), may name libraries."""
    return bool(options["libraries"] or options["requirement_files"]) or "# /// script" in code


def requirements_of(options: dict[str, Any], *, code: str = "", filename: str = "script") -> Declared:
    """Return what the options ask for, or else the header of the script (PEP 723) of this name.

    Raises `InvalidRequest`, `NotFound`.
    """
    from sandbox.environment.declared import Declared, parse_script
    from sandbox.environment.requirements import parse_libraries
    from sandbox.printable import printable

    if not options["libraries"] and not options["requirement_files"]:
        return parse_script(code, name=printable(filename)) or Declared()
    found = [
        Declared(parse_libraries("\n".join(options["libraries"]))),
        *map(read_requirements, options["requirement_files"]),
    ]
    libraries = {library for one in found for library in one.libraries}
    if replaced := _left_out(code, libraries):
        said = f"the header of {printable(filename)} is not followed, which names {printable(', '.join(replaced))}"
        click.echo(f"sandbox: warning: {said}: --with and --requirements replace it", err=True)
    return Declared(tuple(sorted(libraries)), ",".join(dict.fromkeys(one.python for one in found if one.python)))


def _left_out(code: str, libraries: Collection[str]) -> list[str]:
    """Return what the header of a script asks for beside these libraries; of one that can't be read, nothing."""
    from sandbox.environment.declared import parse_script

    try:
        declared = parse_script(code)
    except InvalidRequest:
        return []
    if declared is None:
        return []
    from sandbox.environment.identity import package_of

    covered = {*libraries, *map(package_of, libraries)}
    python = [f"Python {declared.python}"] if declared.python else []
    return [*(library for library in declared.libraries if library not in covered), *python]


def read_requirements(path: str, above: tuple[str, ...] = ()) -> Declared:
    """Return the requirements of one file, by its name.

    A requirements.txt may name others (-r), beside itself, as for pip.
    """
    from sandbox.environment.declared import Declared, parse_pyproject
    from sandbox.environment.requirements import parse_requirements_txt

    if len(above) > MAX_DEPTH or path in above:
        raise InvalidRequest(
            f"{above[-1]} leads to {path} again, or deeper than {MAX_DEPTH} files", hint="name each file once"
        )
    text = decoded(read_bytes(path, what="the requirements file", max_bytes=MAX_TEXT_BYTES), path)
    name = Path(path).name
    if name.endswith(".toml") and not name.startswith("pixi"):
        return parse_pyproject(text, name=name)

    def include(other: str) -> tuple[str, ...]:
        return read_requirements(os.path.normpath(Path(path).parent / other), (*above, path)).libraries

    return Declared(parse_requirements_txt(text, name=name, include=include))


def decoded(data: bytes, path: str) -> str:
    """Return the text of a requirements file.

    Its first bytes or lines name the encoding, as pip finds it; else it is UTF-8. Windows PowerShell writes UTF-16.
    Raises `InvalidRequest`.
    """
    mark, encoding = next(((mark, name) for mark, name in MARKS if data.startswith(mark)), (b"", "utf-8"))
    named = None if mark else next(filter(None, map(CODING.match, data.split(b"\n", 2)[:2])), None)
    try:
        return data[len(mark) :].decode(named[1].decode() if named else encoding)
    except (UnicodeDecodeError, LookupError):
        raise InvalidRequest(
            f"the requirements file {path} is not {named[1].decode() if named else encoding.upper()} text",
            hint="save it as UTF-8",
        ) from None
