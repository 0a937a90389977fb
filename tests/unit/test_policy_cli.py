"""`sandbox policy`: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sandbox.cli.policy import policy
from sandbox.errors import NotFound, SandboxError
from sandbox.policy.explain import MEANINGS, explain, schema
from sandbox.policy.load import load_policy, shipped_directory
from sandbox.policy.model import KEYS
from sandbox.toml_file import parse


def run(*arguments: str, directory: Path | None = None) -> Result:
    obj = {"policy_dirs": [directory] if directory else []}
    result = CliRunner().invoke(policy, arguments, obj=obj)
    if isinstance(result.exception, SandboxError):
        raise result.exception
    return result


def test_list_has_name_file_and_purpose_in_columns() -> None:
    lines = run("list").output.splitlines()
    assert [line.split()[0] for line in lines] == ["cells", "default", "strict"]
    assert lines[1].index("Everyday") == lines[2].index("Code that")


def test_list_shows_an_unusable_policy_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("x = 1")
    entries = {entry["name"]: entry for entry in json.loads(run("list", "--json", directory=tmp_path).output)}
    assert "there is no key x" in entries["broken"]["error"]
    assert entries["strict"]["error"] == ""


def test_show_prints_a_policy_that_loads_to_the_same(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'extends = "default"\ndescription = "\\u001b \\" \\u007f é"\n[open]\nlimits.cpus = 2\n'
    )
    (tmp_path / "again.toml").write_text(run("show", "mine", directory=tmp_path).output)
    mine, again = (load_policy(n, directories=[tmp_path, shipped_directory()]) for n in ("mine", "again"))
    assert again.policy.hash == mine.policy.hash
    assert (again.policy.description, again.open) == (mine.policy.description, mine.open)


def test_show_json_has_hash_origins_and_files() -> None:
    shown = json.loads(run("show", "strict", "--json").output)
    assert shown["hash"] == load_policy("strict", directories=[shipped_directory()]).policy.hash
    assert set(shown["origins"]) == set(KEYS)


def test_explain_says_value_origin_and_meaning_for_every_key(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "default"\nlimits.timeout_s = 5\n[open]\nlimits.timeout_s = 9\n')
    output = run("explain", "mine", directory=tmp_path).output
    line = next(line for line in output.splitlines() if line.startswith("limits.timeout_s"))
    assert line.split(maxsplit=4)[1:4] == ["5", "s", "mine.toml:2"]
    assert "after 5 seconds is killed" in line
    assert line.endswith("Open to child policies, up to 9 s.")
    assert all(f"\n{key} " in output for key in KEYS)


def test_explain_gives_whole_paths_when_two_files_have_one_name(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text('extends = "default"\nlimits.cpus = 0.5')
    output = run("explain", "default", directory=tmp_path).output
    assert f" {tmp_path}/default.toml:2 " in output
    assert f" {shipped_directory()}/default.toml:" in output


def test_explain_marks_built_in_values(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    rows = json.loads(run("explain", "empty", "--json", directory=tmp_path).output)
    assert {row["origin"] for row in rows} == {"built-in"}


def test_every_key_has_a_meaning_for_every_choice() -> None:
    assert list(MEANINGS) == list(KEYS)
    for name in ("default", "strict"):
        rows = explain(load_policy(name, directories=[shipped_directory()]))
        assert all(row.meaning.endswith(".") and "{}" not in row.meaning for row in rows)


def test_check_accepts_the_shipped_policies() -> None:
    files = [str(shipped_directory() / f"{name}.toml") for name in ("default", "strict")]
    assert run("check", *files).exit_code == 0


def test_check_prints_every_mistake_and_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[limits]\ncpus = 0\nspeed = 1\n")
    (tmp_path / "b.toml").write_text('extends = "strict"\nlimits.cpus = 9\n')
    result = run("check", str(tmp_path / "a.toml"), str(tmp_path / "b.toml"), str(tmp_path / "c.toml"))
    assert result.exit_code == 2
    for sentence in ("a.toml:2: limits.cpus", "a.toml:3: there is no key", "b.toml:2:", "c.toml does not exist"):
        assert sentence in result.output


def test_own_option_and_unknown_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    assert "mine" in CliRunner().invoke(policy, ["--policy-dir", str(tmp_path), "list"]).output
    with pytest.raises(NotFound, match="did you mean strict"):
        run("show", "stric")


def test_schema_names_every_key_and_nothing_else() -> None:
    printed = json.loads(run("schema").output)
    assert printed == schema()
    found = {
        f"{section}.{name}"
        for section, part in printed["properties"].items()
        if "$ref" in part
        for name in printed["$defs"][part["$ref"].rpartition("/")[2]]["properties"]
    }
    assert found == set(KEYS)
    assert printed["additionalProperties"] is False


def test_shipped_files_use_only_what_the_schema_names() -> None:
    for name in ("default", "strict"):
        data = parse((shipped_directory() / f"{name}.toml").read_text())
        assert set(data) <= set(schema()["properties"])


def test_seccomp_generates_and_checks(tmp_path: Path) -> None:
    source = tmp_path / "mine.toml"
    source.write_text((shipped_directory() / "seccomp/python.toml").read_text())
    with pytest.raises(SandboxError, match=r"mine\.json is not what mine\.toml describes"):
        run("seccomp", "--check", str(source))
    assert run("seccomp", str(source)).output.endswith("mine.json: written\n")
    assert run("seccomp", "--check", str(source)).output.endswith("mine.json: up to date\n")
