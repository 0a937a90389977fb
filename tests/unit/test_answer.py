"""What a command shows of a run is the same whether the run was its own or a service's."""

from __future__ import annotations

import asyncio
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cli.answer import answer_from, answer_of, answer_of_stream, fields_of
from sandbox.client.reading import result_of
from sandbox.client.told import Told
from sandbox.document import as_document, document_pieces
from sandbox.errors import Internal
from sandbox.models import Durations, LogRecord, Outcome, ProgramError, RunResult, SavedFile
from sandbox.service.intake.budget import Budget
from sandbox.service.routes.events import NDJSON, Events

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
    names = draw(st.lists(NAMES, max_size=2, unique=True))
    logs = st.lists(
        st.builds(LogRecord, level=st.sampled_from(["info", "error"]), message=st.text(), elapsed_s=st.floats(0, 9)),
        max_size=2,
    )
    output = st.binary() | st.text().map(lambda text: text.encode(errors="replace"))
    return RunResult(
        run_id="r",
        outcome=outcome,
        explanation=draw(st.text()),
        stdout=draw(output),
        stderr=lookalike.encode(),
        logs=tuple(draw(logs)),
        result_json=value if outcome is Outcome.SUCCEEDED else None,
        additional_data_json=draw(st.none() | st.just(value)),
        files=tuple(SavedFile(name=name, content=draw(st.binary())) for name in names),
        warnings=tuple(draw(st.lists(st.text(), max_size=2))),
        durations=Durations(total_ms=1.5),
        error=draw(st.none() | st.just(ProgramError(type="E", message=lookalike, traceback=lookalike))),
    )


def streamed(result: RunResult) -> list[bytes]:
    """Return the events of a stream that ends with a result, as the service sends them."""
    events = Events(Budget(1 << 30).part(1))
    events.accepted(result.run_id)
    for stream, output in (("stdout", result.stdout), ("stderr", result.stderr)):
        for start in range(0, len(output), 3):  # characters are cut
            events.output(stream, output[start : start + 3])
            events.output("stderr" if stream == "stdout" else "stdout", b"")  # what comes in between keeps them apart
    for record in result.logs:
        events.log(record)
    for file in result.files:
        events.file(file.name, bytearray(b"an earlier one of this name"))
        events.file(file.name, bytearray(file.content))
    events.add_document("result", list(document_pieces(result, streamed=True)))
    events.end()

    async def sent() -> list[bytes]:
        return b"".join([piece async for piece in events._pieces(NDJSON)]).splitlines(keepends=True)

    return asyncio.run(sent())


@given(results())
def test_what_a_stream_tells_adds_up_to_the_answer_that_a_command_of_its_own_has(result: RunResult) -> None:
    told = Told()
    *before, last = streamed(result)
    for line in before:
        told.event(line)
    found = answer_of_stream(fields_of(last), told)
    assert found == answer_of(result)
    assert found.document == as_document(result)
    assert found.result_json == result.result_json


@given(results())
def test_what_a_stream_tells_adds_up_to_the_answer_that_a_client_gets_without_one(result: RunResult) -> None:
    told = Told()
    events = [told.event(line) for line in streamed(result)]
    assert [event["event"] for event in events].count("result") == 1
    document = json.loads(as_document(result))
    assert list(events[-1].items()) == [("event", "result"), *document.items()]
    assert result_of(events[-1]) == result_of(document)


def test_a_service_that_says_everything_twice_is_understood_too() -> None:
    document = as_document(RunResult(run_id="r", outcome=Outcome.FAILED, stdout=b"x"))
    told = Told()
    told.event(b'{"event": "accepted", "run_id": "r"}')
    told.event(b'{"event": "stdout", "text": "x"}')
    line = b'{"event": "result", ' + document[1:]
    assert answer_of_stream(fields_of(line), told).document == document
    assert told.event(line) == {"event": "result", **json.loads(document)}


ACCEPTED = b'{"event": "accepted", "run_id": "r"}'
FILE = b'{"event": "file", "name": "a", "size_bytes": 1, "content_base64": "eA=="}'


@pytest.mark.parametrize(
    ("before", "named"),
    [
        ([], b'[{"name": "a", "size_bytes": 1}]'),
        ([FILE], b'[{"name": "b", "size_bytes": 1}]'),
        ([FILE], b'[{"name": "a", "size_bytes": 2}]'),
        ([FILE], b'[{"name": "a"}]'),
        ([FILE], b'[{"name": [], "size_bytes": 1}]'),
        ([FILE], b"7"),
        ([FILE], b'["a"]'),
        ([FILE], b"null"),
    ],
)
def test_a_file_that_an_answer_names_and_that_did_not_come_is_an_error(before: list[bytes], named: bytes) -> None:
    last = b'{"event": "result", "run_id": "r", "outcome": "failed", "files": %s}' % named
    for read in (Told.event, lambda told, line: answer_of_stream(fields_of(line), told)):
        told = Told()
        for line in [ACCEPTED, *before]:
            told.event(line)
        with pytest.raises(Internal, match="can't be read"):
            read(told, last)


@pytest.mark.parametrize(
    "line",
    [
        b'{"event": "file", "content_base64": ""}',
        b'{"event": "file", "name": []}',
        b'{"event": "stdout", "text": "\\ud800"}',
        b'{"event": "log", "text": "x"}',
        b'{"event": "stdout", "base64": 7}',
        b'{"event": 7}',
    ],
)
def test_an_event_that_is_not_as_it_must_be_is_an_error(line: bytes) -> None:
    told = Told()
    told.event(ACCEPTED)
    with pytest.raises(Internal, match="can't be read"):
        told.event(line)


def test_a_result_s_text_is_never_written_anew() -> None:
    text = b'{"a":1.10,  "b": [1e400, "\\u00e4"],"a":2}'
    result = RunResult(run_id="r", outcome=Outcome.SUCCEEDED, result_json=text)
    assert answer_from(as_document(result)).result_json == text


@pytest.mark.parametrize("line", [b"", b"[1]", b'{"event": "x"', b"\xff", b'{"event": "x", "a": ' + b"[" * 9999])
def test_what_is_no_event_is_said_to_be_none(line: bytes) -> None:
    with pytest.raises(Internal, match="no event"):
        fields_of(line)


def test_an_answer_of_another_shape_is_told_from_an_answer() -> None:
    with pytest.raises(Internal, match="can't be read") as caught:
        answer_from(b'{"run_id": 7}')
    assert "--no-service" in caught.value.hint
