"""JSON in its one form: the same value, on one line for every reader, or refused.

It is so at every size, wherever a piece ends.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.channel import canonical as canonical_module
from sandbox.channel import canonical as module
from sandbox.channel.canonical import AT_ONCE_BYTES, MAX_NUMBER_CHARS, PIECE_BYTES, NotCanonical, canonical
from sandbox.inside.harness.json_text import as_json_text
from sandbox.inside.harness.values import MAX_DEPTH
from tests.hostile import texts
from tests.readers import LINE_ENDS, STEERS, strict

# A text of one piece, of several, and of several that another parser takes.
SIZES = pytest.mark.parametrize(
    ("padding", "at_once"),
    [(0, AT_ONCE_BYTES), (PIECE_BYTES, AT_ONCE_BYTES), (PIECE_BYTES, 0)],
    ids=["small", "pieces", "large"],
)
REFUSED = object()


def wellformed(text: str) -> str:
    """Return a text with U+FFFD in the place of halves of surrogate pairs."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def depth_of(value: Any) -> int:
    deepest, level = 0, [value]
    while level := [item for item in level if isinstance(item, (list, dict))]:
        deepest += 1
        level = [inner for item in level for inner in (item if isinstance(item, list) else item.values())]
    return deepest


def reference(text: bytes) -> Any:
    """Return the value of a text by Python's own parser, or REFUSED."""

    def number(word: str) -> Any:
        value: Any = int(word) if word.lstrip("-").isdigit() else float(word)
        if len(word) > MAX_NUMBER_CHARS or (isinstance(value, float) and abs(value) == float("inf")):
            raise ValueError
        return value

    def constant(word: str) -> None:
        raise ValueError(word)

    def text_of(value: Any) -> Any:
        return (
            wellformed(value)
            if isinstance(value, str)
            else [text_of(item) for item in value]
            if isinstance(value, list)
            else value
        )

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        return {wellformed(name): text_of(value) for name, value in found}

    try:
        value = json.loads(
            text.decode(), parse_int=number, parse_float=number, parse_constant=constant, object_pairs_hook=pairs
        )
        # Names that come twice: what is dropped has levels, too.
        levels = depth_of(json.loads(text, object_pairs_hook=lambda found: [value for _, value in found]))
    except (ValueError, RecursionError):
        return REFUSED
    return REFUSED if levels > MAX_DEPTH else text_of(value)


def form_of(text: bytes) -> Any:
    """Return what readers make of a text in its form, or REFUSED; fails where it is none."""
    try:
        found, replaced = canonical(text)
    except NotCanonical:
        return REFUSED
    decoded = found.decode()
    assert LINE_ENDS.split(decoded) == [decoded]
    assert not STEERS.search(decoded)
    assert canonical(found) == (found, False), "a form has no other form"
    value = strict(found)
    assert depth_of(value) <= MAX_DEPTH
    msgspec.json.decode(found)
    if not replaced:
        assert b"\xef\xbf\xbd" not in found or b"\xef\xbf\xbd" in text
    return value


@settings(max_examples=400, deadline=None)
@given(texts())
def test_every_spelling_is_the_same_value_in_one_form_or_refused(text: bytes) -> None:
    assert form_of(text) == reference(text)


@settings(max_examples=400, deadline=None)
@given(texts(), st.integers(1, 40), st.booleans())
def test_the_form_is_the_same_wherever_a_piece_ends_and_whoever_parses(
    text: bytes, piece_bytes: int, by_sqlite: bool
) -> None:
    def outcome() -> Any:
        try:
            return canonical(text)
        except NotCanonical:
            return REFUSED

    whole = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", piece_bytes)
        patch.setattr(module, "AT_ONCE_BYTES", 0 if by_sqlite else AT_ONCE_BYTES)
        assert outcome() == whole


@SIZES
@pytest.mark.parametrize(
    ("value", "form"),
    [
        (b"1", b"1"),
        (b"-0.5e+10", b"-0.5e+10"),
        (b"-0", b"-0"),
        (b'"\\u00e9\xc3\xa9"', b'"\\u00e9\xc3\xa9"'),
        (b'{"a":[null,true,false]}', None),
        (b"[]", b"[]"),
        (b'{"a" : 1 ,\r\n"a":\t2}', b'{"a":1,"a":2}'),
        (b'"a  b"', b'"a  b"'),
        (b'"\\" : \\\\" ', b'"\\" : \\\\"'),
        (
            b'"\xe2\x80\xa8\xe2\x80\xa9\xc2\x85\x7f\xc2\x9b\xe2\x80\xae"',
            b'"\\u2028\\u2029\\u0085\\u007f\\u009b\\u202e"',
        ),
        (b'"\\ud800"', b'"\xef\xbf\xbd"'),
        (b'"\\uDFFF\\ud83d\\ude00"', b'"\xef\xbf\xbd\\ud83d\\ude00"'),
        (b'"\\\\ud800"', b'"\\\\ud800"'),
        (b'{"\\udc00":1}', b'{"\xef\xbf\xbd":1}'),
        (b"9" * 4300, None),
        (b"1e308", None),
        (b"1e-999", None),
        (b'"\\u0000"', None),
        (b"[" * 98 + b"]" * 98, None),
    ],
)
def test_what_is_json_gets_its_form_however_large(
    monkeypatch: pytest.MonkeyPatch, value: bytes, form: bytes | None, padding: int, at_once: int
) -> None:
    monkeypatch.setattr(module, "AT_ONCE_BYTES", at_once)
    text, replaced = canonical(b'["%s", ' % (b"x" * padding) + value + b"]\n")
    assert text == b'["%s",' % (b"x" * padding) + (form or value) + b"]"
    assert replaced == (b"\xef\xbf\xbd" in text)


