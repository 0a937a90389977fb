"""What docstrings and comments name is there: files, and modules and what is in them."""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACES = ("clients", "docs", "policies", "sandbox", "scripts", "tests")
ENDINGS = "py|sh|md|toml|json|svg|js|mjs|ts|html|cfg|yml"
# A path or a name with an ending, but no pattern, no variable and no part of an address.
FILE = re.compile(rf"(?<![\w/.*{{}}~$<-])((?:[\w.-]+/)*[\w-]+\.(?:{ENDINGS}))\b(?![\w*/{{])")
NAME = re.compile(r"(?<![\w./-])((?:sandbox|tests)(?:\.\w+)+)(?![\w/*])")
# Files of others, and those that a command makes.
ELSEWHERE = {"config.json", "pylock.toml", "pyproject.toml", "setup.py"}
PLACEHOLDER = re.compile(r"\b[A-Z]{4,}\.")


def written() -> list[Path]:
    """Return what people wrote in this repository."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for place in PLACES:
        for directory, names, files in os.walk(ROOT / place):
            names[:] = [name for name in names if name not in ("node_modules", "__pycache__")]
            found += [Path(directory, name) for name in files]
    return sorted(path.relative_to(ROOT) for path in found)


def hashes(text: str) -> Iterator[tuple[str, int]]:
    """Give the lines that have a `#`, and where."""
    yield from ((line, line.index("#")) for line in text.splitlines() if "#" in line)


def said(path: Path) -> Iterator[tuple[int, str]]:
    """Give the docstrings and comments of a Python file, or the comments of a shell script, with their lines."""
    try:
        text = (ROOT / path).read_text()
    except UnicodeDecodeError:
        return
    if text.startswith(("#!/bin/sh", "#!/bin/bash", "#!/usr/bin/env bash")):
        yield from ((n, line) for n, line in enumerate(text.splitlines(), 1) if line.lstrip().startswith("#"))
    elif path.suffix == ".py" or text.startswith("#!/usr/bin/env python"):
        # Most files name nothing in their comments: a look at their lines is much faster than the tokenizer.
        in_comments = any(FILE.search(line, at) or NAME.search(line, at) for line, at in hashes(text))
        for token in tokenize.generate_tokens(io.StringIO(text).readline) if in_comments else ():
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield getattr(node, "lineno", 1), ast.get_docstring(node) or ""


def is_there(name: str) -> bool:
    """Tell whether a dotted name is a module, or something that a module defines."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:count])
        for module in (place.with_suffix(".py"), place / "__init__.py"):
            if module.is_file():
                text = module.read_text()
                return all(re.search(rf"\b{part}\b", text) for part in parts[count:])
    return False


def missing(text: str, files: set[str]) -> list[str]:
    """Return what a text names and is not there. A file may be named by the end of its path."""
    named = {name for name in FILE.findall(text) if name not in ELSEWHERE and not PLACEHOLDER.search(name)}
    absent = {name for name in named if not any(file == name or file.endswith(f"/{name}") for file in files)}
    dotted = {name for name in NAME.findall(text) if name.rsplit(".", 1)[1] not in ENDINGS.split("|")}
    return sorted(absent | {name for name in dotted if not is_there(name)})


def test_what_docstrings_and_comments_name_is_there() -> None:
    paths = written()
    files = set(map(str, paths))
    texts = [(f"{path}:{line}", text) for path in paths for line, text in said(path)]
    assert len(texts) > 1_000
    assert [f"{place}: {name}" for place, text in texts for name in missing(text, files)] == []


def test_what_is_not_there_is_found() -> None:
    files = set(map(str, written()))
    text = "see tests/unit/test_gone.py, `sandbox.gone`, sandbox.models.Gone and docs/gone.md; not NAME.json or a*.py"
    assert missing(text, files) == ["docs/gone.md", "sandbox.gone", "sandbox.models.Gone", "tests/unit/test_gone.py"]
    text = (
        "see tests/unit/test_named_files.py, docs/service.md, `sandbox.models.Outcome`, `tests.waiting` and"
        " scripts/test"
    )
    assert missing(text, files) == []
