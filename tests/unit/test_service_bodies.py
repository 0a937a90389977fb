"""Bodies of runs: files in base64, decoded in pieces."""

from __future__ import annotations

import base64
import json

import pytest

from sandbox.errors import InvalidRequest
from sandbox.service.bodies import PIECE_CHARS, run_body, run_request


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
