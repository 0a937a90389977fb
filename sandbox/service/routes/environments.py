"""Environments: build one ahead of need, list, show, remove."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from msgspec.structs import asdict

from sandbox.environment.identity import InstalledEnvironment
from sandbox.environment.store import EnvironmentRecord
from sandbox.progress import OnProgress
from sandbox.service.answers import counted, document
from sandbox.service.routes.events import Events, format_asked, streamed
from sandbox.service.routes.runs import understood
from sandbox.service.state import CALLER, STATE
from sandbox.wire.answers import (
    BuildConnections,
    BuiltEnvironment,
    EnvironmentList,
    ListedEnvironment,
    Removed,
    ShownEnvironment,
)
from sandbox.wire.events import EnvironmentReady

if TYPE_CHECKING:
    from aiohttp import web


async def post_environment(request: web.Request) -> web.StreamResponse:
    """Build an environment, unless it is there; its progress is a stream where the client accepts one."""
    state, caller = request.app[STATE], request[CALLER]
    wanted, _ = await understood(request, "environment")

    async def build(on_progress: OnProgress) -> BuiltEnvironment:
        async with state.live.errand(), state.admission.slot(caller.uid, "environments", quota=caller.quota):
            return described(await state.runner.build(wanted, on_progress))

    async def tell(events: Events) -> None:
        events.add(EnvironmentReady(**asdict(await build(events.progress))))

    if (kind := format_asked(request)) is not None:
        return await streamed(request, kind, tell)
    return document(await build(lambda _: None))


async def get_environments(request: web.Request) -> web.StreamResponse:
    """List them, most recently used first."""
    records = await asyncio.to_thread(request.app[STATE].runner.environments().store.records)
    rows = sorted(records, key=lambda record: -record.last_used)
    return await counted(request, EnvironmentList(environments=tuple(map(listed, rows))))


async def get_environment(request: web.Request) -> web.StreamResponse:
    """Show one, with its lock and what was asked of the egress proxy to make it."""
    environments = request.app[STATE].runner.environments()
    record = await asyncio.to_thread(environments.find, request.match_info["id"])
    lock = await asyncio.to_thread(environments.lock_of, record)
    egress = await asyncio.to_thread(environments.store.egress, record.id)
    connections = tuple(BuildConnections(**row) for row in egress)
    return await counted(request, ShownEnvironment(**asdict(listed(record)), lock=lock.as_toml(), egress=connections))


async def delete_environment(request: web.Request) -> web.Response:
    """Remove one that no run uses; sandboxes that wait for runs in it are retired first."""
    state = request.app[STATE]
    request[CALLER].must_maintain()
    environments = state.runner.environments()
    record = await asyncio.to_thread(environments.find, request.match_info["id"])
    await state.drop(lambda setting: setting.admitted.name == record.image)
    await asyncio.to_thread(environments.removal.remove, record)
    return document(Removed(removed=record.id))


def described(environment: InstalledEnvironment) -> BuiltEnvironment:
    """Return what a client is told of a built environment."""
    packages = tuple(f"{package.name}=={package.version}" for package in environment.lock.packages)
    return BuiltEnvironment(
        id=environment.id,
        image=environment.name,
        digest=environment.image.digest,
        lock_hash=environment.plan.lock_hash,
        packages=packages,
    )


def listed(record: EnvironmentRecord) -> ListedEnvironment:
    """Return one row of the list."""
    return ListedEnvironment(**dataclasses.asdict(record))
