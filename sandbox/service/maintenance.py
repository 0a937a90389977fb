"""What maintenance scripts ask for; only callers who may maintain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sandbox.environment_store import PruneLimits
from sandbox.errors import InvalidRequest
from sandbox.service.answers import document
from sandbox.service.bodies import prune_body
from sandbox.service.intake import BODY
from sandbox.service.state import CALLER, STATE

if TYPE_CHECKING:
    from aiohttp import web


async def post_prune(request: web.Request) -> web.Response:
    """Remove environments and cached files by age, last use and size; never what is in use."""
    state = request.app[STATE]
    request[CALLER].must_maintain()
    body = prune_body(request[BODY].take())
    if body.older_s is None and body.unused_s is None and body.budget_mib is None:
        raise InvalidRequest("prune needs to know what may go", hint='for example {"unused_s": 2592000}')
    limits = PruneLimits(
        unused_s=body.unused_s, older_s=body.older_s, budget_bytes=body.budget_mib << 20 if body.budget_mib else None
    )
    removal = state.runner.environments().removal
    pruned = await asyncio.to_thread(removal.prunable, limits)
    if not body.dry_run:
        going = {record.image for record in pruned.environments}
        await state.drop(lambda setting: setting.admitted.name in going)
        pruned = await asyncio.to_thread(removal.prune, limits)
    return document(
        {
            "environments": [record.id for record in pruned.environments],
            "files": len(pruned.files), "bytes": pruned.files_bytes, "dry_run": body.dry_run,
        }
    )  # fmt: skip


async def post_stop_all(request: web.Request) -> web.Response:
    """End every run at once, and retire every sandbox that waits for one."""
    state = request.app[STATE]
    request[CALLER].must_maintain()
    stopped = state.live.cancel_all()
    await state.drop(lambda _: True)
    return document({"stopped": stopped})
