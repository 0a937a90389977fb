"""Which service a run goes to where nothing names one: the usual place, if it is this user's and answers."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.cli.remote import service_for
from sandbox.client import NoService

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
def test_what_keeps_a_run_here_keeps_it_here_also_where_a_service_is_named(monkeypatch: pytest.MonkeyPatch, options: dict[str, object]) -> None:
    monkeypatch.setenv("SANDBOX_SOCKET", "/nope")
    assert service_for({**OPTIONS, **options}, []) is None
    with pytest.raises(NoService):
        service_for(OPTIONS, [])
