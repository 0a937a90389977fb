"""Plain-HTTP answers say that the connection ends, and are otherwise untouched."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.egress.answer_head import MAX_HEAD_BYTES, ClosingAnswer


def passed(*pieces: bytes) -> bytes:
    answer = ClosingAnswer()
    return b"".join(bytes(answer.take(piece)) for piece in pieces) + answer.rest()


def test_an_answer_says_that_it_is_the_last() -> None:
    given_ = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    assert passed(given_) == b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"


@pytest.mark.parametrize("field", [b"Connection: keep-alive", b"connection:Keep-Alive", b"Keep-Alive: timeout=5"])
def test_what_the_server_says_of_the_connection_does_not_count(field: bytes) -> None:
    assert (
        passed(b"HTTP/1.0 404 Gone\r\n" + field + b"\r\nX: connection: y\r\n\r\n")
        == b"HTTP/1.0 404 Gone\r\nConnection: close\r\nX: connection: y\r\n\r\n"
    )


def test_an_interim_answer_passes_and_the_final_one_is_changed() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert passed(interim + b"HTTP/1.1 204 None\r\n\r\n") == interim + b"HTTP/1.1 204 None\r\nConnection: close\r\n\r\n"


def test_a_body_that_looks_like_a_head_is_left_alone() -> None:
    body = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n"
    assert passed(b"HTTP/1.1 200 OK\r\n\r\n" + body).endswith(body)


@pytest.mark.parametrize(
    "strange", [b"", b"HTTP/2 200\r\n\r\nx", b"garbage", b"\r\n\r\n", b"SSH-2.0-x\r\n", b"x" * (MAX_HEAD_BYTES + 9)]
)
def test_what_is_no_answer_passes_as_it_came(strange: bytes) -> None:
    assert passed(strange) == strange


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=6))
def test_the_pieces_in_which_it_comes_make_no_difference(tail: bytes, cuts: list[int]) -> None:
    whole = b"HTTP/1.1 200 OK\r\nConnection: x\r\nA: b\r\n\r\n" + tail
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(places)]
    assert passed(*pieces) == b"HTTP/1.1 200 OK\r\nConnection: close\r\nA: b\r\n\r\n" + tail
