"""The start of a container whose process ends at once: Podman, too, may have forgotten it by then."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandbox.container.container import Container
from sandbox.container.spec import JOB_SOCKET
from sandbox.errors import Internal
from tests.fake_engine import BASE, FakeEngine


class EndsAtOnce(FakeEngine):
    """Starts what connects, or not, and is gone with its container."""

    def __init__(self, path: Path, *, connects: bool) -> None:
        super().__init__()
        self._path, self._connects = path, connects
        self.peer = socket.socket(socket.AF_UNIX)

    def start(self, container_id: str) -> None:
        super().start(container_id)
        if self._connects:
            self.peer.connect(str(self._path))
        self.remove(container_id)


@pytest.mark.parametrize("connects", [True, False])
def test_a_sandbox_that_is_gone_when_it_is_looked_at_is_told_as_what_it_is(tmp_path: Path, connects: bool) -> None:
    engine = EndsAtOnce(tmp_path / Path(JOB_SOCKET).name, connects=connects)
    podman = {"name": "gone", "labels": {}, "image": BASE}
    spec: Any = SimpleNamespace(place=SimpleNamespace(job_dir=tmp_path), podman=podman, host_uid=os.getuid())

    async def scene() -> None:
        async with Container(cast("Any", engine), spec):
            raise AssertionError("it was handed out")

    with engine.peer, pytest.raises(Internal, match="ended or hung before its harness reported") as caught:
        asyncio.run(scene())
    assert "python3" in caught.value.hint
