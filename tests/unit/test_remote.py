"""Which service a run goes to where nothing names one: the usual place, if it is this user's and answers."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.cli.answer import Answer
from sandbox.cli.document import readable
from sandbox.cli.ending import conclude
from sandbox.cli.later import show
from sandbox.cli.output import Output
from sandbox.cli.remote import Going, service_for
from sandbox.cli.saved import save_files
from sandbox.client import Client, NoService
from sandbox.errors import Internal

OPTIONS = {"no_service": False, "policy": "default"}


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    for name in ("SANDBOX_SOCKET", "SANDBOX_SOCKET__PATH", "SANDBOX_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        place = Path(runtime) / "podman-sandbox-runner"
        place.mkdir(mode=0o700)
        yield place / "service.sock"


def test_nobody_at_the_usual_place_means_this_process(usual: Path) -> None:
    assert service_for(OPTIONS, []) is None
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(usual))
        assert service_for(OPTIONS, []) is None
        dead.listen()
        found = service_for(OPTIONS, [])
        assert found is not None
        found.close()


def test_a_socket_of_ours_that_refuses_us_at_the_usual_place_is_an_error(usual: Path) -> None:
    with socket.socket(socket.AF_UNIX) as shut:
        shut.bind(str(usual))
        shut.listen()
        usual.chmod(0)
        with pytest.raises(NoService, match="Permission denied") as caught:
            service_for(OPTIONS, [])
    assert "sandbox serve" not in caught.value.hint
    assert "--no-service" in caught.value.hint


@pytest.mark.parametrize("options", [{"no_service": True}, {"policy": "./mine.toml"}, {"policy": "mine.toml"}])
def test_what_keeps_a_run_here_keeps_it_here_also_where_a_service_is_named(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    monkeypatch.setenv("SANDBOX_SOCKET", "/nope")
    assert service_for({**OPTIONS, **options}, []) is None
    with pytest.raises(NoService):
        service_for(OPTIONS, [])


class Saying(Client):
    """A client of a service that says these lines."""

    def __init__(self, *said: str) -> None:
        super().__init__("/nope")
        self.said = said

    def lines(self, path: str, body: bytes, *, timeout_s: float | None = None) -> Generator[bytes, None, None]:
        yield from (line.encode() for line in self.said)


ACCEPTED = '{"event": "accepted", "run_id": "a"}'


@pytest.mark.parametrize(
    "said",
    [
        (ACCEPTED, '{"event": "accepted", "run_id": "b"}'),
        ('{"event": "accepted"}',),
        (ACCEPTED, '{"event": "progress", "text": "x"}'),
        (ACCEPTED, '{"event": "file", "name": 5, "size_bytes": 0, "content_base64": ""}'),
        (ACCEPTED, '{"event": "stdout"}'),
        (ACCEPTED, '{"event": "stdout", "base64": "?"}'),
        (ACCEPTED, '{"event": "log"}'),
        (ACCEPTED, '{"event": "error", "error": 7}'),
        ('{"event": "result"}',),
        (ACCEPTED, '{"event": "result", "run_id": "b"}'),
        (ACCEPTED, "[]"),
        (ACCEPTED, '{"event": "stdout", "text": ' + "[" * 50_000),
    ],
)
def test_a_stream_that_is_not_as_it_must_be_is_an_error_in_words(said: tuple[str, ...]) -> None:
    with pytest.raises(Internal, match=r"answer|event"):
        Going(Saying(*said)).follow(b"", Output(as_json=False, quiet=True))


def test_a_result_of_another_shape_is_an_error_in_words() -> None:
    with pytest.raises(Internal, match="can't be read"):
        show(b'{"run_id": "a"}', Output(as_json=False, quiet=True))


FILE = {"event": "file", "name": "a\nb", "size_bytes": 1, "content_base64": "eA=="}
ENDED: dict[str, Any] = {
    "event": "result",
    "run_id": "a",
    "outcome": "succeeded",
    "explanation": "",
    "files": [{"name": "a\nb", "size_bytes": 1}],
    "warnings": [],
    "error": None,
    "durations": {},
    "receipt": None,
    "result": 1,
}


def followed(*events: dict[str, Any]) -> Answer:
    said = [json.dumps(event) for event in events]
    return Going(Saying(ACCEPTED, *said)).follow(b"", Output(as_json=False, quiet=True))


def test_what_a_later_version_tells_more_of_a_step_is_no_mistake() -> None:
    assert followed({"event": "progress", "step": "running", "text": "", "more": 2}, FILE, ENDED).files[0].size_bytes


@pytest.mark.parametrize("outcome", ["exploded", "a\nb"])
def test_an_outcome_that_this_version_does_not_know_is_an_error_in_words(outcome: str) -> None:
    with pytest.raises(Internal, match="can't be read"):
        followed(FILE, ENDED | {"outcome": outcome})


@pytest.mark.parametrize("content", ["", "eHg=", "eA==eA=="])
def test_a_file_without_all_of_its_content_is_an_error_for_every_reader(content: str) -> None:
    events = FILE | {"size_bytes": 7, "content_base64": content}, ENDED | {"files": [{"name": "a\nb", "size_bytes": 7}]}
    with pytest.raises(Internal, match="without all of its content"):
        followed(*events)
    with pytest.raises(Internal, match="without all of its content"):
        list(Saying(ACCEPTED, *map(json.dumps, events)).events("/v1/runs", b""))


def test_the_name_of_a_file_adds_no_line_to_what_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = followed(FILE, ENDED)
    directory = os.open(tmp_path, os.O_RDONLY)
    save_files(answer.files, directory)
    os.close(directory)
    assert len(capsys.readouterr().err.splitlines()) == 1
    conclude(answer, Output(as_json=False, quiet=False), None, {"as_json": False, "quiet": False})
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("value", [b"1" * 5_000, b"[" * 5_000 + b"]" * 5_000])
def test_a_result_that_python_does_not_take_is_shown_as_it_came(value: bytes) -> None:
    assert readable(value) == value
