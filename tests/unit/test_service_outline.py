"""How long a program is in a body, told before the body is parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.service import outline
from sandbox.service.outline import WINDOW_BYTES, program_bytes, text_bytes

TEXTS = st.text(alphabet=st.sampled_from('"\\{}[],:u0aé \n'), max_size=40)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outline, "SMALL_BYTES", 0)


def whole(body: bytes) -> int:
    return program_bytes(bytearray(body), enough_bytes=1 << 30)


@given(TEXTS, st.dictionaries(TEXTS.filter(lambda name: name != "code"), st.one_of(TEXTS, st.none(), st.integers(), st.just([]), st.just({}))), st.booleans(),
       st.integers(2, 9))  # fmt: skip
def test_the_length_of_a_text_is_what_a_parser_takes(code: str, others: dict[str, Any], plain: bool, window: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(outline, "WINDOW_BYTES", window)
        written = json.dumps(code, ensure_ascii=plain).encode()
        assert text_bytes(bytearray(written + b',"'), 0, most_bytes=1 << 30) == len(written)
        body = json.dumps({**others, "code": code, "z": [1]}, ensure_ascii=plain).encode()
        # A name with an escape in it is none that it knows: it may stop there, and finds nothing.
        known = not any('"' in json.dumps(name)[1:-1] or "\\" in json.dumps(name, ensure_ascii=plain) for name in others)
        assert whole(body) == (len(written) if known else 0) or not known


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"code"', b'{"code":', b'{"a": [1], "code": "x"}', b'{"a": {"b": 1}, "code": "x"}', b'{"code": 5}', b'"code"',
                                  b" " * 1000 + b'{"code": "x"}'])  # fmt: skip
def test_what_it_does_not_know_it_says_nothing_of(body: bytes) -> None:
    assert whole(body) == 0


def test_it_stops_at_enough() -> None:
    found = program_bytes(bytearray(b'{"topic": "", "n": 1.5e3, "code": "' + b"x" * (64 << 20)), enough_bytes=1000)
    assert 1000 < found <= 1000 + 2 * WINDOW_BYTES


@pytest.mark.parametrize("hard", [b'\\"', b"\\\\", b"x", b"\\u0041"])
def test_no_step_takes_more_than_a_window(hard: bytes) -> None:
    steps: list[int] = []

    class Body(bytearray):
        def __getitem__(self, place: Any) -> Any:
            piece = super().__getitem__(place)
            steps.append(len(piece) if isinstance(piece, bytearray) else 1)
            return piece

    body = Body(b'{"code": "' + hard * ((4 << 20) // len(hard)) + b'"}')
    assert program_bytes(body, enough_bytes=1 << 30) == len(body) - len(b'{"code": ' + b"}")
    assert max(steps) <= WINDOW_BYTES
    assert len(steps) >= (4 << 20) // WINDOW_BYTES
