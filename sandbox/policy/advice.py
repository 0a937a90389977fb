"""What to do if a policy wants more than its parent allows. The advice never is to edit a file of this package."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandbox.policy.directories import policy_directories, shipped_directory
from sandbox.toml_file import TomlFile, toml_value

__all__ = ["opening"]


def opening(
    key: str, value: Any, *, parent: str, file: TomlFile, opened: bool, any_open: bool, directories: Sequence[Path]
) -> str:
    """Return how `parent` comes to let a child set `key` to `value`.

    `opened` says that it has a bound for the key already, `any_open` that it has bounds at all. A shipped policy is
    replaced by the next version: the way is a copy of it under a name of one's own, for the child to extend.
    """
    line = f"{key} = {toml_value(value)}"
    if file.path.parent != shipped_directory():
        return f"raise the bound in {file.at(f'open.{key}')}" if opened else f"write {line} under [open] in {file.path}"
    own = f"own-{parent}"[:64]
    directory = own_directory(directories)
    copy = directory / f"{own}.toml"
    made = f"mkdir -p {shlex.quote(str(directory))} && sandbox policy show {parent} > {shlex.quote(str(copy))}"
    if opened:
        step = f"change {key} to {toml_value(value)} in its [open]"
    else:
        # [open] is the last section of what `show` prints.
        text = line if any_open else f"[open]\n{line}"
        step = f"printf '%s\\n' {' '.join(map(shlex.quote, text.splitlines()))} >> {shlex.quote(str(copy))}"
    return f'make a base of your own: {made}; {step}; then write extends = "{own}" in the place of extends = "{parent}"'


def own_directory(directories: Sequence[Path]) -> Path:
    """Return where policies of one's own go: the first place that is searched and does not come with the package."""
    shipped = shipped_directory()
    return next((place for place in (*directories, *policy_directories()) if place != shipped), Path.cwd())
