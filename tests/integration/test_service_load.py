"""Two hundred clients at once, half of them slow or gone at a random moment: every answer is right.

Nothing is held for those who left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.integration.belongings import own_containers, own_workspaces
from tests.integration.looker import looked_at
from tests.integration.service import Service, served
from tests.integration.test_service import raw
from tests.waiting import WAIT_S, until

CLIENTS = 200
PAD_CHARS = 150_000  # more than the buffers of a socket hold
ENOUGH_S = 50.0
HEALTH_S = 0.05
CROWDS = 3
CODE = "import time\nprint(payload['n'], flush=True)\ntime.sleep(0.05)\nresult = payload"

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    queue = {"RUNNING": "4", "WAITING": "40", "PER_CALLER_WAITING": "40"}
    with served(
        tmp_path_factory.mktemp("load"), **{f"SANDBOX_QUEUE__{key}": value for key, value in queue.items()}
    ) as running:
        yield running


def request_of(number: int, *, accept: str = "application/json", code: str = CODE) -> bytes:
    payload = {"n": number, "pad": chr(97 + number % 26) * PAD_CHARS}
    body = json.dumps({"code": code, "payload": payload, "node_id": f"node {number % 7}"}).encode()
    return (
        b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nAccept: %s\r\nContent-Length: %d\r\n\r\n" % (accept.encode(), len(body))
        + body
    )


def right(number: int, body: bytes) -> str:
    """Return what an answer is, after comparing it with what this client sent."""
    document = json.loads(body)
    if "error" in document and "outcome" not in document:
        return str(document["error"]["code"])
    assert document["result"] == {"n": number, "pad": chr(97 + number % 26) * PAD_CHARS}
    assert document["stdout"] == f"{number}\n"
    return str(document["outcome"])


# ---- the clients: each returns what became of it


async def answered(reader: Reader, *, piece: int = 1 << 20, pause_s: float = 0.0) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"Content-Length: (\d+)", head)
    assert found is not None
    missing, body = int(found[1]), b""
    while missing:
        more = await reader.read(min(piece, missing))
        assert more, "the answer broke off"
        body += more
        missing -= len(more)
        await asyncio.sleep(pause_s)
    return body


async def reads(number: int, reader: Reader, writer: Writer) -> str:
    writer.write(request_of(number))
    return right(number, await answered(reader))


async def reads_slowly(number: int, reader: Reader, writer: Writer) -> str:
    writer.write(request_of(number))
    return right(number, await answered(reader, piece=8 << 10, pause_s=0.05))


async def goes_before_it_asks(number: int, reader: Reader, writer: Writer) -> str:
    return "gone"


async def goes_in_the_middle_of_its_request(number: int, reader: Reader, writer: Writer) -> str:
    request = request_of(number)
    writer.write(request[: random.Random(number).randrange(1, len(request))])
    await asyncio.sleep(0.1)
    return "gone"


async def goes_while_it_waits(number: int, reader: Reader, writer: Writer) -> str:
    writer.write(request_of(number))
    await writer.drain()
    await asyncio.sleep(random.Random(number).random())
    return "gone"


async def goes_while_it_runs(number: int, reader: Reader, writer: Writer) -> str:
    writer.write(request_of(number, accept="application/x-ndjson", code=CODE.replace("0.05", "20")))
    async for line in reader:
        if b'"stdout"' in line:
            return "gone"
        if line.startswith(b"HTTP/1.1 429 "):
            return right(number, await answered(reader))
    raise AssertionError("the stream broke off")


async def goes_in_the_middle_of_its_answer(number: int, reader: Reader, writer: Writer) -> str:
    writer.write(request_of(number))
    await reader.readexactly(200)
    return "gone"


TROUBLESOME = [
    reads_slowly, goes_before_it_asks, goes_in_the_middle_of_its_request, goes_while_it_waits, goes_while_it_runs,
    goes_in_the_middle_of_its_answer,
]  # fmt: skip # a table
Behaviour = Callable[[int, Reader, Writer], Awaitable[str]]


async def one(service: Service, number: int, behaviour: Behaviour) -> str:
    reader, writer = await asyncio.open_unix_connection(service.socket, limit=1 << 20)
    try:
        return await asyncio.wait_for(behaviour(number, reader, writer), ENOUGH_S)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def crowd(service: Service, clients: int) -> Counter[str]:
    behaviours = [reads if number % 2 else TROUBLESOME[number // 2 % len(TROUBLESOME)] for number in range(clients)]
    ends = await asyncio.gather(*(one(service, number, behaviour) for number, behaviour in enumerate(behaviours)))
    return Counter(ends)


# ---- what the service holds


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def parsers(pid: int) -> list[int]:
    """Return the processes of a service that take bodies apart."""
    children = [
        int(child)
        for tasks in Path(f"/proc/{pid}/task").iterdir()
        for child in (tasks / "children").read_text().split()
    ]
    return [
        child
        for child in children
        if b"sandbox.service.intake.parser_program" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def held(service: Service) -> int:
    """Return how many descriptors the service holds when nothing runs and nothing stands ready."""
    with service.client() as client:
        until(lambda: client.health()["runs"], {"running": 0, "waiting": 0})
        client.raw("POST", "/v1/maintenance/stop-all", b"{}")
        until(lambda: not client.health()["pool"]["ready"] and not client.health()["pool"]["starting"])
    until(lambda: not own_containers(service) and not own_workspaces(service))
    return len(os.listdir(f"/proc/{service.process.pid}/fd"))


def test_a_run_that_waits_holds_its_payload_once_and_past_the_budget_none_waits(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    mib, waiting = 30, 5
    home = tmp_path_factory.mktemp("bodies")
    with served(home, SANDBOX_QUEUE__RUNNING="1", SANDBOX_QUEUE__BODIES_MIB=str(2 * mib * waiting + mib)) as service:
        sleeping, body = (
            json.dumps({"code": code, "payload": pad}).encode()
            for code, pad in (("import time\ntime.sleep(20)", ""), ("1", "x" * (mib << 20)))
        )
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(raw(service, "POST", "/v1/runs", body)[0]))
            for _ in range(waiting)
        ]
        first = threading.Thread(target=raw, args=(service, "POST", "/v1/runs", sleeping))
        with service.client() as client:
            client.run("result = 1")
            first.start()
            until(lambda: client.health()["runs"]["running"], 1)
            before = rss_mib(service.process.pid)
            for number, thread in enumerate(
                threads, 1
            ):  # one by one: the pieces of a body on its way are another matter
                thread.start()
                until(lambda: client.health()["runs"]["waiting"], number)
            grown = rss_mib(service.process.pid) - before
            status, headers, answer = raw(service, "POST", "/v1/runs", body)
            client.raw("POST", "/v1/maintenance/stop-all", b"{}")
        for thread in (first, *threads):
            thread.join(WAIT_S)
    assert statuses == [200] * waiting
    assert (status, json.loads(answer)["error"]["code"], headers["Retry-After"]) == (429, "queue_full", "1")
    assert grown < 1.5 * mib * waiting


def health_in_a_crowd(service: Service) -> float:
    """Return how much slower `/v1/health` is at worst among 200 clients than a bare server, in seconds."""
    with looked_at(service.socket, service.process.pid) as seen:
        ends = asyncio.run(crowd(service, CLIENTS))
    assert set(ends) == {"gone", "succeeded", "queue_full"}, ends
    assert ends["succeeded"] >= 20, ends
    assert len(seen.service) >= 50, "there was too little to look at"
    health, bare = (statistics.quantiles(took, n=100) for took in (seen.service, seen.bare))
    for name, found, took in (("health", health, seen.service), ("a bare server", bare, seen.bare)):
        shown = [*(found[part - 1] for part in (50, 90, 99)), max(took)]
        print(
            f"{name}: p50, p90, p99, slowest {', '.join(f'{1000 * one:.1f}' for one in shown)} ms of {len(took)};"
            f" {ends}"
        )
    assert health[49] < HEALTH_S
    # The rest of the machine is as busy as the service: what a server that does nothing takes meanwhile is not the
    # service's.
    assert health[89] < HEALTH_S + bare[89]
    return max(seen.service) - max(seen.bare)


@pytest.mark.quiet  # how long answers take while the service alone is busy
def test_two_hundred_clients_at_once_get_their_own_results_and_cost_nothing_afterwards(service: Service) -> None:
    asyncio.run(crowd(service, CLIENTS // 2))  # what the allocator keeps of a crowd, it keeps once
    fds, memory_mib = held(service), rss_mib(service.process.pid)
    # One answer may have met something else on the machine that the bare server did not: in one crowd of a few, none
    # has.
    slowest = [health_in_a_crowd(service) for _ in range(CROWDS)]
    assert min(slowest) < HEALTH_S, slowest
    assert held(service) <= fds + 3
    print(f"memory: {memory_mib:.0f} MiB before, {rss_mib(service.process.pid):.0f} MiB after")
    assert rss_mib(service.process.pid) < memory_mib + 40
    with service.client() as client:
        assert client.run("result = 1").value == 1
    _, _, metrics = raw(service, "GET", "/v1/metrics")
    assert b"internal" not in metrics
    assert "Traceback" not in service.log()
