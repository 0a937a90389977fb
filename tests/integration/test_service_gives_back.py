"""What a service holds for its clients, descriptors and memory, is bounded by its settings.

It goes back when nobody needs it.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from sandbox.client import Client
from tests.integration.service import Service, served
from tests.integration.test_service import raw
from tests.waiting import until

NODES = 24
MODULES = (
    "array",
    "ast",
    "calendar",
    "colorsys",
    "decimal",
    "difflib",
    "fractions",
    "graphlib",
    "heapq",
    "html",
    "json",
    "math",
    "statistics",
    "textwrap",
)
POLICIES = 6
IDLE_S = 15
MEMORY_MIB = 48
# A ready sandbox is counted with no less than this of the memory that all may take; it has 4 descriptors, a warm
# container 8.
SMALLEST_MIB = 6
EACH_READY, EACH_WARM = 4, 8
# What one run of its own has open at a time, beside its sandbox: its client's connection, Podman's, the history's.
AROUND = 24
# Connections to Podman that stay open for the next call, one of each thread that talks to it, and what the history is
# read by.
KEPT = 8
MIB = 1 << 20
BODY_MIB = 60
BODIES = 12
BUDGET_MIB = 512


def descriptors(service: Service) -> int:
    return len(os.listdir(f"/proc/{service.process.pid}/fd"))


def what_is_open(service: Service) -> Counter[str]:
    """Return what the descriptors lead to, without numbers."""
    place = Path(f"/proc/{service.process.pid}/fd")
    return Counter(re.sub(r"\d+", "N", str(path.readlink())) for path in place.iterdir())


def rss_mib(service: Service) -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


class Watch(threading.Thread):
    """Counts the descriptors of a service again and again."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.service = service
        self.most = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.005):
            self.most = max(self.most, descriptors(self.service))

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def ran(client: Client, **options: Any) -> None:
    assert client.run("result = 1", **options).value == 1, options


def many_kinds(client: Client) -> int:
    """Run one of each of many kinds; return how many kinds there were."""
    kinds: list[dict[str, Any]] = [
        *({"policy": "cells", "node_id": f"node {number}"} for number in range(NODES)),
        *({"preload": [module]} for module in MODULES),
        *({"limits": {"memory_mib": 200 + number}} for number in range(POLICIES)),
    ]
    for kind in kinds:
        ran(client, **kind)
    return len(kinds)


def test_descriptors_are_bounded_whatever_kinds_of_runs_there_are_and_go_back(tmp_path: Path) -> None:
    settings = {
        "POOL__IDLE_S": IDLE_S,
        "POOL__MEMORY_MIB": MEMORY_MIB,
        "POOL__WARM_SEEN": 0,
        "CELLS__IDLE_S": IDLE_S,
        "CELLS__MEMORY_MIB": MEMORY_MIB,
    }
    with (
        served(tmp_path, **{f"SANDBOX_{key}": str(value) for key, value in settings.items()}) as service,
        service.client() as client,
    ):
        before = descriptors(service)
        bound = before + MEMORY_MIB // SMALLEST_MIB * (EACH_READY + EACH_WARM) + AROUND
        with Watch(service) as watch:
            kinds = many_kinds(client)
        print(
            f"descriptors: {before} before, {watch.most} at most with {kinds} kinds (bound: {bound}),"
            f" {descriptors(service)} right after"
        )
        assert kinds == NODES + len(MODULES) + POLICIES
        assert bound < before + NODES * EACH_WARM + (len(MODULES) + POLICIES) * EACH_READY, (
            "all kinds at once would be more"
        )
        assert before < watch.most <= bound
        until(lambda: descriptors(service), lambda seen: seen <= before + KEPT, within_s=60)
        print(f"afterwards: {what_is_open(service)}")


# ---- bodies


