"""What the service's routes work with, made once and handed to each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from sandbox.artefacts import Artefacts
from sandbox.errors import InvalidRequest, NotFound, SandboxError
from sandbox.history import History
from sandbox.host import HostFacts
from sandbox.metrics import Metrics
from sandbox.podman_engine import PodmanEngine
from sandbox.policy import LoadedPolicy, load_policy, policy_files
from sandbox.pool import Pool
from sandbox.runner import Runner
from sandbox.service.access import Caller
from sandbox.service.admission import Admission
from sandbox.service.config import ServiceConfig
from sandbox.service.live import LiveRuns


class PolicyBook:
    """The policies that the service knows, by name. Files are read when it starts and when it is told to."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.directories = directories
        self._policies: dict[str, LoadedPolicy] = {}
        self.problems: dict[str, str] = {}
        self.reload()

    def reload(self) -> None:
        """Read them all again. A file that is broken now leaves the policy as it was, and is named in `problems`."""
        files = policy_files(self.directories)
        found: dict[str, LoadedPolicy] = {}
        self.problems = {}
        for name in files:
            try:
                found[name] = load_policy(name, directories=self.directories)
            except SandboxError as error:
                self.problems[name] = str(error)
                if name in self._policies:
                    found[name] = self._policies[name]
        self._policies = found

    def names(self) -> list[str]:
        """Return the names of the policies that can be used."""
        return sorted(self._policies)

    def all(self) -> list[LoadedPolicy]:
        """Return the policies that can be used."""
        return [self._policies[name] for name in self.names()]

    def get(self, name: str) -> LoadedPolicy:
        """Return one policy. Raises `NotFound`; `InvalidRequest` for a path, which no client may name."""
        if "/" in name or name.endswith(".toml"):
            raise InvalidRequest(
                f"{name[:80]!r} is a path; the service takes policies by name", hint=f"there are: {', '.join(self.names())}"
            )
        if name not in self._policies:
            reason = self.problems.get(name)
            raise NotFound(
                f"the policy {name[:80]!r} can't be used: {reason}" if reason else f"there is no policy {name[:80]!r}",
                hint=f"there are: {', '.join(self.names())}",
            )
        return self._policies[name]


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that lives as long as the service."""

    config: ServiceConfig
    facts: HostFacts
    engine: PodmanEngine
    policies: PolicyBook
    runner: Runner
    pool: Pool
    admission: Admission
    history: History
    metrics: Metrics
    artefacts: Artefacts
    live: LiveRuns = field(default_factory=LiveRuns)
    began: float = field(default_factory=time.time)


STATE = web.AppKey("state", State)
CALLER = web.RequestKey("caller", Caller)
