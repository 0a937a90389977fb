"""Requirements files mean the same with and without a service: hashes, encodings, and exports of a lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.client import Client
from sandbox.errors import BuildFailed
from sandbox.index.pip_config import VARIABLES
from tests.command import document, environment, sandbox
from tests.integration.package_index import PackageIndex, package_index, wheel
from tests.integration.service import served

pytestmark = pytest.mark.podman
POLICY = 'extends = "default"\nbuild.allow_addresses = ["127.0.0.1"]\n'
CODE = "import greeting\nresult = greeting.WORDS\n"
ZERO = "0" * 64


@dataclass(frozen=True)
class Place:
    """Where requests go with a service and without, and the index that both ask."""

    index: PackageIndex
    socket: str
    home: Path

    def answers(self, requirements: Path, *more: str) -> list[dict[str, Any]]:
        """Return what a run answers through the service, and in a process of its own."""
        script = self.home / "script.py"
        script.write_text(CODE)
        asked: tuple[str | Path, ...] = ("run", script, "--policy", "local", "--requirements", requirements, *more)
        through = environment(SANDBOX_SOCKET=self.socket)
        without = environment(XDG_CONFIG_HOME=str(self.home / "config"), XDG_DATA_HOME=str(self.home / "own"))
        return [document(*asked, env=variables) for variables in (through, without)]

    def hash_of(self, name: str) -> str:
        return next(sha256 for file, sha256 in self.index.hashes.items() if file.startswith(name))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("requirements")
    policies = home / "config/podman-sandbox-runner/policies"
    policies.mkdir(parents=True)
    (policies / "local.toml").write_text(POLICY)
    with package_index() as index, pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_INDEX_URL", index.url)
        index.add(
            wheel("greeting", "1.0", {"greeting.py": "WORDS = 'hello'\n"}, requires=["tiny"]),
            wheel("tiny", "1.0", {"tiny.py": ""}),
        )
        with served(home, XDG_CACHE_HOME=str(home / "cache"), XDG_CONFIG_HOME=str(home / "config")) as running:
            yield Place(index, running.socket, home)


def test_a_file_with_hashes_is_taken_by_both_and_by_the_clients_of_the_service(place: Place, tmp_path: Path) -> None:
    lines = [f"{name}==1.0 --hash=sha256:{place.hash_of(name)}" for name in ("greeting", "tiny")]
    file = tmp_path / "requirements.txt"
    file.write_text("--require-hashes\n" + " \\\n  --hash=sha256:".join((lines[0], f"{ZERO}\n{lines[1]}\n")))
    for answer in place.answers(file):
        assert answer.get("result") == "hello", answer
    with Client(place.socket) as client:
        assert client.run(CODE, policy="local", requirements=lines).outcome == "succeeded"
        assert client.build_environment(lines, policy="local")["packages"] == ["greeting==1.0", "tiny==1.0"]


@pytest.mark.parametrize(
    ("hashes", "reason"),
    [
        ((ZERO, None), "greeting-1.0-py3-none-any.whl has none of the hashes that greeting==1.0 allows"),
        (("", ZERO), "tiny-1.0-py3-none-any.whl has none of the hashes that tiny==1.0 allows"),
        (("", None), "the package tiny 1.0 is needed and has no hash in the requirements, where others have one"),
    ],
)
def test_a_file_whose_hash_is_not_among_those_given_is_refused_by_both(
    place: Place, tmp_path: Path, hashes: tuple[str, str | None], reason: str
) -> None:
    lines = []
    for name, given in zip(("greeting", "tiny"), hashes, strict=True):
        if given is not None:
            lines.append(f"{name}==1.0 --hash=sha256:{given or place.hash_of(name)}\n")
    file = tmp_path / "requirements.txt"
    file.write_text("".join(lines))
    through, without = place.answers(file)
    assert through["error"]["code"] == without["error"]["code"] == "build_failed"
    assert reason in through["error"]["message"]
    assert through["error"]["message"] == without["error"]["message"]


def test_what_is_exported_is_taken_by_run_lock_and_pip_and_gives_the_same_files(place: Place, tmp_path: Path) -> None:
    with Client(place.socket) as client:
        built = client.build_environment(["greeting"], policy="local")["id"]
    own = environment(XDG_CONFIG_HOME=str(place.home / "config"), XDG_DATA_HOME=str(place.home / "data"))
    exported = sandbox("env", "export", built, "--format", "requirements", env=own)
    assert exported.returncode == 0, exported.stderr
    file = tmp_path / "requirements.txt"
    file.write_text(exported.stdout)
    assert [answer.get("result") for answer in place.answers(file)] == ["hello", "hello"]
    locked = sandbox(
        "env", "lock", "--requirements", file, "--policy", "local", "--output", tmp_path / "pylock.toml", env=own
    )
    assert locked.returncode == 0, locked.stderr
    original = sandbox("env", "export", built, env=own).stdout
    files = [line for line in original.splitlines() if "sha256 =" in line]
    assert files == [line for line in (tmp_path / "pylock.toml").read_text().splitlines() if "sha256 =" in line]
    pip = subprocess.run(
        [
            sys.executable,
            "-I",
            "-m",
            "pip",
            "--isolated",
            "--disable-pip-version-check",
            "install",
            "--no-cache-dir",
            "--index-url",
            place.index.url,
            "--require-hashes",
            "--target",
            str(tmp_path / "site"),
            "-r",
            str(file),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert pip.returncode == 0, pip.stderr
    assert (tmp_path / "site/greeting.py").exists()


def test_a_file_of_windows_and_the_files_that_it_names_are_taken_by_both(place: Place, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("greeting\n")
    file = tmp_path / "requirements.txt"
    file.write_bytes("-r more.txt\r\ntiny; python_version >= '3'  # encore, déjà\r\n".encode("utf-16"))
    assert [answer.get("result") for answer in place.answers(file)] == ["hello", "hello"]


def test_a_refusal_in_a_stream_is_the_same_error(place: Place) -> None:
    with Client(place.socket) as client, pytest.raises(BuildFailed, match="has none of the hashes"):
        client.run(CODE, policy="local", requirements=[f"tiny==1.0 --hash=sha256:{ZERO}"], on_event=lambda _: None)


def test_hashes_are_not_in_the_history(place: Place) -> None:
    lines = [f"tiny==1.0 --hash=sha256:{place.hash_of('tiny')}"]
    with Client(place.socket) as client:
        run_id = client.run("result = 1", policy="local", requirements=lines).run_id
        assert client.recorded(run_id)["requirements"] == "tiny==1.0"


def test_hashes_are_not_in_what_is_shown_to_people(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(f"tiny==1.0 --hash=sha256:{place.hash_of('tiny')}\n")
    own = environment(XDG_CONFIG_HOME=str(place.home / "config"), XDG_DATA_HOME=str(place.home / "data"))
    answer = sandbox("env", "build", "--requirements", file, "--policy", "local", "--json", env=own)
    assert answer.returncode == 0, answer.stderr
    assert "--hash" not in answer.stderr
    shown = sandbox("env", "show", json.loads(answer.stdout)["id"], env=own).stdout
    assert "--hash" not in shown
    assert "tiny==1.0" in shown
