"""Frames: what the runner sends, and that it believes nothing that comes back unchecked."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.channel.collector import Collector
from sandbox.channel.frames import (
    MAX_BODY_BYTES,
    FrameReader,
    ProtocolViolation,
    RunCaps,
    encode,
    job_frames,
    preload_frame,
)
from sandbox.errors import Internal, InvalidRequest
from sandbox.inside.harness.text import name_problem
from sandbox.models import LogRecord
from tests.unit.test_harness_driver import separate

LIMITS = RunCaps(output_bytes=100, result_bytes=50, files_bytes=30, files_count=3, log_records=2)
READY = ("R", b'{"protocol":1,"python":[3,11,2],"implementation":"cpython"}')
START = ("S", b"")
QUIT: dict[str, Any] = {
    "exit_code": 0, "signal": None, "ended": "exited", "max_rss_kib": 1, "cpu_s": 0.1, "wall_s": 0.1,
}  # fmt: skip # a table
ERROR: dict[str, Any] = {
    "type": "ValueError", "message": "m", "line": 1, "column": None, "traceback": "t", "cause": None,
}  # fmt: skip # a table


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


def log(message: str = "m", level: str = "info") -> tuple[str, bytes]:
    return "L", text({"level": level, "message": message, "elapsed_s": 0.5})


def file(name: str, size: int) -> tuple[str, bytes]:
    return "F", text({"name": name, "size": size})


def collected(*frames: tuple[str, bytes], limits: RunCaps = LIMITS) -> Collector:
    collector = Collector(limits)
    for kind, body in (READY, START, *frames):
        collector.feed(kind, body)
    return collector


def read_all(data: bytes) -> list[tuple[str, bytes]]:
    async def read() -> list[tuple[str, bytes]]:
        stream = asyncio.StreamReader()
        stream.feed_data(data)
        stream.feed_eof()
        reader, frames = FrameReader(stream), []
        while (frame := await reader.read()) is not None:
            frames.append(frame)
        return frames

    return asyncio.run(read())


# ---- reading


@given(st.lists(st.tuples(st.sampled_from("OEfVA"), st.binary(min_size=1, max_size=100))))
def test_frames_are_read_as_they_were_encoded(frames: list[tuple[str, bytes]]) -> None:
    assert read_all(b"".join(encode(kind, body) for kind, body in frames)) == frames


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_give_frames_or_a_violation(data: bytes) -> None:
    try:
        frames = read_all(data)
    except ProtocolViolation:
        return
    assert b"".join(encode(kind, body) for kind, body in frames) == data


@pytest.mark.parametrize(
    "data",
    [
        b"O",
        b"O\0\0\0\5ab",
        b"O" + (MAX_BODY_BYTES + 1).to_bytes(4, "big"),
        b"L\0\1\0\1" + b"x" * 65_537,
        b"Q\0\0\x10\x01" + b"x" * 4097,
        b"S\0\0\0\1x",
        b"J\0\0\0\0",
        b"\xff\xff\xff\xff\xff",
    ],
)
def test_a_frame_that_is_cut_off_or_too_large_or_unknown_is_a_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        read_all(data)


def test_a_violation_is_an_internal_error_with_no_code_of_its_own() -> None:
    assert issubclass(ProtocolViolation, Internal)
    assert ProtocolViolation("x").code == Internal.code
    assert "code" not in vars(ProtocolViolation)


# ---- collecting


def test_a_complete_run_is_collected() -> None:
    collector = collected(
        ("O", b"out"),
        ("E", b"err"),
        log("hello", "warning"),
        file("a", 4),
        ("f", b"ab"),
        ("O", b"put"),
        ("f", b"cd"),
        file("empty", 0),
        file("a", 1),
        ("f", b"z"),
        ("V", b'{"x"'),
        ("V", b":1}"),
        ("A", b"[2]"),
        ("M", text({"output_topic": "t", "warnings": ["w"]})),
        ("Q", text(QUIT)),
    )
    assert (collector.stdout, collector.stderr) == (b"output", b"err")
    assert collector.logs == [LogRecord(level="warning", message="hello", elapsed_s=0.5)]
    assert {f.name: f.content for f in collector.files} == {"a": b"z", "empty": b""}
    assert (collector.result_json(), collector.additional_data_json()) == (b'{"x":1}', b"[2]")
    assert (collector.meta.output_topic, collector.meta.warnings) == ("t", ["w"])
    assert collector.error is None
    assert collector.quit is not None
    assert collector.quit.ended == "exited"


def test_output_and_logs_are_handed_on_as_they_come() -> None:
    seen: list[object] = []
    collector = Collector(LIMITS, on_output=lambda *output: seen.append(output), on_log=seen.append)
    for kind, body in (READY, START, ("O", b"a"), log("x"), ("E", b"b")):
        collector.feed(kind, body)
    assert seen == [("stdout", b"a"), LogRecord(level="info", message="x", elapsed_s=0.5), ("stderr", b"b")]


def test_a_result_counts_only_when_it_was_committed() -> None:
    assert collected(("V", b"1"), ("Q", text(QUIT))).result_json() is None
    assert collected(("V", b"1"), ("X", text(ERROR)), ("Q", text(QUIT))).result_json() is None
    assert collected(("M", b"{}"), ("Q", text(QUIT))).result_json() is None


def test_an_error_is_kept_with_the_cap_that_explains_it() -> None:
    collector = collected(("X", text({**ERROR, "cause": "memory"})))
    assert collector.error is not None
    assert (collector.error.type, collector.error.line, collector.cause) == ("ValueError", 1, "memory")


@pytest.mark.parametrize(
    "frames",
    [
        [START],
        [("Q", text(QUIT))],
        [READY, READY],
        [READY, ("O", b"x")],
        [READY, ("V", b"1")],
        [READY, START, START],
        [READY, START, ("Q", text(QUIT)), ("O", b"x")],
        [READY, START, ("Q", text(QUIT)), ("Q", text(QUIT))],
        [READY, START, ("A", b"1"), ("V", b"1")],
        [READY, START, ("M", b"{}"), ("V", b"1")],
        [READY, START, ("M", b"{}"), ("M", b"{}")],
        [READY, START, ("M", b"{}"), ("X", text(ERROR))],
        [READY, START, ("X", text(ERROR)), ("V", b"1")],
        [READY, START, ("f", b"x")],
        [READY, START, file("a", 2), file("b", 1)],
        [READY, START, file("a", 0), ("f", b"x")],
        [READY, START, file("a", 2), ("f", b"xyz")],
    ],
)
def test_frames_out_of_order_are_a_violation(frames: list[tuple[str, bytes]]) -> None:
    collector = Collector(LIMITS)
    for kind, body in frames[:-1]:
        collector.feed(kind, body)
    with pytest.raises(ProtocolViolation):
        collector.feed(*frames[-1])


@pytest.mark.parametrize(
    "frames",
    [
        [("O", b"x" * 60), ("E", b"x" * 41)],
        [("O", b"x" * 90), log("a long message")],
        [log(""), log(""), log("")],
        [("V", b"1" * 51)],
        [("V", b"1" * 30), ("A", b"1" * 21)],
        [file("a", 31)],
        [file("a", 20), ("f", b"x" * 20), file("b", 11)],
        [file("a", 0), file("a", 0), file("a", 0), file("a", 0)],
    ],
)
def test_more_than_a_cap_allows_is_a_violation(frames: list[tuple[str, bytes]]) -> None:
    limits = RunCaps(**{**vars(LIMITS), "output_bytes": 1000 if frames[0] == log("") else 100})
    collector = collected(*frames[:-1], limits=limits)
    with pytest.raises(ProtocolViolation):
        collector.feed(*frames[-1])


@pytest.mark.parametrize(
    "frame",
    [
        ("Z", b"x"),
        ("", b"x"),
        ("OE", b"x"),
        ("O", b""),
        ("V", b""),
        ("L", b"{"),
        ("L", b"[]"),
        ("L", b"\xff"),
        log("x", "loud"),
        ("L", text({"level": "info", "message": "x", "elapsed_s": 1, "extra": 1})),
        ("L", text({"level": "info", "message": 5, "elapsed_s": 1})),
        ("F", text({"name": "a", "size": -1})),
        ("F", text({"name": "a", "size": 1.5})),
        ("F", text({"name": "a"})),
        *(file(name, 1) for name in ("../x", "/etc/x", "a\0", "", ".", "..", "a/b", "\x1b[0m", "x" * 256)),
        ("M", text({"warnings": ["w"] * 101})),
        ("M", text({"output_topic": 1})),
        ("M", b'{"output_topic": ' + b"[" * 101 + b"]" * 101 + b"}"),
        ("M", b'{"output_topic": "\n"}'),
        ("X", text({**ERROR, "line": 10**30})),
        ("X", text({**ERROR, "column": -5})),
        ("X", text({"type": "E"})),
        ("X", text({**ERROR, "cause": "bad luck"})),
        ("X", b"[" * 60_000),
        ("Q", text({**QUIT, "ended": "well"})),
        ("Q", text({**QUIT, "signal": "\x1b[31m"})),
        ("Q", text({**QUIT, "cpu_s": -1})),
        ("Q", b'{"exit_code":0,"signal":null,"ended":"exited","max_rss_kib":1,"cpu_s":NaN,"wall_s":1}'),
        ("L", b'{"level":"info","message":"' + b"x" * 65_600 + b'","elapsed_s":1}'),
    ],
)
def test_a_malformed_frame_is_a_violation(frame: tuple[str, bytes]) -> None:
    big = RunCaps(**{**vars(LIMITS), "output_bytes": 1 << 20})
    with pytest.raises(ProtocolViolation):
        collected(frame, limits=big)


@pytest.mark.parametrize(
    "result", [b"{", b"NaN", b"[Infinity]", b"1 2", b"\xff", b"1e999", b"[" * 40, b"{'a':1}", b"[1,]"]
)
def test_a_result_that_is_not_strict_json_is_a_violation(result: bytes) -> None:
    collector = collected(("V", result), ("M", b"{}"))
    with pytest.raises(ProtocolViolation):
        collector.result_json()


def test_half_a_character_is_replaced_in_all_that_comes_and_the_program_is_told() -> None:
    collector = collected(
        ("L", b'{"level":"info","message":"a\\ud800","elapsed_s":1}'),
        ("V", b'"\\ud8'),
        ("V", b'00"'),
        ("M", b'{"output_topic": "\\udfff"}'),
    )
    assert collector.result_json() == collector.result_json() == '"\ufffd"'.encode()
    assert (collector.meta.output_topic, collector.logs[0].message) == ("\ufffd", "a\ufffd")
    assert collector.warnings == (
        "text that is not valid Unicode (a lone surrogate) had characters replaced (at result)",
    )


def test_a_deeply_nested_result_is_a_violation_and_not_a_crash() -> None:
    depth = 100_000
    limits = RunCaps(**{**vars(LIMITS), "result_bytes": 1 << 20})
    collector = collected(("V", b"[" * depth + b"]" * depth), ("M", b"{}"), limits=limits)
    with pytest.raises(ProtocolViolation):
        collector.result_json()


@given(st.lists(st.tuples(st.sampled_from("RSOELFfVMAXQZ"), st.binary(max_size=60)), max_size=30))
def test_whatever_comes_the_collector_holds_no_more_than_the_caps(frames: list[tuple[str, bytes]]) -> None:
    collector = collected()
    for kind, body in frames:
        try:
            collector.feed(kind, body)
        except ProtocolViolation:
            continue
    assert len(collector.logs) <= LIMITS.log_records
    assert sum(len(f.content) for f in collector.files) <= LIMITS.files_bytes


def test_a_file_announced_but_never_sent_costs_nothing_and_does_not_appear() -> None:
    limits = RunCaps(**{**vars(LIMITS), "files_bytes": 1 << 40})
    tracemalloc.start()
    collector = collected(file("a", 1 << 39), limits=limits)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert collector.files == ()
    assert peak < 5_000_000


# ---- sending


def job(**fields: Any) -> list[bytes]:
    base: dict[str, Any] = {
        "run_id": "r",
        "node_id": "n",
        "topic": "t",
        "timestamp": "2024-01-01T00:00:00+00:00",
        "filename": "script.py",
        "env": {},
        "limits": LIMITS,
        "code": b"result = 1",
        "payload_json": b"null",
        "message_json": b"{}",
        "files": {},
    }
    return separate(job_frames(**{**base, **fields}))


def test_a_job_is_a_header_the_parts_in_order_and_the_word_to_go() -> None:
    payload = bytes(range(256)) * 3000
    frames = job(payload_json=payload, files={"a.txt": b"file a", "empty": b""}, env={"K": "v"})
    kinds = [frame[:1] for frame in frames]
    assert kinds == [b"J", *[b"D"] * (len(frames) - 2), b"G"]
    header = json.loads(frames[0][5:])
    assert header["parts"] == [
        {"kind": "code", "size": 10},
        {"kind": "payload", "size": len(payload)},
        {"kind": "message", "size": 2},
        {"kind": "file", "name": "a.txt", "size": 6},
        {"kind": "file", "name": "empty", "size": 0},
    ]
    assert (header["protocol"], header["env"]) == (1, {"K": "v"})
    assert header["limits"]["output_bytes"] == LIMITS.output_bytes
    assert b"".join(frame[5:] for frame in frames[1:-1]) == b"result = 1" + payload + b"{}" + b"file a"
    assert all(len(frame) <= (256 << 10) + 5 for frame in frames[1:])
    assert all(int.from_bytes(frame[1:5], "big") == len(frame) - 5 for frame in frames)


def test_a_small_job_travels_in_one_piece_and_a_large_one_in_pieces_of_bounded_size() -> None:
    base: dict[str, Any] = dict.fromkeys(("run_id", "node_id", "topic", "timestamp", "filename"), "")
    base.update(env={}, limits=LIMITS, code=b"result = 1", message_json=b"{}", files={"a": b"1"})
    assert len(list(job_frames(**base, payload_json=b"null"))) == 1
    pieces = list(job_frames(**base, payload_json=b"x" * 1_000_000))
    assert len(pieces) == 5
    assert all(len(piece) <= (256 << 10) + 10 for piece in pieces)


def test_a_large_payload_is_copied_one_chunk_at_a_time() -> None:
    payload = b"x" * 50_000_000
    tracemalloc.start()
    for _ in job_frames(
        run_id="r",
        node_id="n",
        topic="t",
        timestamp="",
        filename="s.py",
        env={},
        limits=LIMITS,
        code=b"",
        payload_json=payload,
        message_json=b"{}",
        files={},
    ):
        continue
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("fields", [{"files": {"../x": b""}}, {"env": {"K": "v" * MAX_BODY_BYTES}}])
def test_a_job_that_cannot_be_expressed_is_an_invalid_request(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        job(**fields)


@given(st.text())
def test_a_name_without_a_problem_is_one_visible_path_component(name: str) -> None:
    if name_problem(name) is None:
        assert "/" not in name
        assert "\0" not in name
        assert name not in ("", ".", "..")
        assert name.isprintable()
        assert 0 < len(name.encode()) <= 255


# ---- preloading


def test_modules_to_preload_are_named_in_one_frame() -> None:
    assert preload_frame(["pandas", "sklearn.cluster"]) == encode("P", b'{"modules": ["pandas", "sklearn.cluster"]}')
    with pytest.raises(InvalidRequest):
        preload_frame(["os; print(1)"])


@pytest.mark.parametrize(
    "fields",
    [
        {"preloaded": ["a"] * 33},
        {"preloaded": ["a" * 101]},
        {"preloaded": ["a\n"]},
        {"preloaded": ["\u001b[2J"]},
        {"preloaded": "a"},
        {"preloaded": [1]},
        {"preloaded": None},
        {"unfit": "a b"},
        {"unfit": 1},
        {"threads": 1},
    ],
)
def test_what_the_sandbox_says_of_preloading_is_checked(fields: dict[str, Any]) -> None:
    said = {**json.loads(READY[1]), **fields}
    with pytest.raises(ProtocolViolation):
        Collector(LIMITS).feed("R", text(said))


def test_the_longest_names_of_preloaded_modules_fit_their_frame() -> None:
    said = {**json.loads(READY[1]), "preloaded": ["a" * 100] * 32, "unfit": "b" * 100}
    collector = Collector(LIMITS)
    collector.feed("R", text(said))
    assert collector.ready is not None
    assert len(collector.ready.preloaded) == 32


def test_nobody_but_the_runner_asks_for_modules() -> None:
    with pytest.raises(ProtocolViolation):
        collected(("P", b'{"modules": []}'))