def taken_and_refused(service: Service, answers: list[tuple[int, dict[str, str], bytes]]) -> Counter[int]:
    """Have twelve clients send a large body each at once, and count the statuses of their answers.

    The runs that were taken are ended once all others have their answer.
    """
    body = json.dumps(
        {"code": "import time\ntime.sleep(600)", "payload": "x" * (BODY_MIB * MIB), "limits": {"timeout_s": 30}}
    ).encode()
    gate = threading.Barrier(BODIES)

    def send() -> None:
        gate.wait()
        answers.append(raw(service, "POST", "/v1/runs", body))

    threads = [threading.Thread(target=send) for _ in range(BODIES)]
    for thread in threads:
        thread.start()
    with service.client() as client:

        def settled() -> bool:
            runs = client.health()["runs"]
            return len(answers) + int(runs["running"]) + int(runs["waiting"]) == BODIES

        until(settled, within_s=60)
        client.stop_all()
    for thread in threads:
        thread.join(60)
    return Counter(status for status, _, _ in answers)


def test_of_twelve_large_bodies_those_that_fit_are_taken_the_others_told_and_the_memory_goes_back(
    tmp_path: Path,
) -> None:
    with served(tmp_path, SANDBOX_POOL__MEMORY_MIB="0", SANDBOX_QUEUE__RUNNING="4") as service:
        with service.client() as client:
            ran(client)
        before_mib = rss_mib(service)
        fit = BUDGET_MIB // 2 // BODY_MIB  # one caller alone may hold half
        for _ in range(3):
            answers: list[tuple[int, dict[str, str], bytes]] = []
            assert taken_and_refused(service, answers) == {200: fit, 429: BODIES - fit}
            for status, headers, said in answers:
                document = json.loads(said)
                if status == 200:
                    assert document["outcome"] == "cancelled"
                else:
                    assert (document["error"]["code"], headers["Retry-After"]) == ("queue_full", "1")
                    assert "does not fit" in document["error"]["message"]
            del answers
            grown_mib = rss_mib(service) - before_mib
            until(lambda: rss_mib(service), lambda seen: seen < before_mib + BODY_MIB / 2, within_s=20)
            print(
                f"memory: {before_mib:.0f} MiB before, {before_mib + grown_mib:.0f} right after,"
                f" {rss_mib(service):.0f} now"
            )
        assert "Traceback" not in service.log()


LARGE = b"x" * (BODY_MIB * MIB)
REFUSED = {
    "no JSON": b'{"code": "1", "payload": "%s' % LARGE,
    "JSON that ends badly": b'{"code": "1", "payload": ["%s",]}' % LARGE,
    "an unknown field": b'{"code": "1", "pay": "%s"}' % LARGE,
    "a field that is too long": b'{"code": "1", "topic": "%s"}' % LARGE,
    "a program that is too long": b'{"code": "%s"}' % LARGE,
    "a file that is no base64": b'{"code": "1", "files": {"a": "%s!"}}' % LARGE,
    "a message that is none": b'{"code": "1", "message": "%s"}' % LARGE,
    "more than the policy takes": (
        b'{"code": "1", "payload": "%s", "message": {"a": "%s"}}' % (LARGE, LARGE[: 10 * MIB])
    ),
}


def test_large_bodies_that_are_refused_after_they_came_cost_no_memory_afterwards(tmp_path: Path) -> None:
    with served(tmp_path, SANDBOX_POOL__MEMORY_MIB="0") as service:
        with service.client() as client:
            ran(client)
        before_mib = rss_mib(service)
        found = {
            (name, number): raw(service, "POST", "/v1/runs", body)[0]
            for number in range(2)
            for name, body in REFUSED.items()
        }
        assert set(found.values()) <= {400, 403}, found
        until(lambda: rss_mib(service), lambda seen: seen < before_mib + BODY_MIB / 2, within_s=20)
        print(f"memory: {before_mib:.0f} MiB before, {rss_mib(service):.0f} now")
        assert "Traceback" not in service.log()
