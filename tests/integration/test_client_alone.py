"""The client without the runner: built from the same source, installed with no index, talking to a real service."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.integration.service import served

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 180
PROGRAM = """
import sys
at_start = set(sys.modules)
import asyncio, json
from importlib.metadata import distributions
from sandbox.client import AsyncClient, Client, default_socket

with Client() as client:
    found = [client.path, client.run("print('x')\\nresult = payload + 1", payload=1).value]
    found.append([event["event"] for event in client.stream("result = 1")][-1])

async def other():
    async with AsyncClient(client.path) as same:
        return (await same.run("result = 5")).value

found.append(asyncio.run(other()))
outside = {name.partition(".")[0] for name in set(sys.modules) - at_start} - set(sys.stdlib_module_names)
print(json.dumps([*found, sorted(outside), sorted({each.name for each in distributions()} - {"pip", "setuptools", "wheel"})]))
"""


def ran(*command: str | Path, **variables: str) -> str:
    """Run one command in a directory that has nothing of ours, and return what it prints."""
    done = subprocess.run(
        list(map(str, command)),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={"PATH": "/usr/bin:/bin", **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new environment that has the client and nothing else."""
    place = tmp_path_factory.mktemp("alone")
    build = [
        sys.executable,
        "-m",
        "pip",
        "--isolated",
        "wheel",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    ran(*build, "--wheel-dir", place, ROOT / "clients/python")
    (wheel,) = place.glob("podman_sandbox_client-*.whl")
    venv.create(place / "venv", with_pip=True)
    python = place / "venv/bin/python"
    ran(python, "-m", "pip", "--isolated", "install", "--quiet", "--no-index", "--no-deps", wheel)
    return python


def test_the_client_alone_talks_to_a_real_service_and_finds_it_by_its_configuration(
    python: Path, tmp_path: Path
) -> None:
    with served(tmp_path) as service:
        (tmp_path / "service.toml").write_text(f'[socket]\npath = "{service.socket}"\n')
        printed = ran(python, "-I", "-c", PROGRAM, SANDBOX_CONFIG=str(tmp_path / "service.toml"))
    assert json.loads(printed) == [service.socket, 2, "result", 5, ["sandbox"], ["podman-sandbox-client"]]


def test_it_has_no_command_and_nothing_of_the_runner(python: Path) -> None:
    assert not (python.parent / "sandbox").exists()
    with pytest.raises(AssertionError, match="No module named"):
        ran(python, "-I", "-c", "import sandbox.runner")
