"""One model of the wire: description, client's types and TypeScript's come from it, and answers agree with it."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given

from sandbox.client import answers
from sandbox.client.calls import OPTIONAL
from sandbox.document import as_document, error_document
from sandbox.errors import QueueFull
from sandbox.models import LogRecord, RunRequest, RunResult
from sandbox.progress import Progress
from sandbox.service.application import ROUTES
from sandbox.service.intake.budget import Budget
from sandbox.service.routes.events import Events
from sandbox.wire.given import Given, always_there, kinds
from sandbox.wire.requests import RunBody, RunOptions, Tightening
from sandbox.wire.routes import WIRE
from sandbox.wire.run import NamedFile, RunDocument
from tests.described import DOCUMENT, SCHEMAS, named, problems
from tests.unit.test_answer import results
from tests.unit.test_service_events import told

ROOT = Path(__file__).parents[2]
GENERATOR = runpy.run_path(str(ROOT / "scripts/generate-docs"))
NODE = Path(sys.executable).with_name("node")
PARSE = (
    "const text = require('fs').readFileSync(0, 'utf8');"
    " process.stdout.write(require('module').stripTypeScriptTypes(text))"
)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give each route with its description."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_every_route_says_what_goes_over_the_wire() -> None:
    assert set(WIRE) == {(method, path) for method, path, _ in ROUTES}
    assert {(method, path) for method, path, _ in operations()} == set(WIRE)


def test_every_successful_answer_that_is_json_has_fields_with_types() -> None:
    vague = []
    for method, path, operation in operations():
        for status, answer in operation["responses"].items():
            content = answer["content"].get("application/json")
            if content is not None:
                schema = SCHEMAS["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
                vague += [f"{method} {path} {status}"] * (not schema["properties"] or schema["additionalProperties"])
    assert vague == []


def test_the_types_of_the_clients_are_those_of_the_wire() -> None:
    assert (ROOT / "sandbox/client/answers.py").read_text() == GENERATOR["typed_dicts"](), "run scripts/generate-docs"
    assert (ROOT / "nodered/wire.d.ts").read_text() == GENERATOR["typescript"](), "run scripts/generate-docs"


def test_the_client_knows_everything_that_is_given_with_the_same_fields() -> None:
    for kind in kinds():
        found: Any = getattr(answers, kind.__name__)
        tag = kind.__struct_config__.tag_field
        wanted = {field.encode_name for field in msgspec.structs.fields(kind)} | ({tag} if tag else set())
        assert set(found.__annotations__) == wanted
        assert found.__required_keys__ >= set(always_there(kind))


def test_typescript_can_read_its_declarations() -> None:
    def parsed(text: str) -> int:
        done = subprocess.run(
            [NODE, "--no-warnings", "-e", PARSE], input=text, capture_output=True, text=True, check=False
        )
        return done.returncode

    text = (ROOT / "nodered/wire.d.ts").read_text()
    assert parsed(text) == 0
    assert parsed(text.replace("interface", "interfase", 1)) != 0
    for name in (*(kind.__name__ for kind in kinds()), "RunBody", "RunOptions"):
        assert f"export interface {name} " in text


def test_the_client_sends_what_a_run_has_when_it_is_not_sent() -> None:
    defaults = msgspec.structs.asdict(RunBody(code=msgspec.Raw(b'""')))
    usual = {
        name: json.loads(bytes(value)) if isinstance(value, msgspec.Raw) else value for name, value in defaults.items()
    }
    assert usual.pop("limits") == Tightening()
    assert {name: value for name, value in OPTIONAL.items() if name != "limits"} == {
        name: value for name, value in usual.items() if name not in ("code", "payload")
    }


def test_a_body_and_what_it_asks_for_share_their_fields() -> None:
    assert issubclass(RunBody, RunOptions)
    assert issubclass(RunRequest, RunOptions)


# ---- what is given


@given(results())
def test_the_document_of_a_result_is_as_described_and_reads_as_the_struct_that_it_is(result: RunResult) -> None:
    document = as_document(result)
    assert problems(named("RunDocument"), json.loads(document)) == []
    read = msgspec.json.decode(document, type=RunDocument)
    assert [file.content for file in read.files] == [file.content for file in result.files]
    assert (read.error, read.durations, read.warnings) == (result.error, result.durations, result.warnings)


def test_an_error_is_as_described() -> None:
    for error in (QueueFull("too much", hint="wait", retry_after_s=1), QueueFull("too much", run_id="r", at=object())):
        assert problems(named("ErrorDocument"), json.loads(error_document(error))) == []


def test_events_are_as_described() -> None:
    events = Events(Budget(1 << 20).part(0))
    events.accepted("r")
    events.progress(Progress(step="downloading", text="x", done_bytes=1, total_bytes=2))
    events.progress(Progress(step="starting"))
    events.output("stdout", b"text")
    events.output("stderr", b"\xff")
    events.log(LogRecord(level="info", message="m", elapsed_s=0.5))
    events.file("f", bytearray(b"\0"))
    events.error(QueueFull("too much"))
    found = told(events)
    assert [event["event"] for event in found] == [
        "accepted",
        "progress",
        "progress",
        "stdout",
        "stderr",
        "log",
        "file",
        "error",
    ]
    assert [problems(named("RunEvent"), event) for event in found] == [[]] * 8


@pytest.mark.parametrize("more", [{"unknown": 1}, {"size_bytes": "1"}, {"name": None}])
def test_what_the_model_does_not_know_is_found(more: dict[str, Any]) -> None:
    file = msgspec.to_builtins(NamedFile(name="a", size_bytes=1))
    assert problems(named("FileList"), {"files": [file]}) == []
    assert problems(named("FileList"), {"files": [file | more]}) != []
    assert problems(named("FileList"), {"files": [{"name": "a"}]}) != []


def test_what_a_later_version_adds_does_not_hinder_an_earlier_reader() -> None:
    written = b'{"name": "a", "size_bytes": 1, "unknown": 1}'
    assert msgspec.json.decode(written, type=NamedFile) == NamedFile(name="a", size_bytes=1)
    assert all(issubclass(kind, Given) for kind in kinds())
