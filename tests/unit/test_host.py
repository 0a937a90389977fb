"""What is read of a host, and the cache of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sandbox.engine import program as podman_program
from sandbox.engine import service as podman_service
from sandbox.errors import EngineUnavailable, NotEnforceable
from sandbox.host import probe as host
from sandbox.host.probe import read_cache, subordinate_range, write_cache
from sandbox.kernel import process as kernel
from tests.fake_engine import fake_info
from tests.unit.factory import host as facts_of_a_host


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sandbox:100000:65536\n", (100_000, 65_536)),
        ("other:1:2\nsandbox:200000:65536\nsandbox:9:9\n", (200_000, 65_536)),
        ("1234:300000:65536\n", (300_000, 65_536)),
        ("sandboxes:100000:65536\n", (0, 0)),
        ("sandbox:many:65536\nsandbox\n\n", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_the_first_range_of_the_user_counts(tmp_path: Path, text: str, found: tuple[int, int]) -> None:
    file = tmp_path / "subuid"
    file.write_text(text)
    assert subordinate_range(file, user="sandbox", uid=1234) == found
    assert subordinate_range(tmp_path / "absent", user="sandbox", uid=1234) == (0, 0)


def test_a_user_without_a_range_is_told_the_command_that_adds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "subordinate_range", lambda *_args, **_kwargs: (0, 0))
    with pytest.raises(NotEnforceable) as caught:
        host.require_subordinate_ids()
    assert f"usermod --add-subuids {host.free_range()} --add-subgids {host.free_range()} " in caught.value.hint


@pytest.mark.parametrize(
    ("uids", "gids", "free"),
    [
        ("", None, "100000-165535"),
        ("a:100000:65536\n", "", "165536-231071"),
        ("a:100000:65536\nb:300000:1000\nodd\n:x:y\n", "a:100000:65536\n", "301000-366535"),
        ("a:10:20\n", "b:200000:65536\n", "265536-331071"),
    ],
)
def test_the_range_that_is_advised_is_nobody_s(tmp_path: Path, uids: str, gids: str | None, free: str) -> None:
    files = tmp_path / "subuid", tmp_path / "subgid"
    for file, text in zip(files, (uids, gids), strict=True):
        if text is not None:
            file.write_text(text)
    assert host.free_range(files) == free


def test_facts_survive_the_cache(tmp_path: Path) -> None:
    facts = facts_of_a_host(rejected_runtimes={"crun": "no"})
    write_cache(tmp_path / "host.json", "key", facts)
    assert read_cache(tmp_path / "host.json", "key") == facts
    assert (tmp_path / "host.json").stat().st_mode & 0o777 == 0o600


def test_a_cache_made_under_other_conditions_is_not_believed(tmp_path: Path) -> None:
    write_cache(tmp_path / "host.json", "key", facts_of_a_host())
    assert read_cache(tmp_path / "host.json", "another") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"key": "key"}', '{"key": "key", "engine": 3}'])
def test_a_broken_cache_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.json").write_text(text)
    assert read_cache(tmp_path / "host.json", "key") is None


def test_a_cache_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    write_cache(tmp_path / "real.json", "key", facts_of_a_host())
    (tmp_path / "host.json").symlink_to(tmp_path / "real.json")
    assert read_cache(tmp_path / "host.json", "key") is None


def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    """Put a podman program of our own, or none, on the only PATH that Podman is looked for."""
    programs = tmp_path / "bin"
    programs.mkdir()
    if script is not None:
        (programs / "podman").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "podman").chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin" if script is not None else str(programs), "HOME": str(tmp_path)}
    monkeypatch.setattr(podman_program, "scrubbed_environment", lambda: environment)
    monkeypatch.setenv("PATH", environment["PATH"])


def test_a_missing_podman_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    podman(tmp_path, monkeypatch, None)
    with pytest.raises(EngineUnavailable) as caught:
        podman_program.podman_version()
    assert "not installed" in caught.value.message
    assert "apt-get install podman" in caught.value.hint


def test_an_old_podman_is_refused_with_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    podman(tmp_path, monkeypatch, "echo podman version 3.4.4")
    with pytest.raises(EngineUnavailable, match=r"3\.4\.4 is too old: at least 4\.3\.0"):
        podman_program.podman_version()


def test_a_broken_podman_is_named_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    podman(tmp_path, monkeypatch, "echo 'Error: database is locked' >&2; exit 125")
    with pytest.raises(EngineUnavailable, match="database is locked"):
        podman_program.podman_version()


def test_a_podman_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    podman(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(EngineUnavailable, match="did not end within"):
        podman_program.podman_command("info", timeout_s=0.3)


def test_podman_gets_nothing_of_the_callers_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "CONTAINERS_CONF", "PODMAN_USERNS", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD"):
        monkeypatch.setenv(name, "leak")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    environment = podman_program.scrubbed_environment()
    assert "leak" not in environment.values()
    assert environment["CONTAINERS_CONF"] == "/dev/null"
    assert set(environment) <= {
        "PATH",
        "HOME",
        "XDG_RUNTIME_DIR",
        "LANG",
        "CONTAINERS_CONF",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    }


def test_the_podman_that_reaches_registries_gets_the_proxy_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "no_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:1")
    more = podman_program.reaching_environment().items() - podman_program.scrubbed_environment().items()
    assert dict(more) == {"HTTPS_PROXY": "http://proxy.test:1"}


def test_sockets_of_dead_processes_are_removed_and_live_ones_kept(tmp_path: Path) -> None:
    live, dead = tmp_path / f"engine-{os.getppid()}.sock", tmp_path / "engine-4194999.sock"
    live.touch()
    dead.touch()
    podman_service.remove_dead_sockets(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [live.name]


def test_the_cache_is_plain_json(tmp_path: Path) -> None:
    write_cache(tmp_path / "host.json", "key", facts_of_a_host())
    assert json.loads((tmp_path / "host.json").read_text())["engine"]["runtime"] == "crun"


# ---------------------------------------------------------------- cgroup v2: who delegates, and what


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cgroup v2 tree of a host that systemd runs, where this user has no session yet."""
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    monkeypatch.setattr(kernel, "CGROUP_ROOT", root)
    monkeypatch.setattr(host, "SYSTEMD", tmp_path)
    return root


