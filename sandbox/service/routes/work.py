"""One request on its way through the queue, the runner and the history."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from traceback import clear_frames
from typing import TYPE_CHECKING

from sandbox.document import document_pieces, error_document
from sandbox.errors import Internal, NotFound, QueueFull, SandboxError
from sandbox.models import Outcome, RunRequest, RunResult
from sandbox.off_loop import run_off_loop
from sandbox.policy.model import Policy
from sandbox.progress import Progress
from sandbox.run.decision import NOBODY, Follow, Run
from sandbox.service import log
from sandbox.service.admission import Slot
from sandbox.service.answers import gathered
from sandbox.service.door.access import Caller
from sandbox.service.history.record import ended_row, failed_row, mask_of, new_row
from sandbox.service.history.row import RunRow
from sandbox.service.history.told import is_kept, told
from sandbox.service.intake.budget import Part
from sandbox.service.live import LiveRun, shortened
from sandbox.service.routes.events import Events
from sandbox.service.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence


async def kept(state: State, live: LiveRun, status: int, pieces: Sequence[bytes]) -> None:
    """Keep what came of a run for its caller; where that is too large, that it was."""
    # First the row: whatever happens, what is kept and what the history tells are not at odds.
    await asyncio.to_thread(state.history.flush, 1.0)
    if await asyncio.to_thread(state.results.keep, live.run_id, live.caller_uid, status, pieces):
        return
    too_large = NotFound(
        f"the result of the run {live.run_id} is not kept: it takes {sum(map(len, pieces)) >> 20} MiB, or the disk is"
        " full",
        hint="results are kept within history.results_mib of the service's configuration",
        run_id=live.run_id,
    )
    await asyncio.to_thread(
        state.results.keep, live.run_id, live.caller_uid, NotFound.http_status, [error_document(too_large)]
    )


def failed(error: BaseException) -> SandboxError:
    """Return what a caller is told of an error, also of a defect of ours."""
    return (
        error
        if isinstance(error, SandboxError)
        else Internal("the service has a defect", hint="its log says more; report this")
    )


# What a run without a receipt carries in its place.
CANCELLED_IN_QUEUE = "the run was cancelled while it waited for its turn"


NOTHING = RunRequest(code="")


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
            run_id=uuid.uuid4().hex,
            caller_uid=caller.uid,
            caller=caller.name,
            node_id=wanted.node_id,
            policy=wanted.policy,
            requirements=shortened(wanted.requirements),
            detached=detached,
        )

    async def tell(self, events: Events) -> None:
        """Carry it out, and tell what happens. Raises a `SandboxError`."""
        pieces = await self.carry_out(events)
        events.accepted(self.live.run_id)
        events.add_document("result", pieces)
        self.part.count(0)  # it counts among the events now

    async def carry_out(self, events: Events | None = None) -> list[bytes]:
        """Run it when its turn comes, and return its document in pieces.

        It is in the history as soon as it runs or waits. The document has all that happened, but for what `events` were
        told meanwhile. Raises a `SandboxError`.
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
        pieces = partial(document_pieces, result, streamed=events is not None)
        return result.outcome.value, await run_off_loop(size_of(result), lambda: list(gathered(pieces())))

    async def _begun(self) -> RunRow:
        """Return what the history gets to know at first."""
        make = partial(new_row, self.live, self.wanted, self.policy, self.mask)
        row = await asyncio.to_thread(make) if self.wanted.secrets and self.policy.history.payloads else make()
        self.mask.forget()  # until the end: it is large, and those that wait are many
        return row

    async def _ran(self, row: RunRow, events: Events | None) -> RunResult:
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

    async def _result(self, row: RunRow, events: Events | None) -> RunResult:
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
                run = Run(
                    request=self.wanted,
                    id=live.run_id,
                    caller=str(self.caller.uid),
                    follow=follow,
                    on_progress=progress,
                    queued_s=slot.waited_s,
                )
                result = await self.state.runner.run(run, cancel=live.cancel)
                self.part.count(size_of(result))  # before the next run begins, and in the place of the body
                return result
        except Cancelled:
            return RunResult(run_id=live.run_id, outcome=Outcome.CANCELLED, explanation=CANCELLED_IN_QUEUE)

    def _keep(self, row: RunRow) -> None:
        """Have the history know of it, so that it can tell of a run that was cut off."""
        self.known = True
        self.state.history.began(row)

    def _waits(self, row: RunRow) -> None:
        self._keep(row)
        self.live.accepted.set()

    def _ended(self, row: RunRow) -> None:
        """Tell the history and the log how it ended."""
        self.state.history.ended(row)
        log.run_ended(row)

    @contextlib.asynccontextmanager
    async def _turn(self, row: RunRow) -> AsyncIterator[Slot]:
        """Wait for a slot, unless the run is cancelled first. Raises `Cancelled`, `QueueFull`."""
        async with contextlib.AsyncExitStack() as held:
            slot = self.state.admission.slot(
                self.caller.uid,
                self.live.node_id,
                quota=self.caller.quota,
                on_wait=partial(self._waits, row),
                wait_s=self.state.config.queue.detached_wait_s if self.live.detached else None,
            )
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
