"""Advice on real failures, and whether it works when it is followed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import document, environment, sandbox
from tests.integration.service import served

pytestmark = pytest.mark.podman

NETWORK = {
    "socket": "import socket\nsocket.create_connection(('api.test', 443))",
    "urllib": "import urllib.request\nurllib.request.urlopen('https://api.test:8443/')",
    "http.client": "import http.client\nhttp.client.HTTPConnection('192.0.2.1', timeout=2).request('GET', '/')",
    "asyncio": "import asyncio\nasyncio.run(asyncio.open_connection('api.test', 443))",
    "wrapped": (
        "import socket\ntry:\n    socket.getaddrinfo('db.test', 5432)\nexcept OSError as error:\n    raise"
        " RuntimeError('no database')"
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands run where the files are, with the code of this checkout."""
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)


def run(tmp_path: Path, code: str, *options: str | Path, **more: Any) -> dict[str, Any]:
    script = tmp_path / "script.py"
    script.write_text(code)
    return document("run", script, *options, **more)


@pytest.fixture(scope="module")
def in_a_cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path, str], dict[str, Any]]]:
    """Give a way to run a program in a cell: only a service has them, whatever policy a command by itself is told."""
    with served(tmp_path_factory.mktemp("advice")) as service:

        def answer(tmp_path: Path, code: str) -> dict[str, Any]:
            found = run(tmp_path, code, "--policy", "cells", env=environment(SANDBOX_SOCKET=service.socket))
            [row] = [row for row in found["receipt"]["controls"] if row["control"] == "isolation"]
            assert row["mechanism"] != "container", row
            return found

        yield answer


@pytest.mark.parametrize("client", NETWORK)
def test_whatever_client_finds_no_network_is_told_of_the_policy(tmp_path: Path, client: str) -> None:
    answer = run(tmp_path, NETWORK[client])
    assert answer["outcome"] == "failed"
    assert "policy default gives programs no network" in answer["explanation"]


def test_one_in_a_cell_is_told_of_its_policy(tmp_path: Path, in_a_cell: Callable[[Path, str], dict[str, Any]]) -> None:
    answer = in_a_cell(tmp_path, NETWORK["socket"])
    assert answer["outcome"] == "failed"
    assert "policy cells gives programs no network" in answer["explanation"]


def test_a_client_that_passes_the_proxy_by_is_told_of_it_and_of_what_is_allowed(tmp_path: Path) -> None:
    policy = tmp_path / "api.toml"
    policy.write_text('extends = "default"\n[network]\nmode = "allowlist"\nallow = ["api.test:443"]\n')
    answer = run(tmp_path, NETWORK["socket"], "--policy", policy)
    assert "HTTP_PROXY" in answer["explanation"]
    assert "api.test:443 (network.allow)" in answer["explanation"]
    refused = run(tmp_path, "import urllib.request\nurllib.request.urlopen('https://other.test/')", "--policy", policy)
    assert "lets them reach api.test:443 (network.allow)" in refused["explanation"]


def test_a_refused_connection_is_told_whose_loopback_it_was(tmp_path: Path) -> None:
    answer = run(tmp_path, "import socket\nsocket.create_connection(('127.0.0.1', 1883))")
    assert "127.0.0.1 and localhost are the sandbox's own" in answer["explanation"]


