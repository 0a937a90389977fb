"""Carrying `sandbox run` out in this process, where no service is."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.cli.answer import Answer, answer_of
from sandbox.cli.session import Session, session

if TYPE_CHECKING:
    from sandbox.cli.output import Output
    from sandbox.models import RunRequest, RunResult


def carry_out(request: RunRequest, *, policy_dirs: list[Path], output: Output, quiet: bool) -> Answer:
    """Run one request with an engine of its own; Ctrl-C and SIGTERM cancel it. Raises a `SandboxError`."""
    with session(quiet=quiet) as opened:
        opened.engine()  # starts while the rest is imported
        opened.sweep()
        return answer_of(execute(opened, request, policy_dirs=policy_dirs, output=output))


def execute(opened: Session, request: RunRequest, *, policy_dirs: list[Path], output: Output) -> RunResult:
    """Run one request on an open session."""
    from sandbox.run.decision import Follow, Run  # late: the engine starts meanwhile

    runner = opened.runner(policy_dirs)
    follow = Follow(output=output.live, log=lambda record: output.log(record.level, record.message))

    run = Run(request=request, follow=follow, on_progress=output.progress)

    async def work() -> RunResult:
        cancel = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, cancel.set)

        def stop() -> None:
            with contextlib.suppress(RuntimeError):  # the run has ended meanwhile
                loop.call_soon_threadsafe(cancel.set)

        output.on_gone = stop
        result = await runner.run(run, cancel=cancel)
        if result.receipt is None:
            # Cancelled before a sandbox was there: a pull may still go on in a thread, and ends with its engine.
            opened.close()
        return result

    return asyncio.run(work())
