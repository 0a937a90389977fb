"""Boundary: the service does for each user what the configuration grants, and tells and shows nobody anything else."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import AccessDenied
from sandbox.service.application import ROUTES
from sandbox.service.config.model import ServiceConfig
from tests.escape.bench import Bench
from tests.escape.service_bench import OWNER_UID, User, service_for, user
from tests.waiting import until

pytestmark = pytest.mark.host_only

SECRET = f"of-alice-{os.getpid()}"
RULES = {
    "access": {
        "maintainers": ("carla",),
        "runners": ({"users": ("alice", "bob"), "policies": ("escape",)}, {"users": ("@team",), "policies": ("*",)}),
    }
}


@dataclass
class Users:
    """The users of one service.

    Two of them may run under one policy; there is a team, a maintainer, the owner, and somebody else.
    """

    alice: User
    bob: User
    team: User
    carla: User
    owner: User
    nobody: User


@pytest.fixture(scope="module")
def users(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Users]:
    with tempfile.TemporaryDirectory(prefix="svc-", dir="/tmp") as place:
        there = Path(place)
        users = Users(
            alice=user(there, 1001, "alice"),
            bob=user(there, 1002, "bob"),
            team=user(there, 1003, "dora", "team"),
            carla=user(there, 1004, "carla"),
            owner=user(there, OWNER_UID, "owner"),
            nobody=user(there, 1005, "nobody"),
        )
        places = replace(bench.places, data_dir=tmp_path_factory.mktemp("data"))
        with service_for(list(vars(users).values()), ServiceConfig.model_validate(RULES), places):
            yield users


def asked(of: User, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    """Send one request; return status and answer."""
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(60)
    connection.sock.connect(of.socket)
    try:
        connection.request(method, path, None if body is None else json.dumps(body).encode())
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text.startswith(b"{") else {"text": text.decode()}
    finally:
        connection.close()


def run(of: User, code: str, **options: Any) -> Any:
    with of.client() as client:
        return client.run(code, **{"policy": "escape", **options})


# ---- somebody without any right


@pytest.mark.parametrize(("method", "path"), [row[:2] for row in ROUTES])
def test_who_has_no_right_gets_403_in_words_from_every_route(users: Users, method: str, path: str) -> None:
    run_id = run(users.alice, "result = 1", node_id=SECRET).run_id
    for name in (run_id, "default", "simple", "0" * 32):
        status, answer = asked(users.nobody, method, path.format(id=name, name=name), {"code": "result = 1"})
        assert status == 403
        assert answer == {
            "error": {
                "code": "access_denied",
                "message": "the user nobody may not use this service",
                "hint": "its administrator can name nobody, or a group of theirs, in an entry of [[access.runners]]",
                "facts": {"user": "nobody"},
            }
        }


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/v1/nothing"), ("PUT", "/v1/runs"), ("OPTIONS", "*"), ("HEAD", "/v1/runs")],
)
def test_who_has_no_right_is_not_told_which_routes_there_are(users: Users, method: str, path: str) -> None:
    status, answer = asked(users.nobody, method, path)
    assert status == 403
    assert method == "HEAD" or answer["error"]["code"] == "access_denied"


# ---- somebody with a right to one policy


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/runs", {"code": "result = 1", "policy": "default"}),
        ("POST", "/v1/runs", {"code": "result = 1"}),
        ("POST", "/v1/runs", {"code": "result = 1", "policy": "absent"}),
        ("POST", "/v1/runs", {"code": "result = 1", "policy": "/etc/passwd"}),
        ("POST", "/v1/runs", {"code": "result = 1", "policy": "*"}),
        ("POST", "/v1/check", {"code": "result = 1", "policy": "default"}),
        ("POST", "/v1/environments", {"requirements": ["six"], "policy": "default"}),
        ("GET", "/v1/policies/default", None),
        ("GET", "/v1/policies/absent", None),
        ("GET", "/v1/policies/..%2f..%2fetc%2fpasswd", None),
    ],
)
def test_a_policy_that_was_not_granted_can_not_be_used_nor_looked_at(
    users: Users, method: str, path: str, body: Any
) -> None:
    status, answer = asked(users.alice, method, path, body)
    assert (status, answer["error"]["code"]) == (403, "access_denied")


def test_no_policy_is_named_by_nothing(users: Users) -> None:
    status, answer = asked(users.alice, "POST", "/v1/runs", {"code": "result = 1", "policy": ""})
    assert (status, answer["error"]["code"]) == (400, "invalid_request")


def test_what_was_granted_is_all_that_is_listed(users: Users) -> None:
    assert [row["name"] for row in asked(users.alice, "GET", "/v1/policies")[1]["policies"]] == ["escape"]
    assert asked(users.alice, "GET", "/v1/policies/escape")[0] == 200
    assert run(users.alice, "result = 1").value == 1
    assert {"default", "escape"} <= {row["name"] for row in asked(users.team, "GET", "/v1/policies")[1]["policies"]}
    assert asked(users.carla, "GET", "/v1/policies")[1]["policies"] == [], "who maintains has no right to run"
    with pytest.raises(AccessDenied, match="not run anything"):
        run(users.carla, "result = 1")


def test_counters_name_no_policy_to_who_may_not_use_it(users: Users) -> None:
    run(users.team, "result = 1", policy="default")
    run(users.alice, "result = 1")
    for who in (users.alice, users.bob):
        text = asked(who, "GET", "/v1/metrics")[1]["text"]
        assert 'policy="escape"' in text
        assert 'policy="default"' not in text
    for who in (users.team, users.carla, users.owner):
        assert 'policy="default"' in asked(who, "GET", "/v1/metrics")[1]["text"]


# ---- what is another's


def test_a_run_of_another_can_not_be_seen_ended_or_told_from_one_that_never_was(users: Users) -> None:
    ids: list[str] = []
    ended: list[Any] = []

    def go() -> None:
        with users.alice.client() as client:
            code = "import time\nprint(1, flush=True)\ntime.sleep(4)\nresult = 'whole'"
            ended.append(
                client.run(code, policy="escape", node_id=SECRET, on_event=lambda e: ids.append(e.get("run_id", "")))
            )

    thread = threading.Thread(target=go)
    thread.start()
    until(lambda: ids)
    until(lambda: asked(users.alice, "GET", f"/v1/runs/{ids[0]}")[1].get("state"), "running")

    def hidden() -> None:
        for method in ("GET", "DELETE"):
            status, answer = asked(users.bob, method, f"/v1/runs/{ids[0]}")
            absent_status, absent = asked(users.bob, method, f"/v1/runs/{'0' * 32}")
            assert (status, absent_status) == (404, 404)
            assert json.dumps(answer).replace(ids[0], "0" * 32) == json.dumps(absent)
        for query in ("", "?limit=500", f"?node={SECRET}", "?outcome=succeeded", f"?before={ids[0]}"):
            assert SECRET not in json.dumps(asked(users.bob, "GET", f"/v1/runs{query}")[1])

    hidden()
    assert asked(users.carla, "GET", f"/v1/runs/{ids[0]}")[0] == 200, "a maintainer sees every run"
    thread.join(30)
    assert ended[0].value == "whole", "nobody ended it"
    hidden()
    for path in ("/v1/health", "/v1/metrics", "/v1/doctor", "/v1/environments", "/v1/images"):
        found = json.dumps(asked(users.bob, "GET", path)[1])
        assert SECRET not in found
        assert ids[0] not in found


# ---- maintenance


@pytest.mark.parametrize("name", ["alice", "team"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/v1/environments/absent"), ("POST", "/v1/maintenance/prune"), ("POST", "/v1/maintenance/stop-all")],
)
def test_who_may_run_may_not_maintain(users: Users, name: str, method: str, path: str) -> None:
    status, answer = asked(getattr(users, name), method, path, {"unused_s": 1})
    assert (status, answer["error"]["code"]) == (403, "access_denied")
    assert "may not maintain" in answer["error"]["message"]


def test_the_owner_and_a_maintainer_may(users: Users) -> None:
    for who in (users.owner, users.carla):
        assert asked(who, "POST", "/v1/maintenance/prune", {"unused_s": 31_536_000, "dry_run": True})[0] == 200
        assert asked(who, "POST", "/v1/maintenance/stop-all")[0] == 200


# ---- paths of the host


@pytest.mark.parametrize(
    "fields",
    [
        {"policy": "{}"},
        {"policy": "../../../../..{}"},
        {"image": "{}"},
        {"image": "dir:{}"},
        {"image": "oci-archive:{}"},
        {"image": "docker-archive:{}"},
        {"image": "containers-storage:{}"},
        {"image": "../..{}"},
        {"filename": "{}"},
        {"requirements": ["{}"]},
        {"requirements": ["-r {}"]},
        {"requirements": ["-e {}"]},
        {"requirements": ["x @ file://{}"]},
        {"requirements": ["six --find-links {}"]},
        {"code": "# /// script\n# dependencies = ['x @ file://{}']\n# ///\nresult = 1"},
        {"files": {"{}": "YQ=="}},
        {"files": {"../..{}": "YQ=="}},
        {"preload": ["{}"]},
        {"env": {"BASH_ENV": "{}"}},
        {"node_id": "{}"},
        {"topic": "{}"},
        {"env": {"{}": "x"}},
    ],
    ids=str,
)
def test_no_request_makes_the_service_touch_a_path(users: Users, tmp_path: Path, fields: dict[str, Any]) -> None:
    bait = tmp_path / "bait.toml"
    os.mkfifo(bait)  # whoever opens it for reading waits there for ever, and can be seen from here

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{}", str(bait))
        if isinstance(value, list):
            return [filled(item) for item in value]
        return {filled(name): filled(item) for name, item in value.items()}

    answers: list[Any] = []

    def go() -> None:
        status, answer = asked(
            users.team, "POST", "/v1/runs", {"code": "result = 1", "policy": "escape", **filled(fields)}
        )
        answers.append((status, answer))

    thread = threading.Thread(target=go)
    thread.start()
    while thread.is_alive():
        assert not opened(bait)
        thread.join(0.005)
    status, answer = answers[0]
    assert status in (200, 400, 403, 404, 502), answer
    assert status != 200 or answer["outcome"] in ("succeeded", "failed")


def opened(pipe: Path) -> bool:
    """Tell whether somebody has a named pipe open for reading, or waits for it; whoever does gets its end."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


@pytest.mark.control
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_NONBLOCK], ids=["waits", "does not wait"])
def test_control_whoever_opens_the_bait_is_seen(tmp_path: Path, flags: int) -> None:
    bait = tmp_path / "bait"
    os.mkfifo(bait)
    assert not opened(bait)
    seen = threading.Event()

    def open_it() -> None:
        fd = os.open(bait, flags)
        seen.wait(30)
        os.close(fd)

    thread = threading.Thread(target=open_it)
    thread.start()
    until(lambda: opened(bait))
    seen.set()
    thread.join(30)


def test_a_name_in_a_path_is_only_a_name(users: Users) -> None:
    for route in ("runs", "policies", "templates", "environments"):
        for name in (
            "..%2f..%2f..%2fetc%2fpasswd",
            "%2fetc%2fpasswd",
            "..",
            "%00",
            "a%00b",
            "%ff",
            "a" * 5000,
            "*",
            "%2e%2e",
            "~root",
            "{id}",
            "%0d%0aX:%20y",
        ):
            status, answer = asked(users.owner, "GET", f"/v1/{route}/{name}")
            assert status in (400, 403, 404, 405), (route, name, answer)
            assert "root:" not in json.dumps(answer)
