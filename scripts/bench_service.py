"""The service against Podman, bare Python and bubblewrap, interleaved in one process run.

Every round makes one run in each way: through the service with a sandbox that was ready, in a cell, with a sandbox that
has to be made first (a kind of its own), with pandas preloaded (`--libraries`), by `podman run` with the same flags, by
a bare `python3`, and by `bwrap` where that is installed. Ratios are taken within each round. Then: throughput at
several concurrencies, warm runs while the pool starts other sandboxes, payloads of several sizes against `json` in one
process, one payload of 100 MB with the memory that it took, requests while 1 to 1,000 environments are known, and
memory.

The known environments are records without images: what more images cost is Podman's affair, and none of these requests
asks it for a list.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox import places
from sandbox.client import Client, run_body
from sandbox.container.workspace import acquire
from sandbox.engine.podman import PodmanEngine
from sandbox.engine.program import scrubbed_environment
from sandbox.environment.lock import Lock
from sandbox.environment.store import EnvironmentRecord, Store
from sandbox.host.probe import probe
from scripts.bench import build_spec, podman_flags, timed
from tests.integration.service import Service, served

CODE = "result = 6 * 7\n"
PANDAS = "import pandas\nresult = int(pandas.DataFrame(payload)['a'].sum())\n"
IMPORT = "import time\nbegan = time.perf_counter()\nimport pandas\nresult = (time.perf_counter() - began) * 1000\n"
WITH_PANDAS: dict[str, Any] = {"requirements": ["pandas"], "payload": {"a": [1, 2, 3]}, "preload": ["pandas"]}
SIZES = {"1 kB": 1_000, "100 kB": 100_000, "1 MB": 1_000_000, "10 MB": 10_000_000}
LARGE_BYTES = 100_000_000
LARGE_POLICY = """
extends = "default"
limits = {timeout_s = 120, memory_mib = 2048, cpus = 2.0, payload_mib = 128, result_mib = 128}
"""
KNOWN = (1, 10, 100, 1000)
LOCK = Lock(packages=(), python="3.11", requirements=())
READY_S = 20.0
# Messages are many, and short: so many for each of the other runs.
CELL_RUNS = 20
# So long after a run the pool has started what it wants and the machine is quiet again.
SETTLE_S = 0.4


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def await_ready(client: Client) -> None:
    """Wait until a sandbox stands ready and nothing is being started."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        pool = client.health()["pool"]
        if pool["ready"] and not pool["starting"]:
            time.sleep(SETTLE_S)
            return
        time.sleep(0.02)


Rounds = list[dict[str, float]]  # milliseconds by name; a name that a round lacks found no sandbox ready


def times_of(rounds: Rounds) -> dict[str, list[float]]:
    """Return the times of each name."""
    names = dict.fromkeys(name for found in rounds for name in found)
    return {name: [found[name] for found in rounds if name in found] for name in names}


def ratios_of(rounds: Rounds, others: str, ours: str) -> list[float]:
    """Return how many times as long as `ours` the `others` took, round by round."""
    return [found[others] / found[ours] for found in rounds if others in found and ours in found]


def warm(client: Client, code: str = CODE, **options: Any) -> float | None:
    """Time one run that finds a sandbox ready; None when it found none."""
    await_ready(client)
    began = time.perf_counter()
    result = client.run(code, **options)
    spent = (time.perf_counter() - began) * 1000
    assert result.succeeded, result.document
    return spent if result.document["durations"]["warm"] else None


def single(service: Service, runs: int, *, libraries: bool) -> Rounds:
    """Measure single runs in every way, interleaved. With `libraries`, pandas is installed first."""
    rounds: Rounds = []
    runtime_dir, cache = places.runtime_dir(), places.cache_dir()
    facts = probe(runtime_dir)
    engine = PodmanEngine(facts.engine, runtime_dir=runtime_dir)
    work = acquire(runtime_dir)
    try:
        decided = build_spec(facts, engine, work, cache / "images")
        podman = [
            "podman",
            "--runtime",
            facts.engine.runtime_path,
            "run",
            *podman_flags(decided.podman),
            decided.podman["image"],
            *decided.podman["command"],
        ]
        bare = ["/usr/bin/python3", "-I", "-c", CODE]
        with service.client() as client:
            client.run(CODE), client.run(CODE, policy="cells")
            if libraries:
                client.run(PANDAS, **WITH_PANDAS)
            for number in range(runs):
                found = {"service, warm": warm(client), "service, cell": warm(client, policy="cells")}
                # A lower limit makes another kind, for which nothing is ready.
                other = {"limits": {"timeout_s": 20 - number / 1000}}
                found["service, cold"] = milliseconds(lambda: client.run(CODE, **other))  # noqa: B023 - called at once
                found["podman run"] = timed(podman, env=scrubbed_environment())
                found["python3"] = timed(bare)
                if shutil.which("bwrap"):
                    found["bwrap"] = timed(["bwrap", "--ro-bind", "/", "/", "--unshare-all", *bare])
                if libraries:
                    found["pandas preloaded, warm"] = warm(client, PANDAS, **WITH_PANDAS)
                    found["import pandas, inside"] = float(
                        client.run(IMPORT, requirements=["pandas"], preload=[]).value
                    )
                rounds.append({name: spent for name, spent in found.items() if spent is not None})
    finally:
        work.release()
        engine.close()
    return rounds


