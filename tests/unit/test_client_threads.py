"""One client for many: nobody ever gets the answer to another's request, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sandbox.client import AsyncClient, Client
from sandbox.errors import EngineUnavailable, Internal
from tests.unit.echoing import KINDS, Echo, echoing
from tests.waiting import WAIT_S, until

THREADS = 8


def quiet(version: str) -> None:
    """Take no notice of the version."""


@pytest.fixture
def service() -> Iterator[Echo]:
    with echoing() as server:
        yield server


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, service: Echo) -> Iterator[Any]:
    with KINDS[request.param](service.path, on_other_version=quiet) as connected:
        yield connected


def asks(client: Any, tag: str, chance: random.Random) -> str:
    """Ask one thing in one of many ways, check that the answer is its own, and say what it was."""
    way = chance.choice(["run", "run", "stream", "events", "left", "hasty", "get"])
    if way == "run":
        assert client.run("result = payload", payload=tag).value == tag
    elif way == "get":
        assert client.get(f"/{tag}") == {"path": f"/{tag}"}
    elif way == "events":
        seen: list[Any] = []
        assert client.run("x", payload=tag, on_event=seen.append).value == tag
        assert [event.get("text", event.get("run_id")) for event in seen] == [f"run of {tag}", tag, tag, tag]
    elif way == "stream":
        events = list(client.stream("x", payload=tag))
        assert [event["event"] for event in events] == ["accepted", "stdout", "stdout", "stdout", "result"]
        assert events[-1]["result"] == tag
    elif way == "left":  # in the middle of an answer
        with contextlib.closing(client.stream("x", payload=tag)) as stream:
            assert next(stream)["run_id"] == f"run of {tag}"
    else:  # gives up before, while or just after the answer comes
        try:
            assert client.run("x", payload=tag, timeout_s=chance.random() / 100).value == tag
        except EngineUnavailable:
            return "gave up"
    return way


@pytest.mark.parametrize("names_requests", [True, False], ids=["checked by id", "by connection alone"])
def test_many_threads_with_one_client_get_each_its_own_answers(
    client: Any, service: Echo, names_requests: bool
) -> None:
    service.names_requests = names_requests  # the check must not be what makes it right

    def work(number: int) -> Counter[str]:
        chance = random.Random(number)
        return Counter(asks(client, f"{number}-{turn}", chance) for turn in range(60))

    with ThreadPoolExecutor(THREADS) as threads:
        done = sum(threads.map(work, range(THREADS)), Counter())
    assert done.total() == THREADS * 60
    assert min(done[way] for way in ("run", "stream", "events", "left", "get", "gave up")) > 0


def test_as_many_calls_go_on_at_once_as_there_are_threads(client: Any, service: Echo) -> None:
    together = threading.Barrier(THREADS)
    service.meanwhile = lambda payload: together.wait(WAIT_S)  # nobody is answered before all have asked
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(lambda n: client.run("x", payload=n).value, range(THREADS * 3)))
    assert found == list(range(THREADS * 3))
    assert service.connections == THREADS, "connections are kept for the next call"


@pytest.mark.parametrize("names_requests", [True, False])
def test_after_an_exception_in_the_middle_the_next_answer_is_its_own(service: Echo, names_requests: bool) -> None:
    service.names_requests = names_requests

    def interrupted(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupted)
    try:
        with Client(service.path, on_other_version=quiet) as client:
            for turn in range(20):
                service.meanwhile = lambda payload: signal.pthread_kill(
                    threading.main_thread().ident or 0, signal.SIGUSR1
                )
                with pytest.raises(KeyboardInterrupt):
                    asked_and_waited(client, f"lost {turn}")
                service.meanwhile = lambda payload: None
                assert client.run("x", payload=turn).value == turn
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_cancelled_task_leaves_its_answer_to_nobody(service: Echo) -> None:
    service.names_requests = False
    inside, go = threading.Event(), threading.Event()

    def meanwhile(payload: Any) -> None:
        if str(payload).startswith("lost"):
            inside.set()
            go.wait(WAIT_S)

    service.meanwhile = meanwhile

    async def work() -> None:
        async with AsyncClient(service.path, on_other_version=quiet) as client:
            for turn in range(5):
                inside.clear()
                go.clear()
                doomed = asyncio.create_task(client.run("x", payload=f"lost {turn}"))
                await asyncio.to_thread(inside.wait, WAIT_S)
                doomed.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await doomed
                next_one = asyncio.create_task(client.run("x", payload=turn))
                await asyncio.sleep(0.02)  # it has asked, before the lost answer comes
                go.set()
                assert (await next_one).value == turn

    asyncio.run(work())


def asked_and_waited(client: Client, tag: str) -> None:
    client.run("x", payload=tag)
    threading.Event().wait(WAIT_S)  # where the signal comes after the answer


def in_a_child(work: Callable[[], object]) -> Callable[[], int]:
    """Fork; return what waits for the child, and gives 0 when its work raised nothing."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_after_a_fork_both_processes_get_their_own_answers(service: Echo) -> None:
    service.names_requests = False
    with Client(service.path, on_other_version=quiet) as client:
        assert client.run("x", payload="before").value == "before"

        def work(who: str) -> None:
            for turn in range(100):
                assert client.run("x", payload=f"{who} {turn}").value == f"{who} {turn}"

        children = [in_a_child(lambda number=number: work(f"child {number}")) for number in range(3)]  # type: ignore[misc]
        work("parent")
        assert [wait() for wait in children] == [0, 0, 0]


