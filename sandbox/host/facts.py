"""Facts about this host. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.engine.protocol import EngineInfo


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What was found.

    `controllers` are the cgroup v2 controllers delegated to this user (`uid`).
    `subuid_start`/`subuid_count`: the first range of host user ids that this user may map. `rejected_runtimes`
    holds each OCI runtime that was tried and failed, with its own reason.
    """

    engine: EngineInfo
    uid: int
    controllers: frozenset[str]
    subuid_start: int
    subuid_count: int
    subgid_start: int
    subgid_count: int
    cpu_ids: tuple[int, ...]
    kernel: str
    architecture: str
    rejected_runtimes: dict[str, str]
