"""Real sandboxes for attacks: the product's own, or weakened by one control so that the attack must succeed.

A `Weakening` changes what Podman is told; the specification that verification compares with stays as it was. So one
run shows both: that the attack works without the control, and that verification names the control it misses.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import resource
import socket
import textwrap
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sandbox.cell.cell import WarmContainer
from sandbox.cell.group import CellLimits
from sandbox.cell.warm import CellPool
from sandbox.container import spec
from sandbox.container.container import Container
from sandbox.container.standby import fresh
from sandbox.engine.podman import PodmanEngine
from sandbox.engine.protocol import Engine
from sandbox.errors import NotEnforceable
from sandbox.host.facts import HostFacts
from sandbox.models import Outcome, RunRequest, RunResult, Tightening
from sandbox.policy.load import load_policy
from sandbox.policy.model import Policy
from sandbox.run.decision import Run
from sandbox.runner import Places, Runner
from sandbox.wire.answers import CellCounts
from tests.waiting import SLOWER

T = TypeVar("T")

# On an emulated processor everything takes longer, and what a test allows for time grows with it.

# Where the programs of the attacks run: each in a container of its own, or each in a cell of a warm one.
IN_CELLS = os.environ.get("SANDBOX_ESCAPE_IN") == "cell"

# Small limits, so that reaching them is cheap.
ESCAPE_POLICY = f"""
extends = "default"
description = "Small limits for tests that reach them"
limits.timeout_s = {8 * SLOWER:g}
limits.memory_mib = 256
limits.processes = 48
limits.open_files = 64
limits.output_mib = 1
limits.result_mib = 1
limits.files_mib = 2
limits.files_count = 10
limits.log_records = 100
filesystem.app_mib = 16
filesystem.tmp_mib = 8
filesystem.shm_mib = 8
isolation.per_run = "{"cell" if IN_CELLS else "container"}"
"""


# ---------------------------------------------------------------- weakened sandboxes


@dataclass(frozen=True, kw_only=True)
class Weakening:
    """One control removed from what Podman is told. `controls` are those that verification must name."""

    name: str
    controls: frozenset[str]
    apply: Callable[[dict[str, Any]], None]
    unlimited: frozenset[int] = frozenset()  # kinds of resource limits that aren't set from outside either

    def __add__(self, other: Weakening) -> Weakening:
        def both(podman: dict[str, Any]) -> None:
            self.apply(podman)
            other.apply(podman)

        return Weakening(
            name=f"{self.name} and {other.name}",
            controls=self.controls | other.controls,
            apply=both,
            unlimited=self.unlimited | other.unlimited,
        )


def weakening(name: str, *controls: str, **keys: Any) -> Weakening:
    """Return a weakening that sets keys of Podman's create body; a value of None deletes the key."""

    def apply(podman: dict[str, Any]) -> None:
        for key, value in keys.items():
            podman.pop(key, None)
            if value is not None:
                podman[key] = value

    return Weakening(name=name, controls=frozenset(controls), apply=apply)


def tmpfs_option(destination: str, old: str, new: str | None, name: str) -> Weakening:
    """Return a weakening that replaces the mount options starting with `old`."""

    def apply(podman: dict[str, Any]) -> None:
        mount = next(mount for mount in podman["mounts"] if mount["destination"] == destination)
        mount["options"] = [option for option in mount["options"] if not option.startswith(old)] + (
            [new] if new else []
        )

    return Weakening(name=name, controls=frozenset({f"tmpfs {destination}"}), apply=apply)


def podmans_own(destination: str, *controls: str) -> Weakening:
    """Return a weakening that leaves what is mounted at a place, and below it, to Podman."""

    def apply(podman: dict[str, Any]) -> None:
        podman["mounts"] = [mount for mount in podman["mounts"] if not mount["destination"].startswith(destination)]

    return Weakening(name=f"Podman's own {destination}", controls=frozenset(controls), apply=apply)


def without_rlimit(kind: str, *controls: str) -> Weakening:
    """Return a weakening that leaves one resource limit to what the engine gives by default."""

    def apply(podman: dict[str, Any]) -> None:
        podman["r_limits"] = [limit for limit in podman["r_limits"] if limit["type"] != kind]
        podman.get("resource_limits", {}).pop({"nproc": "pids"}.get(kind, ""), None)

    kinds = frozenset({getattr(resource, f"RLIMIT_{kind.upper()}")})
    return Weakening(name=f"no {kind} limit", controls=frozenset(controls), apply=apply, unlimited=kinds)


def extra_mount(source: Path, destination: str, *options: str) -> Weakening:
    """Return a weakening that shows the sandbox a directory of the host."""

    def apply(podman: dict[str, Any]) -> None:
        podman["mounts"].append(
            {"destination": destination, "type": "bind", "source": str(source), "options": ["bind", *options]}
        )

    return Weakening(name=f"a mount at {destination}", controls=frozenset({"mounts"}), apply=apply)


