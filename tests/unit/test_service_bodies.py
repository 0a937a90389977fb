"""Bodies of runs: files in base64, numbers, names and lists.

What is made of them is the same in the parser's process.
"""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.service.intake.asked import UnknownPolicy
from sandbox.service.intake.bodies import MAX_TEXTS, prune_body, run_body
from sandbox.service.intake.parser_program import KINDS
from sandbox.service.routes.runs import listed_at_most
from sandbox.wire.requests import RunBody
from tests.unit.factory import KNOWN, policy, wanted


def content(text: str) -> bytes:
    """Return what a file's text decodes to."""
    return wanted(json.dumps({"code": "1", "files": {"a": text}}).encode()).files["a"]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 49_151, 49_152, 300_000])
def test_a_file_is_decoded_whole(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    assert content(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    "text",
    ["a", "ab", "abc", "ab==cd==", "a b=", "é===", "=" * 4, "A" * 65_534 + "==AAAA", "A" * 65_537, "YQ==\n", "YQ"],
)
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not base64"):
        content(text)


@pytest.mark.parametrize("size", [1, 100_000, 2_000_001, 6_000_000])
@pytest.mark.parametrize("escaped", [rb"\/", rb"\u002b\u002F", b""], ids=["as PHP", "as .NET", "plain"])
def test_a_file_whose_base64_has_escapes_is_the_same_file_however_large(size: int, escaped: bytes) -> None:
    data = bytes(number * 7 % 256 for number in range(256)) * (size // 256) + b"\xff\xef\xbe" * 9
    text = base64.b64encode(data)
    written = (
        text.replace(b"/", escaped[:2])
        if escaped == rb"\/"
        else text.replace(b"+", escaped[:6]).replace(b"/", escaped[6:])
        if escaped
        else text
    )
    found = wanted(b'{"code": "1", "files": {"\\u00e9.txt": "YQ==", "a": "%s"}}' % written).files
    assert found == {"é.txt": b"a", "a": data}


@pytest.mark.parametrize(("count", "size"), [(3, 5_000_000), (100, 200_000), (MAX_TEXTS // 2, 6_000)])
def test_many_files_are_taken_as_few_are(count: int, size: int) -> None:
    files = {f"{number}.bin": bytes([number % 256]) * (size + number) for number in range(count)}
    env, topic, libraries = {"A": "b" * 900_000}, "t" * 60_000, ["a" * 500_000]
    others = {
        "payload": "p" * 900_000,
        "message": {"m": "m" * 900_000},
        "code": "c" * 900_000,
        "env": env,
        "topic": topic,
        "requirements": libraries,
    }
    body = {**others, "files": {name: base64.b64encode(content).decode() for name, content in files.items()}}
    made, _ = run_body(json.dumps(body).encode())
    assert (list(made.requirements), made.env, made.topic, len(memoryview(made.code))) == (
        libraries,
        env,
        topic,
        900_002,
    )
    assert wanted(json.dumps({**body, "requirements": []}).encode()).files == files


@pytest.mark.parametrize("wrong", [b"\\", b"=", b"!", b'", "b": 5, "c": "', b"\\q"])
def test_a_large_file_that_is_no_base64_is_refused(wrong: bytes) -> None:
    text = b"A" * (3 << 20) + wrong + b"A" * (3 << 20)
    with pytest.raises(InvalidRequest, match=r"`files` can't be read|not base64|can't be read: JSON"):
        wanted(b'{"code": "1", "files": {"a": "%s"}}' % text)


def test_a_payload_is_taken_byte_for_byte() -> None:
    text = b'{"a": [1.10, 1e400,  "' + b"x" * 3_000_001 + b'"]}'
    assert wanted(b'{"code": "1", "payload": ' + text + b"}").payload_json == text


# ---- whatever a field says, the answer is a mistake in words

NUMBERS = [
    "9" * 20,
    "9" * 30,
    "9" * 400,
    "9" * 5_000,
    "-1",
    "0",
    "-0",
    "18446744073709551616",
    "-9223372036854775809",
    "1e308",
    "1e309",
    "1e-320",
    "1e-400",
    "-1e308",
    "0.1",
    "1.0",
    "NaN",
    "Infinity",
    '"1"',
    '"999999999999999999999"',
    "true",
    "[]",
    "{}",
    "9007199254740993",
    "0x10",
    "01",
]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("key", ["timeout_s", "memory_mib", "cpus", "processes"])
def test_every_number_of_a_run_is_a_limit_or_a_mistake(key: str, number: str) -> None:
    with contextlib.suppress(InvalidRequest, PolicyDenied):  # and nothing else
        policy().tightened(wanted(b'{"code": "1", "limits": {"%s": %s}}' % (key.encode(), number.encode())).limits)


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


SMALL = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@given(st.sampled_from([*RunBody.__struct_fields__, "unknown", ""]), SMALL)
def test_whatever_a_field_has_the_mistake_is_in_words(name: str, value: Any) -> None:
    body = json.dumps({"code": "1", name: value}).encode()
    for parse in (wanted, *(lambda data, kind=kind: kind(data, KNOWN) for kind in KINDS.values()), prune_body):
        with contextlib.suppress(InvalidRequest, PolicyDenied, UnknownPolicy):  # and nothing else
            parse(body)


@pytest.mark.parametrize(
    "fields",
    [
        {"image": ""},
        {"filename": ""},
        {"policy": ""},
        {"preload": [""]},
        {"preload": ["json"] * 100_000},
        {"preload": ["json"] * 33},
        {"filename": "x" * (1 << 20)},
        {"requirements": [""] * (MAX_TEXTS + 1)},
        {"requirements": ["x" * (2 << 20)]},
        {"env": {f"A{number}": "" for number in range(MAX_TEXTS)}},
        {"files": {f"a{number}": "" for number in range(2 * MAX_TEXTS)}},
        {"topic": "x" * 500_000},
        {"node_id": "x" * 513},
        {"unknown": 1},
    ],
)
def test_empty_names_and_endless_lists_are_refused_before_anything_is_made_of_them(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        wanted(json.dumps({"code": "1", **fields}).encode())


def test_of_a_field_that_comes_twice_the_last_counts_and_the_first_is_not_even_looked_at() -> None:
    body = b'{"code": "1", "topic": [%s], "topic": "x"}' % b",".join([b"1"] * 100_000)
    assert wanted(body).topic == "x"


def test_code_that_is_too_long_is_refused_however_it_is_written() -> None:
    limit = policy().limits.code_kib << 10
    for text, taken in (
        ("x" * limit, True),
        ("x" * (limit + 1), False),
        ("\u0001" * limit, True),
        ("\u0001" * (limit + 1), False),
    ):
        body = json.dumps({"code": text}).encode()
        if taken:
            assert wanted(body).code == text
        else:
            with pytest.raises(PolicyDenied, match=r"limits\.code_kib"):
                wanted(body)


def test_an_empty_address_of_a_webhook_is_no_webhook_that_is_silently_left_out() -> None:
    with pytest.raises(InvalidRequest, match=r"notify\.url"):
        run_body(b'{"code": "1", "notify": {"url": ""}}')
