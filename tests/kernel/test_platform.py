"""`strict` runs here, with each of the two OCI runtimes, and every control is proven."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sandbox import places, podman_program
from sandbox.host import probe
from sandbox.models import Outcome, RunRequest, RunResult
from sandbox.podman_engine import PodmanEngine
from sandbox.policy_file import policy_directories
from sandbox.runner import Places, Runner
from tests import platforms
from tests.command import document, sandbox


def test_strict_runs_and_every_control_is_proven(tmp_path: Path) -> None:
    script = tmp_path / "one.py"
    script.write_text("result = sum(payload)")
    found = document("run", script, "--policy", "strict", "--input", "[20, 22]")
    assert (found["outcome"], found["result"]) == ("succeeded", 42)
    controls = {row["control"]: row for row in found["receipt"]["controls"]}
    assert {row["status"] for row in controls.values()} == {"proven"}
    assert {name for name, row in controls.items() if row["mechanism"] == "cgroup"} == {"memory", "cpus", "processes"}


def test_the_doctor_finds_nothing_missing() -> None:
    report = json.loads(sandbox("doctor", "--json").stdout)
    assert {row["name"]: row["status"] for row in report["capabilities"] if row["status"] != "ok"} == {}
    assert all(policy["can_run"] for policy in report["policies"])


def run_with(runtime: str, policy: str, directory: Path) -> RunResult:
    """Run one script with this OCI runtime, whichever comes first elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(podman_program, "RUNTIMES", (runtime,))
        facts = probe(directory, fresh=True)
    assert facts.engine.runtime == runtime
    engine = PodmanEngine(facts.engine, runtime_dir=directory)
    try:
        where = Places(
            runtime_dir=directory,
            cache_dir=places.cache_dir(),
            data_dir=places.data_dir(),
            policy_dirs=policy_directories([]),
        )
        request = RunRequest(code="result = 1", payload_json=b"null", policy=policy, filename="one.py")
        return asyncio.run(Runner(lambda: engine, facts, where).run(request))
    finally:
        engine.close()


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_both_runtimes_hold_both_policies(runtime: str, record_property: platforms.Record) -> None:
    directory = places.private_directory(places.runtime_dir() / f"only-{runtime}")
    try:
        results = {policy: run_with(runtime, policy, directory) for policy in ("default", "strict")}
    finally:
        shutil.rmtree(directory)
    for result in results.values():
        assert result.outcome is Outcome.SUCCEEDED, result.explanation
        assert result.receipt is not None
        assert {row.status for row in result.receipt.controls} == {"proven"}
    receipt: dict[str, Any] = results["default"].receipt.model_dump()  # type: ignore[union-attr]  # checked above
    platforms.record(
        record_property, cgroup="v2, delegated", receipt=receipt, policies={"default": "runs", "strict": "runs"}
    )
