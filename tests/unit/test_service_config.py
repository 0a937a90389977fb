"""The service's configuration: where it is read, what overrides it, and what is said about a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sandbox.cli.config import config
from sandbox.client import default_socket
from sandbox.errors import InvalidRequest, NotFound
from sandbox.places import named_socket
from sandbox.service.config.load import DEFAULT, KEYS, LoadedConfig, load_config, variable_of
from sandbox.service.config.model import SECTIONS, ServiceConfig, tables_of
from sandbox.service.config.values import MAX_PATH_BYTES
from sandbox.toml_mistakes import expectation

RUNNER = '[[access.runners]]\nusers = ["alice"]\npolicies = ["default"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "service.toml"
    path.touch(0o644)
    return path


def load(file: Path, text: str, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    file.write_text(text)
    return load_config(file, environ or {})


def mistakes(file: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        load(file, text, environ)
    assert caught.value.hint
    assert caught.value.message == caught.value.facts.get("mistakes", [caught.value.message])[0]
    return [message.replace(str(file), "f") for message in caught.value.facts.get("mistakes", [caught.value.message])]


def run(*arguments: str, environ: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(config, arguments, env={"SANDBOX_CONFIG": None, **(environ or {})})


# ---- which file ----------------------------------------------------------------------------------


def test_named_file_comes_before_the_variable_and_that_before_the_users_own(tmp_path: Path) -> None:
    own = tmp_path / ".config/podman-sandbox-runner/service.toml"
    own.parent.mkdir(parents=True)
    named, variable = tmp_path / "named.toml", tmp_path / "variable.toml"
    for path in (own, named, variable):
        path.write_text("")
    environ = {"HOME": str(tmp_path), "SANDBOX_CONFIG": str(variable)}
    assert load_config(named, environ).path == named
    assert load_config(None, environ).path == variable
    assert load_config(None, {**environ, "SANDBOX_CONFIG": ""}).path == own


@pytest.mark.parametrize("configured", ["", "relative"])
def test_directory_of_xdg_counts_only_where_it_is_absolute(tmp_path: Path, configured: str) -> None:
    xdg = tmp_path / "xdg"
    for directory in (xdg, tmp_path / ".config"):
        (directory / "podman-sandbox-runner").mkdir(parents=True)
        (directory / "podman-sandbox-runner/service.toml").write_text("")
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": configured}
    assert load_config(None, environ).path == tmp_path / ".config/podman-sandbox-runner/service.toml"
    assert (
        load_config(None, {**environ, "XDG_CONFIG_HOME": str(xdg)}).path == xdg / "podman-sandbox-runner/service.toml"
    )


@pytest.mark.skipif(Path("/etc/podman-sandbox-runner/service.toml").exists(), reason="this host has a configuration")
def test_without_any_file_the_defaults_hold(tmp_path: Path) -> None:
    loaded = load_config(None, {"HOME": str(tmp_path)})
    assert (loaded.path, loaded.config) == (None, ServiceConfig())
    assert set(loaded.origins.values()) == {DEFAULT}


def test_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"the service configuration .*/none.toml does not exist"):
        load_config(tmp_path / "none.toml", {})


def test_file_that_others_can_change_is_refused(file: Path) -> None:
    file.chmod(0o666)
    with pytest.raises(InvalidRequest, match="can be changed by other users"):
        load_config(file, {})


def test_relative_name_is_taken_from_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert load_config(None, {"SANDBOX_CONFIG": "service.toml"}).path == file


# ---- values --------------------------------------------------------------------------------------


def test_defaults_are_for_the_owner_alone_and_sized_by_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    values = ServiceConfig().effective()
    assert values["socket.path"] == f"{tmp_path}/podman-sandbox-runner/service.sock"
    assert (values["socket.mode"], values["socket.group"]) == ("0600", None)
    assert values["queue.running"] == values["queue.per_caller_running"] == 2 * len(os.sched_getaffinity(0))


def test_socket_with_a_group_is_open_to_the_group(file: Path) -> None:
    assert load(file, 'socket.group = "staff"').config.socket.permissions == 0o660
    assert load(file, 'socket.group = "staff"\nsocket.mode = "0600"').config.socket.permissions == 0o600


def test_one_caller_may_use_all_slots_unless_told_otherwise(file: Path) -> None:
    assert load(file, "queue.running = 7").config.queue.limits.per_caller_running == 7
    assert load(file, "queue.running = 7\nqueue.per_caller_running = 3").config.queue.limits.per_caller_running == 3


def test_tables_are_read_in_their_order(file: Path) -> None:
    text = RUNNER + '[[access.runners]]\nusers = ["@staff", "uid 1234"]\npolicies = ["*"]\nmax_queued = 0\n'
    text += '[[pool.warm]]\npolicy = "default"\nrequirements = ["numpy>=2"]\npreload = ["numpy.linalg"]'
    loaded = load(file, text).config
    assert [entry.users for entry in loaded.access.runners] == [("alice",), ("@staff", "uid 1234")]
    assert [entry.max_queued for entry in loaded.access.runners] == [None, 0]
    assert loaded.pool.warm[0].preload == ("numpy.linalg",)


def test_every_value_tells_where_it_comes_from(file: Path) -> None:
    loaded = load(file, "[queue]\nrunning = 3\nwaiting = 5\n" + RUNNER, {"SANDBOX_QUEUE__WAITING": "9"})
    assert loaded.origins["queue.running"] == f"{file}:2"
    assert loaded.origins["queue.waiting"] == "$SANDBOX_QUEUE__WAITING"
    assert loaded.origins["access.runners"] == f"{file}:4"
    assert loaded.origins["queue.wait_s"] == DEFAULT
    assert set(loaded.origins) == set(KEYS)


# ---- the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("queue.running", "4", 4),
        ("queue.wait_s", "0.5", 0.5),
        ("socket.path", "/run/a.sock", "/run/a.sock"),
        ("socket.path", '"/run/a.sock"', "/run/a.sock"),
        ("socket.mode", "0600", "0600"),
        ("socket.mode", "600", "600"),
        ("socket.group", "1000", "1000"),
        ("log.format", "json", "json"),
        ("access.maintainers", '["alice", "@staff"]', ("alice", "@staff")),
    ],
)
def test_variable_overrides_the_file(file: Path, key: str, text: str, value: Any) -> None:
    section, _, name = key.partition(".")
    loaded = load(file, f'[{section}]\n{name} = "wrong"', {variable_of(key): text}).config
    assert getattr(getattr(loaded, section), name) == value


def test_variable_may_hold_tables(file: Path) -> None:
    text = '[{users = ["bob"], policies = ["*"]}]'
    assert load(file, RUNNER, {"SANDBOX_ACCESS__RUNNERS": text}).config.access.runners[0].users == ("bob",)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("SANDBOX_QUEUE__RUNING", "4", "overrides no key of the service; did you mean SANDBOX_QUEUE__RUNNING?"),
        ("SANDBOX_queue__running", "4", "did you mean SANDBOX_QUEUE__RUNNING?"),
        (
            "SANDBOX_QUEUE__RUNNING",
            "many",
            '$SANDBOX_QUEUE__RUNNING: queue.running is "many", but it must be a whole number',
        ),
        ("SANDBOX_QUEUE__RUNNING", "", '$SANDBOX_QUEUE__RUNNING: queue.running is "", but it must be a whole number'),
        ("SANDBOX_QUEUE__RUNNING", "4\nwaiting = 5", 'queue.running is "4\\nwaiting = 5", but it must be'),
        ("SANDBOX_QUEUE__RUNNING", "[" * 100_000, "queue.running is "),
        ("SANDBOX_SOCKET__PATH", "/a\udcff", "SANDBOX_SOCKET__PATH is not UTF-8 text"),
        (
            "SANDBOX_ACCESS__RUNNERS",
            '[{user = ["bob"]}]',
            "$SANDBOX_ACCESS__RUNNERS: there is no key user in entry 1 of access.runners; did you mean users?",
        ),
    ],
)
def test_wrong_variable_is_named(file: Path, name: str, text: str, message: str) -> None:
    assert any(message in mistake for mistake in mistakes(file, "", {name: text}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('restricted.path = "/run/r/service.sock"', "restricted.path and restricted.policies need each other"),
        ('restricted.policies = ["default"]', "restricted.path and restricted.policies need each other"),
        (
            'socket.path = "/run/s/a.sock"\nrestricted = {path = "/run/s/b.sock", policies = ["default"]}',
            "are in one directory",
        ),
        (
            'socket.path = "/run/s/a.sock"\nrestricted = {path = "/run/x/../s/b.sock", policies = ["default"]}',
            "are in one directory",
        ),
        ('restricted.path = "relative"', "must be an absolute path"),
    ],
)
def test_a_second_socket_has_policies_and_a_directory_of_its_own(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        load_config(file, {})


def test_variable_without_a_section_is_somebody_elses(file: Path) -> None:
    assert load(file, "", {"SANDBOX_USER": "x", "SANDBOX_CONFIG": "x", "OTHER__KEY": "x"}).config == ServiceConfig()


def test_variable_can_not_mend_a_section_that_is_none(file: Path) -> None:
    assert (
        "f:1: queue is 5, but it must be a section, [queue]"
        in mistakes(file, "queue = 5", {"SANDBOX_QUEUE__WAITING": "1"})[0]
    )


# ---- mistakes, in words --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queue.running = 0", "f:1: queue.running is 0, but it must be a whole number of runs from 1 to 100000"),
        ("[queue]\n\nrunning = true", "f:3: queue.running is true, but it must be a whole number"),
        ('pool.memory_mib = "512m"', 'f:1: pool.memory_mib is "512m", but it must be a whole number of MiB from 0'),
        ("queue.wait_s = nan", "f:1: queue.wait_s is nan, but it must be a number of seconds from 0 to 31536000"),
        ("stop.drain_s = 1979-05-27", 'f:1: stop.drain_s is "1979-05-27", but it must be a number of seconds'),
        ("queue = 5", "f:1: queue is 5, but it must be a section, [queue]"),
        ('log.format = "text"', 'f:1: log.format is "text", but it must be "auto", "human" or "json"'),
        ('socket.path = "service.sock"', "but it must be an absolute path of at most 107 bytes"),
        (f'socket.path = "/{"x" * MAX_PATH_BYTES}"', "but it must be an absolute path of at most 107 bytes"),
        ('socket.path = "/a\\u0000b"', "but it must be an absolute path of at most 107 bytes"),
        (
            'socket.mode = "0666"',
            'f:1: socket.mode is "0666", but it must be "0600" or, for the members of the group, "0660"',
        ),
        ('socket.mode = "0601"', "nobody else may reach the socket"),
        ('socket.mode = "0060"', "nobody else may reach the socket"),
        ("socket.mode = 0o660", "f:1: socket.mode is 432, but it must be a text such as"),
        ('[socket]\nmode = "0660"', 'f:2: socket.mode is "0660" and lets a group in, but socket.group names none'),
        ('socket.group = ""', 'socket.group is "", but it must be a group\'s name'),
        ('access.maintainers = "alice"', 'access.maintainers is "alice", but it must be a list of users'),
        ('access.maintainers = ["a", 5]', "f:1: entry 2 of access.maintainers is 5, but it must be a text"),
        ('access.maintainers = ["a, b"]', 'entry 1 of access.maintainers is "a, b", but it must be a user'),
        ('access.runners = ["alice"]', 'f:1: entry 1 of access.runners is "alice", but it must be a table'),
        (
            '[[access.runners]]\nusers = ["a"]',
            "f:1: entry 1 of access.runners lacks policies, which must be a list of names",
        ),
        (
            '[[access.runners]]\nusers = []\npolicies = ["*"]',
            "f:2: users in entry 1 of access.runners is [], but it must be a list of users",
        ),
        (
            RUNNER + 'max_running = "2"',
            'f:4: max_running in entry 1 of access.runners is "2", but it must be a whole number of runs from 1',
        ),
        (
            RUNNER + '[[access.runners]]\nusers = ["b"]\npolicies = ["../x"]',
            'f:6: entry 1 of policies in entry 2 of access.runners is "../x", but it must be',
        ),
        (
            '[[pool.warm]]\npolicy = "./a.toml"',
            'f:2: policy in entry 1 of pool.warm is "./a.toml", but it must be the name of a policy',
        ),
        ('[[pool.warm]]\npolicy = "default"\npreload = ["os; evil"]', "must be the name of a module"),
        ("queue.waiting = " + "[" * 300 + "]" * 300, "f:1: "),
    ],
)
def test_wrong_value_names_place_key_and_what_is_allowed(file: Path, text: str, message: str) -> None:
    assert message in mistakes(file, text)[0]


@pytest.mark.parametrize(
    ("text", "place", "nearest"),
    [
        ("[queue]\nruning = 5", "f:2", "queue.running"),
        ("[queues]\nrunning = 5", "f:1", "queue"),
        ("running = 5", "f:1", "queue.running"),
        ("[socket]\nidle_s = 5", "f:2", "cells.idle_s"),
        ("[[pool.warm]]\npolicies = 'x'", "f:2", "policy"),
        (RUNNER + "user = ['b']", "f:4", "users"),
    ],
)
def test_unknown_key_names_the_nearest(file: Path, text: str, place: str, nearest: str) -> None:
    found = [message for message in mistakes(file, text) if "there is no key" in message]
    assert found[0].startswith(f"{place}: ")
    assert found[0].endswith(f"; did you mean {nearest}?")


def test_key_that_is_near_to_nothing_is_just_unknown(file: Path) -> None:
    assert mistakes(file, "[queue]\nxyzzy = 5") == ["f:2: there is no key queue.xyzzy"]


def test_broken_toml_names_line_and_column(file: Path) -> None:
    assert mistakes(file, "[queue]\nrunning = = 5")[0].startswith("f:2:11: this is not valid TOML: ")


def test_all_mistakes_are_listed_first_line_first(file: Path) -> None:
    found = mistakes(file, "[stop]\ndrain_s = -1\n[queue]\nwaiting = -1\nrunning = 0\n")
    assert [message.split(": ")[0] for message in found] == ["f:2", "f:4", "f:5"]


# ---- every key is described, and shown -----------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_meaning_and_says_what_is_allowed(key: str) -> None:
    table = tables_of(KEYS[key])
    for field in [KEYS[key], *(table.model_fields.values() if table else ())]:
        assert field.description is not None
        assert field.description.endswith(".")
        assert expectation(field) != "a text"


def test_show_prints_a_file_that_means_the_same(file: Path, tmp_path: Path) -> None:
    file.write_text(
        '[socket]\ngroup = "staff"\n[queue]\nrunning = 3\n' + RUNNER + "max_running = 2\n"
        '[[pool.warm]]\npolicy = "default"\nrequirements = ["numpy[x] >= 2 ; python_version > \'3\'"]\n'
    )
    shown = run("show", "--config", str(file))
    assert shown.exit_code == 0, shown.output
    again = tmp_path / "again.toml"
    again.write_text(shown.output)
    again.chmod(0o644)
    assert load_config(again, {}).config.effective() == load_config(file, {}).config.effective()


def test_show_says_what_each_key_does_and_where_its_value_comes_from(file: Path) -> None:
    file.write_text("[queue]\nrunning = 3")
    lines = run("show", "--config", str(file), environ={"SANDBOX_QUEUE__WAITING": "9"}).output.splitlines()
    before = {line.split(" = ")[0]: lines[number - 1] for number, line in enumerate(lines) if " = " in line}
    assert f"(from {file}:2)" in before["running"]
    assert "(from $SANDBOX_QUEUE__WAITING)" in before["waiting"]
    assert "(default; $SANDBOX_QUEUE__WAIT_S)" in before["wait_s"]
    assert all(str(KEYS[key].description) in "\n".join(lines) for key in KEYS)
    assert [line for line in lines if line.startswith("[")] == [f"[{section}]" for section in SECTIONS]


def test_show_json_has_values_and_origins(file: Path) -> None:
    shown = json.loads(run("show", "--config", str(file), "--json").output)
    assert shown["path"] == str(file)
    assert set(shown["config"]) == set(shown["origins"]) == set(KEYS)


def test_check_lists_every_mistake_and_exits_with_2(file: Path) -> None:
    file.write_text("[queue]\nwaiting = -1\nrunning = 0\n\x1b = 1".replace("\x1b = 1", '"\\u001b[2J" = 1'))
    result = run("check", str(file))
    assert result.exit_code == 2
    assert "queue.waiting is -1" in result.output
    assert "queue.running is 0" in result.output
    assert "what to do: " in result.output
    assert "\x1b" not in result.output


def test_check_names_what_nobody_knows_and_exits_with_2_for_a_policy(file: Path) -> None:
    file.write_text('[[access.runners]]\nusers = ["nobody-of-that-name"]\npolicies = ["no-such-policy"]\n')
    result = run("check", str(file))
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert [line.partition(": ")[0] for line in lines if "no-such-policy" in line] == ["error"]
    assert [line.partition(": ")[0] for line in lines if "nobody-of-that-name" in line] == ["warning"]


def test_check_of_a_right_file_says_so(file: Path) -> None:
    result = run("check", environ={"SANDBOX_CONFIG": str(file)})
    assert (result.exit_code, result.output) == (0, f"{file}: ok\n")


# ---- what a client needs of it -------------------------------------------------------------------


def test_a_client_looks_where_the_configuration_has_the_service_listen(file: Path, tmp_path: Path) -> None:
    nowhere = {"HOME": str(tmp_path)}
    assert named_socket(nowhere) is None
    file.write_text('[socket]\npath = "/run/own/service.sock"\n')
    environ = {**nowhere, "SANDBOX_CONFIG": str(file)}
    assert named_socket(environ) == load_config(None, environ).config.socket.path == "/run/own/service.sock"
    for text in ("/run/variable.sock", '"/run/variable.sock"'):
        overridden = {**environ, "SANDBOX_SOCKET__PATH": text}
        assert named_socket(overridden) == load_config(None, overridden).config.socket.path == "/run/variable.sock"
        assert named_socket({**overridden, "SANDBOX_SOCKET": "/run/client.sock"}) == "/run/client.sock"


@pytest.mark.parametrize("text", ["", "[queue]\nrunning = 1\n", "socket = 1\n", "[socket]\npath = 1\n"])
def test_without_a_path_in_the_configuration_the_usual_place_is_meant(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    file.write_text(text)
    monkeypatch.setenv("SANDBOX_CONFIG", str(file))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(file.parent))
    monkeypatch.delenv("SANDBOX_SOCKET", raising=False)
    assert default_socket() == f"{file.parent}/podman-sandbox-runner/service.sock" == ServiceConfig().socket.path


def test_a_client_is_told_of_a_configuration_that_can_t_be_read(file: Path, tmp_path: Path) -> None:
    file.write_text("[socket\n")
    with pytest.raises(InvalidRequest, match=r"service\.toml:1:8: this is not valid TOML"):
        named_socket({"SANDBOX_CONFIG": str(file)})
    with pytest.raises(NotFound, match=r"the service configuration .* does not exist"):
        named_socket({"SANDBOX_CONFIG": str(tmp_path / "absent")})


def test_looking_for_the_socket_imports_little(file: Path) -> None:
    file.write_text('[socket]\npath = "/run/own/service.sock"\n')
    code = "import os, sys\nfrom sandbox.client import default_socket\nprint(default_socket(), *sys.modules)"
    environ = {**os.environ, "SANDBOX_CONFIG": str(file)}
    environ.pop("SANDBOX_SOCKET", None)
    said = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert said[0] == "/run/own/service.sock"
    assert not {"pydantic", "aiohttp", "msgspec", "asyncio", "click"} & set(said)


def test_a_file_that_the_variable_names_and_that_is_not_there_is_told_with_the_variable(tmp_path: Path) -> None:
    for read in (lambda environ: load_config(None, environ), named_socket):
        with pytest.raises(NotFound) as refused:
            read({"SANDBOX_CONFIG": str(tmp_path / "nope.toml")})
        assert "$SANDBOX_CONFIG" in refused.value.hint


def test_webhooks_are_read_with_the_file_of_their_key(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text('[webhooks]\nallowed = ["http://127.0.0.1:1880/ended"]\nkey_file = "/etc/key"\n')
    assert load_config(file, {}).config.webhooks.key_file == "/etc/key"


# ---- the proxy -----------------------------------------------------------------------------------


def test_the_proxy_becomes_variables_without_a_login(file: Path) -> None:
    text = '[proxy]\nurl = "http://Proxy.example:3128/"\nlogin_file = "/etc/login"\nbypass = ".example"\n'
    assert load(file, text).config.proxy.variables() == {
        "SANDBOX_PROXY__URL": "http://proxy.example:3128",
        "SANDBOX_PROXY__LOGIN_FILE": "/etc/login",
        "SANDBOX_PROXY__BYPASS": ".example",
    }
    assert load(file, "").config.proxy.variables() == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[proxy]\nurl = "http://ada:s3cr3t@proxy.example:3128"\n', "must have no login"),
        ('[proxy]\nurl = "socks5://ada:s3cr3t@proxy.example:3128"\n', "must be the address of an HTTP proxy"),
        ('[proxy]\nurl = "http://ada:s3cr3t@proxy.example:x"\n', "must be the address of an HTTP proxy"),
        ('[proxy]\nbypass = ".example"\n', "need proxy.url"),
        ('[proxy]\nlogin_file = "/etc/login"\n', "need proxy.url"),
    ],
)
def test_a_mistake_about_the_proxy_is_told_without_the_login(file: Path, text: str, message: str) -> None:
    (told,) = mistakes(file, text)
    assert message in told
    assert "s3cr3t" not in told
