"""`strict` runs here, with each of the two OCI runtimes, and every control is proven."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator

import pytest
from msgspec import to_builtins

from sandbox import places
from sandbox.engine import program as podman_program
from sandbox.engine.podman import PodmanEngine
from sandbox.host.probe import probe
from sandbox.models import Outcome
from tests import platforms
from tests.command import sandbox
from tests.escape.bench import Bench


def test_the_doctor_finds_nothing_missing() -> None:
    report = json.loads(sandbox("doctor", "--json").stdout)
    assert {row["name"]: row["status"] for row in report["capabilities"] if row["status"] != "ok"} == {}
    assert {policy["name"]: policy["can_run"] for policy in report["policies"]} == {
        "cells": True,
        "default": True,
        "strict": True,
    }


@contextlib.contextmanager
def bench_with(runtime: str, bench: Bench) -> Iterator[Bench]:
    """Give the bench where its Podman uses this OCI runtime, else one for it, whichever comes first elsewhere."""
    if bench.facts.engine.runtime == runtime:
        yield bench
        return
    directory = places.private_directory(places.runtime_dir() / f"only-{runtime}")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(podman_program, "RUNTIMES", (runtime,))
            facts = probe(directory, fresh=True)
        assert facts.engine.runtime == runtime
        engine = PodmanEngine(facts.engine, runtime_dir=directory)
        try:
            where = dataclasses.replace(bench.places, runtime_dir=directory)
            yield dataclasses.replace(bench, engine=engine, facts=facts, places=where)
        finally:
            engine.close()
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_both_runtimes_hold_both_policies(runtime: str, bench: Bench, record_property: platforms.Record) -> None:
    with bench_with(runtime, bench) as its_bench:
        results = {policy: its_bench.run("result = 1", policy=policy) for policy in ("default", "strict")}
    for result in results.values():
        assert result.outcome is Outcome.SUCCEEDED, result.explanation
        assert result.receipt is not None
        assert result.receipt.runtime.startswith(runtime)
        assert {row.status for row in result.receipt.controls} == {"proven"}
        by_cgroup = {row.control for row in result.receipt.controls if row.mechanism == "cgroup"}
        assert by_cgroup == {"memory", "cpus", "processes"}
    receipt = results["default"].receipt
    assert receipt is not None
    platforms.record(
        record_property,
        cgroup="v2, delegated",
        receipt=to_builtins(receipt),
        policies={"default": "runs", "strict": "runs"},
    )
