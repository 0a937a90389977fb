"""docs/policies.md describes every key as the model has it; the examples of docs/writing-policies.md are valid."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.policy.load import load_policy, shipped_directory
from sandbox.policy.model import KEYS, RESERVED, Policy, PolicyDocument, Sections, range_of, unit_of
from sandbox.policy.order import ORDER
from sandbox.toml_file import parse

DOCS = Path(__file__).parents[2] / "docs/policies.md"
TEXT = DOCS.read_text()
GUIDE = (DOCS.parent / "writing-policies.md").read_text()
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
    examples = re.findall(r"```toml\n(.*?)```", GUIDE + TEXT, re.DOTALL)
    (tmp_path / "example.toml").write_text(examples[0])
    policy = load_policy("example", directories=[tmp_path, shipped_directory()]).policy
    assert policy.limits.timeout_s == 120.0
    opened = next(example for example in examples if example.startswith("[open]"))
    (tmp_path / "opened.toml").write_text(opened)
    assert set(load_policy("opened", directories=[tmp_path, shipped_directory()]).open) <= set(KEYS)
    assert all(parse(example) for example in examples)


def test_named_reserved_variables_are_reserved() -> None:
    paragraph = TEXT[TEXT.index("**Reserved names**") : TEXT.index("## The hash")]
    names = [name.replace("*", "X") for name in re.findall(r"`([A-Z_]+\*?)`", paragraph)]
    assert len(names) > 30
    assert all(RESERVED.fullmatch(name) for name in names)


def test_what_must_fit_together_is_listed() -> None:
    """Each conflict that the model knows has its keys in one entry of the list."""
    part = TEXT[TEXT.index("These must fit together:") : TEXT.index("## Cells")]
    entries = part.split("\n- ")[1:]
    conflicts = re.findall(r"raise ConflictError\((.*?)\n            \)", inspect.getsource(Policy), re.DOTALL)
    assert len(conflicts) == len(entries)
    for conflict in conflicts:
        keys = {key.rpartition(".")[2] for key in re.findall(r'"([a-z]+\.[a-z_]+)"', conflict)}
        assert any(all(key in entry for key in keys) for entry in entries), keys


def test_every_way_to_be_tighter_is_told() -> None:
    part = TEXT[TEXT.index("## Extending") : TEXT.index("```toml\n[open]")]
    for key, annotation in ((key, KEYS[key].annotation) for key in KEYS):
        if get_origin(annotation) is Literal:
            values = get_args(annotation)
            tightest_first = sorted(values, key=lambda value: sum(not ORDER[key](value, other) for other in values))
            for tight, loose in itertools.pairwise(tightest_first):
                assert re.search(rf'`"{tight}"` for\s+`"{loose}"`', part), key
    alone = {key for key, order in ORDER.items() if order.__name__ in ("_anything", "_same")}
    assert alone == {"isolation.preload", "images.default", "seccomp.profile"}
    assert all(f"`{key}`" in part for key in alone)


def test_a_profile_of_one_s_own_takes_a_policy_that_extends_none(tmp_path: Path) -> None:
    (tmp_path / "seccomp").mkdir()
    (tmp_path / "seccomp/mine.json").write_bytes((shipped_directory() / "seccomp/python.json").read_bytes())
    (tmp_path / "child.toml").write_text('extends = "default"\n[seccomp]\nprofile = "mine"\n')
    (tmp_path / "own.toml").write_text('[seccomp]\nprofile = "mine"\n')
    with pytest.raises(PolicyDenied, match=r"seccomp\.profile"):
        load_policy("child", directories=[tmp_path, shipped_directory()])
    assert load_policy("own", directories=[tmp_path, shipped_directory()]).seccomp.name == "mine"
    assert "a policy with a profile of its own is one without `extends`" in GUIDE


@pytest.mark.parametrize(
    ("file_mode", "directory_mode", "trusted"),
    [(0o644, 0o755, True), (0o646, 0o755, False), (0o644, 0o777, False), (0o644, 0o1777, True)],
)
def test_who_may_write_a_policy_is_as_the_text_has_it(
    tmp_path: Path, file_mode: int, directory_mode: int, trusted: bool
) -> None:
    place = tmp_path / "policies"
    place.mkdir()
    (place / "mine.toml").write_text('extends = "default"\n')
    (place / "mine.toml").chmod(file_mode)
    place.chmod(directory_mode)
    if trusted:
        assert load_policy("mine", directories=[place, shipped_directory()]).policy.name == "mine"
    else:
        with pytest.raises(InvalidRequest, match="by other users"):
            load_policy("mine", directories=[place, shipped_directory()])


def test_commands_in_the_text_exist() -> None:
    from sandbox.cli.policy import policy

    assert set(re.findall(r"sandbox policy ([a-z]+)", GUIDE + TEXT)) == set(policy.commands)
