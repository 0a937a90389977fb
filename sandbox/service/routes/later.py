"""Runs that are started now, and whose results are fetched later."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from sandbox.document import as_document
from sandbox.errors import NotFound
from sandbox.models import Outcome, RunResult
from sandbox.off_loop import run_off_loop
from sandbox.service.answers import document, large
from sandbox.service.history.row import SERVICE_ENDED, RunRow
from sandbox.service.intake.reading import BODY
from sandbox.service.live import LiveRun, no_run
from sandbox.service.routes.prefer import Preferences, preferences
from sandbox.service.state import CALLER, STATE
from sandbox.wire.answers import FileList, GoingOn
from sandbox.wire.run import NamedFile

if TYPE_CHECKING:
    from aiohttp import web

    from sandbox.service.routes.work import Work

# A request may wait for so long; it can ask again.
MAX_WAIT_S = 60
ASK_AGAIN_S = 1


def asked_of(request: web.Request) -> Preferences:
    """Return what a request prefers."""
    return preferences(request.headers.getall("Prefer", ()))


async def started(request: web.Request, work: Work, asked: Preferences) -> web.StreamResponse:
    """Answer as soon as a run has its place, or its end where the client waits for that.

    Raises what refuses it before.
    """
    task = asyncio.create_task(work.carry_out())
    request.app[STATE].live.keep(task)
    request[BODY].keep_until(task)
    accepted = asyncio.create_task(work.live.accepted.wait())
    try:
        await asyncio.wait({task, accepted}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        accepted.cancel()
    if asked.wait_s:
        await asyncio.wait({task}, timeout=min(asked.wait_s, MAX_WAIT_S))
    if task.done() and (asked.wait_s or not work.live.accepted.is_set()):
        pieces = list(await task)
        request[BODY].part.count(sum(map(len, pieces)))
        return await large(request, pieces, {"X-Run-Id": work.live.run_id})
    answer = going_on(work.live)
    answer.headers["Location"] = f"/v1/runs/{work.live.run_id}"
    answer.headers["Preference-Applied"] = "respond-async"
    return answer


def going_on(live: LiveRun) -> web.Response:
    """Return the answer for a run that has not ended."""
    answer = document(GoingOn(run_id=live.run_id, state=live.step), status=202)
    answer.headers["X-Run-Id"] = live.run_id
    return answer


async def get_result(request: web.Request) -> web.StreamResponse:
    """Give the whole result of a run that was started with `Prefer: respond-async`, or its error, while it is kept."""
    state, caller = request.app[STATE], request[CALLER]
    run_id, asked = request.match_info["id"], asked_of(request)
    owner = None if caller.may_maintain else caller.uid
    live = state.live.find(run_id, lambda run: owner in (None, run.caller_uid))
    if live is not None and live.detached:
        if asked.wait_s:
            over = asyncio.create_task(live.over.wait())
            try:
                await asyncio.wait({over}, timeout=min(asked.wait_s, MAX_WAIT_S))
            finally:  # also where the client goes away: a run that goes on for long would hold one for each
                over.cancel()
        if not live.over.is_set():
            answer = going_on(live)
            answer.headers["Retry-After"] = str(ASK_AGAIN_S)
            return answer
    found = await asyncio.to_thread(state.results.find, run_id, owner)
    if found is not None:
        request[BODY].part.grow(found.size_bytes)
        body = await run_off_loop(found.size_bytes, found.body)
        if body is not None:
            return await large(request, [body], {"X-Run-Id": run_id}, status=found.status)
    row = await asyncio.to_thread(state.history.get, run_id, owner)
    return await large(request, [no_result(run_id, row)], {"X-Run-Id": run_id})


def no_result(run_id: str, row: RunRow | None) -> bytes:
    """Return the result of a run that a service took with it. Raises `NotFound` for every other that is not kept."""
    if row is None:
        raise no_run(run_id)
    if not row.detached:
        raise NotFound(
            f"the result of the run {run_id[:64]!r} goes to who asked for it, and is not kept",
            hint=(
                "to fetch a result later, start the run so: `sandbox run --detach`, or with the header `Prefer:"
                " respond-async`"
            ),
        )
    if row.outcome != Outcome.KILLED.value or row.explanation != SERVICE_ENDED:
        raise NotFound(
            f"the result of the run {run_id[:64]!r} is not kept any longer",
            hint="results are kept within history.results_mib and history.results_age_s of the service's configuration",
        )
    return as_document(RunResult(run_id=row.run_id, outcome=Outcome.KILLED, explanation=row.explanation))


async def get_files(request: web.Request) -> web.Response:
    """List the files that a run of the caller saved, while they are kept."""
    state, caller = request.app[STATE], request[CALLER]
    run_id, owner = request.match_info["id"], None if caller.may_maintain else caller.uid
    files = await asyncio.to_thread(state.artefacts.list, run_id, owner)
    if not files and state.live.find(run_id, lambda run: owner in (None, run.caller_uid)) is None:
        row = await asyncio.to_thread(partial(state.history.get, run_id, owner))
        if row is None:
            raise no_run(run_id)
    return document(FileList(files=tuple(NamedFile(name=file.name, size_bytes=file.size_bytes) for file in files)))
