"""Runs: start one, watch it, end it, look back. `sandbox.service.routes.later` has those with results for later."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from sandbox.errors import InvalidRequest, NotFound
from sandbox.models import RunRequest
from sandbox.policy.model import Policy
from sandbox.service.answers import counted, document, large
from sandbox.service.door.access import Caller
from sandbox.service.history.reader import MAX_LISTED
from sandbox.service.history.record import ending
from sandbox.service.history.row import RunRow, public
from sandbox.service.intake.asked import Asked, UnknownPolicy, request_of
from sandbox.service.intake.reading import BODY
from sandbox.service.live import LiveRun, no_run
from sandbox.service.routes.events import format_asked, streamed
from sandbox.service.routes.later import asked_of, started
from sandbox.service.routes.prefer import Preferences
from sandbox.service.routes.work import Work
from sandbox.service.state import CALLER, STATE, State
from sandbox.wire.answers import Cancelling, RecordedRun, RunList

if TYPE_CHECKING:
    from aiohttp import web

USUALLY_LISTED = 50


async def post_run(request: web.Request) -> web.StreamResponse:
    """Run code on a message, and answer with what came of it; as a stream where the client accepts one."""
    state, caller = request.app[STATE], request[CALLER]
    wanted, found = await understood(request, "run")
    policy, goes_on, notify = (
        allowed(state, caller, wanted.policy),
        found.wait_for_end,
        found.notify.url if found.notify else "",
    )
    asked = asked_of(request)
    if notify:
        check_notify(state, notify, asked)
    work = Work(state, caller, wanted, policy, request[BODY].part, detached=asked.respond_async, notify=notify)
    del wanted  # whoever reads the answer slowly has nothing of the request kept meanwhile
    if asked.respond_async:
        return await started(request, work, asked)
    keep = partial(go_on, request) if goes_on else None
    if (kind := format_asked(request)) is not None:
        return await streamed(request, kind, work.tell, keep=keep)
    if keep:
        task = asyncio.create_task(work.carry_out())
        keep(task)
        pieces = await asyncio.shield(task)
    else:
        pieces = await work.carry_out()
    request[BODY].part.count(sum(map(len, pieces)))
    return await large(request, pieces, {"X-Run-Id": work.live.run_id})


def go_on(request: web.Request, task: asyncio.Task[Any]) -> None:
    """Let the task of a run outlive its request."""
    request.app[STATE].live.keep(task)
    request[BODY].keep_until(task)


def check_notify(state: State, url: str, asked: Preferences) -> None:
    """Check that a request may have an address told of the end of its run. Raises `InvalidRequest`, `AccessDenied`."""
    if not asked.respond_async:
        raise InvalidRequest(
            "`notify` is for a run whose result is fetched later",
            hint="send the header `Prefer: respond-async`, or leave `notify` out",
        )
    state.webhooks.check(url)


async def understood(request: web.Request, kind: str) -> tuple[RunRequest, Asked]:
    """Return what the body of a request asks for, one of `KINDS`; nothing of the body is kept.

    Raises a `SandboxError`.
    """
    state, caller = request.app[STATE], request[CALLER]
    code_kib = {
        loaded.policy.name: loaded.policy.limits.code_kib
        for loaded in state.policies.all()
        if caller.uses(loaded.policy.name)
    }
    try:
        asked, parts = await state.parser.asked(kind, request[BODY].take(), code_kib, uid=caller.uid)
    except UnknownPolicy as error:
        allowed(state, caller, error.name)
        raise NotFound(f"the policy {error.name} came just now", hint="send the request again") from None
    return request_of(asked, parts), asked


def allowed(state: State, caller: Caller, name: str) -> Policy:
    """Return the policy of this name. Raises `AccessDenied`, `NotFound`."""
    caller.may_use(name)
    return state.policies.get(name).policy


# ---- looking back


async def get_runs(request: web.Request) -> web.StreamResponse:
    """List the caller's runs, newest first; a maintainer's list has everybody's."""
    state, caller = request.app[STATE], request[CALLER]
    query = request.query
    limit = listed_at_most(query.get("limit", str(USUALLY_LISTED)))
    rows = await asyncio.to_thread(
        state.history.list,
        caller=None if caller.may_maintain else caller.uid,
        node=query.get("node"),
        outcome=ending(query.get("outcome")),
        before=query.get("before"),
        limit=limit,
    )
    known = {row.run_id for row in rows}
    others = [
        run.public()
        for run in state.live
        if run.run_id not in known and may_see(caller, run) and query.get("node") in (None, run.node_id)
    ]
    first = [] if "before" in query or "outcome" in query else others
    return await counted(request, RunList(runs=(*first, *(shown(row, state) for row in rows))))


def listed_at_most(text: str) -> int:
    """Return how many runs a client wants listed. Raises `InvalidRequest`."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= MAX_LISTED):
        raise InvalidRequest("`limit` is not a whole number that fits", hint=f"send one from 1 to {MAX_LISTED}")
    return int(text)


async def get_run(request: web.Request) -> web.StreamResponse:
    """Show one run."""
    state, caller = request.app[STATE], request[CALLER]
    run_id = request.match_info["id"]
    queued = state.live.find(run_id, partial(may_see, caller))
    row = await asyncio.to_thread(state.history.get, run_id, None if caller.may_maintain else caller.uid)
    if row is None and queued is not None:
        return document(queued.public())
    if row is None:
        raise no_run(run_id)
    return await counted(request, shown(row, state, whole=True))


async def get_file(request: web.Request) -> web.StreamResponse:
    """Give one file that a run of the caller saved, while it is kept."""
    state, caller = request.app[STATE], request[CALLER]
    run_id, name = request.match_info["id"], request.match_info["name"]
    content = await asyncio.to_thread(state.artefacts.get, run_id, None if caller.may_maintain else caller.uid, name)
    if content is None:
        raise NotFound(
            f"the run {run_id[:64]!r} has no file {name[:80]!r}, or no longer", hint="files are kept for a while only"
        )
    request[BODY].part.grow(len(content))
    return await large(request, [content], {}, content_type="application/octet-stream")


def may_see(caller: Caller, run: LiveRun) -> bool:
    """Tell whether a run is the caller's to see and to end."""
    return caller.may_maintain or run.caller_uid == caller.uid


def shown(row: RunRow, state: State, *, whole: bool = False) -> RecordedRun:
    """Return what a client is told of a run; of one that goes on, its present step."""
    live = state.live.find(row.run_id, lambda _: True)
    known = public(row, whole=whole)
    return replace(known, state=live.step) if live and row.state != "ended" else known


async def delete_run(request: web.Request) -> web.Response:
    """End a run at once; its own request gets the outcome `cancelled`."""
    state, caller = request.app[STATE], request[CALLER]
    run_id = request.match_info["id"]
    state.live.cancel(run_id, partial(may_see, caller))
    return document(Cancelling(run_id=run_id, cancelling=True), status=202)


async def post_check(request: web.Request) -> web.Response:
    """Tell whether code compiles on the Python that would run it, and which imports its libraries can't serve."""
    state, caller = request.app[STATE], request[CALLER]
    wanted, _ = await understood(request, "check")
    async with state.live.errand(), state.admission.slot(caller.uid, "check", quota=caller.quota):
        found = await state.runner.check(wanted)
    return document(found)
