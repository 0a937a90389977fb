"""What the service does when Podman's own processes are killed beneath it: it goes on, and nothing is left of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from operator import not_
from typing import Any

import pytest

from sandbox import places
from sandbox.engine.podman import PING_TIMEOUT_S, SHORT_TIMEOUT_S, PodmanEngine
from sandbox.errors import EngineUnavailable, SandboxError
from sandbox.host.probe import probe
from sandbox.kernel.family import children
from tests.command import workspaces
from tests.fake_engine import BASE
from tests.integration.belongings import command_line, containers, monitors, orphans, own_containers, own_workspaces
from tests.integration.service import Service, served
from tests.waiting import WAIT_S, until

AT_ONCE = 20
KILLS = 16


@pytest.fixture
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for four runs at once, or as many as the test asks for."""
    before = orphans()
    with served(tmp_path_factory.mktemp("engine"), SANDBOX_QUEUE__RUNNING=str(getattr(request, "param", 4))) as running:
        yield running
        own = own_workspaces(running)
    assert not own & set(workspaces())
    assert not own & set(containers().values())
    assert engine_sockets(running) == []
    until(lambda: orphans() - before, not_, within_s=10)


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Keep processes from doing anything, for the block or until they are killed."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        resume(pids)


def resume(pids: list[int]) -> None:
    """Let processes go on, those that still live."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def podman_below(pid: int) -> list[int]:
    """Return the processes of Podman's service below a process, from the one it started to the one that answers."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = [child for child in children(waiting.pop()) if {"system", "service"} <= set(command_line(child))]
        found += below
        waiting += below
    return found


def engine_sockets(service: Service) -> list[str]:
    return [path.name for path in places.runtime_dir().glob(f"engine-{service.process.pid}-*.sock")]


def engine_processes(service: Service) -> list[int]:
    """Return the processes of Podman's service, from the one that the service started to the one that answers."""
    return podman_below(service.process.pid)


def kill(pid: int) -> None:
    """Kill a process, and wait until it is dead."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: any(command_line(pid)), False)


def settled(service: Service) -> bool:
    """Tell whether no run goes on, and whether there is nothing but what waits on the pool's shelves."""
    with service.client() as client:
        health = client.health()
    idle = health["runs"] == {"running": 0, "waiting": 0} and not health["pool"]["starting"]
    return idle and len(own_workspaces(service)) == len(own_containers(service)) == health["pool"]["ready"]


@pytest.mark.parametrize("which", [0, -1], ids=["the one we started", "the one that answers"])
def test_an_idle_service_whose_podman_was_killed_starts_another_when_it_is_needed(service: Service, which: int) -> None:
    with service.client() as client:
        for _ in range(3):
            assert client.run("result = 1").value == 1
            before = engine_processes(service)
            kill(before[which])
            assert [client.run("result = 2").value for _ in range(3)] == [2, 2, 2]
            until(lambda: settled(service))
            assert len(engine_sockets(service)) == 1
            assert not set(before) & set(engine_processes(service)), "nothing of the old one is left"


def test_every_run_is_answered_when_podman_dies_while_runs_go_on_and_start(service: Service) -> None:
    answers: list[str] = []

    def go(number: int) -> None:
        with service.client() as client:
            try:
                result = client.run(f"import time\ntime.sleep(1)\nresult = {number}")
                assert result.value == number
                answers.append(result.outcome)
            except SandboxError as error:
                answers.append(error.code)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        time.sleep(0.4)
        for pid in engine_processes(service)[-1:]:
            os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(WAIT_S)
    assert len(answers) == 16
    assert set(answers) <= {"succeeded", "engine_unavailable", "not_enforceable"}
    assert "succeeded" in answers
    with service.client() as client:
        assert client.run("result = 3").value == 3
        until(lambda: settled(service))
        assert client.health()["status"] == "ok"
        assert "Traceback" not in service.log()


def test_killing_podman_again_and_again_leaks_no_descriptor_and_no_thread(service: Service) -> None:
    def held() -> tuple[int, int]:
        return (
            len(os.listdir(f"/proc/{service.process.pid}/fd")),
            len(os.listdir(f"/proc/{service.process.pid}/task")),
        )

    def killed_once(client: Any) -> None:
        kill(engine_processes(service)[-1])
        client.run("result = 1")
        until(lambda: settled(service))

    with service.client() as client:
        for _ in range(KILLS):
            killed_once(client)
        before = held()
        for _ in range(KILLS):
            killed_once(client)
        fds, threads = held()
    # What is lost at each kill shows KILLS times. Each thread that has spoken with Podman keeps a connection, and a few
    # more may have worked at the same time than in the first series.
    assert fds < before[0] + KILLS / 2
    assert threads < before[1] + KILLS / 2