@SIZES
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (value, "no JSON")
        for value in (
            b"NaN",
            b"Infinity",
            b"-Infinity",
            b"01",
            b"1.",
            b".5",
            b"+1",
            b"'a'",
            b"{a:1}",
            b"[1,]",
            b'"a\nb"',
            b'"a\tb"',
            b'"\x00"',
            b"1]\x00[",
            b"1 2",
            b"1\n2",
            b"tr ue",
            b'"a" "b"',
            b'"\\x41"',
            b"",
            b"/**/1",
            b"0x10",
            b"\xef\xbb\xbf1",
            b"\xe2\x80\xa81",
            b"\xc2\x851",
            b'{"a"}',
            b"{1:2}",
            b"[1}",
            b'"',
            b"]",
        )
    ]
    + [
        (b'"\xff"', "no UTF-8"),
        (b'"\xed\xa0\x80"', "no UTF-8"),
        (b'"\xc0\x80"', "no UTF-8"),
        (b"[" * 5000 + b"]" * 5000, "levels deep"),
        (b"[" * 100 + b"]" * 100, "levels deep"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "levels deep"),
        (b"9" * 4301, "4300 characters"),
        (b"-" + b"9" * 4300, "4300 characters"),
        (b"0." + b"1" * 4300, "4300 characters"),
        (b"1e999", "1.8e308"),
        (b"-1E+309", "1.8e308"),
        (b"1" + b"0" * 309 + b".0", "1.8e308"),
        (b"[1,1e0000000400]", "1.8e308"),
        (b"9" * 300 + b"e20", "1.8e308"),
        (b"9" * 210 + b"E+99", "1.8e308"),
    ],
)
def test_what_some_reader_would_not_survive_is_refused_however_large(
    monkeypatch: pytest.MonkeyPatch, value: bytes, why: str, padding: int, at_once: int
) -> None:
    monkeypatch.setattr(module, "AT_ONCE_BYTES", at_once)
    with pytest.raises(NotCanonical, match=why):
        canonical(b'["%s", ' % (b"x" * padding) + value + b"]")


def test_what_the_harness_sends_has_its_form_already_but_for_marks_inside_of_strings() -> None:
    value = {
        "a b": [1, 2.5, None, True, "é € 😀", "two\nlines"],
        "deep": json.loads("[" * 98 + "]" * 98),
        "b": b"bytes",
        "large": 2**13_999,
    }
    text, _ = as_json_text(value)
    assert canonical(text) == (text, False)
    assert canonical(text)[0] is text, "nothing is copied"
    deepest = json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert canonical(as_json_text(deepest)[0])
    # The object of a Buffer, and its list, are levels, too.
    inner: Any = b"x"
    for _ in range(MAX_DEPTH - 2):
        inner = [inner]
    text, _ = as_json_text(inner)
    assert canonical(text)[0] == text
    with pytest.raises(ValueError, match="levels deep"):
        as_json_text([inner])
    marks, _ = as_json_text("\u2028\x7f‮")
    assert canonical(marks)[0] == b'"\\u2028\\u007f\\u202e"'


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"[]," * 4_000_000 + b"[]]",
        b"[" + b'"" ,' * 3_000_000 + b"1]",
        b'"' + b"\\ud800" * 2_000_000 + b'"',
        b" " * 12_000_000 + b"1",
    ],
    ids=["lists", "white space", "halves", "nothing"],
)
def test_a_compact_large_text_takes_memory_in_proportion(text: bytes) -> None:
    code = (
        "import resource, sys\nfrom sandbox.channel.canonical import canonical\ntext = sys.stdin.buffer.read()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "room = used + 16 * len(text)\nresource.setrlimit(resource.RLIMIT_AS, (room, room))\ncanonical(text)"
    )
    subprocess.run([sys.executable, "-c", code], input=text, check=True, timeout=60)


def test_others_have_their_turn_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []
    # A clock that makes each look at it late: it must be looked at after every piece.
    clock = SimpleNamespace(monotonic=itertools.count().__next__, sleep=turns.append)
    monkeypatch.setattr(canonical_module, "time", clock)
    text = b"[" + b'"\\ud800" ,' * 400_000 + b"1]"
    canonical(text)
    assert set(turns) == {0}, "which lets go of the interpreter's lock"
    assert len(turns) >= len(text) / (2 * canonical_module.PIECE_BYTES)
