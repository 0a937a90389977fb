"""`python -m tests.soak`: many runs in a row through one service, with what they leave and what grows.

Exit status 1 for either.

Every fourth run fails, prints, saves a file, is cancelled by its client going away, or times out.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandbox.client import Client
from sandbox.kernel.family import children, family, fields
from tests.command import left_behind, workspaces
from tests.integration.belongings import monitors, own_containers
from tests.integration.service import Service, served

KINDS = (
    "result = payload",
    "print('x' * 1000)\nresult = 1",
    "raise ValueError('no')",
    "save_file('a.txt', 'x' * 10_000)\nresult = 1",
    "import time\ntime.sleep(60)",
    "result = payload",
    "import os\nos._exit(3)",
    "result = [n for n in range(1000)]",
)
SLEEPS = 4  # the kind whose client goes away
WARM_RUNS = 50
# What caches of the allocator and of Python may come to.
GROWTH_MIB = 24.0
SETTLE_S = 20.0
SAVED_MIB = 1
SETTINGS = {"SANDBOX_QUEUE__RUNNING": "8", "SANDBOX_HISTORY__FILES_MIB": str(SAVED_MIB)}


@dataclass(frozen=True)
class Held:
    """What the service holds at one moment, with nothing going on."""

    descriptors: int
    threads: int
    children: int
    memory_mib: float
    files: tuple[str, ...] = ()


def files_of(service: Service) -> tuple[str, ...]:
    """Return the files and directories of the service's data and cache, without those below `saved`."""
    found = (path for top in ("data", "cache") for path in (service.home / top).rglob("*"))
    return tuple(sorted(str(path.relative_to(service.home)) for path in found if saved(service) not in path.parents))


def saved(service: Service) -> Path:
    """Return the directory for what programs saved, which may grow up to `history.files_mib`."""
    return service.home / "data/podman-sandbox-runner/files"


def held(service: Service) -> Held:
    """Look at the service's process, and at what it has on the disk."""
    pid = service.process.pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    started = children(pid)
    return Held(
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
        children=len(started),
        memory_mib=int(status["VmRSS"].split()[0]) / 1024,
        files=files_of(service),
    )


def makers(service: Service) -> list[Held]:
    """Look at the processes that make cells, those of the warm containers."""
    own = own_containers(service)
    first = [pid for monitor, container in monitors().items() if container in own for pid in children(monitor)]
    return [
        Held(
            descriptors=0,
            threads=fields(f"/proc/{pid}/status", b"Threads")[b"Threads"],
            children=len(children(pid)),
            memory_mib=fields(f"/proc/{pid}/status", b"RssAnon")[b"RssAnon"] / 1024,
        )
        for pid in first
        if len(family(pid)) > 2
    ]


def vanish(service: Service, kind: dict[str, Any]) -> None:
    """Ask for a run and go away."""
    body = json.dumps({"code": KINDS[SLEEPS], **kind}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(service.socket)
        connection.sendall(b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.2)


def work(service: Service, numbers: list[int], outcomes: Counter[str], kind: dict[str, Any]) -> None:
    """Make these runs, one after the other."""
    with service.client() as client:
        for number in numbers:
            if number % len(KINDS) == SLEEPS:
                vanish(service, kind)
                outcomes["went away"] += 1
            else:
                outcomes[client.run(KINDS[number % len(KINDS)], payload={"n": number}, **kind).outcome] += 1


def quiet(service: Service, client: Client) -> None:
    """Wait until nothing goes on and the pool is as it wants to be."""
    deadline = time.monotonic() + SETTLE_S
    calm = 0
    while calm < 5 and time.monotonic() < deadline:
        health = client.health()
        still = not any(health["runs"].values()) and not health["pool"]["starting"]
        # A sandbox that is ready has one workspace, a warm container too; those being removed still have theirs.
        expected = health["pool"]["ready"] + health["cells"]["containers"]
        calm = calm + 1 if still and len(workspaces()) == expected else 0
        time.sleep(0.2)
    assert service.process.poll() is None, service.log()


def soak(runs: int, clients: int, *, policy: str = "default") -> list[str]:
    """Make the runs and return what is wrong afterwards."""
    kinds = [{"policy": policy, "node_id": f"node-{number}"} for number in range(clients)]
    problems: list[str] = []
    outcomes: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as home,
        served(Path(home), **SETTINGS, XDG_CACHE_HOME=f"{home}/cache") as service,
        service.client() as client,
    ):
        for kind in kinds:
            work(service, list(range(min(WARM_RUNS, runs) // clients)), Counter(), kind)
        quiet(service, client)
        before, makers_before = held(service), makers(service)
        began = time.monotonic()
        shares = [list(range(first, runs, clients)) for first in range(clients)]
        threads = [
            threading.Thread(target=work, args=(service, share, outcomes, kind))
            for share, kind in zip(shares, kinds, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent_s = time.monotonic() - began
        quiet(service, client)
        after, makers_after = held(service), makers(service)
        pool, cells = client.health()["pool"], client.health()["cells"]
        print(f"{runs} runs in {spent_s:.0f} s, {runs / spent_s:.1f} a second: {dict(outcomes)}")
        print(
            f"before {replace(before, files=())}\nafter  {replace(after, files=())}\npool   {pool}\ncells "
            f" {cells}\nmakers {makers_before} {makers_after}"
        )
        if (policy == "cells") != bool(cells["cells"]):
            problems.append("the runs were not in cells" if policy == "cells" else "runs were in cells")
        if sum(one.memory_mib for one in makers_after) > sum(one.memory_mib for one in makers_before) + GROWTH_MIB / 4:
            problems.append(f"the makers of cells grew: {makers_before} {makers_after}")
        if sum(outcomes.values()) != runs:
            problems.append(f"{runs - sum(outcomes.values())} runs have no answer")
        if after.descriptors > before.descriptors + clients + 2 * pool["ready"] + 4:
            problems.append(f"descriptors grew from {before.descriptors} to {after.descriptors}")
        if after.threads > before.threads + clients:
            problems.append(f"threads grew from {before.threads} to {after.threads}")
        if new := set(after.files) - set(before.files):
            problems.append(f"new in the data and the cache: {sorted(new)[:10]}")
        if (
            kept := sum(path.stat().st_size for path in saved(service).rglob("*") if path.parent != saved(service))
        ) > SAVED_MIB << 20:
            problems.append(f"saved files take {kept} bytes")
        if after.children > before.children:
            problems.append(f"processes grew from {before.children} to {after.children}")
        if after.memory_mib > before.memory_mib + GROWTH_MIB:
            problems.append(f"memory grew from {before.memory_mib:.0f} to {after.memory_mib:.0f} MiB")
    if left := left_behind():
        problems.append(f"left when the service had ended: {left}")
    return problems


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Many runs in a row through one service.")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--policy", choices=("default", "cells"), default="default")
    options = parser.parse_args()
    problems = soak(options.runs, options.clients, policy=options.policy)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
