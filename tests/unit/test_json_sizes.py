"""JSON of a result is checked one way at every size.

The verdict and the bytes are the same below and above each threshold. The sizes are real."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandbox.channel import canonical as module
from sandbox.channel.canonical import AT_ONCE_BYTES, PIECE_BYTES, NotCanonical, canonical
from sandbox.inside.harness.json_text import BATCH_ITEMS, as_json_text
from sandbox.inside.harness.limits import CHUNK_BYTES
from sandbox.inside.harness.values import MAX_DEPTH
from tests.hostile import texts

REFUSED = "refused"
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

# ---- a text, looked at by the host

# How a text is made larger: what stands before it, and behind it, for about so many bytes.
AROUND: dict[str, Callable[[int], tuple[bytes, bytes]]] = {
    "a text before": lambda size: (b'["' + b"Q" * size + b'",', b"]"),
    "a text behind": lambda size: (b"[", b',"' + b"Q" * size + b'"]'),
    "a name": lambda size: (b'{"' + b"Q" * size + b'":', b"}"),
    "items before": lambda size: (b"[" + b"0," * (1 + size // 2), b"]"),
    "items behind": lambda size: (b"[", b",0" * (1 + size // 2) + b"]"),
    "levels beside": lambda size: (b"[" + b"[[{}]]," * (1 + size // 7), b"]"),
}
PARSERS = {"msgspec": AT_ONCE_BYTES, "SQLite": 0}
# What each check looks for, just within and just beyond what is allowed.
EDGES = [
    b'"\\ud800"',
    b'{"\\udc00":1}',
    b'["\\ud83d\\ude00", "\\\\ud800"]',
    b"9" * 4_300,
    b"9" * 4_301,
    b"1e308",
    b"1e309",
    b"-0." + b"0" * 3_000 + b"e-9",
    b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1),
    b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
    b'{"a":1 , "a":2\n}',
    '"\u2028\x85\u202e\x7f"'.encode(),
    b'"\xff"',
    b'"\\u0000"',
    b'"\n"',
    b"NaN",
    b"01",
    b"-",
    b'"\\x41"',
    b"1 2",
    b"'a'",
    b"[1,]",
]


def verdict(text: bytes, around: str, size: int) -> tuple[bytes, bool] | str:
    """Return the form of a text that stands in a larger one, or REFUSED."""
    before, behind = AROUND[around](size)
    try:
        found, replaced = canonical(before + text + behind)
    except NotCanonical:
        return REFUSED
    assert found.startswith(before)
    assert found.endswith(behind)
    return found[len(before) : len(found) - len(behind)], replaced


def check_host(text: bytes, around: str, shift: int) -> None:
    """Fail where a text is taken differently in one piece, in several, or by the parser of large ones."""
    found = {}
    for parser, at_once_bytes in PARSERS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "AT_ONCE_BYTES", at_once_bytes)
            for size in (1, PIECE_BYTES, 3 * PIECE_BYTES):
                found[parser, size] = verdict(text, around, max(1, size + shift))
    assert len(set(found.values())) == 1, found


@FEW
@given(texts(), st.sampled_from(list(AROUND)), st.integers(-40, 40))
def test_the_host_takes_a_text_alike_at_every_size(text: bytes, around: str, shift: int) -> None:
    check_host(text, around, shift)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("text", EDGES, ids=lambda text: repr(text)[:20])
def test_the_host_takes_what_is_at_an_edge_alike_wherever_a_piece_ends(text: bytes, around: str) -> None:
    for shift in (-len(text) // 2 - 2, -7, -1, 0, 3):
        check_host(text, around, shift)


@pytest.mark.parametrize("text", EDGES, ids=lambda text: repr(text)[:20])
def test_a_text_so_large_that_another_parser_has_it_is_taken_as_a_small_one(text: bytes) -> None:
    assert verdict(text, "a text before", AT_ONCE_BYTES + 1) == verdict(text, "a text before", 1)


# ---- a value, made into a text by the harness

TEXTS = st.text() | st.text(st.sampled_from('a\ud800\udbff\udc00\udfff\u2028\x7f"\\\n😀'), max_size=6)
LEAVES = (
    TEXTS
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=5)
    | st.datetimes()
    | st.decimals()
    | st.integers(4_214, 4_400).map(lambda digits: 10**digits)
    | st.sampled_from(
        [2**53, 2**53 + 1, -(2**53) - 1, 2**13_999, -0.0, 5e-324, 1.7e308, object(), print, 1j, dt.timedelta(1)]
    )
)
KEYS = TEXTS | st.integers() | st.none() | st.booleans() | st.floats() | st.tuples(TEXTS) | st.binary(max_size=3)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4) | st.sets(TEXTS, max_size=3),
    max_leaves=8,
)


@st.composite
def deep(draw: Any) -> Any:
    """Return a value, as deep as is allowed or nearly so."""
    value = draw(VALUES)
    for _ in range(draw(st.sampled_from([0, 0, 0, 90, 95, 96, 97, 98, 99, 100]))):
        value = draw(st.sampled_from([[value], {"k": value}, (value,)]))
    return value


# What stands behind the value, so many items of it: with them, the value comes to other branches.
BESIDE: dict[str, Callable[[Any, int], tuple[Any, bytes, bytes]]] = {
    "in a list": lambda value, count: ([value, *[0] * count], b"[", b",0" * count + b"]"),
    "in a tuple": lambda value, count: ((value, *[0] * count), b"[", b",0" * count + b"]"),
    "in an object": lambda value, count: (
        {"v": value, **{f"{n:07}": 0 for n in range(count)}},
        b'{"v":',
        b"".join(b',"%07d":0' % n for n in range(count)) + b"}",
    ),
    "in a list in a list": lambda value, count: ([[value, *[0] * count]], b"[[", b",0" * count + b"]]"),
    "beside a long text": lambda value, count: ([value, "Q" * count], b"[", b',"' + b"Q" * count + b'"]'),
    "beside a long list": lambda value, count: (
        [value, [0.5] * count],
        b"[",
        b",[" + b",".join([b"0.5"] * count) + b"]]",
    ),
}
COUNTS = (1, BATCH_ITEMS - 1, BATCH_ITEMS, 1_001, CHUNK_BYTES // 2 + 1, 2 * CHUNK_BYTES)


def made(value: Any, beside: str, count: int) -> tuple[bytes, list[str]] | str:
    """Return the text of a value that stands beside others, with the warnings, or why there is none."""
    whole, before, behind = BESIDE[beside](value, count)
    try:
        text, warnings = as_json_text(whole)
    except (TypeError, ValueError) as error:
        return str(error)
    assert text.startswith(before)
    assert text.endswith(behind)
    assert canonical(text).replaced is False, "the harness replaces halves itself"
    return text[len(before) : len(text) - len(behind)], warnings


@FEW
@given(deep(), st.sampled_from(list(BESIDE)))
@example(["\ud800"], "in a list")
@example({"\udc00": "\ud83d\ude00"}, "in an object")
@example("\ud800", "beside a long text")
@example([float("nan"), 2**60], "beside a long list")
def test_the_harness_makes_the_same_text_of_a_value_at_every_size(value: Any, beside: str) -> None:
    found = [made(value, beside, count) for count in COUNTS]
    assert found == [found[0]] * len(found)


# ---- that these tests see a difference


def refusing_halves(text: bytes) -> bool:
    """Be the grammar's check as it was once for small texts."""
    import msgspec

    try:
        msgspec.json.decode(text.replace(b"\xef\xbf\xbd", b"\xff"))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


@pytest.mark.control
@pytest.mark.parametrize("threshold", ["PIECE_BYTES", "AT_ONCE_BYTES"])
def test_control_a_check_that_depends_on_the_size_is_found(monkeypatch: pytest.MonkeyPatch, threshold: str) -> None:
    checked, limit = module._is_json, getattr(module, threshold)
    monkeypatch.setattr(module, "_is_json", lambda text: refusing_halves(text) if len(text) <= limit else checked(text))
    found = {verdict(b'"\\ud800"', "a text before", size) for size in (1, limit + 1)}
    assert len(found) == 2
