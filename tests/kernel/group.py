"""Look at a sandbox's cgroup from outside, by another way than the product's: its container's name in systemd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sandbox.container import spec
from sandbox.kernel.process import CGROUP_ROOT, parse_events, session_group
from sandbox.models import Outcome, RunResult
from sandbox.run.decision import Follow, Run
from tests.escape.bench import Bench

Seen = TypeVar("Seen")


@dataclass(frozen=True, kw_only=True)
class Group:
    """One cgroup v2 directory."""

    directory: Path

    def text(self, name: str) -> str:
        """Return a file's content, stripped."""
        return (self.directory / name).read_text().strip()

    def levels(self, name: str) -> list[str]:
        """Return the files of that name here and one level below, where crun puts the processes."""
        return [name, *(path.relative_to(self.directory).as_posix() for path in self.directory.glob(f"*/{name}"))]

    def tightest(self, name: str) -> str:
        """Return the lowest limit of both levels: the kernel keeps every one on the way."""
        found = [self.text(file) for file in self.levels(name)]
        return min(found, key=lambda text: float(text.replace("max", "inf")))

    def counters(self, name: str) -> dict[str, int]:
        """Return a file of names and numbers."""
        return parse_events(self.text(name))


def scope_of(container_id: str) -> Group:
    """Return the systemd scope that Podman made for a container: the one that carries the limits."""
    (directory,) = CGROUP_ROOT.glob(f"user.slice/**/libpod-{container_id}.scope")
    return Group(directory=directory)


def own_service() -> Group:
    """Return this user's systemd: everything of the user below it, sandboxes included."""
    return Group(directory=session_group(os.getuid()))


async def observe(bench: Bench, code: str, look: Callable[[Group], Seen], **fields: Any) -> tuple[RunResult, Seen]:
    """Run a program that goes on; when it has printed something, call `look` with its cgroup, then cancel the run."""
    looking: list[asyncio.Future[Seen]] = []
    place = spec.runs_id(bench.places.runtime_dir / "runs")

    def find_and_look() -> Seen:
        (container,) = (c for c in bench.engine.containers(spec.RUN_LABEL) if c.labels.get(spec.PLACE_LABEL) == place)
        return look(scope_of(container.id))

    def on_output(kind: str, data: bytes) -> None:
        if not looking:
            looking.append(asyncio.ensure_future(asyncio.to_thread(find_and_look)))
            looking[0].add_done_callback(lambda _: cancel.set())

    cancel = asyncio.Event()
    run = Run(request=bench.request(code, **fields), follow=Follow(output=on_output))
    result = await bench.runner().run(run, cancel=cancel)
    assert looking, (result.outcome, result.explanation, result.stderr[-500:])
    assert result.outcome is Outcome.CANCELLED, (result.outcome, result.explanation, result.stderr[-500:])
    return result, await looking[0]
