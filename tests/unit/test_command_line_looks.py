"""How the command line looks: colours where they are wanted, and nothing that nobody asked for."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from sandbox.cli.colour import wanted
from tests.command import COMMAND, environment, sandbox

ROOT = Path(__file__).parents[2]
VARIABLES = ("NO_COLOR", "FORCE_COLOR", "TERM")
RED = "\x1b[31m"


def on_a_terminal(*command: str, **variables: str) -> str:
    """Return what a command writes to a terminal."""
    ours, theirs = pty.openpty()
    plain = {name: value for name, value in environment().items() if name not in VARIABLES}
    with subprocess.Popen(
        [*COMMAND, *command],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**plain, "TERM": "xterm", **variables},
    ):
        os.close(theirs)
        said = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            said += more
    os.close(ours)
    return said.decode()


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"FORCE_COLOR": "0"}, False),
    ],
)
def test_colours_on_a_terminal_are_as_wanted(variables: dict[str, str], coloured: bool) -> None:
    said = on_a_terminal("policy", "show", "absent", **variables)
    assert "not_found" in said
    assert (RED in said) == coloured
    assert ("\x1b" in said) == coloured


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colours_elsewhere_only_where_they_are_forced(variables: dict[str, str], coloured: bool) -> None:
    plain = {name: value for name, value in environment().items() if name not in VARIABLES}
    assert (RED in sandbox("policy", "show", "absent", env={**plain, **variables}).stderr) == coloured


def test_the_stream_decides_where_nothing_is_said() -> None:
    assert wanted({"TERM": "xterm", "NO_COLOR": "", "FORCE_COLOR": ""}) is None


def test_every_style_goes_through_the_one_place_that_knows_what_is_wanted() -> None:
    for path in (ROOT / "sandbox").rglob("*.py"):
        if path.name != "colour.py":
            assert not re.search(r"click\.(secho|style)\(", path.read_text()), path.name


@pytest.mark.parametrize("command", [(), ("policy",), ("env",), ("config",)])
def test_a_group_without_a_command_prints_its_help_and_nothing_else(command: tuple[str, ...]) -> None:
    bare, asked_for = sandbox(*command), sandbox(*command, "--help")
    assert bare.returncode == 2
    assert (bare.stdout + bare.stderr).strip() == asked_for.stdout.strip()


def test_an_option_in_the_wrong_place_is_told_where_it_goes() -> None:
    answer = sandbox("doctor", "--debug")
    assert answer.returncode == 2
    assert "--debug goes before the command" in answer.stderr
    assert "goes before" not in sandbox("doctor", "--nothing").stderr


# ---- the manual page


def test_the_manual_page_is_roff_that_man_shows_without_a_warning() -> None:
    page = ROOT / "docs" / "sandbox.1"
    requests = {line.split()[0] for line in page.read_text().splitlines() if line.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".SS", ".TP", ".PP", ".B"}
    shown = subprocess.run(
        ["man", "--warnings", "--no-hyphenation", "--no-justification", "-l", str(page)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""},
    )
    assert shown.stderr == ""
    text = re.sub(r".\x08|\x1b\[[0-9;]*m", "", shown.stdout)
    for said in ("sandbox run [OPTIONS] FILE|-|template:NAME", "--no-service", "EXIT STATUS", "SANDBOX_SOCKET", "137"):
        assert said in text
