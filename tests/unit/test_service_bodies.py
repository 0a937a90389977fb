"""Bodies of runs: files in base64, decoded in pieces."""

from __future__ import annotations

import base64
import contextlib
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import InvalidRequest, NotFound, PolicyDenied
from sandbox.service.bodies import MAX_TEXTS, PIECE_CHARS, RunBody, environment_body, prune_body, run_body, run_request
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
