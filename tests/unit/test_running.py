"""Finding the services of an installation: by their command line, with the unit of their group."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.installed import services as running

PREFIX = "/opt/podman-sandbox-runner"
PYTHON = f"{PREFIX}/bin/python"


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([PYTHON, "-I", "-m", "sandbox", "serve"], ("serve",)),
        (
            [PYTHON, "-I", "-m", "sandbox", "--policy-dir", "/p", "serve", "--config", "/c"],
            ("--policy-dir", "/p", "serve", "--config", "/c"),
        ),
        ([PYTHON, f"{PREFIX}/bin/sandbox", "serve"], ("serve",)),
        ([PYTHON, "-I", "-m", "sandbox", "serve", "--restart"], None),
        ([PYTHON, "-I", "-m", "sandbox", "run", "script.py"], None),
        ([PYTHON, "-m", "http.server"], None),
        (["/usr/bin/python3", "-m", "sandbox", "serve"], None),
        (["/opt/podman-sandbox-runner-of-others/bin/python", "-m", "sandbox", "serve"], None),
        ([], None),
    ],
)
def test_a_service_is_known_by_its_command_line(words: list[str], arguments: tuple[str, ...] | None) -> None:
    assert running.serve_arguments(words, f"{PREFIX}/bin/") == arguments


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/sandbox.service\n", ("sandbox.service", "system")),
        ("0::/user.slice/user-7.slice/user@7.service/app.slice/mine.service\n", ("mine.service", "user")),
        ("0::/user.slice/user-7.slice/user@7.service/app.slice/run-u3.scope\n", ("", "system")),
        ("0::/user.slice/user-7.slice/session-4.scope\n", ("", "system")),
        ("12:pids:/else.service\n1:name=systemd:/system.slice/sandbox.service\n0::/\n", ("sandbox.service", "system")),
        ("0::/\n", ("", "system")),
    ],
)
def test_the_unit_is_read_from_the_group(cgroups: str, unit: tuple[str, str]) -> None:
    assert running.unit_of(cgroups) == unit


def test_processes_are_looked_through(tmp_path: Path) -> None:
    for pid, words in {"17": [PYTHON, "-I", "-m", "sandbox", "serve"], "18": ["/bin/sh"], "self": []}.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_text("".join(f"{word}\0" for word in words))
        (tmp_path / pid / "cgroup").write_text("0::/\n")
    (tmp_path / "19").mkdir()  # it has ended meanwhile
    (tmp_path / "17" / "environ").write_bytes(
        b"HOME=/h\0SANDBOX_SOCKET__PATH=/a b/s\0SANDBOX_SOCKET=/c\0TOKEN=x\0SANDBOX_CONFIG=/e.toml\0odd\0"
    )
    (found,) = running.services(PREFIX, proc=tmp_path)
    assert (found.pid, found.describe()) == (17, "process 17")
    assert (
        found.by_hand()
        == "kill 17; tail --pid=17 -f /dev/null; SANDBOX_CONFIG=/e.toml SANDBOX_SOCKET__PATH='/a b/s' sandbox serve &"
    )
    (tmp_path / "17" / "environ").unlink()  # somebody else's
    (found,) = running.services(PREFIX, proc=tmp_path)
    assert found.by_hand() == "kill 17; tail --pid=17 -f /dev/null; sandbox serve &"


def test_systemd_is_told_whose_unit_it_is() -> None:
    user = running.Running(pid=1, uid=2, arguments=("serve",), unit="a.service", manager="user")
    assert user.systemctl("restart") == ["systemctl", "--user", "restart", "a.service"]
    system = running.Running(pid=1, uid=2, arguments=("serve",), unit="a.service")
    assert (system.systemctl("stop"), system.describe()) == (["systemctl", "stop", "a.service"], "the unit a.service")
