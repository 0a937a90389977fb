"""Work that is done in a sandbox ahead of its job, so that no run waits for it.

Modules are imported, and the program's process is forked. Importing runs code of libraries. So it happens when the
sandbox has been read back and verified, under every limit that the program will have: a process that is forked now
inherits them. What the sandbox says of it is checked as anything else that it says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from sandbox.channel.frames import preload_frame
from sandbox.channel.records import ProtocolViolation, Ready, shaped
from sandbox.container.sandbox import READY_TIMEOUT_S, Sandbox
from sandbox.container.spec import ContainerSpec
from sandbox.container.watchdog import Watchdog, measure
from sandbox.errors import Internal
from sandbox.kernel.family import family


class PreloadFailed(Internal):
    """The sandbox didn't come through its preparation as one that can be used."""


async def preload(
    sandbox: Sandbox, modules: tuple[str, ...], *, cell: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Have a verified sandbox get ready for its job and import `modules`; return those that it could.

    It is then ready once more, and the program's process waits in it; or, told how to make a `cell`, it waits for
    orders.

    Raises `InvalidRequest` for what is no name of a module, and `PreloadFailed`, after which the sandbox is of no use.
    """
    frame = preload_frame(modules, cell)
    held = Watchdog(sandbox.pid, cap_bytes=sandbox.spec.memory_bytes, places=places_of(sandbox.spec), kill=sandbox.kill)
    watching = asyncio.create_task(held.watch())
    try:
        await sandbox.send([frame])
        answer = await asyncio.wait_for(sandbox.frames().read(), READY_TIMEOUT_S)
        ready = None if answer is None or answer[0] != "R" else shaped(Ready, answer[1])
    except (asyncio.TimeoutError, ConnectionError, ProtocolViolation):
        answer = ready = None
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    named = ", ".join(modules) or "nothing"
    if answer is None or ready is None or not set(ready.preloaded) <= set(modules):
        why = "took more memory than the policy allows" if held.exceeded else "ended, hung or said nonsense"
        raise PreloadFailed(f"the sandbox {why} while it got ready and imported {named}", hint="don't preload them")
    sandbox.mark("preloaded")
    sandbox.processes_at_rest = 1 if cell else 2
    if ready.unfit or not await asyncio.to_thread(at_rest, sandbox):
        raise PreloadFailed(
            f"importing {ready.unfit or named} leaves a thread or a process running, which a program would not have",
            hint="don't preload it",
        )
    sandbox.ready = answer
    return tuple(ready.preloaded)


def at_rest(sandbox: Sandbox) -> bool:
    """Tell whether a sandbox without a job is as it must be: within the memory cap, with no process but those it needs.

    They are process 1 and, once it has prepared for a job of its own, the one that waits to become the program.
    """
    cap_bytes = sandbox.spec.memory_bytes
    usage = measure(sandbox.pid, places=places_of(sandbox.spec), cap_bytes=cap_bytes)
    within = usage.memory_bytes <= cap_bytes and not usage.excess
    return within and len(family(sandbox.pid)) == sandbox.processes_at_rest


def places_of(spec: ContainerSpec) -> tuple[str, ...]:
    """Return where a sandbox can write."""
    return tuple(mount.destination for mount in spec.tmpfs)
