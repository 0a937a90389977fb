"""Sixteen clients send texts that are hard to parse, small and large.

Everybody else is served as if they were not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from sandbox.errors import QueueFull
from tests.integration.looker import looked_at
from tests.integration.service import Service, served
from tests.integration.test_service_load import CROWDS, HEALTH_S, answered, held, parsers, rss_mib

CLIENTS = 16
CROWD_S = 6.0
DEADLINE_S = 3.0
# What the machine takes besides the program: two cores compile four hostile texts meanwhile.
SLACK_S = 1.5
MIB = 1 << 20
SIZES = (480 << 10, 1000 << 10, 3 * MIB)
LARGE = {16 * MIB: ("one f-string", "quotes", "imports"), 64 * MIB: ("plain statements", "backslashes")}

# ---- texts of about so many bytes, each hard for a parser in its own way

TEXTS: dict[str, Callable[[int], str]] = {
    "one f-string": lambda size: 'f"' + "{x}" * (size // 3) + '"',
    "nested f-strings": lambda size: "f'{f\"{x}\"}' " * (size // 12),
    "plain statements": lambda size: "x = 1\n" * (size // 6),
    "parentheses": lambda size: "(" * size,
    "closed parentheses": lambda size: "(" * (size // 2) + ")" * (size // 2),
    "a chain of sums": lambda size: "1" + "+1" * (size // 2),
    "a chain of names": lambda size: "a" + ".b" * (size // 2),
    "minus signs": lambda size: "-" * size + "1",
    "a list": lambda size: "[" + "1," * (size // 2) + "]",
    "dictionaries in dictionaries": lambda size: "{1:" * (size // 3),
    "one number": lambda size: "9" * size,
    "imports": lambda size: "".join(f"import a{number}\n" for number in range(size // 14)),
    "names to import": lambda size: "import " + "a," * (size // 2),
    "a text without an end": lambda size: '"""' + "import x\n" * (size // 9),
    "quotes": lambda size: "'" * size,
    "backslashes": lambda size: "x = '" + "\\" * size,
    "indents": lambda size: "".join(" " * depth + "if 1:\n" for depth in range(int((2 * size) ** 0.5))),
    "header": lambda size: "# /// script\n" + "# a = [[[[[[[[[[\n" * (size // 17) + "# ///\nresult = 1",
    "header of libraries": lambda size: (
        "# /// script\n# dependencies = [\n" + '# "a<1",\n' * (size // 10) + "# ]\n# ///\nresult = 1"
    ),
    "headers": lambda size: "# /// script\n# ///\n" * (size // 19),
}
# Payloads that no policy refuses, large enough to be checked in pieces.
PAYLOAD_BYTES = 16 * MIB
PAYLOADS: dict[str, tuple[bytes, bytes, bytes]] = {
    "quotes": (b'"', rb"\"", b'"'),
    "empty texts": (b"[", b'"",', b"0]"),
    "numbers": (b"[", b"1,", b"1]"),
    "objects": (b"[", b'{"a":1},', b"1]"),
}
LIBRARIES: tuple[list[str], ...] = (
    [],
    ["six"],
    ["a" * 190] * 100_000,
    ["a;" + "(" * 150] * 150,
    ["a" + "[" * 150 + "]"] * 150,
    [","] * 100_000,
    ["six"] * 200,
    ['a; python_version<"3" and ' + "(" * 60 + 'os_name=="x"' + ")" * 60] * 150,
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("hard")
    policy = 'extends = "default"\nlimits.timeout_s = 10\nlimits.memory_mib = 512\n'
    (home / "policies").mkdir()
    (home / "policies/hard.toml").write_text(policy)
    with served(
        home, SANDBOX_QUEUE__RUNNING="4", SANDBOX_QUEUE__WAITING="40", SANDBOX_QUEUE__PER_CALLER_WAITING="40"
    ) as running:
        yield running


def request_of(text: str, libraries: list[str], *, path: str = "/v1/runs") -> bytes:
    body = json.dumps(
        {"code": text, "requirements": libraries, "policy": "hard"}
        | ({"limits": {"timeout_s": 1}} if path == "/v1/runs" else {})
    ).encode()
    return post(path, body)


def with_payload(first: bytes, middle: bytes, last: bytes) -> bytes:
    payload = first + middle * (PAYLOAD_BYTES // len(middle)) + last
    return post(
        "/v1/runs", b'{"code": "result = 1", "policy": "hard", "limits": {"timeout_s": 1}, "payload": %s}' % payload
    )


def post(path: str, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


async def sent(service: Service, request: bytes) -> str:
    """Send one request on a connection of its own; return what became of it: an outcome, or the code of an error."""
    reader, writer = await asyncio.open_unix_connection(service.socket, limit=1 << 20)
    try:
        with contextlib.suppress(ConnectionError):  # what is refused by its size is not read to its end
            writer.write(request)
            await writer.drain()
        document = json.loads(await asyncio.wait_for(answered(reader), 60))
    finally:
        writer.transport.abort()
    found = (
        document["outcome"]
        if "outcome" in document
        else document["error"]["code"]
        if "error" in document
        else "checked"
    )
    return str(found)


@pytest.fixture(scope="module")
def requests() -> list[bytes]:
    """Return what the clients send, made before: every text in three sizes, some that are large, and large payloads."""
    texts = [make(size) for size in SIZES for make in TEXTS.values()]
    texts += [TEXTS[name](size) for size, names in LARGE.items() for name in names]
    made = [
        request_of(text, LIBRARIES[number % len(LIBRARIES)], path="/v1/check" if number % 5 == 4 else "/v1/runs")
        for number, text in enumerate(texts)
    ]
    made += [with_payload(*parts) for parts in PAYLOADS.values()]
    random.Random(1).shuffle(made)
    return made


async def client(service: Service, requests: Sequence[bytes], number: int, seconds: float) -> Counter[str]:
    """Send one text after the other, each client another one first."""
    ends: Counter[str] = Counter()
    until = time.monotonic() + seconds
    step = number * len(requests) // CLIENTS
    while time.monotonic() < until:
        ends[await sent(service, requests[step % len(requests)])] += 1
        step += 1
    return ends


class Neighbour(threading.Thread):
    """Somebody else, whose runs last for ever and have a deadline."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.service = service
        self.stop = threading.Event()
        self.took_s: list[float] = []
        self.refused = 0

    def run(self) -> None:
        with self.service.client() as client:
            while not self.stop.is_set():
                try:
                    result = client.run(
                        "import time\nwhile True: time.sleep(0.01)",
                        node_id="neighbour",
                        limits={"timeout_s": DEADLINE_S},
                    )
                except QueueFull:  # the same user's bodies fill its share of the budget at this moment
                    self.refused += 1
                    self.stop.wait(0.1)
                    continue
                assert result.outcome == "timed_out", result.document
                self.took_s.append(result.document["durations"]["program_ms"] / 1000)


async def crowd(service: Service, requests: Sequence[bytes], seconds: float) -> Counter[str]:
    ends = await asyncio.gather(*(client(service, requests, number, seconds) for number in range(CLIENTS)))
    return sum(ends, Counter())


def health_in_a_crowd(service: Service, requests: Sequence[bytes]) -> tuple[float, float]:
    """Return how much longer `/v1/health` takes meanwhile than a bare server, in seconds.

    There are two times: what nine of ten answers take at most, and what the slowest takes.
    """
    with looked_at(service.socket, service.process.pid) as seen:
        ends = asyncio.run(crowd(service, requests, CROWD_S))
    assert {"policy_denied", "invalid_request"} < set(ends), ends
    assert set(ends) & {"failed", "timed_out", "out_of_memory", "killed"}, ends
    assert "internal" not in ends
    assert len(seen.service) >= 50, "there was too little to look at"
    health, bare = (statistics.quantiles(took, n=100) for took in (seen.service, seen.bare))
    for name, found, took in (("health", health, seen.service), ("a bare server", bare, seen.bare)):
        shown = [*(found[part - 1] for part in (50, 90, 99)), max(took)]
        print(
            f"{name}: p50, p90, p99, slowest {', '.join(f'{1000 * one:.1f}' for one in shown)} ms of {len(took)};"
            f" {ends}"
        )
    return health[89] - bare[89], max(seen.service) - max(seen.bare)


@pytest.mark.quiet  # how long answers take while the service alone is busy
def test_texts_that_are_hard_to_parse_stop_nobody_and_cost_nothing_afterwards(
    service: Service, requests: list[bytes]
) -> None:
    asyncio.run(crowd(service, requests, CROWD_S / 3))  # what the allocator keeps, it keeps once
    fds, before_mib = held(service), rss_mib(service.process.pid)
    neighbour = Neighbour(service)
    neighbour.start()
    crowds = [health_in_a_crowd(service, requests) for _ in range(CROWDS)]
    neighbour.stop.set()
    neighbour.join(30)
    print(f"runs with a deadline of {DEADLINE_S} s: {neighbour.took_s}; refused {neighbour.refused}")
    # In each crowd: nine of ten answers, and the slowest of all.
    assert max(max(crowd) for crowd in crowds) < HEALTH_S, crowds
    assert len(neighbour.took_s) >= 3
    assert max(neighbour.took_s) < DEADLINE_S + SLACK_S
    assert held(service) <= fds + 3
    beside_mib = [rss_mib(pid) for pid in parsers(service.process.pid)]
    print(
        f"memory: {before_mib:.0f} MiB before, {rss_mib(service.process.pid):.0f} MiB after; processes that parse:"
        f" {beside_mib}"
    )
    assert rss_mib(service.process.pid) < before_mib + 40
    assert len(beside_mib) <= 2
    assert sum(beside_mib) < 2 * before_mib
    assert "Traceback" not in service.log()
    assert service.process.poll() is None
