"""Bad input: one clear sentence with the fix, the right exit status, nothing started and nothing left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.command import environment, left_behind, sandbox

pytestmark = pytest.mark.podman


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text("result = 1\n")
    return path


CASES = [
    (["--policy", "strct"], 2, "did you mean strict"),
    (["--policy", "/absent/policy.toml"], 2, "policy.toml"),
    (["--image", "localhost/absent:1"], 11, "localhost/sandbox-python"),
    (["--image", "Not A Name"], 2, "not the name of an image"),
    (["--timeout", "5 parsecs"], 2, "30s, 500ms or 2m"),
    (["--timeout", "0"], 2, "above zero"),
    (["--timeout", "9" * 400], 2, "above zero"),
    (["--memory", "9" * 400 + "t"], 2, "any machine"),
    (["--cpus", "1e308"], 2, "cpus"),
    (["--pids", "9" * 400], 2, "processes"),
    (["--image", ""], 2, "image"),
    (["--timeout", "9999"], 10, "limits.timeout_s"),
    (["--memory", "lots"], 2, "256m or 1g"),
    (["--memory", "64g"], 10, "limits.memory_mib"),
    (["--cpus", "0"], 2, "--cpus"),
    (["--cpus", "99"], 10, "limits.cpus"),
    (["--pids", "99999"], 10, "limits.processes"),
    (["--input", "{bad"], 2, "line 1, column 2"),
    (["--input", "@/absent.json"], 2, "/absent.json does not exist"),
    (["--file", "nopath"], 2, "nopath does not exist"),
    (["--file", "=x"], 2, "NAME=PATH"),
    (["--file", "a=/absent"], 2, "/absent does not exist"),
    (["--file", "../x=/etc/hostname"], 2, "file name"),
    (["--env", "LD_PRELOAD=/x.so"], 10, "reserved"),
    (["--env", "NOT A NAME=1"], 2, "name"),
    (["--env", "ABSENT_VARIABLE_OF_MINE"], 2, "no such variable"),
    (["--secret", "TOKEN=abc"], 2, "process list"),
    (["--secret", "ABSENT_SECRET_OF_MINE"], 2, "no such variable"),
    (["--save-files", "/proc/absent"], 2, "--save-files"),
    (["--frobnicate"], 2, "--frobnicate"),
]


@pytest.mark.parametrize(("options", "status", "words"), CASES, ids=[" ".join(case[0])[:40] for case in CASES])
def test_bad_options_are_named_and_nothing_is_left(script: Path, options: list[str], status: int, words: str) -> None:
    answer = sandbox("run", script, *options)
    assert answer.returncode == status, answer.stderr
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""
    assert left_behind() == []


def test_the_secret_value_given_by_mistake_is_not_repeated(script: Path) -> None:
    assert "hunter2" not in sandbox("run", script, "--secret", "TOKEN=hunter2").stderr


def test_a_script_that_does_not_compile_fails_with_line_column_and_text(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("x = 1\nif x\n    y = 2\n")
    answer = sandbox("run", script)
    assert answer.returncode == 1
    assert 'File "broken.py", line 2\n    if x\n        ^' in answer.stderr
    assert (
        "sandbox: failed: the program raised SyntaxError at line 2, column 5: expected ':' (broken.py, line 2)"
        in answer.stderr
    )


@pytest.mark.parametrize(
    ("code", "statuses"),
    [
        ("f'" + "{x}" * 349_000 + "'", {124}),  # Python takes a minute for it
        ("x = 1" + "+1" * 400_000, {1, 7, 137}),
        ("x = a" + ".b" * 400_000, {1, 7, 137}),
        ("-" * 1_000_000 + "1", {1, 7}),
        ("(" * 1_000_000, {1}),
        ("x = [" + "{1:" * 300_000, {1, 7, 124}),
    ],
    ids=["an f-string", "a sum", "attributes", "minus signs", "parentheses", "dictionaries"],
)
def test_a_text_that_is_hard_to_compile_costs_its_own_run_alone(tmp_path: Path, code: str, statuses: set[int]) -> None:
    script = tmp_path / "hard.py"
    script.write_text(code)
    answer = sandbox("run", script, "--timeout", "5s", "--json")
    assert answer.returncode in statuses, answer.stderr
    assert json.loads(answer.stdout)["durations"]["program_ms"] < 7_000
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("name", ["zwei\nZeilen.py", "\x1b[31m.py", os.fsdecode(b"\xff.py"), "a" * 250 + ".py"])
def test_a_script_whose_file_has_an_odd_name_runs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("raise ValueError")
    answer = sandbox("run", tmp_path / name)
    assert answer.returncode == 1
    assert f'File "{name if name.isprintable() else "script.py"}", line 1' in answer.stderr


def test_a_script_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    assert sandbox("run", tmp_path / "absent.py").returncode == 2
    binary = tmp_path / "binary.py"
    binary.write_bytes(b"\xff\xfe\x00")
    answer = sandbox("run", binary)
    assert answer.returncode == 2
    assert "UTF-8" in answer.stderr


def test_script_and_input_cannot_both_come_from_standard_input() -> None:
    assert sandbox("run", "-", "--input", "-", stdin="1").returncode == 2


def test_with_json_an_error_is_one_document_of_one_shape(script: Path) -> None:
    answer = sandbox("run", script, "--policy", "absent", "--json")
    error = json.loads(answer.stdout)["error"]
    assert error["code"] == "not_found"
    assert error["hint"]


def test_debug_shows_the_traceback(script: Path) -> None:
    assert "Traceback" in sandbox("--debug", "run", script, "--policy", "absent").stderr


def test_a_runtime_directory_that_others_can_enter_is_refused(script: Path, tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir(mode=0o755)
    answer = sandbox("run", script, env=environment(XDG_RUNTIME_DIR=str(public)))
    assert answer.returncode == 13
    assert f"chmod 0700 {public}" in answer.stderr


COMMANDS = (
    ("doctor",),
    ("config", "socket"),
    ("config", "show"),
    ("policy", "list"),
    ("env", "list"),
    ("image", "list"),
    ("template", "list"),
    ("template", "run", "simple", "--no-service"),
    ("uninstall", "--dry-run"),
    ("serve", "--restart"),
)


# Which values name no directory is decided in one place (tests/unit/test_places.py has them all), from which every command
# takes it: so all commands meet one of them, and the command that gives it to Podman and the service meets the others.
@pytest.mark.parametrize("named", ["unset", "", "run", "/nonexistent", "/run/user/0", "/"])
def test_every_command_finds_a_runtime_directory_where_the_session_names_none(named: str) -> None:
    """After `su -`, in cron; `HOME` is missing, too."""
    variables = environment(XDG_RUNTIME_DIR=named)
    del variables["HOME"]
    if named == "unset":
        del variables["XDG_RUNTIME_DIR"]
    for command in (
        COMMANDS if named == "unset" else (("config", "socket"), ("template", "run", "simple", "--no-service"))
    ):
        answer = sandbox(*command, env=variables)
        assert answer.returncode == 0, f"{command}: {answer.stderr}"
    answer = sandbox("ps", env={**variables, "SANDBOX_SOCKET": "/nonexistent/service.sock"})
    assert answer.returncode == 13
    assert "unexpected" not in answer.stderr


def test_a_policy_with_an_unknown_key_names_file_line_and_the_nearest_key(script: Path, tmp_path: Path) -> None:
    policy = tmp_path / "mine.toml"
    policy.write_text('extends = "default"\n\n[limits]\nmemory_mb = 64\n')
    answer = sandbox("run", script, "--policy", policy)
    assert answer.returncode == 2
    assert f"{policy}:4" in answer.stderr
    assert "memory_mib" in answer.stderr


def test_doctor_reports_every_capability_as_json() -> None:
    report = json.loads(sandbox("doctor", "--json").stdout)
    assert report["usable"] is True
    names = {row["name"] for row in report["capabilities"]}
    assert {"podman", "OCI runtime", "storage", "memory", "cpus", "processes", "seccomp", "base image"} <= names
    for row in report["capabilities"]:
        assert row["status"] in ("ok", "fallback", "missing")
        assert row["status"] == "ok" or row["fix"], f"{row['name']} has no fix"


def test_doctor_exits_4_where_no_policy_can_run(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    answer = sandbox("doctor", env=environment(XDG_RUNTIME_DIR=str(tmp_path)))
    assert answer.returncode == 4
    assert "runtime directory" in answer.stdout
    assert "missing" in answer.stdout


def test_this_suite_does_not_run_as_root() -> None:
    assert os.geteuid() != 0
