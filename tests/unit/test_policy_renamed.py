"""`[environment]` became `[variables]`: the old name is read for one version, with a warning."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from sandbox import __version__
from sandbox.cli.policy import policy
from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.policy.load import LoadedPolicy, load_policy, shipped_directory
from sandbox.policy.model import Sections
from sandbox.policy.renamed import ENDS_WITH, RENAMED
from sandbox.service.server import tell_troubles
from sandbox.service.state import PolicyBook

STYLES = [
    ("[environment]\nallow = ['A']", 1),
    ("\nenvironment.allow = ['A']", 2),
    ("environment = {allow = ['A']}", 1),
    ("[limits]\ncpus = 0.1\n[environment]\nallow = ['A']", 3),
    ("'environment'.\"allow\" = ['A']", 1),
]
OPEN_STYLES = [
    ("[open]\nenvironment.allow = ['A']", 2),
    ("[open]\n'environment.allow' = ['A']", 2),
    ("[open.environment]\nallow = ['A']", 1),
    ("open = {environment = {allow = ['A']}}", 1),
]


def load(directory: Path, text: str, name: str = "t") -> LoadedPolicy:
    (directory / f"{name}.toml").write_text(text)
    return load_policy(name, directories=[directory, shipped_directory()])


@pytest.mark.parametrize(("text", "line"), STYLES)
def test_old_name_means_the_same_policy_and_tells_line_and_what_to_write(tmp_path: Path, text: str, line: int) -> None:
    old = load(tmp_path, text)
    new = load(tmp_path, text.replace("environment", "variables"))
    assert old.policy == new.policy
    assert old.policy.hash == new.policy.hash
    assert old.policy.variables.allow == ("A",)
    assert old.origins == new.origins
    (warning,) = old.warnings
    assert warning.startswith(
        f"{tmp_path}/t.toml:{line}: the section environment is called variables now; write variables"
    )
    assert f"version {ENDS_WITH} will no longer read the old name" in warning
    assert new.warnings == ()


@pytest.mark.parametrize("text", ["[environment]\nalow = ['A']", "[open]\nenvironment.allow = 7"])
def test_a_mistake_below_an_old_name_is_told_with_the_present_one_and_why(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"{tmp_path}/t\.toml:2: .*variables\.al") as caught:
        load(tmp_path, text)
    assert "environment is called variables now" in caught.value.hint
    with pytest.raises(InvalidRequest) as caught:
        load(tmp_path, text.replace("environment", "variables"))
    assert "called variables now" not in caught.value.hint


@pytest.mark.parametrize(("text", "line"), OPEN_STYLES)
def test_old_name_opens_the_same_key(tmp_path: Path, text: str, line: int) -> None:
    old = load(tmp_path, text)
    assert old.open == load(tmp_path, text.replace("environment", "variables")).open == {"variables.allow": ("A",)}
    (warning,) = old.warnings
    assert warning.startswith(f"{tmp_path}/t.toml:{line}: ")
    assert "write open.variables instead of open.environment" in warning


def test_a_file_warns_of_its_section_and_of_what_it_opens(tmp_path: Path) -> None:
    loaded = load(tmp_path, "[environment]\nallow = ['A']\n[open]\nenvironment.allow = true")
    assert [warning.partition(": ")[0] for warning in loaded.warnings] == [f"{tmp_path}/t.toml:{n}" for n in (1, 4)]


def test_child_and_parent_may_use_one_name_each(tmp_path: Path) -> None:
    parent = "[environment]\nallow = ['A']\n[open]\nenvironment.allow = ['A', 'B']"
    child = "extends = 'parent'\n[variables]\nallow = ['A', 'B']"
    for names in (
        (parent, child),
        (parent.replace("environment", "variables"), child.replace("variables", "environment")),
    ):
        load(tmp_path, names[0], "parent")
        loaded = load(tmp_path, names[1])
        assert loaded.policy.variables.allow == ("A", "B")
        assert loaded.warnings
    with pytest.raises(PolicyDenied, match=r"t\.toml:2: variables\.allow"):
        load(tmp_path, "extends = 'parent'\nenvironment.allow = ['C']")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[variables]\nallow = ['A']\n[environment]\nallow = ['B']", 3),
        ("environment.allow = ['A']\nvariables.allow = ['A']", 1),
        ("[open]\nvariables.allow = true\nenvironment.allow = true", 3),
        ("[open]\nvariables.allow = true\n'environment.allow' = true", 3),
    ],
)
def test_both_names_are_a_mistake_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(InvalidRequest, match="and the file has both") as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(f"{tmp_path}/t.toml:{line}: ")
    assert caught.value.facts["line"] == line
    assert caught.value.hint == "keep variables, with what is right of the two, and remove environment"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[environment]\nallow = 'A'", 't.toml:2: variables.allow is "A", but it must be a list'),
        (
            "[environment]\n\nallowed = ['A']",
            "t.toml:3: there is no key variables.allowed; did you mean variables.allow?",
        ),
        ("environment = 5", "t.toml:1: variables is 5, but it must be a section, [variables]"),
        ("[open]\nenvironment.allow = 5", "t.toml:2: open.variables.allow is 5"),
    ],
)
def test_a_mistake_below_the_old_name_keeps_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(tmp_path, text)
    assert message in caught.value.message


def test_commands_say_it_on_standard_error_and_go_on(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text("[environment]\nallow = ['A']\n")
    for arguments in (["show", "t"], ["explain", "t"], ["check", str(tmp_path / "t.toml")], ["list"]):
        from sandbox.cli import policy_warnings

        policy_warnings._tell.cache_clear()
        result = CliRunner().invoke(policy, ["--policy-dir", str(tmp_path), *arguments])
        assert result.exit_code == 0
        assert (
            f"sandbox: warning: {tmp_path}/t.toml:1: the section environment is called variables now" in result.stderr
        )
        assert "environment is called" not in result.stdout
    shown = json.loads(CliRunner().invoke(policy, ["--policy-dir", str(tmp_path), "show", "--json", "t"]).stdout)
    assert shown["policy"]["variables"] == {"allow": ["A"]}


def test_the_service_logs_each_warning_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t.toml").write_text("[environment]\nallow = ['A']\n")
    (tmp_path / "child.toml").write_text("extends = 't'\n")
    with caplog.at_level(logging.WARNING):
        tell_troubles(PolicyBook([tmp_path, shipped_directory()]))
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(f"{tmp_path}/t.toml:1: ")


def test_no_shipped_policy_uses_an_old_name() -> None:
    for path in shipped_directory().glob("*.toml"):
        assert load_policy(str(path), directories=[shipped_directory()]).warnings == ()


def test_old_names_go_after_one_version_and_stand_for_sections_that_there_are() -> None:
    def parts(version: str) -> list[int]:
        return [int(part) for part in version.split(".")[:2]]

    assert parts(__version__) < parts(ENDS_WITH), "remove what has come to its end from sandbox/policy/renamed.py"
    assert set(RENAMED.values()) <= set(Sections.model_fields)
    assert not set(RENAMED) & set(Sections.model_fields)
