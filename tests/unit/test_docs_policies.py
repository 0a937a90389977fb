"""docs/policies.md describes every key as the model has it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from sandbox.policy import load_policy, shipped_directory
from sandbox.policy_file import parse
from sandbox.policy_model import KEYS, RESERVED, PolicyDocument, Sections, range_of, unit_of

DOCS = Path(__file__).parents[2] / "docs/policies.md"
TEXT = DOCS.read_text()
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in TEXT.splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split("|")]) and re.fullmatch(r"`[a-z]+\.[a-z_]+`", cells[0])
}


def kind_of(key: str) -> str:
    annotation = KEYS[key].annotation
    if get_origin(annotation) is Literal:
        return "choice"
    if get_origin(annotation) is tuple:
        return "list of patterns" if key == "images.allow" else "list of names"
    names: dict[object, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names[annotation]


def test_table_has_every_key_in_order_and_no_other() -> None:
    assert list(ROWS) == list(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_row_agrees_with_the_model(key: str) -> None:
    assert len(ROWS[key]) == 7
    kind, unit, choices, default, _tighter, meaning, enforced = ROWS[key]
    assert kind == kind_of(key)
    assert unit == unit_of(key)
    assert json.loads(default.strip("`")) == json.loads(json.dumps(Sections().values()[key]))
    assert len(meaning) > 10
    assert enforced
    low, high = range_of(key)
    if low is not None and high is not None:
        assert choices == f"{low:g} to {high:.12g}"
    if kind == "choice":
        assert choices == " or ".join(f"`{json.dumps(choice)}`" for choice in get_args(KEYS[key].annotation))


def test_top_level_keys_are_described() -> None:
    for name in set(PolicyDocument.model_fields) - set(Sections.model_fields):
        assert f"`{name}`" in TEXT or f"`[{name}]`" in TEXT


def test_shipped_policies_are_described() -> None:
    for path in shipped_directory().glob("*.toml"):
        assert f"| `{path.stem}` |" in TEXT


def test_example_policy_is_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "example.toml").write_text(examples[0])
    policy = load_policy("example", directories=[tmp_path, shipped_directory()]).policy
    assert policy.limits.timeout_s == 120.0
    (tmp_path / "opened.toml").write_text(examples[1])
    assert set(load_policy("opened", directories=[tmp_path, shipped_directory()]).open) <= set(KEYS)
    assert all(parse(example) for example in examples)


def test_named_reserved_variables_are_reserved() -> None:
    paragraph = TEXT[TEXT.index("**Reserved names**") : TEXT.index("## The hash")]
    names = [name.replace("*", "X") for name in re.findall(r"`([A-Z_]+\*?)`", paragraph)]
    assert len(names) > 30
    assert all(RESERVED.fullmatch(name) for name in names)


def test_commands_in_the_text_exist() -> None:
    from sandbox.cli.policy import policy

    assert set(re.findall(r"sandbox policy ([a-z]+)", TEXT)) == set(policy.commands)
