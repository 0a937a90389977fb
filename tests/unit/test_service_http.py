"""HTTP as the service takes it, without runs: what is no HTTP, who is silent or slow, and how much is held at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from msgspec import UNSET, UnsetType

from sandbox.errors import InvalidRequest
from sandbox.service.answers import document
from sandbox.service.application import ROUTES, answered, identified
from sandbox.service.config.model import ServiceConfig
from sandbox.service.door import connections
from sandbox.service.door.access import Access
from sandbox.service.door.connections import LINGERING, PIECE_BYTES, more_descriptors, most_connections
from sandbox.service.intake.budget import Part
from sandbox.service.intake.reading import BODY, Intake
from sandbox.service.metrics import Live, Metrics
from sandbox.service.openapi import openapi
from sandbox.service.routes.queries import QUERIES, check_query
from sandbox.service.routes.runs import listed_at_most
from sandbox.service.server import accepting
from sandbox.service.state import STATE, State
from sandbox.wire.given import Given
from tests.waiting import WAIT_S, until_async

GET = b"GET /size HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /size HTTP/1.1\r\nHost: x\r\n"
MIB = b"x" * (1 << 20)


class Size(Given, frozen=True):
    """What the scene answers."""

    size: int
    pad: str | UnsetType = UNSET


class Scene:
    """A server on a socket with one route, which tells the size of a body once `go` is set."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.go = asyncio.Event()
        self.arrived = 0
        self.turns = 0
        self.arrived_in: list[int] = []
        self.kept: list[asyncio.Event] = []
        self.clients: list[asyncio.StreamWriter] = []

    async def size(self, request: web.Request) -> web.StreamResponse:
        """Answer with the size; a request with `?keep` leaves its body to a task that ends when the test says so."""
        self.arrived += 1
        self.arrived_in.append(self.turns)
        if "keep" in request.query:
            end = asyncio.Event()
            self.kept.append(end)
            request[BODY].keep_until(asyncio.create_task(cast("Any", end.wait())))
        else:
            await self.go.wait()
        pad = "x" * (4 << 20) if "pad" in request.query else UNSET
        return document(Size(size=request[BODY].spool.size_bytes, pad=pad))

    async def arrivals(self, count: int) -> None:
        await until_async(lambda: self.arrived, lambda seen: seen >= count)

    @contextlib.asynccontextmanager
    async def counted_turns(self) -> AsyncIterator[None]:
        """Count the turns of the event loop meanwhile."""

        async def count() -> None:
            while True:
                self.turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(count())
        yield
        task.cancel()

    def send(self, said: bytes) -> asyncio.Task[bytes]:
        """Open a connection, say this, and return everything that comes until its end."""

        async def speak() -> bytes:
            reader, writer = await asyncio.open_unix_connection(self.path)
            try:
                with contextlib.suppress(ConnectionError):
                    writer.write(said)
                    await writer.drain()
                return await asyncio.wait_for(reader.read(-1), WAIT_S)
            finally:
                writer.close()

        return asyncio.create_task(speak())

    async def answer(self, said: bytes) -> tuple[int, dict[str, Any], bytes]:
        """Return status, document and head of the one answer that comes."""
        head, _, body = (await self.send(said)).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body), head


def play(
    tmp_path: Path,
    act: Callable[[Scene], Awaitable[None]],
    *,
    idle_s: float = WAIT_S,
    body_s: float = WAIT_S,
    budget_mib: int = 16,
) -> None:
    """Serve, act and stop."""

    async def scene() -> None:
        here = Scene(str(tmp_path / "s"))
        intake = Intake(largest_bytes=lambda: 4 << 20, budget_bytes=budget_mib << 20, timeout_s=body_s)
        with contextlib.closing(Access(ServiceConfig(), owner_uid=os.getuid())) as access:
            app = web.Application(middlewares=[answered, identified(access, intake)])
            metrics = Metrics(Live(running=lambda: 0, waiting=lambda: 0, pool=lambda: ()), started_at=0.0)
            app[STATE] = cast("State", SimpleNamespace(metrics=metrics))
            app.router.add_route("*", "/size", here.size)
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(here.path)
                async with accepting(app, opened, idle_s=idle_s):
                    await act(here)
                for client in here.clients:
                    client.transport.abort()
                await asyncio.sleep(0)

    asyncio.run(scene())


