"""The one JSON shape of a result, however large, made in pieces."""

from __future__ import annotations

import base64
import json

from hypothesis import given
from hypothesis import strategies as st

from sandbox.document import PIECE_BYTES, as_document, document_pieces
from sandbox.models import Outcome, RunResult, SavedFile


@given(
    st.binary(max_size=20)
    | st.text(st.characters(min_codepoint=128), max_size=9).map(lambda text: text.encode(errors="replace")),
    st.integers(0, 3),
)
def test_output_is_the_same_text_wherever_a_piece_ends(data: bytes, shift: int) -> None:
    output = b"x" * (PIECE_BYTES - shift) + data
    result = RunResult(run_id="r", outcome=Outcome.FAILED, stdout=output, stderr=data)
    document = json.loads(as_document(result))
    assert document["stdout"] == output.decode("utf-8", "backslashreplace")
    assert document["stderr"] == data.decode("utf-8", "backslashreplace")


def test_all_but_the_result_comes_in_small_pieces() -> None:
    files = tuple(SavedFile(name=str(size), content=b"\xfe" * size) for size in (0, 1, 1_000_000))
    result = RunResult(
        run_id="r",
        outcome=Outcome.SUCCEEDED,
        result_json=b'"%s"' % (b"x" * 500_000),
        stdout=b"y" * 500_000,
        files=files,
    )
    pieces = list(document_pieces(result))
    assert [len(piece) for piece in pieces if len(piece) > 2 * PIECE_BYTES] == [500_002]
    found = json.loads(b"".join(pieces))
    assert [
        (file["name"], file["size_bytes"], base64.b64decode(file["content_base64"])) for file in found["files"]
    ] == [(file.name, len(file.content), file.content) for file in files]
    assert (len(found["stdout"]), len(found["result"])) == (500_000, 500_000)
