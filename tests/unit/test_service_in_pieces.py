"""A text that is checked in pieces is JSON exactly where the parser says so of the whole, and its end is where the parser has it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.service import in_pieces
from sandbox.service.in_pieces import check_json, end_of

PARSER = msgspec.json.Decoder(msgspec.Raw)
CHARACTERS = ("a", "é", '\\"', "\\\\", "\\n", "\\u0041", "\\ud83d\\ude00", "[", "]", "{", "}", ",", ":", " ", "0")
WHITE = st.sampled_from(("", "", " ", "\n", "\t \r"))
STRINGS = st.lists(st.sampled_from(CHARACTERS), max_size=30).map(lambda parts: f'"{"".join(parts)}"')
SCALARS = st.one_of(STRINGS, st.sampled_from(("0", "-1.5e3", "true", "false", "null")))


def joined(parts: list[str], white: str, around: str) -> str:
    return around[0] + white + f"{white},{white}".join(parts) + white + around[1]


def inside(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.tuples(STRINGS, WHITE, values).map(lambda one: f"{one[0]}{one[1]}:{one[1]}{one[2]}")
    return st.one_of(
        st.builds(joined, st.lists(values, max_size=6), WHITE, st.just("[]")), st.builds(joined, st.lists(members, max_size=6), WHITE, st.just("{}"))
    )


TEXTS = st.recursive(SCALARS, inside, max_leaves=40).map(str.encode)
DEEP = st.tuples(st.integers(1, 60), TEXTS).map(lambda one: b"[" * one[0] + one[1] + b"]" * one[0])
CHANGES = st.lists(st.tuples(st.integers(0), st.sampled_from([b"", *(char.encode() for char in '"[]{},:1\\ \x01')]), st.booleans()), max_size=2)
WINDOWS = st.integers(24, 70)


def changed(text: bytes, changes: list[tuple[int, bytes, bool]]) -> bytes:
    for place, put, instead in changes:
        at = place % (len(text) + 1)
        text = text[:at] + put + text[at + instead :]
    return text.strip(b" \t\r\n")


def says(text: bytes) -> bool:
    try:
        PARSER.decode(text)
    except msgspec.DecodeError:
        return False
    return True


@given(st.one_of(TEXTS, DEEP), CHANGES, WINDOWS)
@example(b'["' + rb"\ud83d\ude00" * 9 + b'"]', [], 24)
@example(b'["' + rb"\\" * 30 + b'", {"a": [1]}]', [], 25)
def test_it_says_what_the_parser_says_of_the_whole(text: bytes, changes: list[tuple[int, bytes, bool]], window: int) -> None:
    text = changed(text, changes)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(in_pieces, "WINDOW_BYTES", window)
        if says(text):
            check_json(memoryview(text))
        else:
            with pytest.raises(msgspec.DecodeError):
                check_json(memoryview(text))


@given(st.one_of(TEXTS.filter(lambda text: text[:1] in b"[{"), DEEP), st.sampled_from([b"", b"]", b'}", [', b', "x": [1]}', b"   "]), WINDOWS)
def test_the_end_is_where_the_last_bracket_closes(text: bytes, behind: bytes, window: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(in_pieces, "WINDOW_BYTES", window)
        assert end_of(bytearray(text + behind), 0) == len(text)


HARD = {
    "text": (b'"', b"x", b'"'), "quotes": (b'"', rb"\"", b'"'), "empty texts": (b"[", b'"",', b"0]"), "numbers": (b"[", b"1,", b"1]"), "objects": (b"[", b'{"a":1},', b"1]"),
    "lists": (b"[", b"[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]],", b"1]"), "pairs": (b'"', rb"\ud83d\ude00", b'"'), "white": (b"[", b" 1 ,", b"1]"),
}  # fmt: skip


@pytest.mark.parametrize(("first", "middle", "last"), HARD.values(), ids=HARD)
def test_the_parser_gets_no_more_than_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch, first: bytes, middle: bytes, last: bytes) -> None:
    sizes: list[int] = []

    class Parser:
        def decode(self, text: bytes) -> None:
            sizes.append(len(text))
            PARSER.decode(text)

    monkeypatch.setattr(in_pieces, "_PARSER", Parser())
    text = first + middle * ((4 << 20) // len(middle)) + last
    check_json(memoryview(text))
    if first != b'"':
        assert end_of(bytearray(text + b"}"), 0) == len(text)
    assert max(sizes) <= in_pieces.WINDOW_BYTES + 100
    assert sum(sizes) >= len(text)