# ---- one shape


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x00secret\r\n\r\n",
        b"nonsense secret\r\n\r\n",
        GET + b"secret: " + b"a" * 20_000 + b"\r\n\r\n",
        GET + b"secret\x00: b\r\n\r\n",
        POST + b"Content-Length: secret\r\n\r\n",
        GET + b"Expect: secret\r\nConnection: close\r\n\r\n",
    ],
    ids=["TLS", "no method", "long header", "NUL in a header", "length in words", "unknown expectation"],
)
def test_what_is_no_request_is_answered_in_the_shape_of_every_error_and_not_quoted(tmp_path: Path, said: bytes) -> None:
    async def act(here: Scene) -> None:
        here.go.set()
        status, body, head = await here.answer(said)
        assert b"application/json" in head.lower()
        assert 400 <= status < 500
        assert set(body["error"]) >= {"code", "message", "hint"}
        assert body["error"]["code"] == "invalid_request"
        assert "secret" not in json.dumps(body)

    play(tmp_path, act)


@pytest.mark.parametrize("waits", [False, True], ids=["in one piece", "while it waits for more"])
@pytest.mark.parametrize("before", [b"", b"1\r\n{\r\n"], ids=["the first chunk", "the second"])
def test_a_body_in_broken_chunks_is_a_mistake_of_the_client_and_ends_its_connection(
    tmp_path: Path, waits: bool, before: bytes
) -> None:
    async def act(here: Scene) -> None:
        here.go.set()
        reader, writer = await asyncio.open_unix_connection(here.path)
        writer.write(GET + b"\r\n" + POST + b"Transfer-Encoding: chunked\r\n\r\n" + before)
        if waits:
            await asyncio.sleep(0.05)  # or it does not wait yet, which is the other case
        writer.write(b"zz\r\nsecret\r\n\r\n" + GET + b"\r\n")
        answers = re.split(rb"HTTP/1\.[01] (?=\d{3} )", await asyncio.wait_for(reader.read(-1), WAIT_S))[1:]
        writer.close()
        assert [answer[:3] for answer in answers] == [b"200", b"400"]
        assert json.loads(answers[1].partition(b"\r\n\r\n")[2])["error"]["message"] == "the request's body is broken"
        assert here.arrived == 1

    play(tmp_path, act, body_s=10 * WAIT_S)


# ---- silent and slow clients


@pytest.mark.parametrize(
    "said", [b"", GET, POST + b"Content-Length: 2\r\n\r\n{}"], ids=["nothing", "half a head", "one request"]
)
def test_a_connection_without_a_request_is_closed_after_a_while(tmp_path: Path, said: bytes) -> None:
    async def act(here: Scene) -> None:
        here.go.set()
        answer = await here.send(said)  # ends when the service closes
        assert answer.count(b"HTTP/1.1 200") == said.count(b"{}")

    play(tmp_path, act, idle_s=0.1)


