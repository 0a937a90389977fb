"""Output at every end, and local time: by the command, from the service's pool, and in cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.client import Client
from tests.command import document, left_behind
from tests.integration.service import Service, served
from tests.integration.test_service import client

__all__ = ["client"]  # a fixture

pytestmark = pytest.mark.podman
WRITES = "import ctypes, os, sys, time\nctypes.CDLL(None).printf(b'c')\nprint('python', end=' ')\n"
ENDS = {
    "succeeded": "result = 1",
    "failed": "os._exit(3)",
    "killed": "os.abort()",
    "timed_out": "time.sleep(60)",
    "out_of_memory": "held = [bytearray(1 << 20) for _ in range(100_000)]",
}
SHOWS = "import datetime, time\nresult = [time.tzname[0], datetime.datetime.fromtimestamp(0).astimezone().isoformat()]"
SHOWN = ["JST", "1970-01-01T09:00:00+09:00"]
KINDS: dict[str, dict[str, Any]] = {"warm": {}, "cell": {"policy": "cells", "node_id": "flow-9/python"}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("service")) as running:
        yield running
    assert left_behind() == []


@pytest.mark.parametrize(("outcome", "end"), ENDS.items())
def test_a_command_shows_what_was_written_before_any_end(outcome: str, end: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WRITES + end)
    told = document("run", script, "--timeout", "3s")
    assert (told["outcome"], told["stdout"]) == (outcome, "cpython ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outcome", "end"), ENDS.items())
def test_the_service_shows_it_too(client: Client, outcome: str, end: str, kind: str) -> None:
    told = client.run(WRITES + end, limits={"timeout_s": 3}, **KINDS[kind]).document
    assert (told["outcome"], told["stdout"]) == (outcome, "cpython ")


def test_a_command_has_the_local_time_of_its_variable(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SHOWS)
    told = document("run", script, "--env", "TZ=Asia/Tokyo")
    assert told["result"] == SHOWN


@pytest.mark.parametrize("kind", KINDS)
def test_each_run_of_the_service_has_the_local_time_of_its_own_variable(client: Client, kind: str) -> None:
    fields = KINDS[kind]
    seen = [client.run(SHOWS, env={"TZ": zone}, **fields).value[0] for zone in ("Asia/Tokyo", "Europe/Paris", "EST5")]
    assert seen == ["JST", "CET", "EST"]
    assert client.run(SHOWS, **fields).value[0] == "UTC"
    assert client.run(SHOWS, secrets={"TZ": "Asia/Tokyo"}, **fields).value == SHOWN
    (warning,) = client.run(SHOWS, env={"TZ": "Asia/Tokio"}, **fields).document["warnings"]
    assert warning.startswith("the variable TZ names no time zone")
