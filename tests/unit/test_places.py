"""Where things lie: derived for users without a session, and private whatever made the directories."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from pathlib import Path

import pytest

from sandbox import places
from sandbox.client import default_socket
from sandbox.engine import program as podman_program
from sandbox.errors import EngineUnavailable

OWN = Path(pwd.getpwuid(os.getuid()).pw_dir)


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for /run/user and /tmp; return systemd's directory of this user, which is there."""
    monkeypatch.setattr(places, "RUN_USER", tmp_path / "run-user")
    monkeypatch.setattr(places, "SHARED", tmp_path / "shared")
    (tmp_path / "shared").mkdir()
    directory = tmp_path / "run-user" / str(os.getuid())
    directory.mkdir(parents=True, mode=0o700)
    return directory


def variants(tmp_path: Path) -> dict[str, str | None]:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    return {
        "unset": None,
        "empty": "",
        "relative": "run",
        "absent": str(tmp_path / "absent"),
        "file": str(tmp_path / "file"),
        "link": str(tmp_path / "link"),
        "of another user": "/" if os.getuid() else "/nonexistent",
    }


def test_whatever_is_no_runtime_directory_of_this_user_counts_as_none(
    usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variants(tmp_path).items():
        if value is None:
            monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        else:
            monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert places.user_runtime_dir() == usual, name
        assert podman_program.scrubbed_environment()["XDG_RUNTIME_DIR"] == str(usual), name


def test_a_directory_of_this_user_is_taken(usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "named"
    named.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(named))
    assert places.user_runtime_dir() == named


def test_without_any_a_private_one_is_made_which_clients_find_too(
    usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual.rmdir()
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    made = tmp_path / "shared" / f"podman-sandbox-runner-{os.getuid()}"
    assert places.user_runtime_dir() == made == places.user_runtime_path()
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["link", "file", "open"])
def test_what_somebody_else_may_have_laid_in_the_shared_place_is_refused(
    usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    usual.rmdir()
    for name in ("XDG_RUNTIME_DIR", "SANDBOX_SOCKET", "SANDBOX_SOCKET__PATH", "SANDBOX_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    laid = tmp_path / "shared" / f"podman-sandbox-runner-{os.getuid()}"
    if kind == "link":
        laid.symlink_to(tmp_path)
    elif kind == "file":
        laid.touch()
    else:
        laid.mkdir(mode=0o755)
        laid.chmod(0o755)
    with pytest.raises(EngineUnavailable) as refused:
        default_socket()
    assert refused.value.hint.startswith("chmod 0700" if kind == "open" else "as root: install -d -m 0700")


@pytest.mark.parametrize("value", [None, "", "relative"])
def test_the_home_is_the_accounts_own_where_the_variable_says_nothing(value: str | None) -> None:
    environ = {} if value is None else {"HOME": value}
    assert places.home(environ) == OWN
    assert places.config_dir(environ) == OWN / ".config/podman-sandbox-runner"
    assert places.home({"HOME": "/elsewhere"}) == Path("/elsewhere")


def test_relative_directories_of_xdg_count_as_none(tmp_path: Path) -> None:
    assert places.below_home("XDG_DATA_HOME", ".local/share", {"HOME": str(tmp_path), "XDG_DATA_HOME": "data"}) == (
        tmp_path / ".local/share/podman-sandbox-runner"
    )


@pytest.mark.parametrize("mode", [0o755, 0o775, 0o777, 0o750])
def test_a_directory_that_was_left_open_is_closed(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    directory.chmod(mode)
    assert stat.S_IMODE(places.private_directory(directory).stat().st_mode) == 0o700


def test_a_directory_of_another_user_is_told_with_the_command_that_mends_it() -> None:
    if os.getuid() == 0:
        return
    with pytest.raises(EngineUnavailable, match="belongs to user id 0") as refused:
        places.private_directory(Path("/usr"))
    assert refused.value.hint == f"as root: chown -R {os.getuid()}:{os.getgid()} /usr"


def test_a_runtime_directory_that_podman_keeps_and_a_reboot_took_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Error: creating events dirs: mkdir /run/user/4711: permission denied\n"
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 125, stdout="", stderr=said)
    )
    with pytest.raises(EngineUnavailable, match="keeps its state in /run/user/4711, which is gone") as lost:
        podman_program.podman_command("info", timeout_s=1)
    assert lost.value.hint == f"as root: install -d -m 0700 -o {os.getuid()} -g {os.getgid()} /run/user/4711"
