"""Sections of a policy that had another name: the old one is read for one version, with a warning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sandbox.errors import InvalidRequest
from sandbox.toml_file import TomlFile

__all__ = ["with_present_names"]

RENAMED = {"environment": "variables"}
ENDS_WITH = "0.3"  # the first version that no longer reads the old names


def with_present_names(file: TomlFile) -> tuple[TomlFile, tuple[str, ...]]:
    """Return the file as if it had been written with the present names, and a warning for each place with an old one.

    Each key keeps its line. Raises `InvalidRequest` where a file has both names, as nobody can tell which one is meant.
    """
    lines = dict(file.lines)
    warnings: list[str] = []
    data = _renamed(file.data, "", file, lines, warnings)
    opened = data.get("open")
    if isinstance(opened, dict):
        data["open"] = _renamed(opened, "open.", file, lines, warnings)
    return replace(file, data=data, lines=lines), tuple(warnings)


def _renamed(
    table: dict[str, Any], prefix: str, file: TomlFile, lines: dict[str, int], warnings: list[str]
) -> dict[str, Any]:
    """Return one table with the present names; `lines` and `warnings` are completed.

    A key may be `"section.key"`, too.
    """
    sections = {key.partition(".")[0] for key in table}
    for old, new in RENAMED.items():
        if old not in sections:
            continue
        first = next(prefix + key for key in table if key.partition(".")[0] == old)
        if new in sections:
            raise InvalidRequest(
                f"{file.at(first)}: {prefix}{old} is the old name of {prefix}{new}, and the file has both",
                hint=f"keep {new}, with what is right of the two, and remove {old}",
                key=prefix + old,
                line=file.lines.get(first, 1),
            )
        warnings.append(
            f"{file.at(first)}: the section {old} is called {new} now; write {prefix}{new} instead of {prefix}{old}: "
            f"version {ENDS_WITH} will no longer read the old name"
        )
        for key, line in file.lines.items():
            if key == prefix + old or key.startswith(f"{prefix}{old}."):
                lines[prefix + new + key.removeprefix(prefix + old)] = line
    return {
        ".".join([RENAMED.get(section, section), *rest]): value
        for key, value in table.items()
        for section, *rest in [key.split(".")]
    }
