"""What a pyproject.toml or the header of a script (PEP 723) declares: libraries, and the Python that they need.

Pure.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from sandbox.environment.elsewhere import check_header, check_tools
from sandbox.environment.requirements import MAX_REQUIREMENT_CHARS, canonical_requirement, check_text, collected
from sandbox.errors import InvalidRequest

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

MAX_TOML_CHARS = 256 << 10
MAX_HEADER_CHARS = 32 << 10
# TOML readers take time that grows with the square of a dotted key, and with a table's name times its keys.
MAX_TOML_LINE_CHARS = 2_000
MAX_TOML_HEADER_CHARS = 200
MAX_PATCH = 99
_HEADER = re.compile(r"^# /// script[^\S\n]*$", re.MULTILINE)


class Declared(NamedTuple):
    """Requirements, and the Pythons that they are for, such as ">=3.10"; "" is any."""

    libraries: tuple[str, ...] = ()
    python: str = ""


def parse_pyproject(text: str, *, name: str = "pyproject.toml") -> Declared:
    """Return `dependencies` and `requires-python` of the table `[project]`. Raises `InvalidRequest`."""
    check_text(text, name, MAX_TOML_CHARS)
    table = _toml(text, name, 1)
    project = table.get("project")
    if "lock-version" in table:
        raise InvalidRequest(
            f"{name} is a lock, which names exact files, not a list of libraries",
            hint=(
                f"build exactly these: sandbox env build --lock {name}; then run with the image that it names: --image"
            ),
        )
    check_tools(table, text, name, 1)
    if not isinstance(project, dict):
        raise InvalidRequest(
            f"{name} has no table [project], where libraries are listed",
            hint='write [project] and below it dependencies = ["pandas>=1.3"]',
        )
    dynamic = project.get("dynamic")
    if isinstance(dynamic, list) and "dependencies" in dynamic:
        raise InvalidRequest(
            f"{name} says that its dependencies are dynamic: only running its build would tell them",
            hint="list them in a requirements.txt, or write them into dependencies of [project]",
        )
    return _declared(project, text, name, 1)


def parse_script(code: str, *, name: str = "script") -> Declared | None:
    """Return what a script says in its `# /// script` header (PEP 723), or None without one; `name` is the script's.

    Raises `InvalidRequest` with the line in the script.
    """
    starts = list(islice(_HEADER.finditer(code), 2))
    if not starts:
        return None
    first, *others = (code.count("\n", 0, start.start()) + 1 for start in starts)
    if others:
        raise InvalidRequest(
            f"{name}:{others[0]}: this is the second header of libraries, the first is in line {first}",
            hint="keep one block from # /// script to # ///",
        )
    start = starts[0].end() + 1
    lines = [line.rstrip("\r") for line in code[start : start + MAX_HEADER_CHARS].split("\n")]
    end, closing = 0, -1
    while end < len(lines) and re.match(r"#(?: |$)", lines[end]):
        closing = end if lines[end].rstrip() == "# ///" else closing
        end += 1
    if closing < 0 or (end == len(lines) and len(code) > start + MAX_HEADER_CHARS):
        raise InvalidRequest(
            f"{name}:{first}: the header of libraries that begins here has no end within {MAX_HEADER_CHARS >> 10} KiB",
            hint='begin each of its lines with "# " and close it with a line that is just # ///',
        )
    text = "\n".join(line[2:] for line in lines[:closing])
    check_text(text, "the script's header", MAX_TOML_CHARS)
    table = _toml(text, name, first + 1)
    check_tools(table, text, name, first + 1)
    check_header(table, code, name, first)
    return _declared(table, text, name, first + 1)


def check_python(required: str, python: tuple[int, int] | None, image: str) -> None:
    """Raise `InvalidRequest` when `requires-python` rules out the Python of an image; None is one that is not known.

    So it does for a `required` that is no version constraint.
    """
    accepted = _constraint(required, "the request")
    # Known is the series, not the patch level: a constraint that some patch of it meets is met.
    if python is None or any(
        accepted.contains(f"{python[0]}.{python[1]}.{patch}", prereleases=True) for patch in range(MAX_PATCH + 1)
    ):
        return
    raise InvalidRequest(
        f"Python {required} is needed (requires-python), and the image {image} has Python {python[0]}.{python[1]}",
        hint="choose an image with such a Python (--image), or change requires-python",
    )


def _declared(table: dict[str, Any], text: str, name: str, first_line: int) -> Declared:
    """Read `requires-python` and `dependencies` of a table that stands in `text`."""

    def at(value: str) -> str:
        line = first_line + text.count("\n", 0, max(0, text.find(value)))
        return f"{name}:{line}"

    python = _constraint(table.get("requires-python", ""), at("requires-python"))
    entries = table.get("dependencies", [])
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise InvalidRequest(
            f"{at('dependencies')}: dependencies is not a list of texts", hint='write dependencies = ["pandas>=1.3"]'
        )
    return Declared(collected(canonical_requirement(entry.strip(), at(entry)) for entry in entries), str(python))


def _constraint(required: object, where: str) -> SpecifierSet:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        if not isinstance(required, str) or len(required) > MAX_REQUIREMENT_CHARS:
            raise InvalidSpecifier
        return SpecifierSet(required)
    except InvalidSpecifier:
        raise InvalidRequest(
            f"{where}: requires-python is not a version constraint", hint='write for example ">=3.10"'
        ) from None


def _toml(text: str, name: str, first_line: int) -> dict[str, Any]:
    from sandbox.toml_file import parse

    for number, line in enumerate(text.split("\n"), first_line):
        limit = MAX_TOML_HEADER_CHARS if line.lstrip().startswith("[") else MAX_TOML_LINE_CHARS
        if len(line) > limit:
            raise InvalidRequest(f"{name}:{number}: has more than {limit} characters", hint="split it")
    try:
        return parse(text)
    except RecursionError:
        raise InvalidRequest(f"{name}:{first_line}: is nested too deeply", hint="flatten it") from None
    except ValueError as error:
        found = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        below = int(found[1]) - 1 if found else text.count("\n")
        reason = str(error)[: found.start()] if found else str(error).removesuffix(" (at end of document)")
        raise InvalidRequest(
            f"{name}:{first_line + below}: this is not valid TOML: {reason[:1].lower()}{reason[1:]}",
            hint='texts are quoted and lists stand in [ ], as in dependencies = ["pandas>=1.3"]',
        ) from None
