"""What maintenance scripts ask for; only callers who may maintain."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from sandbox.environment.store import PruneLimits
from sandbox.errors import InvalidRequest
from sandbox.service.answers import document
from sandbox.service.intake.bodies import MAX_NAME_BYTES, check_size, prune_body
from sandbox.service.intake.reading import BODY
from sandbox.service.state import CALLER, STATE
from sandbox.wire.answers import Pruned, Stopped

if TYPE_CHECKING:
    from aiohttp import web


async def post_prune(request: web.Request) -> web.Response:
    """Remove environments and cached files by age, last use and size; never what a run uses.

    A trial lists that, too.
    """
    state = request.app[STATE]
    request[CALLER].must_maintain()
    with contextlib.closing(request[BODY].take()) as spool:
        check_size("the body", spool.size_bytes, MAX_NAME_BYTES)
        body = prune_body(spool.data)
    if body.older_s is None and body.unused_s is None and body.budget_mib is None:
        raise InvalidRequest("prune needs to know what may go", hint='for example {"unused_s": 2592000}')
    limits = PruneLimits(
        unused_s=body.unused_s, older_s=body.older_s, budget_bytes=body.budget_mib << 20 if body.budget_mib else None
    )
    removal = state.runner.environments().removal
    pruned = await asyncio.to_thread(partial(removal.prunable, limits, also_used=True))
    if not body.dry_run:
        # Sandboxes that stand ready use their environment as a run does, and give way.
        going = {record.image for record in pruned.environments}
        await state.drop(lambda setting: setting.admitted.name in going)
        pruned = await asyncio.to_thread(removal.prune, limits)
    return document(
        Pruned(
            environments=tuple(record.id for record in pruned.environments),
            files=len(pruned.files),
            bytes=pruned.files_bytes,
            dry_run=body.dry_run,
        )
    )


async def post_stop_all(request: web.Request) -> web.Response:
    """End every run, build and check at once, and retire every sandbox that waits for a run."""
    state = request.app[STATE]
    request[CALLER].must_maintain()
    stopped, errands = state.live.cancel_all(), state.live.stop_errands()
    await state.drop(lambda _: True)
    return document(Stopped(stopped=stopped, builds_and_checks=errands))