def other_harness(directory: Path) -> Weakening:
    """Return a weakening that starts another harness; verification can't tell, so it names nothing."""

    def apply(podman: dict[str, Any]) -> None:
        mount = next(mount for mount in podman["mounts"] if mount["destination"] == spec.LIB_DIR)
        mount["source"] = str(directory)

    return Weakening(name="another harness", controls=frozenset(), apply=apply)


UNCONFINED = weakening("no seccomp filter", "seccomp", seccomp_profile_path="unconfined")
WRITABLE_ROOT = weakening("a writable root", "read-only root", read_only_filesystem=False)
AS_ROOT = weakening("container root", "non-root user", user="0:0")
# Root of the container is the calling user on the host, whose processes outside would count against the limit.
CONTAINER_ROOT = AS_ROOT + without_rlimit("nproc", "processes")
HOST_NETWORK = weakening("the host's network", "namespaces", "no network", netns={"nsmode": "host"})
NEW_PRIVILEGES = weakening("new privileges", "no new privileges", no_new_privileges=False)
UNMASKED = weakening("no masks", "masked kernel files", mask=None, unmask=["ALL"])


class WeakSandbox(Container):
    """A sandbox whose container is weaker than its specification; the real verification's verdict is kept."""

    def __init__(self, engine: Engine, decided: spec.ContainerSpec, weaken: Weakening) -> None:
        super().__init__(engine, decided)
        self._weaken = weaken
        self.refusal: NotEnforceable | None = None

    def _check_peer(self, connection: socket.socket) -> None:
        """Accept whoever connects."""

    def _create(self) -> tuple[str, ...]:
        podman = copy.deepcopy(self.spec.podman)
        self._weaken.apply(podman)
        self.container_id, warnings = self._engine.create(podman)
        return warnings

    def confine(self) -> None:
        real = resource.prlimit

        def prlimit(pid: int, kind: int, limits: tuple[int, int]) -> tuple[int, int]:
            return (0, 0) if kind in self._weaken.unlimited else real(pid, kind, limits)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resource, "prlimit", prlimit)
            super().confine()

    def _verify(self) -> None:
        try:
            super()._verify()
        except NotEnforceable as refusal:
            if "controls" not in refusal.facts:
                raise  # it could not be read back at all
            self.refusal = refusal


class StrictWeakSandbox(WeakSandbox):
    """The same, with the product's own consequence: no job for a container that differs."""

    def _check_peer(self, connection: socket.socket) -> None:
        Container._check_peer(self, connection)

    def _verify(self) -> None:
        Container._verify(self)


@contextmanager
def weakened(weaken: Weakening, kind: type[WeakSandbox] = WeakSandbox) -> Iterator[list[WeakSandbox]]:
    """Have the product make such sandboxes instead of its own; give those that were made."""
    made: list[WeakSandbox] = []

    def make(engine: Engine, decided: spec.ContainerSpec) -> WeakSandbox:
        made.append(kind(engine, decided, weaken))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sandbox.container.standby.Container", make)
        yield made


@dataclass(frozen=True, kw_only=True)
class WeakResult:
    """What a program reached in a weakened sandbox, and which controls verification found missing."""

    result: RunResult
    noticed: frozenset[str]

    @property
    def value(self) -> Any:
        """Return the program's result. Fails the test when there is none."""
        return value_of(self.result)


def tightening(**limits: Any) -> Tightening:
    """Return the lower limits of one request."""
    return Tightening(**limits)


def value_of(result: RunResult) -> Any:
    """Return the program's result. Fails the test when there is none."""
    assert result.outcome is Outcome.SUCCEEDED, (result.outcome, result.explanation, result.error, result.stderr[-500:])
    assert result.result_json is not None
    return json.loads(result.result_json)


# ---------------------------------------------------------------- runs in cells