def test_all_users_connections_leave_descriptors_for_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (6, 6))

    async def act(here: Scene) -> None:
        held = [here.send(GET + b"\r\n") for _ in range(3)]
        await here.arrivals(3)
        status, body, head = await here.answer(GET + b"\r\n")
        assert (status, body["error"]["code"], b"Retry-After: 1" in head) == (429, "queue_full", True)
        here.go.set()
        for one in held:
            one.cancel()
        await asyncio.gather(*held, return_exceptions=True)

        async def status_of_another() -> int:
            return (await here.answer(GET + b"Connection: close\r\n\r\n"))[0]

        await until_async(status_of_another, 200)

    play(tmp_path, act)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((100, 200), (200, 200)),
        ((100, 10**6), (65_536, 10**6)),
        ((10**5, 10**6), None),
        ((-1, -1), None),
        ((9, -1), (65_536, -1)),
    ],
)
def test_the_service_takes_as_many_descriptors_as_it_may_within_reason(
    before: tuple[int, int], after: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: found.append(limits))
    more_descriptors()
    assert found == ([after] if after else [])
    assert most_connections() == (before[0] // 2 if before[0] > 0 else 32_768)


def test_an_answer_that_nobody_reads_does_not_keep_the_service_from_stopping(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        here.go.set()
        _, writer = await asyncio.open_unix_connection(here.path, limit=1)
        writer.write(GET.replace(b"/size", b"/size?pad") + b"\r\n")
        await here.arrivals(1)
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(
            WAIT_S / 2, writer.transport.abort
        )  # what a service that waits would wait for
        here.clients.append(writer)

    began = time.monotonic()
    play(tmp_path, act)
    assert time.monotonic() - began < WAIT_S / 2


def test_a_request_that_takes_long_is_not_an_idle_connection(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        answer = here.send(GET + b"Connection: close\r\n\r\n")
        await here.arrivals(1)
        await asyncio.sleep(0.3)
        here.go.set()
        assert (await answer).startswith(b"HTTP/1.1 200 ")

    play(tmp_path, act, idle_s=0.05)


@pytest.mark.parametrize(
    "said", [b"Content-Length: 9\r\n\r\n12", b"Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n"], ids=["length", "chunks"]
)
def test_a_body_that_does_not_come_is_given_up_in_words(tmp_path: Path, said: bytes) -> None:
    async def act(here: Scene) -> None:
        reader, writer = await asyncio.open_unix_connection(here.path)
        writer.write(POST + said)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
        body = await asyncio.wait_for(reader.readuntil(b"}}}"), WAIT_S)
        assert head.startswith(b"HTTP/1.1 400 ")
        assert "did not come within 0.1 s" in json.loads(body)["error"]["message"]
        assert here.arrived == 0
        writer.close()

    play(tmp_path, act, body_s=0.1)


# ---- how much is held at once


def posted(body: bytes, *, path: bytes = b"/size", chunked: bool = False) -> bytes:
    head = POST.replace(b"/size", path) + b"Connection: close\r\n"
    if chunked:
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_past_the_budget_of_all_bodies_the_answer_is_at_once_no_and_afterwards_yes(
    tmp_path: Path, *, chunked: bool
) -> None:
    async def act(here: Scene) -> None:
        holding = [here.send(posted(3 * MIB, chunked=chunked)) for _ in range(2)]
        await here.arrivals(2)
        status, body, head = await here.answer(posted(3 * MIB, chunked=chunked))
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert "hold 6 MiB" in body["error"]["message"]
        assert b"Retry-After: 1" in head
        small = here.send(posted(MIB, chunked=chunked))
        await here.arrivals(3)
        here.go.set()
        for answer in (*holding, small):
            assert (await answer).startswith(b"HTTP/1.1 200 ")
        assert (await here.answer(posted(3 * MIB, chunked=chunked)))[1] == {"size": 3 << 20}

    play(tmp_path, act)


def test_who_announces_bodies_and_sends_none_takes_no_room(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        writers = []
        for _ in range(20):
            _, writer = await asyncio.open_unix_connection(here.path)
            writer.write(posted(4 * MIB)[:200])
            await writer.drain()
            writers.append(writer)
        here.go.set()
        assert (await here.answer(posted(4 * MIB)))[1] == {"size": 4 << 20}
        for writer in writers:
            writer.close()

    play(tmp_path, act)


def test_of_bodies_that_come_together_as_many_are_taken_as_fit_and_the_first_are(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        body, connections = posted(3 * MIB), []
        for _ in range(12):
            connections.append(await asyncio.open_unix_connection(here.path))
            connections[-1][1].write(body[:1000])
            await asyncio.sleep(0.01)
        step = 128 << 10
        for start in range(1000, len(body), step):  # a piece of each in turn
            for _, writer in connections:
                writer.write(body[start : start + step])
            await asyncio.gather(*(writer.drain() for _, writer in connections))
        here.go.set()
        heads = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in connections))
        assert [head.split()[1] for head in heads] == [b"200"] * 2 + [b"429"] * 10
        assert (await here.answer(posted(4 * MIB)))[1] == {"size": 4 << 20}
        for _, writer in connections:
            writer.close()

    play(tmp_path, act)


def test_a_client_that_goes_away_gives_its_room_back(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        for _ in range(5):
            reader, writer = await asyncio.open_unix_connection(here.path)
            writer.write(posted(4 * MIB)[: 3 << 20])
            await writer.drain()
            writer.close()
            del reader
        here.go.set()

        async def both() -> bool:
            answers = await asyncio.gather(*(here.send(posted(4 * MIB)) for _ in range(2)))
            return all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)

        await until_async(both)

    play(tmp_path, act)


def test_a_single_body_is_taken_however_small_the_budget(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        here.go.set()
        assert (await here.answer(posted(4 * MIB)))[1] == {"size": 4 << 20}

    play(tmp_path, act, budget_mib=1)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_a_body_that_is_too_large_is_refused(tmp_path: Path, *, chunked: bool) -> None:
    async def act(here: Scene) -> None:
        status, body, _ = await here.answer(posted(4 * MIB + b"x", chunked=chunked))
        assert (status, body["error"]["code"]) == (413, "invalid_request")
        assert "takes 4 MiB" in body["error"]["message"]
        assert "limits.payload_mib" in body["error"]["hint"]
        assert here.arrived == 0

    play(tmp_path, act)


def test_what_goes_on_without_its_client_is_still_counted(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        here.go.set()
        for _ in range(2):
            assert (await here.answer(posted(4 * MIB, path=b"/size?keep")))[0] == 200
        assert (await here.answer(posted(MIB)))[0] == 429
        here.kept[0].set()
        await asyncio.sleep(0)
        assert (await here.answer(posted(MIB)))[0] == 200

    play(tmp_path, act)


# ---- whose turn it is


def test_bodies_that_come_at_once_are_taken_in_turns_of_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def grow(part: Part, size_bytes: int, grow: Callable[[Part, int], None] = Part.grow) -> None:
        sizes.append(size_bytes - part.size_bytes)
        grow(part, size_bytes)

    monkeypatch.setattr(Part, "grow", grow)

    async def act(here: Scene) -> None:
        here.go.set()
        async with here.counted_turns():
            answers = await asyncio.gather(*(here.send(posted(MIB[: 100 << 10])) for _ in range(60)))
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        assert max(sizes) <= 2 * PIECE_BYTES
        assert len(set(here.arrived_in)) == len(here.arrived_in) == 60, "never two in one turn"

    play(tmp_path, act)


def test_what_is_there_once_the_service_is_up_is_not_looked_at_again_for_garbage() -> None:
    code = """if True:
        import gc
        from sandbox.service.server import keep_what_is_there
        before = len(gc.get_objects())
        keep_what_is_there()
        print(before, len(gc.get_objects()))"""
    before, after = map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert after < before / 100


# ---- how many runs are listed


@pytest.mark.parametrize(("text", "limit"), [("1", 1), ("500", 500), ("007", 7)])
def test_a_limit_within_bounds_is_taken(text: str, limit: int) -> None:
    assert listed_at_most(text) == limit


@pytest.mark.parametrize("text", ["0", "501", "-1", "1.0", "", "x", "\u0661", "9" * 5_000, "1_0", " 1"])
def test_a_limit_beyond_them_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="`limit`"):
        listed_at_most(text)


def test_the_document_tells_what_a_limit_is() -> None:
    parameters = openapi(ROUTES)["paths"]["/v1/runs"]["get"]["parameters"]
    schema = next(parameter["schema"] for parameter in parameters if parameter["name"] == "limit")
    assert schema == {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}


# ---- nobody is left without an answer


@pytest.mark.parametrize(
    "broken",
    [b"garbage\r\n\r\n", POST + b"Content-Length: -1\r\n\r\n", b"\0", GET + b"A" * 20_000, b"GET / HTTP/9.9\r\n\r\n"],
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_requests_in_front_of_a_broken_one_are_answered(tmp_path: Path, broken: bytes, pieces: int) -> None:
    async def act(here: Scene) -> None:
        here.go.set()
        said = (GET + b"\r\n" + POST + b"Content-Length: 4\r\n\r\n\r\n\r\n" + GET + b"\r\n") * 2 + broken + b"\r\n\r\n"
        size = len(said) // pieces + 1
        reader, writer = await asyncio.open_unix_connection(here.path)
        for start in range(0, len(said), size):
            writer.write(said[start : start + size])
            await asyncio.sleep(0.02)
        answers = re.split(rb"HTTP/1\.[01] (?=\d{3} )", await asyncio.wait_for(reader.read(-1), WAIT_S))[1:]
        writer.close()
        assert [answer[:3] for answer in answers] == [b"200"] * 6 + [b"400"]
        assert [answer.partition(b"\r\n\r\n")[2] for answer in answers[:3]] == [
            b'{"size": 0}',
            b'{"size": 4}',
            b'{"size": 0}',
        ]

    play(tmp_path, act)


FLOOD = 2 * LINGERING + 200  # more than are heard out at a time, twice


@pytest.fixture
def five_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    more_descriptors()  # both sides of a flood are in this process
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 10))
    monkeypatch.setattr(connections, "FEW", LINGERING)
    monkeypatch.setattr(connections, "LINGER_S", WAIT_S)  # whoever is let go is let go by count


def opened(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return client


def read_to_the_end(client: socket.socket) -> bytes:
    with client:
        client.settimeout(WAIT_S)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


@pytest.mark.usefixtures("five_connections")
@pytest.mark.parametrize("flood", [10, FLOOD])
def test_who_comes_in_a_flood_of_connections_and_asks_at_once_is_refused_in_words_and_never_reset(
    tmp_path: Path, flood: int
) -> None:
    def come(path: str) -> list[bytes]:
        held = [opened(path) for _ in range(5)]
        clients: list[socket.socket] = []
        for _ in range(flood):
            clients.append(opened(path))
            clients[-1].sendall(GET + b"\r\n")  # no error: nobody is let go before it has been heard
        answers = [read_to_the_end(client) for client in clients]
        for client in held:
            client.close()
        return answers

    async def act(here: Scene) -> None:
        answers = await asyncio.to_thread(come, here.path)
        assert Counter(answer[:13] for answer in answers) == {b"HTTP/1.1 429 ": flood}
        assert {answer.partition(b"\r\n\r\n")[2] for answer in answers} == {connections.BODY}

    play(tmp_path, act)


@pytest.mark.usefixtures("five_connections")
def test_of_a_flood_that_asks_late_the_last_are_heard_out_and_all_can_read_why(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        clients = [await asyncio.to_thread(opened, here.path) for _ in range(5 + FLOOD)]
        await until_async(lambda: sum(map(is_told, clients)), FLOOD)
        lingering = len(os.listdir("/proc/self/fd")) - 2 * 5 - len(clients)
        assert LINGERING <= lingering < LINGERING + 30, "the others are closed on this side"
        for _ in range(3):
            for client in clients[-LINGERING:]:
                client.sendall(GET + b"\r\n")
            await asyncio.sleep(0.01)
        assert all(await asyncio.gather(*(asyncio.to_thread(client.recv, 13) for client in clients[5:])))
        for client in clients:
            client.close()

    play(tmp_path, act)


def is_told(client: socket.socket) -> bool:
    try:
        return bool(client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def test_a_refused_body_is_heard_out_so_that_its_client_sees_why(tmp_path: Path) -> None:
    async def act(here: Scene) -> None:
        reader, writer = await asyncio.open_unix_connection(here.path)
        body = posted(4 * MIB + b"x" * (1 << 20))
        for start in range(0, len(body), 1 << 18):  # a client that writes everything before it reads
            writer.write(body[start : start + (1 << 18)])
            await writer.drain()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        writer.close()

    play(tmp_path, act)


# ---- what stands behind the `?` of an address


RUNS = QUERIES["GET", "/v1/runs"]


@pytest.mark.parametrize(
    ("names", "known", "said", "hint"),
    [
        (["outcom"], RUNS, r"did you mean outcome\?", "node, outcome, before, limit"),
        (["limit", "\x1b[2J"], RUNS, r"which this route does not know \(", "node, outcome, before, limit"),
        (["verbose"], {}, "does not know", "nothing"),
        (["node", "limit", "node"], RUNS, "`node` twice", "once"),
    ],
)
def test_what_a_route_does_not_know_is_refused_and_not_left_out(
    names: list[str], known: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        check_query(names, known)
    assert hint in caught.value.hint
    assert caught.value.message.isprintable()
    check_query(list(known), known)
