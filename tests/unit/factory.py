"""Specifications and hosts for tests of pure functions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sandbox.container.spec import ContainerSpec, Place, build
from sandbox.container.standby import Setting
from sandbox.host.facts import HostFacts
from sandbox.models import RunRequest
from sandbox.policy.directories import policy_directories
from sandbox.policy.load import load_policy
from sandbox.policy.model import Policy
from sandbox.policy.seccomp import load_profile
from sandbox.run.decision import DecidedRun, Permitted, Run
from sandbox.service.intake.asked import request_of, run_asked
from sandbox.service.intake.bodies import Written
from tests.fake_engine import fake_info


def policy(name: str = "default") -> Policy:
    return load_policy(name, directories=policy_directories()).policy


KNOWN = {name: policy(name).limits.code_kib for name in ("default", "strict")}


def wanted(body: Written) -> RunRequest:
    """Return the request that the body of a run stands for, of a caller who may use the policies in `KNOWN`."""
    asked, parts = run_asked(body, KNOWN)
    return request_of(asked, [bytes(memoryview(part)) for part in parts])


def host(**changes: Any) -> HostFacts:
    """Return a cgroup v2 host with all controllers delegated, with changes."""
    info = fake_info()
    known = HostFacts(
        uid=1000,
        engine=info,
        controllers=frozenset(info.cgroup_controllers),
        subuid_start=100_000,
        subuid_count=65_536,
        subgid_start=200_000,
        subgid_count=65_536,
        cpu_ids=(0, 1, 2, 3),
        kernel="6.12",
        architecture="x86_64",
        rejected_runtimes={},
    )
    return dataclasses.replace(known, **changes)


def old_host() -> HostFacts:
    """Return a cgroup v1 host."""
    return host(engine=fake_info(cgroup_version=1, cgroup_controllers=()), controllers=frozenset())


def decided(setting: Setting, run: Run) -> DecidedRun:
    """Return a run in such a sandbox."""
    permitted = Permitted(run=run, policy=setting.policy, seccomp=setting.seccomp, image_name=setting.admitted.name)
    return DecidedRun(permitted=permitted, setting=setting)


PLACE = Place(
    sandbox_id="r1",
    uid=30_000,
    job_dir=Path("/run/job"),
    lib_dir=Path("/cache/lib"),
    seccomp_path=Path("/cache/s.json"),
)


def container_spec(
    *, facts: HostFacts | None = None, chosen: Policy | None = None, place: Place = PLACE
) -> ContainerSpec:
    return build(
        chosen or policy(),
        image_id="sha256:abc",
        python_path="/usr/bin/python3",
        facts=facts or host(),
        seccomp=load_profile("python", directories=policy_directories()),
        place=place,
    )
