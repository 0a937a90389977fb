"""A defect on purpose: one cap is never set, while verification and receipt go on to claim it."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.container import spec, verify
from sandbox.container.spec import OWN_PROCESSES, Cap, ContainerSpec
from sandbox.container.verify import Observed
from sandbox.policy.model import Policy

# The cap's name in a policy: its key in the body for Podman.
CAPS = {"memory": "memory", "cpus": "cpu", "processes": "pids"}


def claimed(decided: ContainerSpec, control: str) -> str:
    """Return the evidence that verification would read if the cap were there."""
    return {
        "memory": f"memory.max {decided.memory_bytes}, memory.swap.max 0; {verify.LEFT_OUT}",
        "cpus": f"cpu.max {decided.cpus} CPUs",
        "processes": f"pids.max {decided.processes + OWN_PROCESSES}",
    }[control]


def break_cap(control: str, patch: pytest.MonkeyPatch) -> None:
    """Leave `control` out of every container from here on, and lie about it."""
    real_limits, real_evidence = spec.resource_limits, verify.cgroup_evidence

    def resource_limits(policy: Policy, caps: tuple[Cap, ...], own_processes: int) -> dict[str, Any]:
        limits = real_limits(policy, caps, own_processes)
        limits.pop(CAPS[control])
        return limits

    def cgroup_evidence(decided: ContainerSpec, seen: Observed, asked: str) -> tuple[str, bool]:
        return (claimed(decided, control), True) if asked == control else real_evidence(decided, seen, asked)

    patch.setattr(spec, "resource_limits", resource_limits)
    patch.setattr(verify, "cgroup_evidence", cgroup_evidence)
