"""What happens in a run, as lines of JSON (NDJSON) or as server-sent events, while it happens."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import chain

from aiohttp import web
from msgspec import UNSET

from sandbox.document import error_document, file_pieces
from sandbox.errors import Internal, SandboxError
from sandbox.models import LogRecord
from sandbox.progress import Progress
from sandbox.service.answers import gathered, sent
from sandbox.service.intake.budget import Part
from sandbox.service.intake.reading import BODY
from sandbox.service.state import STATE
from sandbox.wire.events import Accepted, Logged, Progressed, Stderr, Stdout
from sandbox.wire.given import Given, encoded

LOG = logging.getLogger("sandbox.service")
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
MAX_COUNTS = 1000
# Output that waits is joined into events of so much; what an event takes beside its data.
JOINED_BYTES = 64 << 10
EVENT_BYTES = 400
OUTPUT: dict[str, type[Stdout | Stderr]] = {"stdout": Stdout, "stderr": Stderr}


def format_asked(request: web.Request) -> str | None:
    """Return the stream format that a client accepts, or None for one answer at the end."""
    accepted = request.headers.get("Accept", "")
    return next((kind for kind in (NDJSON, SSE) if kind in accepted), None)


async def streamed(
    request: web.Request,
    kind: str,
    work: Callable[[Events], Awaitable[None]],
    *,
    keep: Callable[[asyncio.Task[None]], None] | None = None,
) -> web.StreamResponse:
    """Send what `work` tells while it tells it. Raises the `SandboxError` that it raises before it has told anything.

    A client that goes away ends the work, unless `keep` takes its task.
    """
    events = Events(request[BODY].part.beside())
    task = asyncio.create_task(_told(request, work, events))
    if keep:
        keep(task)
    try:
        if not await events.any():
            await task
        return await events.send(request, kind)
    finally:
        events.leave()
        if not keep:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _told(request: web.Request, work: Callable[[Events], Awaitable[None]], events: Events) -> None:
    """Do the work; an error that comes too late for the answer's status is an event."""
    try:
        await work(events)
    except SandboxError as error:
        if not events.begun:
            raise
        events.error(error)
        request.app[STATE].metrics.error(error.code)
    except Exception:
        if not events.begun:
            raise
        LOG.exception("a stream failed: %s %s", request.method, request.path)
        events.error(Internal("the service has a defect", hint="its log says more; report this"))
        request.app[STATE].metrics.error(Internal.code)
    finally:
        events.end()


class _Event:
    """One event that waits: the pieces of its JSON object, made when it is sent, and about how much memory it takes."""

    def __init__(self, pieces: Iterable[bytes], size_bytes: int) -> None:
        self._pieces = pieces
        self.size_bytes = size_bytes + EVENT_BYTES

    def pieces(self) -> Iterable[bytes]:
        """Give the object."""
        return self._pieces


class _Output(_Event):
    """Output that waits, to which more of the same stream is joined."""

    def __init__(self, stream: str) -> None:
        super().__init__((), 0)
        self.stream = stream
        self.data = bytearray()

    def pieces(self) -> Iterable[bytes]:
        """Give the object. What is no UTF-8 comes as base64, too; also a character that was cut in two."""
        kind = OUTPUT[self.stream]
        try:
            event = kind(text=self.data.decode())
        except UnicodeDecodeError:
            text = self.data.decode("utf-8", "backslashreplace")
            event = kind(text=text, base64=base64.b64encode(self.data).decode())
        return [encoded(event)]


class Events:
    """Collects events for one client.

    What waits because the client is slow counts as its caller's `part` of the budget.

    It is bounded by the run's own caps.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._waiting: deque[_Event] = deque()
        self._news = asyncio.Event()
        self._over = False
        self._left = False
        self._counts = 0
        self.begun = False

    def add(self, event: Given) -> None:
        """Add one event."""
        text = encoded(event)
        self._add(_Event([text], len(text)))

    def add_document(self, event: str, document: list[bytes]) -> None:
        """Add an event that is a whole JSON object with something in it, unparsed."""
        first, *others = document
        head = b'{"event": "%s", %s' % (event.encode(), first[1:])
        self._add(_Event([head, *others], sum(map(len, document))))

    def accepted(self, run_id: str) -> None:
        """Say that a run begins, once."""
        if not self.begun:
            self.add(Accepted(run_id=run_id))

    def output(self, stream: str, data: bytes) -> None:
        """Add output of the program: "stdout" or "stderr"."""
        last = self._waiting[-1] if self._waiting else None
        if not (isinstance(last, _Output) and last.stream == stream and len(last.data) < JOINED_BYTES):
            last = _Output(stream)
            self._add(last)
        last.data += data
        last.size_bytes += len(data)
        self._count(len(data))

    def log(self, record: LogRecord) -> None:
        """Add a log record of the program."""
        self.add(Logged(level=record.level, text=record.message, elapsed_s=record.elapsed_s))

    def file(self, name: str, content: bytearray) -> None:
        """Add a file that the program saved."""
        self._add(_Event(_file_event(name, content), len(content)))

    def progress(self, news: Progress) -> None:
        """Add a step towards the run; of a download's many counts only so many, and of those that follow none."""
        self._counts += news.done_bytes is not None
        if news.done_bytes is None or self._counts <= MAX_COUNTS:
            done, total = (UNSET if size is None else size for size in (news.done_bytes, news.total_bytes))
            self.add(Progressed(step=news.step, text=news.text, done_bytes=done, total_bytes=total))

    def error(self, error: SandboxError) -> None:
        """Add an error, after which nothing comes."""
        self.add_document("error", [error_document(error)])

    def end(self) -> None:
        """Say that nothing more will come."""
        self._over = True
        self._news.set()

    def leave(self) -> None:
        """Collect nothing any more: nobody is left to send it to."""
        self._left = True
        self._waiting.clear()
        self._part.close()

    async def any(self) -> bool:
        """Wait for the first event; tell whether there is one at all."""
        await self._news.wait()
        return self.begun

    async def send(self, request: web.Request, kind: str) -> web.StreamResponse:
        """Write events as they come, until the end or until the client is gone."""
        response = web.StreamResponse(
            headers={"Content-Type": kind, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        return await sent(request, response, self._pieces(kind))

    def _add(self, event: _Event) -> None:
        self.begun = True
        if not self._left:
            self._waiting.append(event)
            self._count(event.size_bytes)
            self._news.set()

    def _count(self, more_bytes: int) -> None:
        self._part.count(self._part.size_bytes + more_bytes)

    async def _pieces(self, kind: str) -> AsyncIterator[bytes]:
        before, after = (b"", b"\n") if kind == NDJSON else (b"data: ", b"\n\n")
        while True:
            while self._waiting:
                event = self._waiting.popleft()
                for piece in gathered(chain((before,), event.pieces(), (after,))):
                    yield piece
                self._count(-event.size_bytes)
            if self._over:
                return
            self._news.clear()
            await self._news.wait()


def _file_event(name: str, content: bytearray) -> Iterator[bytes]:
    pieces = file_pieces(name, content)
    yield b'{"event": "file", ' + next(pieces)[1:]
    yield from pieces
