"""JSON that Node writes is taken, and read alike, by the command, by the service and in the sandbox.

Half of a surrogate pair is U+FFFD for all of them, and whoever replaces one says so.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandbox.channel.canonical import PIECE_BYTES
from sandbox.cli.run import check_payload, read_payload
from sandbox.errors import InvalidRequest
from sandbox.inside.harness.json_text import HALF_REPLACED, from_json, whole_text
from sandbox.models import RunRequest
from sandbox.run.request import checked
from sandbox.service.intake.asked import request_of
from sandbox.service.intake.parser import AT_ONCE_BYTES as IN_SERVICE_BYTES
from sandbox.service.intake.parser import Parser
from sandbox.service.intake.spool import SMALL_BYTES, Spool
from tests.unit.factory import KNOWN

NODE = Path(sys.executable).with_name("node")
WRITES = """
const lines = require('readline').createInterface({input: process.stdin})
lines.on('line', line => console.log(JSON.stringify(JSON.parse(line))))
"""
FEW = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
TEXTS = st.text(max_size=8) | st.text(
    st.sampled_from('a\\"\ud83d\ude00\ud800\udbff\udc00\udfff\ud55c\u2028\x7f\x00\n/😀'), max_size=8
)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
PADS = (0, IN_SERVICE_BYTES, PIECE_BYTES, SMALL_BYTES)


@pytest.fixture(scope="module")
def stringify() -> Iterator[Callable[[Any], bytes]]:
    """Give what Node's `JSON.stringify` writes of a value."""
    with subprocess.Popen([NODE, "-e", WRITES], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as node:
        assert node.stdin
        assert node.stdout
        wire_in, wire_out = node.stdin, node.stdout

        def written(value: Any) -> bytes:
            wire_in.write(json.dumps(value).encode() + b"\n")
            wire_in.flush()
            return wire_out.readline()[:-1]

        yield written
        wire_in.close()


@pytest.fixture(scope="module")
def through() -> Iterator[Callable[[bytes], RunRequest]]:
    """Give what the service makes of the body of a run."""
    loop, parser = asyncio.new_event_loop(), Parser()

    def taken(body: bytes) -> RunRequest:
        spool = Spool()
        for start in range(0, len(body), PIECE_BYTES - 1):
            spool.add(body[start : start + PIECE_BYTES - 1])
        return request_of(*loop.run_until_complete(parser.asked("run", spool, KNOWN, uid=1)))

    yield taken
    parser.close()
    loop.close()


def check(document: bytes, through: Callable[[bytes], RunRequest], topic: bytes = b'""') -> tuple[Any, list[str]]:
    """Return what a program finds, and what is warned of: the same with the service and without."""
    check_payload(document, "-")
    message = b'{"props":%s}' % document
    own = checked(RunRequest(code="1", topic=json.loads(topic), payload_json=document, message_json=message))
    request = through(b'{"code":"1","topic":%s,"payload":%s,"message":%s}' % (topic, document, message))
    assert request == own
    return from_json(request.payload_json), list(request.warnings or ())


@FEW
@given(VALUES, st.sampled_from(PADS), st.booleans())
@example({"\ud83d": "cut \ud83d", "whole": "\ud83d\ude00"}, 0, False)
@example(["\\", "\\\ud83d", "\ude00"], SMALL_BYTES, True)
def test_what_node_writes_goes_through_and_is_read_alike(
    stringify: Callable[[Any], bytes],
    through: Callable[[bytes], RunRequest],
    value: Any,
    pad: int,
    before: bool,
) -> None:
    padding = "Q" * pad
    document = stringify([padding, value] if before else [value, padding])
    found, warnings = check(document, through)
    sent = json.loads(document)
    assert found == mended(sent)
    assert bool(warnings) == (mended(sent) != sent)


def mended(value: Any) -> Any:
    """Return a value with U+FFFD for halves, in texts and in names."""
    if isinstance(value, dict):
        return {whole_text(name): mended(item) for name, item in value.items()}
    if isinstance(value, list):
        return [mended(item) for item in value]
    return whole_text(value) if isinstance(value, str) else value


@pytest.mark.parametrize("size", [0, 100, IN_SERVICE_BYTES, PIECE_BYTES - 3, SMALL_BYTES])
@pytest.mark.parametrize("units", [(0xD83D,), (0xDC00,), (0xD83D, 0xD83D, 0xDE00), (0xDE00, 0xD83D)])
def test_a_half_is_replaced_in_texts_of_every_size(
    stringify: Callable[[Any], bytes], through: Callable[[bytes], RunRequest], size: int, units: tuple[int, ...]
) -> None:
    half = "".join(map(chr, units))
    text = "Q" * size + half
    document = stringify({text: text + "Q"})
    found, warnings = check(document, through, json.dumps(half).encode())
    assert found == {whole_text(text): whole_text(text) + "Q"}
    assert warnings == [f"{HALF_REPLACED} (at {name})" for name in ("topic", "payload", "message")]


@pytest.mark.parametrize("piece", range(12))
def test_a_pair_at_the_end_of_a_piece_stays_whole(through: Callable[[bytes], RunRequest], piece: int) -> None:
    text = b'"' + b"Q" * (PIECE_BYTES - 40 - piece) + rb"\ud83d\ude00" * 9 + rb'\ud83d"'
    body = b'{"code":"1","payload":%s}' % text
    request = through(body)
    assert from_json(request.payload_json) == whole_text(json.loads(text))
    assert json.loads(request.payload_json).count("\ufffd") == 1


@pytest.mark.parametrize(
    "text",
    [rb'"\ud8"', rb'"\ud8xx"', rb'"\ud83d', rb'"\ud83d\udcxx"', rb'"\x41"', b'"\n"', b"NaN", b"1 2", b"[1,]", b"'a'",
     b'"caf\xe9"', b'"\xed\xa0\xbd"', b'"\xc3"', b'["\xf0\x9f\x98", 1]', '"é"'.encode("utf-16"), b"\xef\xbb\xbf1"],
)  # fmt: skip # a table
def test_what_is_no_json_is_refused_by_all(through: Callable[[bytes], RunRequest], text: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"is not (JSON|UTF-8)"):
        check_payload(text, "-")
    with pytest.raises(InvalidRequest, match="can't be read"):
        through(b'{"code":"1","payload":%s}' % text)
    if text != b"NaN":  # Python's own reader takes it
        with pytest.raises(ValueError, match=r"."):
            from_json(text)


@pytest.mark.parametrize("before", range(8))
def test_letters_of_several_bytes_may_lie_across_pieces(through: Callable[[bytes], RunRequest], before: int) -> None:
    document = json.dumps("Q" * (PIECE_BYTES - before) + "é한😀" * 3, ensure_ascii=False).encode()
    assert check(document, through)[0] == json.loads(document)
    broken = document[:-3] + document[-2:]
    with pytest.raises(InvalidRequest, match="it is not UTF-8"):
        through(b'{"code":"1","payload":%s}' % broken)


def test_control_msgspec_alone_takes_no_half() -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(rb'"cut \ud83d"', type=msgspec.Raw)


# ---- files of Windows

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", ["déjà 😀", {"a": [1]}, 7, "\ud83d cut"])
def test_a_file_of_json_may_have_any_of_its_encodings(tmp_path: Path, encoding: str, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=value == "\ud83d cut" and encoding.startswith("utf-8"))
    (tmp_path / "input.json").write_bytes(text.encode(encoding, "surrogatepass"))
    payload = read_payload(f"@{tmp_path}/input.json")
    check_payload(payload, f"@{tmp_path}/input.json")
    assert json.loads(payload) == value


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\xff\xfe[\x00", b'"\xff"', b"\x00", b"a\x00b", b""])
def test_a_file_that_has_none_of_them_is_refused_in_words(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "input.json").write_bytes(data)
    with pytest.raises(InvalidRequest, match="is not"):
        check_payload(read_payload(f"@{tmp_path}/input.json"), f"@{tmp_path}/input.json")
