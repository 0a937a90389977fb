"""What a build tells while it goes on: to a person on a terminal, and to a client of the service."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from itertools import groupby
from pathlib import Path

import pytest

from tests.command import COMMAND, environment, sandbox
from tests.integration.package_index import PackageIndex
from tests.integration.service import served
from tests.integration.test_environment_command import BYTES, WAIT_S, asked, index, library, succeeded
from tests.integration.test_environment_sharing import POLICY
from tests.integration.test_service import raw

__all__ = ["asked", "index", "library"]  # fixtures

pytestmark = pytest.mark.podman


def on_a_terminal(*arguments: str) -> str:
    """Run a command whose standard error is a terminal; return what it showed there."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments], stderr=theirs, stdout=subprocess.DEVNULL, env=environment(TERM="xterm")
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # the last writer is gone
            os.close(ours)
        assert process.wait(WAIT_S) == 0, shown
    return shown.decode()


def test_a_build_on_a_terminal_shows_its_steps_in_order_and_a_bar_of_what_came(library: str, asked: list[str]) -> None:
    shown = on_a_terminal("env", "build", *asked)
    steps = re.findall(r"· (.+?)\x1b", shown)
    assert steps == ["resolving " + library, "downloading 1 packages", "installing 1 packages", "storing"]
    positions = [float(found) for found in re.findall(r"([\d.]+) of 3\.0 MiB", shown)]
    assert positions, shown
    assert positions == sorted(positions)
    assert positions[-1] == 3.0
    assert "100%" in shown


def test_an_environment_that_is_there_shows_no_step_of_a_build(asked: list[str]) -> None:
    succeeded("build", *asked)
    assert "·" not in on_a_terminal("env", "build", *asked)


def test_without_a_terminal_nothing_is_shown(asked: list[str]) -> None:
    assert sandbox("env", "build", *asked).stderr == ""


def test_a_client_of_the_service_is_told_the_steps_and_every_byte_that_came(
    index: PackageIndex, library: str, tmp_path: Path
) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/local.toml").write_text(POLICY)
    asked = {"requirements": [library], "policy": "local"}
    with served(tmp_path) as service:
        status, _, body = raw(service, "POST", "/v1/environments", asked, accept="application/x-ndjson")
        events = [json.loads(line) for line in body.splitlines()]
        assert (status, events[-1]["event"]) == (200, "result"), events[-1]
        told = [event for event in events if event["event"] == "progress"]
        assert [step for step, _ in groupby(event["step"] for event in told)] == [
            "resolving",
            "downloading",
            "installing",
            "storing",
        ]
        counts = [event["done_bytes"] for event in told if event["step"] == "downloading"]
        assert counts == sorted(counts)
        assert {event["total_bytes"] for event in told if event["step"] == "downloading"} == {
            len(index.files[f"{library}-1.0-py3-none-any.whl"])
        }
        assert counts[-1] > BYTES
        # The control: once it is there, nothing is done and nothing told.
        _, _, body = raw(service, "POST", "/v1/environments", asked, accept="application/x-ndjson")
        assert [json.loads(line)["event"] for line in body.splitlines()] == ["result"]
        assert raw(service, "DELETE", f"/v1/environments/{events[-1]['id']}")[0] == 200
