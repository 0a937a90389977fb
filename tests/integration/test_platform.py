"""What this very host holds, and by what: one column of docs/platforms.md."""

from __future__ import annotations

import subprocess
from pathlib import Path

from sandbox.host.facts import HostFacts
from tests import platforms
from tests.command import document, sandbox


def cgroup_of(facts: HostFacts) -> str:
    if facts.engine.cgroup_version == 1:
        return "v1 hybrid" if Path("/sys/fs/cgroup/unified").exists() else "v1"
    missing = sorted({"cpu", "memory", "pids"} - facts.controllers)
    return "v2, delegated" if not missing else f"v2, without {', '.join(missing)}"


def test_each_control_is_held_as_the_documentation_says(
    host_facts: HostFacts, tmp_path: Path, record_property: platforms.Record
) -> None:
    script = tmp_path / "one.py"
    script.write_text("result = 1")
    receipt = document("run", script)["receipt"]
    strict = sandbox("run", script, "--policy", "strict").returncode
    assert strict in (0, 4)
    held_by_cgroup = {row["control"] for row in receipt["controls"] if row["mechanism"] == "cgroup"}
    assert (strict == 0) == ({"memory", "cpus", "processes"} <= held_by_cgroup)
    platforms.record(
        record_property,
        cgroup=cgroup_of(host_facts),
        receipt=receipt,
        policies={"default": "runs", "strict": "refuses" if strict else "runs"},
    )


def test_a_runtime_that_starts_nothing_is_left_aside(host_facts: HostFacts, record_property: platforms.Record) -> None:
    for name, why in host_facts.rejected_runtimes.items():
        assert host_facts.engine.runtime != name
        if why == "not installed":
            continue
        version = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
        platforms.record_useless_runtime(
            record_property,
            cgroup=cgroup_of(host_facts),
            podman=".".join(map(str, host_facts.engine.version)),
            runtime=f"{name} {platforms.minor(version)}",
            why="starts nothing",
        )
