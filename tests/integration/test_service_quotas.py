"""What each caller may have at once: one who uses all of it keeps nobody else waiting, and is told so."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.errors import QueueFull
from sandbox.service.config.model import ServiceConfig
from tests.escape.bench import Bench
from tests.escape.service_bench import OWNER_UID, User, service_for, user
from tests.waiting import WAIT_S, until

RULES = {
    "queue": {"running": 4, "per_caller_running": 2, "per_caller_waiting": 3},
    "access": {
        "runners": (
            {"users": ("alice",), "policies": ("*",), "max_running": 1, "max_queued": 1},
            {"users": ("bob", "carla"), "policies": ("*",)},
        )
    },
}
SLEEP = "import time\nprint(1, flush=True)\ntime.sleep(60)"


@pytest.fixture(scope="module")
def users(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, User]]:
    with tempfile.TemporaryDirectory(prefix="svc-", dir="/tmp") as place:
        numbers = {"alice": 1001, "bob": 1002, "carla": 1003, "owner": OWNER_UID}
        users = {name: user(Path(place), number, name) for name, number in numbers.items()}
        places = replace(bench.places, data_dir=tmp_path_factory.mktemp("data"))
        with service_for(list(users.values()), ServiceConfig.model_validate(RULES), places):
            yield users


@pytest.mark.parametrize(
    ("name", "running", "waiting"), [("alice", 1, 1), ("bob", 2, 3)], ids=["a quota of her own", "the usual one"]
)
def test_who_has_all_that_they_may_waits_or_is_refused_and_others_run_at_once(
    users: dict[str, User], name: str, running: int, waiting: int
) -> None:
    outcomes: list[str] = []

    def go() -> None:
        with users[name].client() as client:
            outcomes.append(client.run(SLEEP).outcome)

    threads = [threading.Thread(target=go) for _ in range(running + waiting)]
    for thread in threads:
        thread.start()
    with users[name].client() as client, users["carla"].client() as other, users["owner"].client() as owner:

        def states() -> list[str]:
            return sorted(row["state"] for row in client.runs() if row["state"] != "ended")

        until(lambda: states(), ["queued"] * waiting + ["running"] * running)
        with pytest.raises(QueueFull, match=f"{running} run and {waiting} wait, as many as you may have") as caught:
            client.run("result = 1")
        assert caught.value.facts["retry_after_s"] >= 1
        assert owner.health()["runs"] == {"running": running, "waiting": waiting}, "there are slots for others"
        assert other.run("result = 1").value == 1
        assert states() == ["queued"] * waiting + ["running"] * running
        owner.stop_all()
    for thread in threads:
        thread.join(WAIT_S)
    assert outcomes == ["cancelled"] * (running + waiting)
