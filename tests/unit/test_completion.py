"""Completion on the command line: what is offered, and that nothing is ever said while somebody types."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import templates
from sandbox.cli.completion import SHELLS, source
from sandbox.cli.main import COMMANDS, cli
from sandbox.environment.store import EnvironmentRecord, Store
from sandbox.places import private_directory
from sandbox.service.history.history import Retention, RunHistory
from sandbox.service.history.record import ENDINGS
from sandbox.service.history.row import HISTORY, RunRow
from tests.command import COMMAND, environment

TIMEOUT_S = 60


def offered(typed: str, **variables: str) -> list[str]:
    """Return what bash is offered for a line that ends where the cursor stands."""
    words = shlex.split(typed)
    at = len(words) if typed.endswith(" ") else len(words) - 1
    answer = subprocess.run(
        COMMAND,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
        env={
            **environment(),
            "COMP_WORDS": typed,
            "COMP_CWORD": str(at),
            "_SANDBOX_COMPLETE": "bash_complete",
            **variables,
        },
    )
    assert answer.stderr == ""
    assert answer.returncode == 0
    return [line.partition(",")[2] for line in answer.stdout.splitlines() if line.startswith("plain,")]


def test_commands_options_and_values_are_offered() -> None:
    assert offered("sandbox ") == sorted(COMMANDS)
    assert offered("sandbox do") == ["doctor"]
    assert "--no-service" in offered("sandbox run --no")
    assert set(offered("sandbox policy ")) >= {"check", "explain", "list", "show"}
    assert offered("sandbox completion ") == list(SHELLS)
    assert offered("sandbox runs --outcome time") == ["timed_out"]
    assert set(offered("sandbox runs --outcome ")) == set(ENDINGS)


def test_policies_are_offered_by_name_also_those_of_a_directory_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "default"\n')
    assert {"cells", "default", "strict"} <= set(offered("sandbox run --policy "))
    assert offered("sandbox run --policy st") == ["strict"]
    assert offered("sandbox policy show st") == ["strict"]
    assert "mine" not in offered("sandbox run --policy ")
    assert "mine" in offered(f"sandbox --policy-dir {tmp_path} run --policy ")
    assert "mine" in offered(f"sandbox policy --policy-dir {tmp_path} show ")


def test_templates_are_offered_by_name() -> None:
    assert offered("sandbox template run ") == list(templates.names())
    assert offered("sandbox template show vis") == ["vision"]
    assert "template:simple" in offered("sandbox run te")


@pytest.mark.parametrize("runtime", ["short", "long" * 25])  # a socket's path has at most 107 bytes
def test_runs_are_offered_from_the_history_where_no_service_runs(tmp_path: Path, runtime: str) -> None:
    directory = tmp_path / "podman-sandbox-runner"
    directory.mkdir(mode=0o700)
    with contextlib.closing(RunHistory(directory / HISTORY, Retention(age_s=1e9, size_bytes=1 << 20))) as kept:
        kept.ended(
            RunRow(
                run_id="1a" * 16,
                caller=os.getuid(),
                caller_name="ann",
                received=time.time(),
                state="ended",
                outcome="failed",
            )
        )
    alone = {"XDG_DATA_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / runtime), "SANDBOX_SOCKET": ""}
    assert offered("sandbox logs ", **alone) == ["1a" * 6]
    assert offered("sandbox stop ", **alone) == []


def test_environments_are_offered_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    record = EnvironmentRecord(
        id="2b" * 32,
        image="i",
        image_id="i",
        base="b",
        base_digest="d",
        lock_hash="l",
        build_hash="h",
        packages=(),
        requirements=("six",),
        size_bytes=1,
        created=1.0,
        last_used=1.0,
    )
    Store(private_directory(tmp_path / "podman-sandbox-runner")).keep(record)
    for command in ("show", "export", "rm", "push"):
        assert offered(f"sandbox env {command} ", XDG_DATA_HOME=str(tmp_path)) == ["2b" * 6]


@pytest.mark.parametrize(
    "typed", ["sandbox logs ", "sandbox stop ", "sandbox nothing ", "sandbox run 'open", "sandbox --debug logs f"]
)
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SANDBOX_CONFIG": "/nope"},
        {"SANDBOX_SOCKET": "/" + "x" * 200},
        {"HOME": "/nope", "XDG_RUNTIME_DIR": "/nope"},
    ],
)
def test_what_can_t_be_had_is_not_offered_and_nothing_is_said(typed: str, variables: dict[str, str]) -> None:
    words = typed.replace("'", "")
    assert offered(words, **variables) in ([], sorted(COMMANDS))


def test_a_broken_policy_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[[[")
    assert "default" in offered(f"sandbox --policy-dir {tmp_path} run --policy ")
    assert "default" in offered("sandbox --policy-dir /nope run --policy ")


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_a_script_that_asks_this_command(shell: str) -> None:
    text = source(shell, cli)
    assert f"_SANDBOX_COMPLETE={shell}_complete" in text
    assert text.endswith("\n")
    printed = subprocess.run(
        [*COMMAND, "completion", shell],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
        env=environment(),
    ).stdout
    assert printed == text


def test_bash_completes_with_the_script_that_is_printed(tmp_path: Path) -> None:
    """The whole way, in bash itself."""
    command = tmp_path / "sandbox"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    command.chmod(0o755)
    (tmp_path / "completion").write_text(source("bash", cli))
    script = f"""
        . {tmp_path}/completion
        COMP_WORDS=(sandbox run --policy st) COMP_CWORD=3
        _sandbox_completion sandbox
        echo "${{COMPREPLY[@]}}"
        complete -p sandbox
    """
    answer = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
        env={**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip # a command line
    assert answer.stderr == ""
    first, registered = answer.stdout.splitlines()
    assert first == "strict"
    assert "_sandbox_completion" in registered
