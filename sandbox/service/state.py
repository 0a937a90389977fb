"""What the service's routes work with, made once and handed to each."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from sandbox.cell.warm import CellPool
from sandbox.container.pool import SandboxPool
from sandbox.container.standby import Setting
from sandbox.engine.podman import PodmanEngine
from sandbox.errors import InvalidRequest, NotFound, SandboxError
from sandbox.host.facts import HostFacts
from sandbox.policy.directories import NAME
from sandbox.policy.load import LoadedPolicy, load_policy, policy_files
from sandbox.runner import Runner
from sandbox.service.admission import Admission
from sandbox.service.config.load import ServiceConfig
from sandbox.service.door.access import Caller
from sandbox.service.history.artefacts import Artefacts
from sandbox.service.history.history import RunHistory
from sandbox.service.history.kept_answers import Results
from sandbox.service.intake.parser import Parser
from sandbox.service.live import LiveRuns
from sandbox.service.metrics import Metrics
from sandbox.service.webhooks.sending import WebhookSender
from sandbox.toml_file import shown


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

    def troubles(self) -> list[str]:
        """Tell of each policy whose file is broken, and what that means for runs."""
        return [
            f"policy {name} {'is as it was' if name in self._policies else 'cannot be used'}: {problem}"
            for name, problem in self.problems.items()
        ]

    def warnings(self) -> list[str]:
        """Return the warnings about the files of usable policies, each once."""
        return list(dict.fromkeys(warning for loaded in self.all() for warning in loaded.warnings))

    def names(self) -> list[str]:
        """Return the names of the policies that can be used."""
        return sorted(self._policies)

    def all(self) -> list[LoadedPolicy]:
        """Return the policies that can be used."""
        return [self._policies[name] for name in self.names()]

    def get(self, name: str) -> LoadedPolicy:
        """Return one policy. Raises `NotFound`; `InvalidRequest` for a path, which no client may name."""
        known = self.names()
        hint = f"known policies: {', '.join(known) or 'none'}"
        if not NAME.fullmatch(name):
            raise InvalidRequest(f"{shown(name[:80])} is not a policy name, and the service takes no paths", hint=hint)
        if name in self.problems and name not in self._policies:
            raise NotFound(f"the policy {name} can't be used: {self.problems[name]}", hint=hint, known=known)
        if name not in self._policies:
            nearest = difflib.get_close_matches(name, known, n=1)
            if name in policy_files(self.directories):
                hint = f"its file came after this service had read them; to have it read: kill -HUP {os.getpid()}"
            suggestion = f"; did you mean {nearest[0]}?" if nearest else ""
            raise NotFound(f"there is no policy named {name}{suggestion}", hint=hint, known=known)
        return self._policies[name]


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that lives as long as the service."""

    config: ServiceConfig
    facts: HostFacts
    engine: PodmanEngine
    policies: PolicyBook
    runner: Runner
    pool: SandboxPool
    cells: CellPool
    admission: Admission
    history: RunHistory
    metrics: Metrics
    artefacts: Artefacts
    results: Results
    webhooks: WebhookSender
    parser: Parser
    live: LiveRuns = field(default_factory=LiveRuns)
    began: float = field(default_factory=time.time)

    async def drop(self, unwanted: Callable[[Setting], bool]) -> None:
        """Have no sandbox stand ready whose setting is `unwanted`; wait until those that do are gone."""
        await self.pool.drop(unwanted)
        await self.cells.drop(unwanted)


STATE = web.AppKey("state", State)
CALLER = web.RequestKey("caller", Caller)
