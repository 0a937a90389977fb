"""Runs: ask for one, watch it, end it, look back. `sandbox.service.routes.later` has those whose results are fetched later."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from sandbox.document import document_pieces, error_document
from sandbox.errors import InvalidRequest, NotFound, QueueFull, SandboxError
from sandbox.models import Outcome, RunRequest, RunResult
from sandbox.off_loop import aside
from sandbox.policy.model import Policy
from sandbox.progress import Progress
from sandbox.run.execution import NOBODY, Follow
from sandbox.service import log
from sandbox.service.admission import Slot
from sandbox.service.door.access import Caller
from sandbox.service.history.reader import MAX_LISTED
from sandbox.service.history.record import ended_row, ending, failed_row, mask_of, new_row
from sandbox.service.history.row import Row, public
from sandbox.service.history.told import is_kept, told
from sandbox.service.intake.asked import Asked, UnknownPolicy, request_of
from sandbox.service.intake.budget import Part
from sandbox.service.intake.reading import BODY
from sandbox.service.live import LiveRun, no_run, shortened
from sandbox.service.routes.answers import counted, document, gathered, large
from sandbox.service.routes.events import Events, format_asked, streamed
from sandbox.service.routes.later import asked_of, failed, kept, started
from sandbox.service.routes.prefer import Preferences
from sandbox.service.state import CALLER, STATE, State

if TYPE_CHECKING:
    from aiohttp import web

USUALLY_LISTED = 50
# What a run without a receipt carries in its place.
CANCELLED_IN_QUEUE = "the run was cancelled while it waited for its turn"
NOTHING = RunRequest(code="")


async def post_run(request: web.Request) -> web.StreamResponse:
    """Run code on a message, and answer with what came of it; as a stream where the client accepts one."""
    state, caller = request.app[STATE], request[CALLER]
    wanted, found = await understood(request, "run")
    policy, goes_on, notify = allowed(state, caller, found.policy), found.wait_for_end, found.notify
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
    """Return what the body of a request asks for, one of `KINDS`; nothing of the body is kept. Raises a `SandboxError`."""
    state, caller = request.app[STATE], request[CALLER]
    code_kib = {loaded.policy.name: loaded.policy.limits.code_kib for loaded in state.policies.all() if caller.uses(loaded.policy.name)}
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


class Cancelled(Exception):
    """The caller ended the run before its turn came."""


class Work:
    """One request on its way through the queue, the runner and the history; for one call of `carry_out` or `tell`."""

    def __init__(
        self,
        state: State,
        caller: Caller,
        wanted: RunRequest,
        policy: Policy,
        part: Part,
        *,
        detached: bool = False,
        notify: str = "",
    ) -> None:
        self.state = state
        self.policy = policy
        self.part = part
        self.caller = caller
        self.wanted = wanted
        self.known = False
        self.notify = notify
        self.mask = mask_of(wanted)
        self.live = LiveRun(
            run_id=uuid.uuid4().hex, caller_uid=caller.uid, caller=caller.name, node_id=wanted.node_id,
            policy=wanted.policy, requirements=shortened(wanted.requirements), detached=detached,
        )  # fmt: skip

    async def tell(self, events: Events) -> None:
        """Carry it out, and tell what happens. Raises a `SandboxError`."""
        pieces = await self.carry_out(events)
        events.accepted(self.live.run_id)
        events.add_document("result", pieces)
        self.part.count(0)  # it counts among the events now

    async def carry_out(self, events: Events | None = None) -> list[bytes]:
        """Run it when its turn comes, and return its document in pieces; it is in the history as soon as it runs or waits.

        Raises a `SandboxError`.
        """
        live = self.live
        self.state.live.add(live)
        try:
            outcome, pieces = await self._carried_out(events)
            await self._conclude(outcome, 200, pieces)
            return pieces
        except Exception as error:
            said = failed(error)
            await self._conclude(
                said.code, int(said.facts.get("http_status", said.http_status)), [error_document(said)]
            )
            raise
        finally:
            self.state.live.ended(live)

    async def _carried_out(self, events: Events | None) -> tuple[str, list[bytes]]:
        state, live = self.state, self.live
        row = await self._begun()
        try:
            result = await self._ran(row, events)
            if result.files:
                await asyncio.to_thread(state.artefacts.keep, live.run_id, live.caller_uid, result.files)
            output = await self._output(result) if is_kept(self.policy, result.outcome) else ""
            self._ended(ended_row(row, result, self.mask, output))
        except SandboxError as error:
            # What was refused at once is not in the history: a flood would push the others out.
            if self.known or not isinstance(error, QueueFull):
                self._ended(failed_row(row, error, self.mask))
            error.facts.setdefault("run_id", live.run_id)
            raise
        except asyncio.CancelledError:
            self._ended(failed_row(row, None, self.mask))
            raise
        except Exception as error:
            self._ended(failed_row(row, failed(error), self.mask))  # or it would go on for ever there
            raise
        finally:
            self.wanted, self.mask = NOTHING, mask_of(NOTHING)
            # The frames that an error went through refer to the request, and in circles to each other.
            clear_frames(sys.exc_info()[2])
        state.metrics.run_ended(live.policy, result)
        return result.outcome.value, await aside(size_of(result), lambda: list(gathered(document_pieces(result))))

    async def _begun(self) -> Row:
        """Return what the history gets to know at first."""
        make = partial(new_row, self.live, self.wanted, self.policy, self.mask)
        row = await asyncio.to_thread(make) if self.wanted.secrets and self.policy.history.payloads else make()
        self.mask.forget()  # until the end: it is large, and those that wait are many
        return row

    async def _ran(self, row: Row, events: Events | None) -> RunResult:
        """Run it; however that ends, what takes the secrets out of it is prepared."""
        try:
            return await self._result(row, events)
        finally:
            if self.mask.takes_long:
                await asyncio.to_thread(self.mask.prepare)

    async def _output(self, result: RunResult) -> str:
        """Return what the history keeps of what a run told."""
        bounds = self.state.config.history
        if not bounds.output_mib:
            return ""
        # Looking for secrets takes as long as there are many, however little was told.
        work = partial(told, result, self.mask, bounds.output_kib << 10)
        return await asyncio.to_thread(work) if self.wanted.secrets else work()

    async def _conclude(self, outcome: str, status: int, pieces: list[bytes]) -> None:
        """Keep what came of a run that was started for later, and have it told."""
        if self.live.detached and self.live.accepted.is_set():
            await kept(self.state, self.live, status, pieces)
            if self.notify:
                self.state.webhooks.tell(self.notify, self.live.run_id, outcome)

    async def _result(self, row: Row, events: Events | None) -> RunResult:
        live = self.live
        follow = Follow(output=events.output, log=events.log, file=events.file) if events else NOBODY

        def progress(news: Progress) -> None:
            live.step = news.step
            live.accepted.set()
            if events:
                events.accepted(live.run_id)
                events.progress(news)

        try:
            async with self._turn(row) as slot:
                # Many small requests may have waited while answers came that nobody reads.
                self.part.check_most()
                self._keep(replace(row, state="running"))
                result = await self.state.runner.run(
                    self.wanted, run_id=live.run_id, caller=str(self.caller.uid), follow=follow, on_progress=progress,
                    cancel=live.cancel, queued_s=slot.waited_s,
                )  # fmt: skip
                self.part.count(size_of(result))  # before the next run begins, and in the place of the body
                return result
        except Cancelled:
            return RunResult(run_id=live.run_id, outcome=Outcome.CANCELLED, explanation=CANCELLED_IN_QUEUE)

    def _keep(self, row: Row) -> None:
        """Have the history know of it, so that it can tell of a run that was cut off."""
        self.known = True
        self.state.history.began(row)

    def _waits(self, row: Row) -> None:
        self._keep(row)
        self.live.accepted.set()

    def _ended(self, row: Row) -> None:
        """Tell the history and the log how it ended."""
        self.state.history.ended(row)
        log.run_ended(row)

    @contextlib.asynccontextmanager
    async def _turn(self, row: Row) -> AsyncIterator[Slot]:
        """Wait for a slot, unless the run is cancelled first. Raises `Cancelled`, `QueueFull`."""
        async with contextlib.AsyncExitStack() as held:
            slot = self.state.admission.slot(
                self.caller.uid, self.live.node_id, quota=self.caller.quota, on_wait=partial(self._waits, row),
                wait_s=self.state.config.queue.detached_wait_s if self.live.detached else None,
            )  # fmt: skip
            waiting = asyncio.ensure_future(held.enter_async_context(slot))
            stop = asyncio.ensure_future(self.live.cancel.wait())
            try:
                await asyncio.wait({waiting, stop}, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    raise Cancelled
                yield waiting.result()
            finally:
                for future in (waiting, stop):
                    future.cancel()
                await asyncio.gather(waiting, stop, return_exceptions=True)


def size_of(result: RunResult) -> int:
    """Return about how large a result is, in bytes."""
    data = (result.result_json or b"", result.additional_data_json or b"", result.stdout, result.stderr)
    return sum(map(len, data)) + sum(len(file.content) for file in result.files)


# ---- looking back


async def get_runs(request: web.Request) -> web.StreamResponse:
    """List the caller's runs, newest first; a maintainer's list has everybody's."""
    state, caller = request.app[STATE], request[CALLER]
    query = request.query
    limit = listed_at_most(query.get("limit", str(USUALLY_LISTED)))
    rows = await asyncio.to_thread(
        state.history.list, caller=None if caller.may_maintain else caller.uid, node=query.get("node"),
        outcome=ending(query.get("outcome")), before=query.get("before"), limit=limit,
    )  # fmt: skip
    known = {row.run_id for row in rows}
    others = [
        run.as_json() for run in state.live
        if run.run_id not in known and may_see(caller, run) and query.get("node") in (None, run.node_id)
    ]  # fmt: skip
    first = [] if "before" in query or "outcome" in query else others
    return await counted(request, {"runs": [*first, *(shown(row, state) for row in rows)]})


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
        return document(queued.as_json())
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


def shown(row: Row, state: State, *, whole: bool = False) -> dict[str, object]:
    """Return what a client is told of a run; of one that goes on, its present step."""
    live = state.live.find(row.run_id, lambda _: True)
    return public(row, whole=whole) | ({"state": live.step} if live and row.state != "ended" else {})


async def delete_run(request: web.Request) -> web.Response:
    """End a run at once; its own request gets the outcome `cancelled`."""
    state, caller = request.app[STATE], request[CALLER]
    run_id = request.match_info["id"]
    state.live.cancel(run_id, partial(may_see, caller))
    return document({"run_id": run_id, "cancelling": True}, status=202)


async def post_check(request: web.Request) -> web.Response:
    """Tell whether code compiles on the Python that would run it, and which imports its libraries can't serve."""
    state, caller = request.app[STATE], request[CALLER]
    wanted, _ = await understood(request, "check")
    async with state.live.errand(), state.admission.slot(caller.uid, "check", quota=caller.quota):
        found = await state.runner.check(wanted)
    return document(json.loads(found.model_dump_json()))
