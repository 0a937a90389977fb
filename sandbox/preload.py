"""Modules imported in a sandbox ahead of its job, so that the program need not wait for them.

Importing runs code of libraries. So it happens when the sandbox has been read back and verified, under every limit that
the program will have, and what the sandbox says of it is checked as anything else that it says.
"""

from __future__ import annotations

import asyncio
import time

from sandbox.container import READY_TIMEOUT_S, Sandbox
from sandbox.errors import Internal
from sandbox.spec import ContainerSpec
from sandbox.watchdog import Watchdog, children, measure
from sandbox.wire import ProtocolViolation, Ready, preload_frame, shaped


class PreloadFailed(Internal):
    """The sandbox didn't come through the import of its modules as one that can be used."""


async def preload(sandbox: Sandbox, modules: tuple[str, ...]) -> tuple[str, ...]:
    """Have a verified sandbox import `modules`; return those that it could. It is then ready once more.

    Raises `InvalidRequest` for what is no name of a module, and `PreloadFailed`, after which the sandbox is of no use.
    """
    frame = preload_frame(modules)
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
    named = ", ".join(modules)
    if answer is None or ready is None or not set(ready.preloaded) <= set(modules):
        why = "took more memory than the policy allows" if held.exceeded else "ended, hung or said nonsense"
        raise PreloadFailed(f"the sandbox {why} while it imported {named}", hint="don't preload them")
    if ready.unfit or not at_rest(sandbox):
        raise PreloadFailed(
            f"importing {ready.unfit or named} leaves a thread or a process running, which a program would not have",
            hint="don't preload it",
        )
    sandbox.ready = answer
    sandbox.marks["preloaded"] = time.monotonic()
    return tuple(ready.preloaded)


def at_rest(sandbox: Sandbox) -> bool:
    """Tell whether a sandbox without a job is as it must be: no process but process 1, and within the memory cap."""
    cap_bytes = sandbox.spec.memory_bytes
    usage = measure(sandbox.pid, places=places_of(sandbox.spec), cap_bytes=cap_bytes)
    return not children(sandbox.pid) and usage.memory_bytes <= cap_bytes


def places_of(spec: ContainerSpec) -> tuple[str, ...]:
    """Return where a sandbox can write."""
    return tuple(mount.destination for mount in spec.tmpfs)
