"""The scripts of `scripts/`, and what their headers say of them.

A script names its libraries as any script does (PEP 723). The table [tool.will-it-run] of that header is for the test
and the page:

    does      what the script does, in a few words
    expects   its result
    why_not   instead of `expects`: a sentence of the answer that it gets
    instead   what to do then
    library   the name in the page, if it is not that of the first requirement
    stderr    a part of what it writes to standard error, where nothing is expected otherwise
    quick     true: one of the few that the tier `e2e` runs
    policy    a table with the keys of a policy that extends `default`; without it, the policy is `default`
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sandbox import toml_file

SCRIPTS = Path(__file__).parent / "scripts"
PREFIX = "use-"  # with a hyphen: a script that has the name of its library would be what an import finds
HEADER = re.compile(r"^# /// script\n(?P<body>(?:#(?: .*)?\n)+?)# ///$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Script:
    """One script, with its header."""

    path: Path
    requirements: list[str]
    does: str
    expects: Any = None
    why_not: str = ""
    instead: str = ""
    library: str = ""
    stderr: str = ""
    quick: bool = False
    policy: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.path.stem.removeprefix(PREFIX)

    @property
    def distribution(self) -> str:
        """The library that the script is about, as a lock names it."""
        return canonicalize_name(Requirement(self.requirements[0]).name)

    @property
    def shown(self) -> str:
        return self.library or Requirement(self.requirements[0]).name

    @property
    def outcome(self) -> str:
        """What the page says of the outcome: a sentence where the script does not run, else nothing."""
        return "; ".join(part.rstrip(".") for part in (self.why_not, self.instead) if part)

    @property
    def rules(self) -> str:
        """What the page says of the policy."""
        keys = [
            f"`{section}.{key} = {str(value).lower()}`"
            for section, table in self.policy.items()
            for key, value in table.items()
        ]
        return "`default`, " + ", ".join(keys) if keys else "`default`"


def read(path: Path) -> Script:
    """Return a script with what its header says."""
    found = HEADER.search(path.read_text())
    assert found is not None, f"{path.name} has no header"
    header = toml_file.parse("".join(line[2:] or "\n" for line in found["body"].splitlines(keepends=True)))
    return Script(path=path, requirements=header["dependencies"], **header["tool"]["will-it-run"])


def scripts(*, quick: bool = False) -> list[Script]:
    """Return all scripts, or the quick ones, in the order of their names."""
    every = [read(path) for path in sorted(SCRIPTS.glob(f"{PREFIX}*.py"))]
    return [script for script in every if script.quick or not quick]
