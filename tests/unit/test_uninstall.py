"""What an uninstalling takes along, and what it must not touch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from sandbox import places
from sandbox.cli.main import cli
from sandbox.errors import EngineUnavailable
from sandbox.installed import removal as uninstall
from sandbox.installed import services as running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for a home in which the set-up installed, without Podman."""
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(uninstall, "SYSTEM_COMMAND", tmp_path / "usr-local-bin-sandbox")
    monkeypatch.setattr(uninstall, "SYSTEM_SHARE", tmp_path / "usr-local-share")
    (tmp_path / "run").mkdir(mode=0o700)
    for directory in ("run", ".cache", ".config", ".local/share"):
        (tmp_path / directory / places.NAME / "deep").mkdir(parents=True)
        (tmp_path / directory / places.NAME / "deep/file").touch()
        (tmp_path / directory / "other").mkdir()
    return tmp_path


def wrapper(path: Path, venv: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n# {uninstall.MARK}.\nexec "{venv}/bin/python" -I -m sandbox "$@"\n')


def called(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["uninstall", *arguments], standalone_mode=False)
    assert result.exception is None or result.return_value is not None, result.output
    return result.return_value, result.output


def test_a_users_installation_goes_and_everything_else_stays(home: Path) -> None:
    own = home / ".local/share" / places.NAME / "venv"
    wrapper(home / "usr-local-bin-sandbox", own)
    wrapper(home / ".local/bin/sandbox", own)
    for name in uninstall.BESIDE_COMMAND:
        wrapper(home / "usr-local-share" / name, own)
        (home / "usr-local-share" / name).with_name("of-others").touch()
    assert called("--yes")[0] == 0
    assert {path.name for path in home.glob("usr-local-share/**/*") if path.is_file()} == {"of-others"}
    shutil.rmtree(home / "usr-local-share")
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
    assert left == [
        ".cache",
        ".cache/other",
        ".config",
        ".config/other",
        ".local",
        ".local/bin",
        ".local/share",
        ".local/share/other",
        "run",
        "run/other",
    ]
    status, said = called("--yes")
    assert (status, said.splitlines()[0]) == (0, "There is nothing to remove.")


def test_a_dry_run_tells_the_same_and_changes_nothing(home: Path) -> None:
    before = sorted(home.rglob("*"))
    _, told = called("--dry-run")
    assert sorted(home.rglob("*")) == before
    _, done = called("--yes")
    for line in told.splitlines()[1:]:
        assert line in done


def test_a_history_that_the_configuration_has_elsewhere_stays_and_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "kept").mkdir()
    (home / "of-another").mkdir()
    (home / ".config" / places.NAME / "service.toml").write_text(f'[history]\ndirectory = "{home}/kept"\n')
    settings = {"SANDBOX_HISTORY__DIRECTORY": str(home / "of-another")}
    going = running.Running(pid=1, uid=os.getuid(), arguments=("serve",), settings=settings)
    monkeypatch.setattr(running, "services", lambda _: iter([going]))
    _, told = called("--dry-run")
    for name in ("kept", "of-another"):
        assert f"stays: {home}/{name}: the history of a service" in told
    (home / ".config" / places.NAME / "service.toml").write_text("not TOML")
    monkeypatch.setattr(running, "services", lambda _: iter([]))
    assert called("--dry-run")[0] == 0


@pytest.mark.parametrize("whose", ["root's", "another user's", "nobody's"])
def test_the_command_of_another_installation_stays(home: Path, whose: str) -> None:
    file = home / "usr-local-bin-sandbox"
    if whose == "nobody's":
        file.write_text(f'#!/bin/sh\nexec "{home}/.local/share/{places.NAME}/venv/bin/python" -m sandbox\n')
    else:
        wrapper(
            file,
            Path(
                "/opt/podman-sandbox-runner"
                if whose == "root's"
                else "/srv/other/.local/share/podman-sandbox-runner/venv"
            ),
        )
    beside = home / "usr-local-share" / uninstall.BESIDE_COMMAND[0]
    wrapper(beside, Path("/opt"))
    called("--yes")
    assert file.exists()
    assert beside.exists()


def test_without_an_answer_nothing_goes(home: Path) -> None:
    result = CliRunner().invoke(cli, ["uninstall"], input="n\n")
    assert (result.exit_code, "Aborted" in result.output) == (1, True)
    assert (home / ".cache" / places.NAME / "deep/file").exists()


def test_what_can_t_be_removed_is_said_and_the_rest_goes(home: Path) -> None:
    if os.getuid() == 0:
        return
    (home / ".cache" / places.NAME / "deep").chmod(0o500)
    status, said = called("--yes")
    (home / ".cache" / places.NAME / "deep").chmod(0o700)
    assert status == EngineUnavailable.exit_status
    assert "deep/file (as root: rm -rf" in said
    assert not (home / ".config" / places.NAME).exists()


def test_processes_are_those_of_the_account_and_its_range(tmp_path: Path) -> None:
    for pid, state in {"5": "S", "6": "Z"}.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "stat").write_text(f"{pid} (a ) b) {state} 1 1")
    own = (range(os.getuid(), os.getuid() + 1), range(100_000, 165_536))
    assert uninstall.processes_of(own, proc=tmp_path) == [5]
    assert uninstall.processes_of((range(100_000, 165_536),), proc=tmp_path) == []