@pytest.mark.parametrize("service", [AT_ONCE], indirect=True)
@pytest.mark.parametrize("victim", ["podman", "conmon"])
def test_runs_that_go_on_end_as_they_would_when_podman_or_every_conmon_is_killed(service: Service, victim: str) -> None:
    seen: list[str] = []
    answers: list[str] = []

    def heard(text: str) -> None:
        if text.strip():  # the end of a line may come by itself
            seen.append(text)

    def go() -> None:
        with service.client() as client:
            try:
                code = "import os, time\nprint(os.getuid(), flush=True)\ntime.sleep(20)\nresult = 1"
                answers.append(
                    client.run(
                        code, on_event=lambda event: heard(event["text"]) if event["event"] == "stdout" else None
                    ).outcome
                )
            except SandboxError as error:
                answers.append(error.code)

    threads = [threading.Thread(target=go) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    until(lambda: len(seen), AT_ONCE)
    with service.client() as client:
        # Killed while it makes a layer, Podman may leave what slows every later one down: docs/running-the-service.md.
        until(lambda: client.health()["pool"]["starting"], not_)
    assert answers == [], "all of them go on"
    owners = {uid.strip() for uid in seen}
    ours = {container_id for container_id, owner in containers().items() if owner in owners}
    watching = [pid for pid, watched in monitors().items() if watched in ours]
    assert len(ours) == len(watching) == AT_ONCE
    for pid in watching if victim == "conmon" else engine_processes(service):
        kill(pid)
    for thread in threads:
        thread.join(WAIT_S)
    assert answers == ["succeeded"] * AT_ONCE, "a job has a channel of its own"
    until(lambda: ours & set(containers()), not_)
    with service.client() as client:
        assert [row["outcome"] for row in client.runs()] == ["succeeded"] * AT_ONCE
        assert client.run("result = 2").value == 2
        until(lambda: settled(service))


# ---- one that lives and does nothing


@pytest.fixture
def engine() -> Iterator[PodmanEngine]:
    """An engine of the test's own process, which gives up soon."""
    with an_engine(ping_timeout_s=0.5) as engine:
        yield engine


@pytest.fixture
def others() -> set[int]:
    """Podman below this process before the test: other tests have engines, too."""
    return set(podman_below(os.getpid()))


@contextlib.contextmanager
def an_engine(*, ping_timeout_s: float) -> Iterator[PodmanEngine]:
    facts = probe(places.runtime_dir())
    engine = PodmanEngine(
        facts.engine, runtime_dir=places.runtime_dir(), short_timeout_s=1.0, ping_timeout_s=ping_timeout_s
    )
    try:
        yield engine
    finally:
        engine.close()


def test_a_call_that_podman_does_not_answer_goes_to_another_podman(others: set[int], engine: PodmanEngine) -> None:
    image_id = engine.image(BASE).id
    before = [pid for pid in podman_below(os.getpid()) if pid not in others]
    with stopped(before):
        assert engine.image(BASE).id == image_id
        until(lambda: any(command_line(pid)[0:1] for pid in before), False)
    assert set(podman_below(os.getpid())) - others


def test_a_container_that_hung_podman_was_asked_for_is_refused_and_the_next_is_made(
    others: set[int], engine: PodmanEngine
) -> None:
    spec: dict[str, Any] = {"image": BASE, "command": ["/none"], "entrypoint": [], "netns": {"nsmode": "none"}}
    engine.image(BASE)
    own = [pid for pid in podman_below(os.getpid()) if pid not in others]
    with stopped(own), pytest.raises(EngineUnavailable, match="did not answer POST /containers/create"):
        engine.create(spec)
    container_id, _ = engine.create(spec)
    engine.remove(container_id)


def test_a_podman_that_is_only_slow_is_kept(others: set[int]) -> None:
    with an_engine(ping_timeout_s=WAIT_S) as engine:
        image_id = engine.image(BASE).id
        before = [pid for pid in podman_below(os.getpid()) if pid not in others]
        waker = threading.Timer(1.5, resume, (before,))
        with stopped(before):
            waker.start()
            with contextlib.suppress(EngineUnavailable):
                engine.image(BASE)  # gives up, but the ping has its answer
            waker.join()
        assert engine.image(BASE).id == image_id
        assert set(podman_below(os.getpid())) == {*before, *others}


def test_runs_that_wait_for_a_hung_podman_are_answered_and_nothing_of_it_is_left(service: Service) -> None:
    answers: list[str] = []

    def go() -> None:
        with service.client() as client:
            try:
                answers.append(client.run("result = 1", limits={"memory_mib": 100}).outcome)
            except SandboxError as error:
                answers.append(error.code)

    with service.client() as client:
        assert client.run("result = 1").value == 1
        until(lambda: settled(service))
        before = engine_processes(service)
        threads = [threading.Thread(target=go) for _ in range(3)]
        with stopped(before):
            for thread in threads:
                thread.start()
            assert client.health()["status"] == "ok", "asks nobody else"
            for thread in threads:
                thread.join(2 * (SHORT_TIMEOUT_S + PING_TIMEOUT_S) + WAIT_S)
        assert len(answers) == 3
        assert set(answers) <= {"succeeded", "engine_unavailable"}
        assert client.run("result = 2").value == 2
        until(lambda: settled(service))
        assert len(engine_sockets(service)) == 1
        assert not set(before) & set(engine_processes(service))
        assert "Traceback" not in service.log()
