"""Environments through the service: built with progress, listed, used, removed, pruned; what ends a build."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandbox.client import Client
from sandbox.client.answers import (
    BuildConnections,
    BuiltEnvironment,
    ListedEnvironment,
    Pruned,
    ShownEnvironment,
    Stopped,
)
from sandbox.errors import BuildFailed, EngineUnavailable, NotFound, SandboxError
from sandbox.index.pip_config import VARIABLES
from tests.integration.package_index import PackageIndex, package_index, wheel
from tests.integration.service import Service, served
from tests.waiting import WAIT_S, until

POLICY = 'extends = "default"\nbuild.allow_addresses = ["127.0.0.1"]\n'
CODE = "import greeting\nresult = greeting.WORDS"


@pytest.fixture(scope="module")
def index() -> Iterator[PackageIndex]:
    with package_index() as served_index, pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_INDEX_URL", served_index.url)
        for number in range(1, 4):
            served_index.add(
                wheel("greeting", f"{number}.0", {"greeting.py": f"WORDS = 'hello {number}'\n"}, requires=["tiny"])
            )
        served_index.add(wheel("tiny", "1.0", {"tiny.py": ""}), wheel("slow", "1.0", {"slow.py": ""}))
        yield served_index


@pytest.fixture(scope="module")
def service(index: PackageIndex, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("environments")
    (home / "policies").mkdir()
    (home / "policies" / "local.toml").write_text(POLICY)
    with served(home, XDG_CACHE_HOME=str(home / "cache"), SANDBOX_QUEUE__RUNNING="2") as running:
        yield running
        with running.client() as client:
            for environment in client.environments():
                client.remove_environment(environment["id"])
        assert "Traceback" not in running.log()


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with service.client() as connected:
        yield connected


def present(image: str) -> bool:
    """Tell whether Podman has an image."""
    return (
        subprocess.run(
            ["podman", "image", "exists", image], check=False, timeout=60, stdin=subprocess.DEVNULL
        ).returncode
        == 0
    )


def test_a_build_tells_its_steps_and_what_it_gave_is_listed_used_and_removed(client: Client) -> None:
    events: list[dict[str, Any]] = []
    built = client.build_environment(["greeting==1.0"], policy="local", on_event=events.append)
    assert {event["event"] for event in events} == {"progress"}
    steps = list(dict.fromkeys(event["step"] for event in events))
    assert [step for step in steps if step != "image"] == ["resolving", "downloading", "installing", "storing"]
    assert set(built) == set(BuiltEnvironment.__annotations__)
    assert built["packages"] == ["greeting==1.0", "tiny==1.0"]
    assert client.build_environment(["greeting==1.0"], policy="local") == built, "it is there"

    (row,) = client.environments()
    assert set(row) == set(ListedEnvironment.__annotations__)
    assert (row["id"], row["requirements"], row["packages"]) == (built["id"], ["greeting==1.0"], built["packages"])
    shown = client.environment(built["id"][:12])
    assert set(shown) == set(ShownEnvironment.__annotations__)
    assert {**row, "lock": shown["lock"], "egress": shown["egress"]} == shown
    assert {(row["step"], row["host"], row["allowed"]) for row in shown["egress"]} == {
        ("resolve", "127.0.0.1", True),
        ("fetch", "127.0.0.1", True),
    }
    assert all(set(row) == set(BuildConnections.__annotations__) for row in shown["egress"])
    assert "greeting" in shown["lock"]
    assert client.run(CODE, requirements=["greeting==1.0"], policy="local").value == "hello 1"

    assert present(built["image"])
    until(lambda: removed(client, built["id"]))
    assert not present(built["image"])
    assert client.environments() == []
    with pytest.raises(NotFound):
        client.environment(built["id"])
    with pytest.raises(NotFound):
        client.remove_environment(built["id"])


def removed(client: Client, name: str) -> bool:
    """Remove an environment; one that is still in use is not."""
    try:
        return client.remove_environment(name) == name
    except SandboxError as error:
        if "is in use" not in error.message:
            raise
        return False


@pytest.mark.parametrize("on_event", [None, lambda event: None], ids=["at the end", "streamed"])
def test_a_build_that_fails_is_the_same_error_either_way(
    client: Client, on_event: Callable[[Any], None] | None
) -> None:
    with pytest.raises(BuildFailed, match="absent") as caught:
        client.build_environment(["absent"], policy="local", on_event=on_event)
    assert caught.value.hint
    assert client.environments() == []


def test_what_is_too_old_is_pruned_and_no_sandbox_waits_with_it(client: Client) -> None:
    built = client.build_environment(["greeting==2.0"], policy="local")
    assert client.run(CODE, requirements=["greeting==2.0"], policy="local").value == "hello 2"
    until(lambda: client.health()["pool"]["ready"], lambda seen: seen > 0)
    kept = client.prune(older_s=1e6, dry_run=True)
    assert set(kept) == set(Pruned.__annotations__)
    assert kept == {"environments": [], "files": 0, "bytes": 0, "dry_run": True}
    would = client.prune(older_s=0.001, dry_run=True)
    assert would["environments"] == [built["id"]]
    assert would["files"] >= 2
    assert would["bytes"] > 0
    assert [row["id"] for row in client.environments()] == [built["id"]], "a trial removes nothing"

    def gone() -> bool:
        return client.prune(older_s=0.001)["environments"] == [built["id"]]

    until(gone)
    assert client.environments() == []
    assert not present(built["image"])
    assert client.prune(older_s=0.001) == {"environments": [], "files": 0, "bytes": 0, "dry_run": False}
    assert client.build_environment(["greeting==2.0"], policy="local")["id"] == built["id"], "from the index again"


@pytest.mark.parametrize("on_event", [None, lambda event: None], ids=["at the end", "streamed"])
def test_everything_that_goes_on_or_waits_can_be_ended_at_once(
    service: Service, client: Client, index: PackageIndex, on_event: Callable[[Any], None] | None
) -> None:
    ended: dict[str, str] = {}

    def go(name: str, ask: Callable[[Client], Any]) -> threading.Thread:
        def work() -> None:
            with service.client() as other:
                try:
                    ended[name] = ask(other).outcome
                except EngineUnavailable as error:
                    ended[name] = error.message

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    before = [row["id"] for row in client.environments()]
    with index.held("/simple/slow/") as asked:
        threads = [go("build", lambda other: other.build_environment(["slow"], policy="local", on_event=on_event))]
        assert asked.wait(WAIT_S)
        threads.append(go("run", lambda other: other.run("import time\ntime.sleep(60)")))
        until(lambda: client.health()["runs"], {"running": 2, "waiting": 0})
        threads.append(go("check", lambda other: other.check("x = 1")))
        until(lambda: client.health()["runs"], {"running": 2, "waiting": 1})
        stopped = client.stop_all()
        assert set(stopped) == set(Stopped.__annotations__)
        assert stopped == {"stopped": 1, "builds_and_checks": 2}
        for thread in threads:
            thread.join(WAIT_S)
        assert ended == {
            "build": ended["check"],
            "run": "cancelled",
            "check": "a maintainer ended everything that went on",
        }
    until(lambda: client.health()["runs"], {"running": 0, "waiting": 0})
    assert [row["id"] for row in client.environments()] == before
    assert client.check("x = 1")["problem"] is None