def test_a_child_takes_nothing_from_a_stream_of_its_parent_and_keeps_no_run_alive(service: Echo) -> None:
    more = threading.Event()
    service.meanwhile = lambda payload: more.wait(WAIT_S)
    with Client(service.path, on_other_version=quiet) as client:
        events = client.stream("x", payload="ours")
        untouched = client.stream("x", payload="untouched")
        assert next(events)["event"] == next(untouched)["event"] == "accepted"
        go, told = os.pipe()

        def work() -> None:
            with pytest.raises(Internal, match="belongs to the process"):
                next(events)
            client.break_off()
            events.close()
            os.read(go, 1)

        wait = in_a_child(work)
        try:
            assert next(events)["text"] == "ours", "the child has ended nothing"
            events.close()
            untouched.close()
            more.set()
            until(
                lambda: sorted(service.gone), ["ours", "untouched"]
            )  # although the child lives, which has the connection, too
        finally:
            more.set()
            os.write(told, b"x")
            status = wait()
            os.close(go)
            os.close(told)
        assert status == 0


def test_break_off_ends_streams_and_calls_of_all_threads_and_the_client_goes_on(client: Any, service: Echo) -> None:
    inside = threading.Semaphore(0)
    more = threading.Event()

    def meanwhile(payload: Any) -> None:
        inside.release()
        more.wait(WAIT_S)

    service.meanwhile = meanwhile

    def waits(number: int) -> str:
        asking = (
            (lambda: client.run("x", payload=number))
            if number % 2
            else (lambda: list(client.stream("x", payload=number)))
        )
        with pytest.raises(EngineUnavailable) as caught:
            asking()
        return str(caught.value)

    with ThreadPoolExecutor(THREADS) as threads:
        waiting = [threads.submit(waits, number) for number in range(THREADS)]
        for _ in range(THREADS):
            assert inside.acquire(timeout=WAIT_S)
        client.break_off()
        said = [future.result(WAIT_S) for future in waiting]
    assert all("broken off" in text or "went away" in text for text in said)
    more.set()
    service.meanwhile = lambda payload: None
    assert client.run("x", payload="after").value == "after"


def test_close_takes_nobody_s_answer_away_and_leaves_no_connection(client: Any, service: Echo) -> None:
    stop = threading.Event()

    def works(number: int) -> int:
        turn = 0
        while not stop.is_set():
            assert client.run("x", payload=[number, turn]).value == [number, turn]
            turn += 1
        return turn

    with ThreadPoolExecutor(THREADS) as threads:
        working = [threads.submit(works, number) for number in range(THREADS)]
        for _ in range(50):
            client.close()
            time.sleep(0.002)
        stop.set()
        assert all(future.result(WAIT_S) > 0 for future in working)


def test_an_answer_that_names_another_request_is_refused_and_its_connection_not_used_again(
    service: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in KINDS.values():
        with make(service.path, on_other_version=quiet) as client:
            with monkeypatch.context() as patched:
                patched.setattr("tests.unit.echoing.Handler._begin", begin_of_another)
                with pytest.raises(Internal, match="not the one to this request"):
                    client.run("x", payload=1)
            before = service.connections
            assert client.run("x", payload=2).value == 2
            assert service.connections == before + 1


def begin_of_another(handler: Any, **headers: str) -> None:
    handler.send_response(200)
    handler.send_header("X-Request-Id", "somebody-else-s")
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def test_more_descriptors_than_select_takes_do_no_harm(service: Echo) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.dup(0) for _ in range(1100)]
    try:
        for make in KINDS.values():
            with make(service.path, on_other_version=quiet) as client:
                assert [client.run("x", payload=n).value for n in range(3)] == [0, 1, 2]
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one(kind: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{place}/s")
        listening.listen()
        sent = threading.Event()

        def serve() -> None:
            for turn in (b"0", b"1"):
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"n":%s}' % turn)
                    sent.wait(WAIT_S)  # the first answer was read
                    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"n":9}')
                    sent.clear()
                    more.set()

        more = threading.Event()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with KINDS[kind](f"{place}/s", on_other_version=quiet) as client:
            assert client.get("/a") == {"n": 0}
            sent.set()
            assert more.wait(WAIT_S)
            assert client.get("/b") == {"n": 1}
            sent.set()
        thread.join(WAIT_S)