def throughput(service: Service, concurrency: int, runs: int, policy: str = "default") -> tuple[float, list[float]]:
    """Return runs per second, and the latencies, of so many clients that ask again as soon as they have an answer.

    Each is a node of its own, which has had a run before.
    """
    times: list[float] = []
    left = iter(range(runs))
    lock = threading.Lock()

    def go(node: str) -> None:
        with service.client() as client:
            while True:
                with lock:
                    if next(left, None) is None:
                        return
                times.append(milliseconds(lambda: client.run(CODE, policy=policy, node_id=node)))

    names = [f"node-{number}" for number in range(concurrency)]
    with service.client() as client:
        for name in names:
            client.run(CODE, policy=policy, node_id=name)
    threads = [threading.Thread(target=go, args=(name,)) for name in names]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return runs / (time.perf_counter() - began), times


def payloads(client: Client, rounds: int) -> Rounds:
    """Time payloads in and out, against parsing and writing the same in one process."""
    made: Rounds = []
    texts = {
        name: json.dumps([{"n": n, "text": "x" * 40, "f": n / 7} for n in range(size // 75)]).encode()
        for name, size in SIZES.items()
    }
    for _ in range(rounds):
        found: dict[str, float] = {}
        for name, text in texts.items():
            if (spent := warm(client, "result = payload", payload_json=text)) is not None:
                found[f"service, {name}"] = spent
            found[f"json, {name}"] = milliseconds(lambda: json.dumps(json.loads(text)))  # noqa: B023 - called at once
        made.append(found)
    return made


def while_refilling(client: Client, runs: int) -> list[float]:
    """Time warm runs of one kind while the sandbox that a run of another kind took is being replaced."""
    times: list[float] = []
    other = {"policy": "small"}
    for _ in range(runs):
        deadline = time.monotonic() + READY_S
        client.run(CODE), client.run(CODE, **other)
        while (pool := client.health()["pool"])["ready"] < 2 or pool["starting"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        client.run(CODE, **other)
        while not client.health()["pool"]["starting"] and time.monotonic() < deadline:
            pass
        began = time.perf_counter()
        result = client.run(CODE)
        spent = (time.perf_counter() - began) * 1000
        if result.document["durations"]["warm"]:
            times.append(spent)
    return times


def large_payload() -> dict[str, Any]:
    """Send 100 MB in and back once to its own service; return the time, and the memory that it took at most."""
    text = json.dumps(["x" * 996] * (LARGE_BYTES // 1000)).encode()
    with tempfile.TemporaryDirectory() as home:
        Path(home, "policies").mkdir()
        Path(home, "policies", "large.toml").write_text(LARGE_POLICY)
        with served(Path(home)) as service, service.client() as client:
            client.run(CODE, policy="large")
            before = memory_mib(service.process.pid)
            body = run_body("result = payload", {"policy": "large"}, payload_json=text)
            answer = b""

            def ask() -> None:
                nonlocal answer
                answer = client.raw("POST", "/v1/runs", body)

            spent = milliseconds(ask)
            assert len(answer) > 0.9 * len(text), answer[:1000]  # the result is written without spaces
            return {
                "bytes": len(text),
                "ms": spent,
                "json_ms": milliseconds(lambda: json.dumps(json.loads(text))),
                "before_mib": before,
                "peak_mib": memory_mib(service.process.pid, "VmHWM"),
                "after_mib": memory_mib(service.process.pid),
            }


def environments(service: Service, client: Client, rounds: int) -> dict[str, dict[int, list[float]]]:
    """Time requests, by their name and by how many environments are known."""
    store = Store(service.home / "data" / places.NAME)
    found: dict[str, dict[int, list[float]]] = {"a warm run": {}, "one environment shown": {}, "all listed": {}}
    made = 0
    for count in KNOWN:
        for number in range(made, count):
            store.keep(record(number))
            store.write_environment_lock(record(number).id, LOCK.as_toml())
        made = count
        for _ in range(rounds):
            if (spent := warm(client)) is not None:
                found["a warm run"].setdefault(count, []).append(spent)
            shown = milliseconds(lambda: client.get(f"/v1/environments/{record(0).id[:12]}"))
            found["one environment shown"].setdefault(count, []).append(shown)
            found["all listed"].setdefault(count, []).append(milliseconds(lambda: client.get("/v1/environments")))
    return found


def record(number: int) -> EnvironmentRecord:
    """Return what is kept of an environment that nobody built."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    packages = tuple(f"package{index}==1.{number}" for index in range(20))
    return EnvironmentRecord(
        id=digest,
        image=f"localhost/sandbox-environment:{digest[:32]}",
        image_id=digest,
        base="localhost/sandbox-python:latest",
        base_digest=f"sha256:{digest}",
        lock_hash=LOCK.hash,
        build_hash=f"sha256:{digest}",
        packages=packages,
        requirements=packages[:3],
        size_bytes=1 << 26,
        created=time.time(),
        last_used=time.time(),
    )


def memory_mib(pid: int, which: str = "VmRSS") -> float:
    """Return the resident memory of a process, or the most that it ever was (`VmHWM`)."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def measure(runs: int, *, libraries: bool) -> dict[str, Any]:
    """Measure everything."""
    with (
        tempfile.TemporaryDirectory() as home,
        served(Path(home), SANDBOX_QUEUE__RUNNING="16") as service,
        service.client() as client,
    ):
        report: dict[str, Any] = {"runs": runs, "single_ms": single(service, runs, libraries=libraries)}
        report["memory_mib"] = {"service": memory_mib(service.process.pid), "ready sandbox": idle_mib(client)}
        report["throughput"] = {}
        for concurrency in (1, 2, 4, 8, 16):
            rate, times = throughput(service, concurrency, max(8, 2 * concurrency, runs))
            report["throughput"][concurrency] = {
                "per_s": rate,
                "p50_ms": statistics.median(times),
                "max_ms": max(times),
            }
        report["cells"] = {}
        for concurrency in (1, 2, 4):
            rate, times = throughput(service, concurrency, CELL_RUNS * runs, "cells")
            report["cells"][concurrency] = {"per_s": rate, "times_ms": times}
        report["memory_mib"]["warm container"] = (
            client.health()["cells"]["memory_mib"] / client.health()["cells"]["containers"]
        )
        report["refilling_ms"] = while_refilling(client, runs)
        report["payload_ms"] = payloads(client, max(3, runs // 5))
        report["known_ms"] = environments(service, client, max(3, runs // 5))
        report["memory_mib"]["service, in the end"] = memory_mib(service.process.pid)
    report["large_payload"] = large_payload()
    return report


def idle_mib(client: Client) -> float:
    """Return the memory of one ready sandbox."""
    await_ready(client)
    pool = client.health()["pool"]
    return float(pool["memory_mib"]) / max(1, pool["ready"] + pool["starting"])


COMPARED = (
    *((other, "service, warm") for other in ("podman run", "python3", "bwrap", "service, cold", "service, cell")),
    ("import pandas, inside", "pandas preloaded, warm"),
)


def row(name: str, values: list[float]) -> str:
    """Return one line: name, least, median, 99th of a hundred, greatest."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return (
        f"  {name:<36} {ordered[0]:9.1f} {statistics.median(ordered):9.1f} {p99:9.1f} {ordered[-1]:9.1f}  "
        f" {len(ordered)}"
    )


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    print("milliseconds: least, median, p99, greatest; how many")
    single_ms, payload_ms = report["single_ms"], report["payload_ms"]
    times = {**times_of(single_ms), "service, warm, pool refills": report["refilling_ms"], **times_of(payload_ms)}
    for name, values in times.items():
        print(row(name, values))
    print("ratios, taken within each round")
    for other, ours in COMPARED:
        if found := ratios_of(single_ms, other, ours):
            print(row(f"{other} / {ours}", found))
    for name in SIZES:
        print(row(f"service / json, {name}", ratios_of(payload_ms, f"service, {name}", f"json, {name}")))
    for name, by_count in report["known_ms"].items():
        for count, values in by_count.items():
            print(row(f"{name}, {count} known", values))
    large = report["large_payload"]
    print(
        f"100 MB in and back, once: {large['ms']:.0f} ms, json alone {large['json_ms']:.0f} ms; memory of the service"
        f" in MiB: {large['before_mib']:.0f} before, {large['peak_mib']:.0f} at most, {large['after_mib']:.0f} after"
    )
    print("throughput: clients, runs per second, median and greatest latency in milliseconds")
    for concurrency, found in report["throughput"].items():
        print(f"  {concurrency:>3} {found['per_s']:8.1f} {found['p50_ms']:9.1f} {found['max_ms']:9.1f}")
    print("cells, message after message: clients (each a node of its own), runs per second")
    for concurrency, found in report["cells"].items():
        print(f"  {concurrency:>3} {found['per_s']:8.1f}")
        print(row(f"cell, {concurrency} clients", found["times_ms"]))
    print("memory in MiB: " + ", ".join(f"{name} {value:.1f}" for name, value in report["memory_mib"].items()))


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench service", description="Measure the service against others.")
    parser.add_argument("--runs", type=int, default=50, help="rounds")
    parser.add_argument("--libraries", action="store_true", help="pandas as well; needs the package index, once")
    parser.add_argument("--json", action="store_true", help="print all times as JSON")
    arguments = parser.parse_args()
    os.environ.setdefault("LANG", "C.UTF-8")
    if shutil.which("podman") is None:
        sys.exit("podman is not installed; run scripts/setup")
    report = measure(arguments.runs, libraries=arguments.libraries)
    print(json.dumps(report)) if arguments.json else show(report)


if __name__ == "__main__":
    main()