def group(directory: Path, controllers: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.controllers").write_text(f"{controllers}\n")
    return directory


def test_a_user_without_a_session_of_systemd_is_told_how_to_get_one(cgroups: Path) -> None:
    with pytest.raises(NotEnforceable, match="no session of systemd") as caught:
        host.require_session()
    assert (
        f"loginctl enable-linger {host.user_name()} && systemctl start user@{os.getuid()}.service" in caught.value.hint
    )
    group(kernel.session_group(os.getuid()), "memory")
    assert host.require_session()


def test_no_session_is_needed_with_cgroup_v1_or_without_systemd(
    cgroups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cgroups / "cgroup.controllers").unlink()
    assert "v1" in host.require_session()
    (cgroups / "cgroup.controllers").write_text("cpu\n")
    monkeypatch.setattr(host, "SYSTEMD", tmp_path / "nowhere")
    assert "systemd does not run" in host.require_session()


def test_what_is_delegated_is_the_session_s_list_and_not_podman_s(cgroups: Path) -> None:
    info = fake_info(cgroup_controllers=("memory", "pids"))
    assert host.delegated(info) == frozenset()
    group(kernel.session_group(os.getuid()), "cpu memory pids")
    assert host.delegated(info) == {"cpu", "memory", "pids"}
    assert host.delegated(fake_info(cgroup_version=1)) == frozenset()


@pytest.mark.parametrize(
    ("below", "own", "wanted"),
    [
        ("app.slice/flow.service", "memory pids", True),
        ("app.slice/flow.service", "cpu memory pids", False),
        (None, "memory pids", False),
    ],
    ids=["a service with fewer", "a service with all", "outside of the session"],
)
def test_podman_gets_a_scope_of_its_own_where_its_group_has_fewer_controllers(
    below: str | None, own: str, wanted: bool, cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = group(kernel.session_group(os.getuid()), "cpu memory pids")
    mine = group(session / below if below else cgroups / "system.slice/x.service", own)
    monkeypatch.setattr(kernel, "own_group", lambda: mine)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    prefix = podman_program.scope_prefix()
    assert bool(prefix) == wanted
    assert ("--property=Delegate=yes" in prefix) == wanted
