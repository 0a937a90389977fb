"""Bodies of runs: files in base64, decoded in pieces, and large bodies, checked in pieces."""

from __future__ import annotations

import base64
import contextlib
import json
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import InvalidRequest, NotFound, PolicyDenied
from sandbox.service import bodies, outline
from sandbox.service.bodies import (
    MAX_TEXTS,
    PIECE_CHARS,
    UNPARSED,
    RunBody,
    environment_body,
    prune_body,
    run_body,
    run_request,
)
from sandbox.service.runs import Allowed, listed_at_most, to_check, understood
from tests.unit.factory import policy

ALLOWED = cast("Allowed", SimpleNamespace(all=lambda: [policy()], get=policy))


def content(text: str) -> bytes:
    """Return what a file's text decodes to."""
    return run_request(run_body(json.dumps({"code": "1", "files": {"a": text}}).encode()), "1").files["a"]


@pytest.mark.parametrize("size", [0, 1, 2, 3, PIECE_CHARS, *(PIECE_CHARS * 3 // 4 + more for more in (-1, 0, 1)), 300_000])
def test_a_file_is_decoded_whole_however_many_pieces_it_takes(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    assert content(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize("text", ["a", "ab", "abc", "ab==cd==", "a b=", "é===", "=" * 4, "A" * (PIECE_CHARS - 2) + "==AAAA", "A" * PIECE_CHARS + "A"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not base64"):
        content(text)


@pytest.mark.parametrize("size", [1, 100_000, 2_000_001, 6_000_000])
@pytest.mark.parametrize("escaped", [rb"\/", rb"\u002b\u002F", b""], ids=["as PHP", "as .NET", "plain"])
def test_a_file_whose_base64_has_escapes_is_the_same_file_however_large(size: int, escaped: bytes) -> None:
    data = bytes(number * 7 % 256 for number in range(256)) * (size // 256) + b"\xff\xef\xbe" * 9
    text = base64.b64encode(data)
    written = text.replace(b"/", escaped[:2]) if escaped == rb"\/" else text.replace(b"+", escaped[:6]).replace(b"/", escaped[6:]) if escaped else text
    found = run_request(run_body(b'{"code": "1", "files": {"\\u00e9.txt": "YQ==", "a": "%s"}}' % written), "1").files
    assert found == {"é.txt": b"a", "a": data}


@pytest.mark.parametrize(("count", "size"), [(3, 5_000_000), (100, 200_000), (MAX_TEXTS // 2, 6_000)])
def test_many_files_are_taken_as_few_are(count: int, size: int) -> None:
    files = {f"{number}.bin": bytes([number % 256]) * (size + number) for number in range(count)}
    env, topic, libraries = {"A": "b" * 900_000}, "t" * 60_000, ["a" * 500_000]
    others = {"payload": "p" * 900_000, "message": {"m": "m" * 900_000}, "code": "c" * 900_000, "env": env, "topic": topic, "requirements": libraries}
    made = run_body(json.dumps({**others, "files": {name: base64.b64encode(content).decode() for name, content in files.items()}}).encode())
    assert (list(made.requirements), made.env, made.topic, len(memoryview(made.code))) == (libraries, env, topic, 900_002)
    assert run_request(msgspec.structs.replace(made, requirements=()), "1").files == files


@pytest.mark.parametrize("wrong", [b"\\", b"=", b"!", b'", "b": 5, "c": "', b"\\q"])
def test_a_large_file_that_is_no_base64_is_refused(wrong: bytes) -> None:
    text = b"A" * (3 << 20) + wrong + b"A" * (3 << 20)
    with pytest.raises(InvalidRequest, match=r"`files` can't be read|not base64|can't be read: JSON"):
        run_request(run_body(b'{"code": "1", "files": {"a": "%s"}}' % text), "1")


def small_and_large(body: bytes) -> tuple[Any, Any]:
    """Return what is made of a body, as it is and as if it were a large one; None where it is refused."""

    def made() -> Any:
        try:
            found = run_body(body)
        except InvalidRequest:
            return None
        return [bytes(memoryview(value)) if name in UNPARSED else value for name, value in msgspec.structs.asdict(found).items()]

    whole = made()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bodies, "SMALL_BYTES", 8)
        patched.setattr(outline, "LONG_BYTES", 6)
        return whole, made()


VALUES = st.recursive(st.one_of(st.none(), st.integers(-9, 99_999), st.text(max_size=12)), lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)), max_leaves=8)  # fmt: skip
FIELDS = st.lists(st.tuples(st.sampled_from(["payload", "message", "files", "code", "cod\\u0065"]), VALUES), max_size=6)


CHANGE = st.none() | st.tuples(st.integers(0), st.sampled_from([b"", *(char.encode() for char in '"[]{},:1\\ \x01')]), st.booleans())


@settings(max_examples=300)
@given(FIELDS, st.booleans(), CHANGE, st.sampled_from([None, 0, 1, 2]))
def test_what_is_made_of_a_large_body_is_what_is_made_of_a_small_one(
    fields: list[tuple[str, Any]], plain: bool, change: tuple[int, bytes, bool] | None, indent: int | None
) -> None:
    members = ", ".join(f'"{name}": {json.dumps(value, ensure_ascii=plain, indent=indent)}' for name, value in [*fields, ("code", "result = payload")])
    body = b"{%s}" % members.encode()
    if change is not None:
        place, put, instead = change
        at = place % (len(body) + 1)
        body = body[:at] + put + body[at + instead :]
    whole, cut = small_and_large(body)
    assert cut == whole


@pytest.mark.parametrize(
    "body", [b'{"code": "1", "payload": [' + b"1," * 3_000_000 + b"]}", b'{"payload":' + b" " * 5_000_000 + b'1, "code": "1"}', b'{"code": "1"' + b', "payload": []' * 400_000 + b"}", b"[" * 5_000_000, b'{"code": "' + b"x" * 5_000_000]
)
def test_a_large_body_without_a_sensible_form_is_refused_in_words(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"can't be read: (it is large, and has too much white space|JSON is malformed|Input data was truncated)"):
        run_body(bytearray(body))


def test_a_payload_is_taken_byte_for_byte() -> None:
    text = b'{"a": [1.10, 1e400,  "' + b"x" * 3_000_001 + b'"]}'
    assert run_request(run_body(b'{"code": "1", "payload": ' + text + b"}"), "1").payload_json == text


# ---- whatever a field says, the answer is a mistake in words

NUMBERS = ["9" * 20, "9" * 30, "9" * 400, "9" * 5_000, "-1", "0", "-0", "18446744073709551616", "-9223372036854775809", "1e308", "1e309", "1e-320", "1e-400",
           "-1e308", "0.1", "1.0", "NaN", "Infinity", '"1"', '"999999999999999999999"', "true", "[]", "{}", "9007199254740993", "0x10", "01"]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("key", ["timeout_s", "memory_mib", "cpus", "processes"])
def test_every_number_of_a_run_is_a_limit_or_a_mistake(key: str, number: str) -> None:
    with contextlib.suppress(InvalidRequest, PolicyDenied):  # and nothing else
        wanted, held, *_ = understood(bytearray(b'{"code": "1", "limits": {"%s": %s}}' % (key.encode(), number.encode())), allowed=ALLOWED)
        held.tightened(wanted.limits)


@pytest.mark.parametrize("number", [number for number in NUMBERS if number not in ("0.1", "1.0", "1e-320", "1e-400")])
@pytest.mark.parametrize("key", ["older_s", "unused_s", "budget_mib"])
def test_every_number_of_a_removal_is_bounded(key: str, number: str) -> None:
    try:
        body = prune_body(bytearray(b'{"%s": %s}' % (key.encode(), number.encode())))
    except InvalidRequest:
        return
    assert 0 < getattr(body, key) < 1e17
    assert number in ("9007199254740993", "9" * 20) or float(number) < 1e17


@pytest.mark.parametrize("number", ["9" * 10, "9" * 5_000, "-1", "1e3", "0", "", "१", "1_0", " 1", "NaN"])
def test_every_number_of_an_address_is_bounded(number: str) -> None:
    with pytest.raises(InvalidRequest):
        listed_at_most(number)


SMALL = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
                     lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=5)  # fmt: skip


@given(st.sampled_from([*RunBody.__struct_fields__, "unknown", ""]), SMALL)
def test_whatever_a_field_has_the_mistake_is_in_words(name: str, value: Any) -> None:
    body = bytearray(json.dumps({"code": "1", name: value}).encode())
    for parse in (lambda data: understood(data, allowed=ALLOWED), lambda data: to_check(data, allowed=ALLOWED), environment_body, prune_body):
        with contextlib.suppress(InvalidRequest, PolicyDenied, NotFound):  # and nothing else
            parse(body)


@pytest.mark.parametrize(
    "fields",
    [
        {"image": ""}, {"filename": ""}, {"policy": ""}, {"preload": [""]}, {"preload": ["json"] * 100_000}, {"preload": ["json"] * 33}, {"filename": "x" * (1 << 20)},
        {"requirements": [""] * (MAX_TEXTS + 1)}, {"requirements": ["x" * (2 << 20)]}, {"env": {f"A{number}": "" for number in range(MAX_TEXTS)}},
        {"files": {f"a{number}": "" for number in range(2 * MAX_TEXTS)}}, {"topic": "x" * 500_000}, {"node_id": "x" * 513}, {"unknown": 1},
    ],
)  # fmt: skip
def test_empty_names_and_endless_lists_are_refused_before_anything_is_made_of_them(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        understood(bytearray(json.dumps({"code": "1", **fields}).encode()), allowed=ALLOWED)


def test_of_a_field_that_comes_twice_the_last_counts_and_the_first_is_not_even_looked_at() -> None:
    body = b'{"code": "1", "topic": [%s], "topic": "x"}' % b",".join([b"1"] * 100_000)
    assert understood(bytearray(body), allowed=ALLOWED)[0].topic == "x"


def test_code_that_is_too_long_is_refused_however_it_is_written() -> None:
    limit = policy().limits.code_kib << 10
    for text, taken in (("x" * limit, True), ("x" * (limit + 1), False), ("\u0001" * limit, True), ("\u0001" * (limit + 1), False)):
        body = bytearray(json.dumps({"code": text}).encode())
        if taken:
            assert understood(body, allowed=ALLOWED)[0].code == text
        else:
            with pytest.raises(PolicyDenied, match=r"limits\.code_kib"):
                understood(body, allowed=ALLOWED)
