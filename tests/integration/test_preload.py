"""Modules imported in a sandbox ahead of its job: there for the program, held like it, and never a reason to fail."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sandbox.container.preload import at_rest
from sandbox.container.standby import Places, ReadySandbox, Setting, fresh
from sandbox.kernel import process as kernel
from sandbox.kernel.family import family
from sandbox.models import Outcome, RunRequest, RunResult, Tightening
from sandbox.run.decision import Run
from sandbox.runner import Runner
from tests.escape.bench import Bench, value_of
from tests.integration.belongings import command_line
from tests.integration.desk import Desk, desk, index, shared_images
from tests.integration.package_index import PackageIndex, wheel
from tests.unit.test_harness_preload import STATE
from tests.waiting import until

__all__ = ["desk", "index", "shared_images"]  # fixtures

pytestmark = pytest.mark.podman
TABLES = ("pandas", "scikit-learn")
# What holds the process that runs this: limits, cores, system-call filter, rights.
HELD = """
import os, resource
def status():
    rows = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return {name: rows[name].strip() for name in ("Seccomp", "NoNewPrivs", "CapEff", "Uid", "Cpus_allowed_list")}
limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
HELD = [status(), limits, sorted(os.sched_getaffinity(0))]
"""
# What an import can do to the sandbox that it happens in.
HARM = {
    "leaves": "import os\nos._exit(0)",
    "hangs": "import time\ntime.sleep(600)",
    "threads": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "forks": "import os, time\nif not os.fork():\n    os.setsid()\n    time.sleep(600)",
    "greedy": (
        "import os\nfor _ in range(8):\n    if not os.fork():\n        kept = bytearray(b'x') * (200 << 20)\n       "
        " os.wait()"
    ),
    "talks": "import os\nfor fd in range(3, 10):\n    try: os.write(fd, b'R' + bytes(40))\n    except OSError: pass",
    "closes": "import os\nos.closerange(3, 100)",
    "raises": "raise SystemExit('nothing')",
}


class Preloading:
    """Runs requests, each in a sandbox of its own that has imported `modules` by then; keeps what became of them."""

    def __init__(
        self, bench: Bench, places: Places, *modules: str, look: Callable[[ReadySandbox], Any] = lambda _: None
    ) -> None:
        self.modules = modules
        self.seen: list[tuple[str, ...]] = []
        self.rested: list[bool] = []
        self.looked: list[Any] = []
        self._look = look
        self._start = fresh(bench.engine, bench.facts, places)
        self._runner = Runner(lambda: bench.engine, bench.facts, places, source=self._source)

    @contextlib.asynccontextmanager
    async def _source(self, setting: Setting, run_id: str) -> AsyncIterator[ReadySandbox]:
        async with self._start(dataclasses.replace(setting, preload=self.modules), run_id) as ready:
            self.seen.append(ready.preloaded)
            self.rested.append(at_rest(ready.sandbox))
            self.looked.append(self._look(ready))
            yield ready

    def run(self, code: str, *requirements: str, **fields: Any) -> RunResult:
        return asyncio.run(self._runner.run(Run(request=RunRequest(code=code, requirements=requirements, **fields))))


@pytest.fixture
def libraries(desk: Desk, index: PackageIndex) -> tuple[str, ...]:
    """Publish a library that does no harm, and one for each harm; return how to ask for them."""
    files = {"good.py": "VALUE = 42\n", "held.py": HELD, **{f"{name}.py": text for name, text in HARM.items()}}
    index.add(wheel("several", "1.0", files))
    return ("several",)


def test_a_module_of_an_environment_is_there_before_the_first_line(
    bench: Bench, desk: Desk, libraries: tuple[str, ...]
) -> None:
    preloading = Preloading(bench, desk.places, "good", "not_there")
    code = "import sys\nresult = ['good' in sys.modules, sys.modules['good'].VALUE, sys.modules['good'].__file__]"
    done = preloading.run(code, *libraries, policy="local")
    assert value_of(done) == [True, 42, "/opt/environment/good.py"]
    assert preloading.seen == [("good",)]
    assert preloading.rested == [True]


def test_an_import_is_held_as_the_program_is(bench: Bench, desk: Desk, libraries: tuple[str, ...]) -> None:
    preloading = Preloading(bench, desk.places, "held")
    done = preloading.run(f"import held\n{HELD}\nresult = [held.HELD, HELD]", *libraries, policy="local")
    at_import, in_program = value_of(done)
    assert preloading.seen == [("held",)]
    assert at_import == in_program
    assert in_program[0]["Seccomp"] == "2"


def held(pid: int) -> dict[str, Any]:
    """Return what the kernel says of what holds one process."""
    facts = kernel.read_process(pid)
    named = ("Seccomp", "NoNewPrivs", "CapEff", "CapBnd", "Uid", "Gid", "Cpus_allowed_list")
    status = {name: facts.status[name] for name in named}
    return {**status, **facts.limits, **facts.namespaces, "cores": sorted(os.sched_getaffinity(pid))}


def test_the_process_that_waits_for_the_job_is_held_as_process_1_is(
    bench: Bench, desk: Desk, libraries: tuple[str, ...]
) -> None:
    def look(ready: ReadySandbox) -> Any:
        spec = ready.sandbox.spec
        first, waiting = family(ready.sandbox.pid)
        return held(first), held(waiting), spec.nproc, spec.cpu_ids, ready.memory_mib()

    preloading = Preloading(bench, desk.places, "good", look=look)
    result = "result = __import__('good').VALUE"
    assert value_of(preloading.run(result, *libraries, policy="local")) == 42
    ((first, waiting, nproc, cpu_ids, memory_mib),) = preloading.looked
    assert waiting == first
    assert waiting["Max processes"] == f"{nproc} {nproc}"
    assert cpu_ids is None or waiting["cores"] == sorted(cpu_ids)
    assert 1 < memory_mib < 15


def test_a_waiting_process_that_died_costs_the_run_nothing(
    bench: Bench, desk: Desk, libraries: tuple[str, ...]
) -> None:
    def kill(ready: ReadySandbox) -> None:
        _, waiting = family(ready.sandbox.pid)
        os.kill(waiting, signal.SIGKILL)
        until(lambda: any(command_line(waiting)), False)

    preloading = Preloading(bench, desk.places, "good", look=kill)
    done = preloading.run("import sys; result = sys.modules['good'].VALUE", *libraries, policy="local")
    assert value_of(done) == 42


def test_whatever_an_import_does_the_run_has_its_sandbox(
    bench: Bench, desk: Desk, libraries: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sandbox.container.preload.READY_TIMEOUT_S", 3.0
    )  # long enough for what ends, short for what hangs
    loaded = {}
    for harm in HARM:
        preloading = Preloading(bench, desk.places, "good", harm)
        code = f"import sys, good\nresult = [good.VALUE, {harm!r} in sys.modules]"
        assert value_of(preloading.run(code, *libraries, policy="local")) == [42, False], harm
        assert preloading.rested == [True], harm
        loaded[harm] = preloading.seen
    assert loaded == {**{harm: [()] for harm in HARM}, "raises": [("good",)]}
    assert desk.left() == []


def test_the_program_sees_the_same_as_without_preloading(bench: Bench, desk: Desk, libraries: tuple[str, ...]) -> None:
    ordinary = value_of(desk.run(STATE, *libraries))
    preloading = Preloading(bench, desk.places, "good", "not_there")
    preloaded = value_of(preloading.run(STATE, *libraries, policy="local"))
    assert preloading.seen == [("good",)]
    assert "/opt/environment" in preloaded["path"]
    assert preloaded["environ"]["PYTHONPATH"] == "/opt/environment"
    assert preloaded == ordinary


# ---- real libraries

SCIKIT = """
import sys
before = [name in sys.modules for name in ("pandas", "sklearn.cluster")]
import numpy, pandas, threading
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from threadpoolctl import threadpool_info
table = pandas.DataFrame(numpy.random.default_rng(1).random((2000, 8)))
square = numpy.random.default_rng(1).random((600, 600))
float((square @ square).sum())
KMeans(4, n_init=1, random_state=1).fit(table)
forest = RandomForestClassifier(20, n_jobs=2, random_state=1).fit(table, table[0] > 0.5)
numpy.linalg.svd(square)
result = {
    "before": before, "pools": sorted({pool["num_threads"] for pool in threadpool_info()}),
    "right": forest.score(table, table[0] > 0.5) > 0.95, "random": [numpy.random.random(), __import__("random").random()],
}
"""


@pytest.mark.host_only
@pytest.mark.parametrize("cpus", [1, 2])
def test_numeric_libraries_work_after_the_fork_with_the_threads_of_the_policy(bench: Bench, cpus: int) -> None:
    preloading = Preloading(bench, bench.places, "pandas", "sklearn.cluster")
    policy = bench.policy_with(limits__cpus=cpus, limits__memory_mib=512, limits__processes=64, limits__timeout_s=60)
    first, second = [value_of(preloading.run(SCIKIT, *TABLES, policy=policy)) for _ in range(2)]
    assert preloading.seen == [("pandas", "sklearn.cluster")] * 2
    assert preloading.rested == [True, True]
    assert first["before"] == [True, True]
    assert first["pools"] == [cpus]
    assert first["right"]
    assert not set(first["random"]) & set(second["random"])


@pytest.mark.host_only
def test_preloaded_memory_counts_once(bench: Bench) -> None:
    preloading = Preloading(bench, bench.places, "pandas", "sklearn.cluster")
    limits = Tightening(memory_mib=320)
    # Process 1 and the program share some 100 MiB: counted twice, 150 more would be too much.
    fits = "import time, pandas\nkept = bytearray(150 << 20)\ntime.sleep(0.5)\nresult = len(kept)"
    assert preloading.run(fits, *TABLES, limits=limits).outcome is Outcome.SUCCEEDED
    exceeds = fits.replace("150", "300")
    assert preloading.run(exceeds, *TABLES, limits=limits).outcome is Outcome.OUT_OF_MEMORY
