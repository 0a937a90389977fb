"""Built-in scripts with sample data: `NAME.py` with a docstring, and `NAME.json`, its payload."""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import NotFound

DIRECTORY = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Template:
    """One built-in script. `payload_json` is its sample payload as JSON text."""

    name: str
    summary: str
    code: str
    payload_json: bytes


def names() -> list[str]:
    """Return the names of all templates."""
    return sorted(path.stem for path in DIRECTORY.glob("*.json"))


def get(name: str) -> Template:
    """Return one template. Raises `NotFound` with the nearest name."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        raise NotFound(
            f"there is no template {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names())}",
        )
    code = (DIRECTORY / f"{name}.py").read_text()
    summary = (ast.get_docstring(ast.parse(code)) or "").partition("\n")[0]
    return Template(name=name, summary=summary, code=code, payload_json=(DIRECTORY / f"{name}.json").read_bytes())
