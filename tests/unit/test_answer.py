"""What a command shows of a run is the same whether the run was its own or a service's."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cli.answer import answer_from, answer_of, without_event
from sandbox.document import as_document
from sandbox.errors import Internal
from sandbox.models import Durations, Outcome, ProgramError, RunResult, SavedFile

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = st.text(string.ascii_letters, min_size=1, max_size=5)


@st.composite
def results(draw: Any) -> RunResult:
    """Return results of every kind; some values look like the names that stand around them."""
    outcome = draw(st.sampled_from(list(Outcome)))
    value = json.dumps(draw(JSON)).encode()
    lookalike = draw(st.sampled_from(["", '", "result": 1, "event": "', '"additional_data": null}']))
    return RunResult(
        run_id="r", outcome=outcome, explanation=draw(st.text()), stdout=draw(st.binary()), stderr=lookalike.encode(),
        result_json=value if outcome is Outcome.SUCCEEDED else None, additional_data_json=draw(st.none() | st.just(value)),
        files=tuple(SavedFile(name=draw(NAMES), content=draw(st.binary())) for _ in range(draw(st.integers(0, 2)))),
        warnings=tuple(draw(st.lists(st.text(), max_size=2))), durations=Durations(total_ms=1.5),
        error=draw(st.none() | st.just(ProgramError(type="E", message=lookalike, traceback=lookalike))),
    )  # fmt: skip


@given(results())
def test_the_document_that_a_service_sends_shows_what_the_result_shows(result: RunResult) -> None:
    document = as_document(result)
    kind, carried = without_event(b'{"event": "result", ' + document[1:] + b"\n")
    assert (kind, carried) == ("result", document)
    assert answer_from(carried) == answer_of(result)
    assert answer_from(carried).result_json == result.result_json


def test_a_result_s_text_is_never_written_anew() -> None:
    text = b'{"a":1.10,  "b": [1e400, "\\u00e4"],"a":2}'
    result = RunResult(run_id="r", outcome=Outcome.SUCCEEDED, result_json=text)
    assert answer_from(as_document(result)).result_json == text


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[1]", b'{"event": 1}', b'{"event": "x"', b"\xff", b'{"event": "x", "a": ' + b"[" * 9999]
)
def test_what_is_no_event_is_said_to_be_none(line: bytes) -> None:
    with pytest.raises(Internal, match="no event"):
        without_event(line)


def test_an_answer_of_another_shape_is_told_from_an_answer() -> None:
    with pytest.raises(Internal, match="can't be read") as caught:
        answer_from(b'{"run_id": 7}')
    assert "--no-service" in caught.value.hint
