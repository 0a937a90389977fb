"""Advice can be followed: the commands, options and routes that it names exist.

Nobody is sent to pages that are not installed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sandbox.cli.main import COMMANDS, cli

PACKAGE = Path(__file__).parents[2] / "sandbox"


def texts() -> Iterator[tuple[str, str]]:
    """Yield place and text of every string of the package that is no docstring, with what is put into it left out."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
        }
        parts = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                yield where, "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts | docstrings:
                yield where, node.value


ALL = list(texts())


def test_no_text_sends_a_reader_to_pages_that_an_installed_package_does_not_have() -> None:
    assert [text for text in ALL if re.search(r"\bdocs/|README|CONTRIBUTING", text[1])] == []


def command_of(words: list[str]) -> click.Command | None:
    found: click.Command | None = cli
    context = click.Context(cli)
    for word in words:
        if not isinstance(found, click.Group):
            return found
        found = found.get_command(context, word)
    return found


def advised() -> list[tuple[str, str]]:
    """Return place and command line of each `sandbox …` that a text advises."""
    found = []
    for where, text in ALL:
        # After other words, the sandbox is a thing that does something.
        for match in re.finditer(r"(?:^|`|[:;,] |&& |\b(?:by|run|try) )`?sandbox ([a-z]+[^`;,()\n]*)", text):
            if match[1].split()[0] in COMMANDS or "`" in match[0]:
                found.append((where, match[1]))
    return found


ADVISED = advised()


def test_the_search_finds_the_advice() -> None:
    assert len(ADVISED) > 30
    assert {"doctor", "env lock --upgrade", "policy schema"} <= {line for _, line in ADVISED}


@pytest.mark.parametrize("where_and_line", ADVISED, ids=lambda pair: f"{pair[0]} {pair[1]}"[:80])
def test_the_commands_and_options_that_are_advised_exist(where_and_line: tuple[str, str]) -> None:
    words = where_and_line[1].split()
    names = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
    command = command_of(names)
    assert command is not None, where_and_line
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if re.fullmatch(r"--[a-z][a-z-]+", word):
            assert word in known, where_and_line


def test_the_routes_that_are_advised_exist() -> None:
    from sandbox.service.application import ROUTES

    paths = {(method, re.sub(r"\{[^}]*\}", "X", path)) for method, path, _ in ROUTES}
    for where, text in ALL:
        for method, path in re.findall(r"\b(GET|POST|DELETE) (/v1/[a-z./X-]*)", re.sub(r"\{[^}]*\}", "X", text)):
            assert (method, path.rstrip(".")) in paths, where
