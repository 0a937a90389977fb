"""Names that stand for nothing: in requests, and in the configuration."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import InvalidRequest, NotFound
from sandbox.policy.load import load_policy, shipped_directory
from sandbox.service.config.model import ServiceConfig
from sandbox.service.config.names import UnknownName, unknown_names
from sandbox.service.state import PolicyBook

ME = pwd.getpwuid(os.geteuid()).pw_name
MY_GROUP = grp.getgrgid(os.getegid()).gr_name


# ---- a policy that a request names


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    (tmp_path / "reports.toml").write_text('extends = "default"\n')
    return [tmp_path, shipped_directory()]


def test_a_mistyped_policy_is_refused_as_the_command_line_refuses_it(directories: list[Path]) -> None:
    with pytest.raises(NotFound) as here:
        load_policy("reprots", directories=directories)
    with pytest.raises(NotFound) as served:
        PolicyBook(directories).get("reprots")
    assert "did you mean reports?" in served.value.message
    assert (served.value.message, served.value.hint) == (here.value.message, here.value.hint)


def test_a_name_that_is_near_to_nothing_is_just_unknown(directories: list[Path]) -> None:
    with pytest.raises(NotFound) as caught:
        PolicyBook(directories).get("xyzzy")
    assert caught.value.message == "there is no policy named xyzzy"


def test_a_policy_that_came_later_is_told_with_the_command_that_has_it_read(directories: list[Path]) -> None:
    book = PolicyBook(directories)
    (directories[0] / "later.toml").write_text('extends = "default"\n')
    with pytest.raises(NotFound, match="no policy named later") as caught:
        book.get("later")
    assert f"kill -HUP {os.getpid()}" in caught.value.hint
    book.reload()
    assert book.get("later").path.stem == "later"


def test_a_broken_policy_is_not_said_to_be_missing(directories: list[Path]) -> None:
    (directories[0] / "reports.toml").write_text("limits.nonsense = 1")
    with pytest.raises(NotFound, match=r"the policy reports can't be used: .*nonsense"):
        PolicyBook(directories).get("reports")


@pytest.mark.parametrize("name", ["/etc/x.toml", "../reports", "reports.toml", "", "\x1b[2J"])
def test_a_path_is_no_name_and_can_t_steer_a_terminal(directories: list[Path], name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a policy name") as caught:
        PolicyBook(directories).get(name)
    assert caught.value.message.isprintable()


# ---- names in the configuration


def unknown(policies: tuple[str, ...] = ("default", "strict"), **sections: Any) -> list[UnknownName]:
    return unknown_names(ServiceConfig.model_validate(sections), policies)


def runners(*users: str, policies: tuple[str, ...] = ("*",)) -> dict[str, Any]:
    return {"runners": ({"users": users, "policies": policies},)}


def test_everything_that_exists_is_passed_over() -> None:
    rules = {**runners(ME, f"@{MY_GROUP}", "uid 3999999999", policies=("*", "strict")), "maintainers": ("root",)}
    assert unknown(access=rules, socket={"group": MY_GROUP}, pool={"warm": ({"policy": "default"},)}) == []


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"access": runners(ME, policies=("default", "strcit"))},
            "policies in entry 1 of access.runners: there is no policy named strcit; did you mean strict?",
        ),
        (
            {"pool": {"warm": ({"policy": "default"}, {"policy": "absent"})}},
            "policy in entry 2 of pool.warm: there is no policy named absent",
        ),
        (
            {"socket": {"group": "no-such-group"}},
            'socket.group: there is no group "no-such-group" on this host',
        ),
    ],
    ids=["runner's policy", "warm policy", "socket's group"],
)
def test_what_can_never_work_is_an_error(sections: dict[str, Any], said: str) -> None:
    assert unknown(**sections) == [UnknownName(message=said, error=True)]


def test_an_account_that_may_come_later_is_a_warning_with_its_place() -> None:
    rules = {**runners(ME, "no-such-user"), "maintainers": ("@no-such-group",)}
    assert unknown(access=rules) == [
        UnknownName(message='access.maintainers: there is no group "no-such-group" on this host', error=False),
        UnknownName(
            message='users in entry 1 of access.runners: there is no user "no-such-user" on this host', error=False
        ),
    ]


# ---- a policy whose file is broken


def test_a_broken_policy_is_as_it_was_or_was_never_there(directories: list[Path], tmp_path: Path) -> None:
    book = PolicyBook(directories)
    assert book.troubles() == []
    for name in ("reports", "newer"):
        (tmp_path / f"{name}.toml").write_text("limits.nonsense = 1\n")
    book.reload()
    newer, reports = sorted(book.troubles())
    assert newer.startswith("policy newer cannot be used: ")
    assert reports.startswith("policy reports is as it was: ")
    assert "limits.nonsense" in newer