@pytest.mark.parametrize("name", ["data.csv", "plant/in/data.csv"])
def test_a_file_that_was_not_sent_is_after_following_the_advice(tmp_path: Path, here: None, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("a,b\n1,2\n")
    code = f"import csv\nwith open({name!r}) as file:\n    result = list(csv.reader(file))"
    advised = re.search(r"--file \S+(?=;)", run(tmp_path, code)["explanation"])
    assert advised
    assert run(tmp_path, code, *shlex.split(advised[0]))["result"] == [["a", "b"], ["1", "2"]]


def test_a_module_of_ones_own_is_after_following_the_advice(tmp_path: Path, here: None) -> None:
    (tmp_path / "plant_helpers.py").write_text("def mean(values):\n    return sum(values) / len(values)\n")
    code = "import plant_helpers\nresult = plant_helpers.mean([1, 2, 3])"
    advised = re.search(r"--file \S+(?=;)", run(tmp_path, code, "--no-local")["explanation"])
    assert advised
    assert run(tmp_path, code, "--no-local", *shlex.split(advised[0]))["result"] == 2


@pytest.mark.parametrize("given", ["@data.csv", "data.csv"])
def test_a_table_given_as_input_is_told_how_it_is_given_and_read(tmp_path: Path, here: None, given: str) -> None:
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    (tmp_path / "script.py").write_text("result = open('data.csv').read()")
    answer = sandbox("run", "script.py", "--input", given)
    assert answer.returncode == 2
    assert "is not JSON" in answer.stderr
    assert "--input @FILE" not in answer.stderr
    advised = re.search(r"--file \S+(?=,)", answer.stderr)
    assert advised
    assert 'pandas.read_csv("data.csv")' in answer.stderr
    assert sandbox("run", "script.py", *shlex.split(advised[0])).stdout == "a,b\n1,2\n\n"


def test_a_file_of_json_that_was_typed_without_its_sign_is_told_the_sign(tmp_path: Path, here: None) -> None:
    (tmp_path / "data.json").write_text("[1]")
    (tmp_path / "script.py").write_text("result = payload")
    assert "--input @data.json" in sandbox("run", "script.py", "--input", "data.json").stderr
    (tmp_path / "broken.json").write_text("[1")
    assert "--file" not in sandbox("run", "script.py", "--input", "@broken.json").stderr


# ---- files that were left


LEFT = [
    (
        "open('chart.png', 'wb').write(b'x' * 10)\nresult = 1",
        "save_file('chart.png') hands one over, --save-new DIR all (left: chart.png)",
    ),
    (
        "import os\nos.mkdir('out')\nopen('out/chart.png', 'w').write('x')\nresult = 1",
        "save_file('chart.png', read_file('out/chart.png', binary=True))",
    ),
    ("for n in range(1000): open(f'{n:04}.txt', 'w').close()\nresult = 1", ", ...)"),
]


@pytest.mark.parametrize(("code", "said"), LEFT)
def test_a_program_that_left_files_and_saved_none_is_told(
    tmp_path: Path, code: str, said: str, in_a_cell: Callable[[Path, str], dict[str, Any]]
) -> None:
    for way in (run, in_a_cell):
        answer = way(tmp_path, code)
        assert answer["outcome"] == "succeeded"
        [warning] = answer["warnings"]
        assert said in warning
        assert len(warning) < 400


def test_following_that_advice_hands_the_file_over(tmp_path: Path) -> None:
    for code, _ in LEFT[:2]:
        [warning] = run(tmp_path, code)["warnings"]
        advised = re.search(r"save_file\(.*?\)(?= hands)", warning)
        assert advised
        answer = run(tmp_path, code.replace("result = 1", f"{advised[0]}\nresult = 1"))
        assert [file["name"] for file in answer["files"]] == ["chart.png"]
        assert answer["warnings"] == []


@pytest.mark.parametrize(
    "code",
    [
        "result = 1",
        "open('/tmp/chart.png', 'w').write('x')\nresult = 1",
        "open('given.csv').read()\nresult = 1",
        "open('chart.png', 'w').write('x')\nsave_file('report.txt', 'y')\nresult = 1",
        "import os\nos.symlink('/etc', 'link')\nos.mkfifo('pipe')\nresult = 1",
        "import helper\nresult = helper.X",
        "import os\nos.scandir = None\nopen('chart.png', 'w').write('x')\nresult = 1",
        "import os\nfor n in range(30): os.makedirs('/'.join('d' * (n + 1)), exist_ok=True)\nresult = 1",
    ],
)
def test_other_programs_are_told_nothing(tmp_path: Path, code: str) -> None:
    (tmp_path / "given.csv").write_text("x")
    (tmp_path / "helper.py").write_text("X = 1\n")
    answer = run(tmp_path, code, "--file", tmp_path / "given.csv", "--file", tmp_path / "helper.py")
    assert answer["outcome"] == "succeeded", json.dumps(answer)[:500]
    assert answer["warnings"] == []
