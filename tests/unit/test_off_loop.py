"""Work on much data goes to a thread, work on little does not, and a copy is the same bytes."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sandbox.off_loop import LARGE_BYTES, copied, run_off_loop


@pytest.mark.parametrize(("size_bytes", "here"), [(0, True), (LARGE_BYTES, True), (LARGE_BYTES + 1, False)])
def test_work_is_done_beside_the_event_loop_where_it_is_much(size_bytes: int, *, here: bool) -> None:
    done_in = asyncio.run(run_off_loop(size_bytes, threading.get_ident))
    assert (done_in == threading.get_ident()) == here


@pytest.mark.parametrize("data", [b"", b"x", b"xyz", bytearray(b"\x00\xff" * 700_001)])
def test_a_copy_is_the_same_bytes(data: bytes | bytearray) -> None:
    found = copied(data)
    assert type(found) is bytes
    assert found == data
