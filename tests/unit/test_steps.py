"""Progress on a terminal: what a later service calls a step is shown as it says."""

from __future__ import annotations

import sys
from typing import Any, cast

import pytest

from sandbox.cli.progress import Steps
from sandbox.progress import Progress


@pytest.mark.parametrize(
    ("step", "shown"),
    [("starting", "· starting the sandbox now"), ("warming", "· warming now"), ("a\x1b[2Jb", "· a\\x1b[2Jb now")],
)
def test_a_step_is_shown_in_words(
    step: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Steps(quiet=False)(Progress(step=cast("Any", step), text="now"))
    assert shown in capsys.readouterr().err
