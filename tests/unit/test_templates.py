"""Built-in scripts: they compile, their data is JSON, and they use only what the documentation promises."""

from __future__ import annotations

import ast
import builtins
import json
import re
from pathlib import Path

import pytest

from sandbox import templates
from sandbox.errors import NotFound
from sandbox.inside.harness.compiling import compile_program
from sandbox.templates import Template

ROOT = Path(__file__).parents[2]
CONTRACT = (ROOT / "docs/writing-scripts.md").read_text()
ALL = [templates.get(name) for name in templates.names()]
every_template = pytest.mark.parametrize("template", ALL, ids=lambda template: template.name)


def free_names(code: str) -> set[str]:
    """Return the names that a script uses and doesn't bind anywhere."""
    used: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return used - bound - set(dir(builtins))


def test_there_is_one_for_each_purpose() -> None:
    assert templates.names() == [
        "api",
        "commands",
        "environment",
        "files",
        "iot",
        "iot-pandas",
        "json",
        "ml",
        "simple",
        "vision",
    ]


def test_every_script_has_data_and_every_data_file_a_script() -> None:
    scripts = {path.stem for path in templates.DIRECTORY.glob("*.py")} - {"__init__"}
    assert scripts == set(templates.names())


@every_template
def test_compiles_as_the_harness_would(template: Template) -> None:
    assert compile_program(template.code, f"{template.name}.py").co_filename == f"{template.name}.py"


@every_template
def test_sets_a_result(template: Template) -> None:
    targets = {
        ast.unparse(target)
        for node in ast.parse(template.code).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    assert "result" in targets


@every_template
def test_sample_payload_is_json(template: Template) -> None:
    json.loads(template.payload_json)


@every_template
def test_says_what_it_shows_in_one_line(template: Template) -> None:
    assert re.fullmatch(r"[A-Z].{20,110}\.", template.summary)


@every_template
def test_uses_only_what_the_code_contract_documents(template: Template) -> None:
    assert {name for name in free_names(template.code) if f"`{name}" not in CONTRACT} == set()


@every_template
def test_is_listed_in_the_documentation(template: Template) -> None:
    assert f"| `{template.name}` |" in CONTRACT


def test_iot_readings_are_a_few_thousand_rows() -> None:
    readings = json.loads(templates.get("iot").payload_json)
    assert 2_000 <= len(readings) <= 20_000
    assert set(readings[0]) == {"timestamp", "sensor", "temperature", "humidity"}


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFound) as caught:
        templates.get("iott")
    assert caught.value.hint == "did you mean 'iot'?"


def test_unknown_name_unlike_any_is_answered_with_all() -> None:
    with pytest.raises(NotFound) as caught:
        templates.get("../../etc/passwd")
    assert all(name in caught.value.hint for name in templates.names())
