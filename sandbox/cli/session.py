"""The beginning and the end of every command that uses Podman."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox import places
from sandbox.cli.handover import leave_root
from sandbox.cli.policy_warnings import load_and_warn
from sandbox.engine.podman import PodmanEngine
from sandbox.host.facts import HostFacts
from sandbox.host.probe import probe

if TYPE_CHECKING:
    from sandbox.runner import Runner


class Session:
    """The host, probed, and an engine that is started when first asked for and stopped at the end."""

    def __init__(self, *, quiet: bool = False) -> None:
        leave_root(quiet=quiet)
        self._quiet = quiet
        # Secrets pass through this process: it must not be found in a core dump.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self.runtime_dir: Path = places.runtime_dir()
        self.cache_dir: Path = places.cache_dir()
        self.facts: HostFacts = probe(self.runtime_dir)
        self._engine: PodmanEngine | None = None

    def engine(self) -> PodmanEngine:
        """Return the engine; the first call starts it."""
        if self._engine is None:
            self._engine = PodmanEngine(self.facts.engine, runtime_dir=self.runtime_dir)
        return self._engine

    def runner(self, policy_dirs: Sequence[Path]) -> Runner:
        """Return a runner on this session's engine; `policy_dirs` come first in the search path."""
        from sandbox.places import data_dir
        from sandbox.policy.directories import policy_directories
        from sandbox.runner import Places, Runner

        places = Places(
            runtime_dir=self.runtime_dir,
            cache_dir=self.cache_dir,
            data_dir=data_dir(),
            policy_dirs=policy_directories(policy_dirs),
        )
        said = None if self._quiet else partial(load_and_warn, directories=places.policy_dirs)
        return Runner(self.engine, self.facts, places, policies=said)

    def sweep(self, *, thorough: bool = False) -> None:
        """Remove what dead runs left; costs nothing when they left nothing.

        `thorough`, and the first call after a boot, also looks for containers without a workspace.
        """
        from sandbox.container.workspace import abandoned, sweep

        stamp = self.runtime_dir / "swept"
        first = thorough or not stamp.exists()
        if first or abandoned(self.runtime_dir):
            sweep(self.runtime_dir, self.engine(), everything=first)
            stamp.touch(mode=0o600)

    def close(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            self._engine.close()


@contextlib.contextmanager
def session(*, quiet: bool = False) -> Iterator[Session]:
    """Open a session and close it on every path."""
    opened = Session(quiet=quiet)
    try:
        yield opened
    finally:
        opened.close()