class CellRuns:
    """Runs in cells, whose warm containers live on from test to test, as they do from message to message."""

    def __init__(self, bench: Bench, *, expected: str = "namespaces") -> None:
        """Expect receipts to say that runs were held by what has `expected` in its name."""
        self._expected = expected
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._bench = bench
        self._cells = self._call(self._open())
        self._runner = Runner(lambda: bench.engine, bench.facts, bench.places, source=self._cells.source)

    async def _open(self) -> CellPool:
        bench = self._bench
        make = partial(WarmContainer, engine=bench.engine, facts=bench.facts, places=bench.places)
        containers = fresh(bench.engine, bench.facts, bench.places)
        return await CellPool(
            make, containers, CellLimits(per_node=1, memory_mib=1024), start_s=lambda _: 0.5
        ).__aenter__()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120 * SLOWER)

    def counts(self) -> CellCounts:
        """Return what there is."""
        return self._cells.counts()

    def makers(self) -> list[WarmContainer]:
        """Return the warm containers."""
        return self._cells.makers()

    def run(
        self, request: RunRequest, *, caller: str = "attacker", cancel: asyncio.Event | None = None, **about: Any
    ) -> RunResult:
        """Run one; the receipt says that it was in a cell, unless its policy has a way out."""
        result = self._call(self._runner.run(Run(request=request, caller=caller, **about), cancel=cancel))
        wanted = self._bench.policy(request.policy).isolation.per_run
        if wanted == "cell" and result.receipt is not None:
            row = next(row for row in result.receipt.controls if row.control == "isolation")
            assert self._expected in row.mechanism, row
        return result

    def close(self) -> None:
        """Remove the warm containers, and end the thread."""
        self._call(self._cells.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


# ---------------------------------------------------------------- the bench


@dataclass(kw_only=True)
class Bench:
    """Runs programs in real sandboxes, the product's own or weakened ones."""

    engine: PodmanEngine
    facts: HostFacts
    places: Places
    policies: Path
    made: int = 0
    warm: CellRuns | None = None

    def policy(self, name: str = "escape") -> Policy:
        """Load a policy; what the tests compare with comes from here."""
        return load_policy(name, directories=self.places.policy_dirs).policy

    def policy_with(self, **values: Any) -> str:
        """Write a policy of `default`, the small limits and these (`limits__cpus=0.5`); return its name."""
        self.made += 1
        if "limits__timeout_s" in values:
            values["limits__timeout_s"] *= SLOWER
        name = f"escape-{self.made}"
        keys = {key.replace("__", "."): json.dumps(value) for key, value in values.items()}
        if values.get("network__mode", "none") != "none":
            keys["isolation.per_run"] = json.dumps("container")  # a way out is for one container alone
        kept = [line for line in ESCAPE_POLICY.splitlines() if line.partition(" =")[0] not in keys]
        lines = [*kept, *(f"{key} = {value}" for key, value in keys.items())]
        (self.policies / f"{name}.toml").write_text("\n".join(lines) + "\n")
        return name

    def request(
        self, code: str, *, payload: Any = None, secrets: dict[str, str] | None = None, **fields: Any
    ) -> RunRequest:
        """Return a request under the policy `escape` unless another is named."""
        return RunRequest(
            code=textwrap.dedent(code),
            payload_json=json.dumps(payload).encode(),
            secrets=secrets or {},
            **{"policy": "escape", "filename": "attack.py", **fields},
        )

    def runner(self) -> Runner:
        """Return the product's runner on the shared engine."""
        return Runner(lambda: self.engine, self.facts, self.places)

    def run(self, code: str, **fields: Any) -> RunResult:
        """Run a program as the product does."""
        return self.carry_out(self.request(code, **fields))

    def carry_out(self, request: RunRequest, *, cancel: asyncio.Event | None = None, **about: Any) -> RunResult:
        """Run a request, in a cell where the attacks are made there; `about` is what else a `Run` has."""
        if not IN_CELLS:
            return asyncio.run(self.runner().run(Run(request=request, **about), cancel=cancel))
        self.warm = self.warm or CellRuns(self)
        return self.warm.run(request, cancel=cancel, **about)

    def close(self) -> None:
        """Remove the warm containers."""
        if self.warm is not None:
            self.warm.close()

    def value(self, code: str, **fields: Any) -> Any:
        """Run a program that must succeed; return its result."""
        return value_of(self.run(code, **fields))

    def run_weakened(self, code: str, weaken: Weakening, **fields: Any) -> WeakResult:
        """Run a program with a control removed and verification's objection noted instead of obeyed."""
        result, sandbox = self._run_in(WeakSandbox, weaken, self.request(code, **fields))
        noticed = frozenset(sandbox.refusal.facts["controls"]) if sandbox.refusal else frozenset()
        return WeakResult(result=result, noticed=noticed)

    def refusal(self, weaken: Weakening) -> NotEnforceable:
        """Return the product's refusal of a weakened container. Fails the test when it hands over the job."""
        with pytest.raises(NotEnforceable) as caught:
            self._run_in(StrictWeakSandbox, weaken, self.request("result = 1"))
        return caught.value

    def _run_in(self, kind: type[WeakSandbox], weaken: Weakening, request: RunRequest) -> tuple[RunResult, WeakSandbox]:
        """Run a request on the product's own path, with another class in the place of `Container`."""
        with weakened(weaken, kind) as made:
            return asyncio.run(self.runner().run(Run(request=request))), made[-1]
