"""Which service a run goes to where nothing names one: the usual place, if it is this user's and answers."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from sandbox.cli.later import show
from sandbox.cli.output import Output
from sandbox.cli.remote import Going, service_for
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
        (ACCEPTED, '{"event": "progress", "step": 1, "more": 2}'),
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
