"""What happens in a run, as lines of JSON (NDJSON) or as server-sent events, while it happens."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from sandbox.progress import Progress
from sandbox.service.answers import PIECE_BYTES, sent

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
MAX_COUNTS = 1000


def format_asked(request: web.Request) -> str | None:
    """Return the stream format that a client accepts, or None for one answer at the end."""
    accepted = request.headers.get("Accept", "")
    return next((kind for kind in (NDJSON, SSE) if kind in accepted), None)


class Events:
    """Collects events for one client. They wait here, bounded by the run's own caps, when the client is slow."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._counts = 0

    def add(self, event: str, **facts: Any) -> None:
        """Add one event."""
        self._queue.put_nowait(json.dumps({"event": event, **facts}).encode())

    def add_document(self, event: str, document: bytes) -> None:
        """Add an event that is a whole JSON object, unparsed."""
        self._queue.put_nowait(b'{"event": "%s", %s' % (event.encode(), document[1:]))

    def output(self, stream: str, data: bytes) -> None:
        """Add output of the program, or a log record; see `execution.OnOutput`. What is no UTF-8 comes as base64, too."""
        try:
            self.add(stream, text=data.decode())
        except UnicodeDecodeError:  # also a character that was cut in two
            self.add(stream, text=data.decode("utf-8", "backslashreplace"), base64=base64.b64encode(data).decode())

    def progress(self, news: Progress) -> None:
        """Add a step towards the run; of a download's many counts only so many, and of those that follow none."""
        self._counts += news.done_bytes is not None
        if news.done_bytes is None or self._counts <= MAX_COUNTS:
            facts = {"done_bytes": news.done_bytes, "total_bytes": news.total_bytes}
            self.add("progress", step=news.step, text=news.text, **{k: v for k, v in facts.items() if v is not None})

    def end(self) -> None:
        """Say that nothing more will come."""
        self._queue.put_nowait(None)

    async def send(self, request: web.Request, kind: str) -> web.StreamResponse:
        """Write events as they come, until the end or until the client is gone."""
        response = web.StreamResponse(headers={"Content-Type": kind, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        return await sent(request, response, self._pieces(kind))

    async def _pieces(self, kind: str) -> AsyncIterator[bytes]:
        before, after = (b"", b"\n") if kind == NDJSON else (b"data: ", b"\n\n")
        while (event := await self._queue.get()) is not None:
            # A large result is not copied for the sake of the few bytes around it.
            for piece in (before, event, after) if len(event) > PIECE_BYTES else (before + event + after,):
                yield piece
