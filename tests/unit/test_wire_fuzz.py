"""Streams of frames as an attacker would build them: almost right, cut anywhere.

Nothing but a violation may come of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.channel.collector import Collector
from sandbox.channel.frames import FROM_HARNESS, MAX_BODY_BYTES, FrameReader, ProtocolViolation, RunCaps, encode

LIMITS = RunCaps(output_bytes=300, result_bytes=200, files_bytes=500, files_count=3, log_records=4)
READY = {"protocol": 1, "python": [3, 12, 1], "implementation": "cpython"}
QUIT = {"exit_code": 0, "signal": None, "ended": "exited", "max_rss_kib": 1, "cpu_s": 0.1, "wall_s": 0.1}
FAILURE = {"type": "ValueError", "message": "no", "traceback": "", "line": 1, "cause": "memory"}

NASTY = st.sampled_from(
    [
        b"",
        b"null",
        b"[" * 20_000,
        b"{" * 4_000,
        b'"\\ud800"',
        b"\xff\xfe",
        b"1" * 5_000,
        b"-0",
        b"1e999",
        b"NaN",
        b'{"a":1,"a":2}',
        b'"' + b"a" * 60_000 + b'"',
        b"\x00",
        b'{"name": "../x", "size": 1}',
        b'{"name": "a", "size": -1}',
        b'{"name": "a", "size": 1e99}',
        b'{"name": "a", "size": %d}' % (1 << 80),
        b'{"level": "info", "message": "\\u001b[2J"}',
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def bent(draw: Any, fields: dict[str, Any]) -> bytes:
    """Return a document with some of its fields changed, missing or added."""
    fields = dict(fields)
    for name in draw(st.lists(st.sampled_from([*fields, "other"]), max_size=2)):
        if draw(st.booleans()):
            fields.pop(name, None)
        else:
            fields[name] = draw(VALUES)
    return json.dumps(fields).encode()


BODIES = {
    "R": bent(READY),
    "S": st.just(b""),
    "O": st.binary(min_size=1, max_size=200),
    "E": st.binary(min_size=1, max_size=200),
    "L": bent({"level": "info", "message": "m"}),
    "F": bent({"name": "a.txt", "size": 40}),
    "f": st.binary(min_size=1, max_size=40),
    "V": st.sampled_from([b"1", b"[1,", b"2]", b'"a"', b"{}"]),
    "A": st.sampled_from([b"{", b"}", b"[]"]),
    "M": bent({"output_topic": "t", "warnings": []}),
    "X": bent(FAILURE),
    "Q": bent(QUIT),
}


@st.composite
def frames(draw: Any) -> bytes:
    """Return the bytes of one frame, most often a good one."""
    kind: str = draw(st.sampled_from(FROM_HARNESS))
    body: bytes = draw(BODIES[kind] if draw(st.integers(0, 4)) else NASTY)
    frame: bytes = encode(kind, body[:MAX_BODY_BYTES])
    bend = draw(st.integers(0, 30))
    if bend == 0:  # a length that lies
        return frame[:1] + struct.pack(">I", draw(st.integers(0, 2**32 - 1))) + frame[5:]
    if bend == 1:
        frame = draw(st.binary(min_size=1, max_size=20))
    return frame


GOOD_START = encode("R", json.dumps(READY).encode()) + encode("S")
STREAMS = st.tuples(st.sampled_from([b"", GOOD_START, GOOD_START]), st.lists(frames(), max_size=25)).map(
    lambda parts: parts[0] + b"".join(parts[1])
)


class Counting:
    """Takes a saved file, and counts."""

    def __init__(self, announced: int) -> None:
        self.missing = announced

    def write(self, data: bytes) -> None:
        self.missing -= len(data)
        assert self.missing >= 0, "more than was announced"

    def close(self) -> None:
        assert self.missing == 0


def fed(stream: bytes, pieces: list[int], *, sinks: bool) -> tuple[Collector, bytearray]:
    """Read a stream that comes in these pieces, as a run does; return what was collected."""
    seen = bytearray()
    collector = Collector(
        LIMITS,
        on_output=lambda _, data: seen.extend(data),
        on_log=lambda record: seen.extend(record.message.encode()[:1]),
        open_file=(lambda _, size: Counting(size)) if sinks else None,
    )

    async def read() -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        rest = memoryview(stream)
        for number, size in enumerate(pieces):
            loop.call_later(number * 1e-6, reader.feed_data, bytes(rest[:size]))
            rest = rest[size:]

        def end() -> None:
            reader.feed_data(bytes(rest))
            reader.feed_eof()

        loop.call_later(len(pieces) * 1e-6, end)
        source = FrameReader(reader)
        while (frame := await source.read()) is not None:
            collector.feed(*frame)
            if collector.quit is not None:
                break

    with contextlib.suppress(ProtocolViolation):
        asyncio.run(asyncio.wait_for(read(), 20))
    return collector, seen


@given(STREAMS, st.lists(st.integers(1, 300), max_size=6), st.booleans())
@settings(deadline=None, max_examples=300)
def test_no_stream_hangs_crashes_or_grows_past_the_caps(stream: bytes, pieces: list[int], sinks: bool) -> None:
    collector, seen = fed(stream, pieces, sinks=sinks)
    assert len(collector.stdout) + len(collector.stderr) <= LIMITS.output_bytes
    assert len(seen) <= LIMITS.output_bytes
    assert len(collector.logs) <= LIMITS.log_records
    assert len(collector.files) <= LIMITS.files_count
    assert sum(len(file.content) for file in collector.files) <= LIMITS.files_bytes
    for committed in (collector.result_json, collector.additional_data_json):
        try:
            text = committed()
        except ProtocolViolation:
            continue
        assert text is None or len(text) <= LIMITS.result_bytes
        if text is not None:
            json.loads(text)


@pytest.mark.parametrize("kind", FROM_HARNESS)
def test_frames_of_one_kind_without_end_take_no_memory_past_the_caps(kind: str) -> None:
    body = {
        "L": b'{"level": "info", "message": "m"}',
        "M": b"{}",
        "X": json.dumps(FAILURE).encode(),
        "S": b"",
        "F": b'{"name": "a", "size": 0}',
        "R": json.dumps(READY).encode(),
        "Q": json.dumps(QUIT).encode(),
    }.get(kind, b"1" * MAX_BODY_BYTES)
    stream = GOOD_START + encode(kind, body) * (200 if len(body) < 10_000 else 8)
    tracemalloc.start()
    collector, seen = fed(stream, [], sinks=False)
    gc.collect()  # the stream's own buffer
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2 * MAX_BODY_BYTES + (1 << 18), "one frame past a cap, at most"
    assert len(seen) <= LIMITS.output_bytes
    assert len(collector.files) <= LIMITS.files_count
