"""Frames between the runner and the harness: how they are written, read and bounded.

A frame is one type byte, four bytes of big-endian length and a body of at most 1 MiB. `job_frames` gives what the
runner sends; `FrameReader` takes what comes back, and `sandbox.channel.collector` believes nothing of it unchecked.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sandbox.channel.modules import check_modules
from sandbox.channel.records import ProtocolViolation
from sandbox.errors import InvalidRequest
from sandbox.inside.harness.text import path_problem

__all__ = [
    "CANCEL",
    "MAX_BODY_BYTES",
    "FrameReader",
    "ProtocolViolation",
    "RunCaps",
    "encode",
    "job_frames",
    "preload_frame",
]

PROTOCOL = 1
MAX_BODY_BYTES = 1 << 20
CHUNK_BYTES = 256 << 10
MAX_RECORD_BYTES = 64 << 10
HEADER = struct.Struct(">cI")
FROM_HARNESS = "RSOELFfVMAXQ"
RECORD_BYTES = {"R": 4096, "S": 0, "L": MAX_RECORD_BYTES, "F": 4096, "M": MAX_RECORD_BYTES} | {
    "X": MAX_RECORD_BYTES,
    "Q": 4096,
}


@dataclass(frozen=True)
class RunCaps:
    """Caps of one run; the optional ones become resource limits of the program's processes."""

    output_bytes: int
    result_bytes: int
    files_bytes: int
    files_count: int
    log_records: int
    as_bytes: int | None = None
    cpu_s: int | None = None
    fsize_bytes: int | None = None
    nofile: int | None = None
    nproc: int | None = None


def encode(kind: str, body: bytes | memoryview = b"") -> bytes:
    """Return one frame."""
    return b"".join((HEADER.pack(kind.encode("ascii"), len(body)), body))


CANCEL = encode("C")


def preload_frame(modules: Sequence[str], cell: Mapping[str, Any] | None = None) -> bytes:
    """Return the frame that has the harness import `modules`, make cells if told how, and report ready again."""
    check_modules(modules)
    return encode("P", json.dumps({"modules": list(modules), **({"cell": cell} if cell else {})}).encode("ascii"))


def job_frames(
    *,
    run_id: str,
    node_id: str,
    topic: str,
    timestamp: str,
    filename: str,
    env: Mapping[str, str],
    limits: RunCaps,
    code: bytes,
    payload_json: bytes,
    message_json: bytes,
    files: Mapping[str, bytes],
    relay: Mapping[str, Any] | None = None,
    save_new: bool = False,
) -> Iterator[bytes]:
    """Yield the frames of one job, small ones joined. `message_json` needs no payload: the harness puts it in.

    `relay` is `{"port", "target"}`: the loopback port that leads to the egress socket at the path `target`. With
    `save_new`, every file that the program leaves is handed over.
    Raises InvalidRequest when topic, names and environment together exceed one frame, or for a file name
    that leads elsewhere than into the working directory.
    """
    for name in files:
        if problem := path_problem(name):
            raise InvalidRequest(f"the file name {name[:80]!r} {problem}", hint="give files plain names")
    contents = [("code", code), ("payload", payload_json), ("message", message_json)]
    parts: list[dict[str, Any]] = [{"kind": kind, "size": len(body)} for kind, body in contents]
    parts += [{"kind": "file", "name": name, "size": len(body)} for name, body in files.items()]
    job = {
        "protocol": PROTOCOL,
        "run_id": run_id,
        "node_id": node_id,
        "topic": topic,
        "timestamp": timestamp,
        "filename": filename,
        "env": dict(env),
        "limits": asdict(limits),
        "parts": parts,
        "relay": dict(relay) if relay else None,
        "save_new": save_new,
    }
    body = json.dumps(job).encode("ascii")
    if len(body) > MAX_BODY_BYTES:
        raise InvalidRequest(
            f"topic, environment and file names take {len(body)} bytes, more than {MAX_BODY_BYTES}",
            hint="send large values in the payload or as files",
        )
    waiting = encode("J", body)  # each chunk wakes the harness, which takes longer than all of a small job
    for content in (*(body for _, body in contents), *files.values()):
        view = memoryview(content)
        for start in range(0, len(view), CHUNK_BYTES):
            frame = encode("D", view[start : start + CHUNK_BYTES])
            if len(waiting) + len(frame) > CHUNK_BYTES:
                yield waiting
                waiting = b""
            waiting += frame
    yield waiting + encode("G")


class FrameReader:
    """Reads frames of the harness from a stream; bounded in size, not in time."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream

    async def read(self) -> tuple[str, bytes] | None:
        """Return type and body of the next frame, or None at a clean end. Raises ProtocolViolation."""
        try:
            head = await self._stream.readexactly(HEADER.size)
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return None
            raise ProtocolViolation("the sandbox's connection ended inside a frame") from None
        kind, size = HEADER.unpack(head)
        letter = kind.decode("latin-1")
        if letter not in FROM_HARNESS:
            raise ProtocolViolation(f"the sandbox sent a frame of unknown type {letter!r}")
        if size > RECORD_BYTES.get(letter, MAX_BODY_BYTES):
            raise ProtocolViolation(f"the sandbox sent a frame {letter!r} of {size} bytes")
        try:
            return letter, await self._stream.readexactly(size)
        except asyncio.IncompleteReadError:
            raise ProtocolViolation("the sandbox's connection ended inside a frame") from None
