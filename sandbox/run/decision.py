"""What is decided of one run, stage by stage. Each stage is frozen and holds the one before; nothing is copied.

A `Run` is a request on its way. Under its policy it is a `Permitted`, and with the sandbox that it gets a `DecidedRun`,
which `sandbox.run.execution` carries out. Steps of a build and checks of code are decided runs, too.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sandbox.channel.collector import FileSink
from sandbox.container.standby import Setting
from sandbox.models import LogRecord, RunRequest
from sandbox.policy.model import Policy
from sandbox.policy.seccomp import SeccompProfile
from sandbox.progress import OnProgress


@dataclass(frozen=True, kw_only=True)
class Follow:
    """Who is told what happens in a run while it happens.

    `output` gets "stdout" or "stderr" and the bytes, `log` each record, `file` the name and the content of each saved
    file once it is complete. `open_file` (name, size) takes saved files as they come; they are not kept then.
    """

    output: Callable[[str, bytes], None] | None = None
    log: Callable[[LogRecord], None] | None = None
    file: Callable[[str, bytearray], None] | None = None
    open_file: Callable[[str, int], FileSink] | None = None


NOBODY = Follow()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One request on its way; its turn came when it `began` (monotonic), after it had waited for `queued_s`.

    Runs of one `caller` and node may share a warm container, where the policy says so.
    """

    request: RunRequest
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    caller: str = ""
    follow: Follow = NOBODY
    on_progress: OnProgress = lambda _: None
    began: float = field(default_factory=time.monotonic)
    queued_s: float = 0.0

    @property
    def owner(self) -> str:
        """Return whose runs it may share a warm container with: those of its caller's node."""
        return f"{self.caller}/{self.request.node_id}" if self.caller else ""


@dataclass(frozen=True, kw_only=True)
class Permitted:
    """A run that its policy lets through.

    `policy` is tightened to the limits of the request, `image_name` is the full name of its base image.
    """

    run: Run
    policy: Policy
    seccomp: SeccompProfile
    image_name: str


@dataclass(frozen=True, kw_only=True)
class DecidedRun:
    """A run and the sandbox that it gets; `environment_s` is the time that was spent on its libraries."""

    permitted: Permitted
    setting: Setting
    environment_s: float = 0.0

    @property
    def run(self) -> Run:
        """Return the run."""
        return self.permitted.run

    @property
    def image(self) -> str:
        """Return the name of its image, as the receipt has it."""
        return self.setting.admitted.name if self.setting.admitted.environment else self.permitted.image_name

    def instead(self, run: Run) -> DecidedRun:
        """Return another run in such a sandbox."""
        return replace(self, permitted=replace(self.permitted, run=run))
