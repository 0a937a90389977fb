"""Events for a client of the service: what happens is told in order, and a long download does not hide what follows."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from sandbox.progress import Progress
from sandbox.service.intake.budget import Budget
from sandbox.service.routes.events import MAX_COUNTS, NDJSON, Events


def told(events: Events) -> list[dict[str, Any]]:
    """Return everything that a client gets."""
    events.end()

    async def collect() -> bytes:
        return b"".join([piece async for piece in events._pieces(NDJSON)])

    return [json.loads(line) for line in asyncio.run(collect()).splitlines()]


def test_the_counts_of_a_download_are_bounded_and_the_steps_after_it_still_come() -> None:
    events = Events(Budget(1 << 20).part(0))
    for number in range(MAX_COUNTS + 500):
        events.progress(Progress(step="downloading", done_bytes=number, total_bytes=10_000))
    events.progress(Progress(step="installing", text="3 packages"))
    events.progress(Progress(step="storing"))
    found = told(events)
    assert [event["step"] for event in found[-2:]] == ["installing", "storing"]
    assert [event["done_bytes"] for event in found[:-2]] == list(range(MAX_COUNTS))


def test_a_step_has_bytes_only_where_they_are_known() -> None:
    events = Events(Budget(1 << 20).part(0))
    events.progress(Progress(step="resolving", text="pandas"))
    events.progress(Progress(step="downloading", done_bytes=5))
    assert told(events) == [
        {"event": "progress", "step": "resolving", "text": "pandas"},
        {"event": "progress", "step": "downloading", "text": "", "done_bytes": 5},
    ]
