"""The service's sockets in rootless containers of other programs, such as Node-RED's.

The kernel says who they are; the tests show what they may do.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.client import Client
from sandbox.host.probe import probe
from sandbox.image.admission import REPOSITORY
from sandbox.places import runtime_dir
from tests.command import sandbox
from tests.integration.service import Service, served

pytestmark = pytest.mark.podman

ASK = """
import http.client, json, socket, sys
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
found = []
for method, path, body in json.loads(sys.argv[2]):
    try:
        asked = Unix('localhost')
        asked.request(method, path, None if body is None else json.dumps(body))
        answer = asked.getresponse()
        found.append([answer.status, json.loads(answer.read() or b'null')])
    except OSError as error:
        found.append([0, str(error)])
print(json.dumps(found))
"""
PRUNE = ("POST", "/v1/maintenance/prune", {"older_s": 1e7, "dry_run": True})
RUNS = ("GET", "/v1/runs", None)


def run_of(policy: str) -> tuple[str, str, dict[str, Any]]:
    return ("POST", "/v1/runs", {"code": "result = 'ran'", "policy": policy})


def podman(*words: str) -> str:
    """Return what Podman prints."""
    done = subprocess.run(
        ["podman", *words], check=True, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    return done.stdout.strip()


@pytest.fixture
def other_image() -> Iterator[str]:
    """Give an image with the base's files in a layer of its own.

    With another mapping of users, Podman keeps a copy of an image's layers in its storage, and counts it as the
    image's:
    the base image must not get one.
    """
    name = "localhost/of-another-mapping:latest"
    created = podman("create", "--network", "none", f"{REPOSITORY}:latest", "true")
    try:
        with tempfile.TemporaryDirectory() as place:
            podman("export", "--output", f"{place}/files.tar", created)
            podman("import", f"{place}/files.tar", name)
        yield name
    finally:
        podman("rm", "--force", created)
        podman("rmi", "--force", name)


def in_container(
    directory: Path, *requests: object, options: tuple[str, ...] = (), image: str = f"{REPOSITORY}:latest"
) -> list[tuple[int, Any]]:
    """Ask from a rootless container of this user that sees a socket's directory; `options` are podman's."""
    done = subprocess.run(
        [
            "podman",
            "--runtime",
            probe(runtime_dir()).engine.runtime_path,
            "run",
            "--rm",
            "--network",
            "none",
            "--volume",
            f"{directory}:/run/runner",
            *options,
            image,
            "python3",
            "-c",
            ASK,
            "/run/runner/service.sock",
            json.dumps(requests),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return [(status, body) for status, body in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """Give a service, and the directory of its second socket."""
    with tempfile.TemporaryDirectory(prefix="svr-", dir="/tmp") as place:
        socket = f"{place}/r/service.sock"
        variables = {
            "SANDBOX_RESTRICTED__PATH": socket,
            "SANDBOX_RESTRICTED__POLICIES": '["default"]',
            "SANDBOX_RESTRICTED__MAX_RUNNING": "2",
        }
        with served(tmp_path_factory.mktemp("service"), **variables) as running:
            yield running, Path(socket).parent


def test_a_container_of_the_same_user_is_its_owner_on_the_first_socket(service: tuple[Service, Path]) -> None:
    """The control: this is what the second socket is for."""
    running, _ = service
    pruned, ran = in_container(Path(running.socket).parent, PRUNE, run_of("strict-not-there"))
    assert pruned[0] == 200
    assert ran[0] == 404  # not 403: any policy would do


def test_on_the_second_socket_it_may_run_under_the_policies_named_and_nothing_else(
    service: tuple[Service, Path],
) -> None:
    running, directory = service
    with running.client() as owner:
        own = owner.run("result = 1", policy="small").run_id
        requests = (
            run_of("default"),
            run_of("small"),
            PRUNE,
            ("POST", "/v1/maintenance/stop-all", None),
            RUNS,
            ("GET", f"/v1/runs/{own}", None),
            ("DELETE", f"/v1/runs/{own}", None),
        )
        ran, other, pruned, stopped, listed, shown, ended = in_container(directory, *requests)
        assert (ran[0], ran[1]["result"]) == (200, "ran")
        assert [answer[0] for answer in (other, pruned, stopped)] == [403, 403, 403]
        assert [row["run_id"] for row in listed[1]["runs"]] == [ran[1]["run_id"]]
        assert (shown[0], ended[0]) == (404, 404)
        # Its owner sees everything, and who it was.
        row = owner.recorded(ran[1]["run_id"])
        assert row["caller_name"].endswith(" (restricted)")
    assert in_container(directory, run_of("default"))[0][0] == 200


def test_the_owner_on_the_second_socket_is_restricted_too(service: tuple[Service, Path]) -> None:
    _, directory = service
    with Client(str(directory / "service.sock")) as client:
        assert client.run("result = 1").outcome == "succeeded"
        assert [policy["name"] for policy in client.policies()] == ["default"]


def test_other_users_of_a_container_reach_neither_socket(service: tuple[Service, Path], other_image: str) -> None:
    running, directory = service
    for place in (directory, Path(running.socket).parent):
        [(status, reason)] = in_container(place, RUNS, options=("--user", "1000"))
        assert status == 0
        assert "Permission denied" in reason
        # Unless it is told that this user is the one outside.
        mapped = ("--userns", "keep-id:uid=1000,gid=1000", "--user", "1000:1000")
        [(status, _)] = in_container(place, RUNS, options=mapped, image=other_image)
        assert status == 200


def test_a_restart_is_seen_in_a_container_that_has_the_directory(service: tuple[Service, Path]) -> None:
    _, directory = service
    assert directory.stat().st_mode & 0o077 == 0
    assert [path.name for path in directory.iterdir()] == ["service.sock"]
    assert os.stat(directory / "service.sock").st_mode & 0o777 == 0o600


def test_the_second_sockets_mistakes_are_told_by_the_check(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text('[restricted]\npath = "/run/r/s.sock"\npolicies = ["defalt"]\n')
    answer = sandbox("config", "check", str(file))
    assert answer.returncode == 2
    assert (
        "restricted.policies: there is no policy named defalt; did you mean default?" in answer.stdout + answer.stderr
    )
