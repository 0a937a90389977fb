"""Advice about policies works when it is followed, and nobody is told to edit what the package ships."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.errors import PolicyDenied
from sandbox.policy.directories import policy_directories, shipped_directory
from sandbox.policy.load import load_policy


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the directory of this user's own policies, with a space in its path; it is not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "my config"))
    command = tmp_path / "bin/sandbox"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m sandbox "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return tmp_path / "my config/podman-sandbox-runner/policies"


def advice(child: Path) -> str:
    with pytest.raises(PolicyDenied) as caught:
        load_policy(str(child), directories=policy_directories())
    assert str(shipped_directory()) not in caught.value.hint
    return caught.value.hint


@pytest.mark.parametrize(
    ("parent", "wanted"),
    [
        ("strict", "limits.open_files = 512"),
        ("strict", 'images.pull = "missing"'),
        ("default", 'seccomp.profile = "mine"'),
        ("default", "open.images.allow = true"),
        ("cells", "limits.timeout_s = 100"),
    ],
)
def test_what_a_shipped_policy_keeps_closed_is_opened_by_a_copy_of_ones_own(
    home: Path, tmp_path: Path, parent: str, wanted: str
) -> None:
    child = tmp_path / "mine.toml"
    child.write_text(f'extends = "{parent}"\n{wanted}\n')
    if "seccomp" in wanted:
        (home / "seccomp").mkdir(parents=True)
        (home / "seccomp/mine.json").write_bytes((shipped_directory() / "seccomp/python.json").read_bytes())
    said = advice(child)
    steps = re.search(
        r"make a base of your own: (.*); then write (extends = \S+) in the place of (extends = \S+)$", said
    )
    assert steps, said
    for command in steps[1].split("; "):
        subprocess.run(["sh", "-c", command], check=True, timeout=60)
    child.write_text(child.read_text().replace(steps[3], steps[2]))
    loaded = load_policy(str(child), directories=policy_directories())
    assert loaded.files[1] == home / f"own-{parent}.toml"


def test_a_bound_of_a_shipped_policy_is_raised_in_a_copy(home: Path, tmp_path: Path) -> None:
    child = tmp_path / "mine.toml"
    child.write_text('extends = "strict"\nlimits.timeout_s = 120\n')
    said = advice(child)
    assert "change limits.timeout_s to 120.0 in its [open]" in said
    first = re.search(r"(mkdir .*?); change", said)
    assert first
    subprocess.run(["sh", "-c", first[1]], check=True, timeout=60)
    copy = home / "own-strict.toml"
    changed, count = re.subn(r"(?m)^limits\.timeout_s = .*$", "limits.timeout_s = 120.0", copy.read_text())
    assert count == 1
    copy.write_text(changed)
    child.write_text(child.read_text().replace('"strict"', '"own-strict"'))
    assert load_policy(str(child), directories=policy_directories()).policy.limits.timeout_s == 120


def test_a_policy_of_ones_own_is_opened_in_its_own_file(home: Path, tmp_path: Path) -> None:
    home.mkdir(parents=True)
    (home / "team.toml").write_text('extends = "strict"\n')
    child = tmp_path / "mine.toml"
    child.write_text('extends = "team"\nlimits.timeout_s = 20\n')
    said = advice(child)
    assert f"write limits.timeout_s = 20.0 under [open] in {home / 'team.toml'}" in said
    (home / "team.toml").write_text('extends = "strict"\n[open]\nlimits.timeout_s = 20.0\n')
    assert load_policy(str(child), directories=policy_directories()).policy.limits.timeout_s == 20
