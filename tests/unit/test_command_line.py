"""The command line without Podman: values of options, text on terminals, documents, and the last resort."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cli import amounts, run
from sandbox.cli.answer import answer_of
from sandbox.cli.document import readable
from sandbox.cli.later import check_detached
from sandbox.cli.main import cli, report, run_command
from sandbox.cli.saved import open_directory, save_files
from sandbox.cli.screen import Screen, escaped
from sandbox.document import as_document
from sandbox.errors import BuildFailed, EngineUnavailable, InvalidRequest
from sandbox.models import Outcome, RunRequest, RunResult, SavedFile, Tightening
from sandbox.places import user_runtime_dir


@pytest.mark.parametrize(
    ("text", "mib"), [("512m", 512), ("1g", 1024), ("2048", 2048), ("1 GiB", 1024), ("4096k", 4), ("0.5g", 512)]
)
def test_amounts_of_memory(text: str, mib: int) -> None:
    assert amounts.parse_memory(text) == mib


@pytest.mark.parametrize("text", ["", "0", "512q", "-1m", "m", "100k", "0.5"])
def test_other_amounts_of_memory_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--memory"):
        amounts.parse_memory(text)


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("2.5s", 2.5), ("500ms", 0.5), ("2m", 120), ("1h", 3600)])
def test_durations(text: str, seconds: float) -> None:
    assert amounts.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "1d", "-1s", "1e3", "s", "0ms"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--timeout"):
        amounts.parse_duration(text)


@given(st.text())
def test_nothing_that_steers_a_terminal_passes(text: str) -> None:
    shown = escaped(text)
    assert not any(ord(c) < 32 and c not in "\t\n" for c in shown)
    assert not any(0x7F <= ord(c) <= 0x9F or c in "\u202e\u2066\u2028" for c in shown)
    shown.encode()


def test_ordinary_text_is_shown_unchanged() -> None:
    text = "température 21 °C\tok ✓ 你好\n"
    assert escaped(text) == text


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_a_terminal_sees_no_control_character_however_output_is_cut(pieces: list[bytes]) -> None:
    stream = io.BytesIO()
    screen = Screen(stream, terminal=True)
    for piece in pieces:
        screen.write(piece)
    shown = stream.getvalue().decode()
    assert not any(ord(c) < 32 and c not in "\t\n" for c in shown)
    assert "\x1b" not in shown


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_a_pipe_gets_the_programs_bytes_unchanged(pieces: list[bytes]) -> None:
    stream = io.BytesIO()
    screen = Screen(stream, terminal=False)
    for piece in pieces:
        screen.write(piece)
    assert stream.getvalue() == b"".join(pieces)


def result(**fields: object) -> RunResult:
    return RunResult(run_id="r", outcome=Outcome.SUCCEEDED, **fields)  # type: ignore[arg-type]


def test_the_document_is_json_with_the_programs_result_unchanged() -> None:
    found = json.loads(as_document(result(result_json=b'{"a":[1,2]}', additional_data_json=b"7", stdout=b"\xff\x00ok")))
    assert found["result"] == {"a": [1, 2]}
    assert found["additional_data"] == 7
    assert found["stdout"] == "\\xff\x00ok"


def test_text_results_are_readable_as_they_are_and_others_indented() -> None:
    assert readable(b'"plain"') == b"plain"
    assert readable(b'{"a":1}') == b'{\n  "a": 1\n}'
    assert b"\x1b" not in readable(b'"\\u001b[31mred"')


def test_saved_files_do_not_follow_a_planted_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    target = tmp_path / "out"
    target.mkdir()
    (target / "report.txt").symlink_to(victim)
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    save_files(answer_of(result(files=(SavedFile(name="report.txt", content=b"new"),))).files, fd)
    os.close(fd)
    assert victim.read_text() == "precious"
    assert (target / "report.txt").read_bytes() == b"new"
    assert not (target / "report.txt").is_symlink()


def test_an_unexpected_error_is_one_sentence_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def defect(_path: str, **_options: object) -> int:
        raise RuntimeError("a defect")

    monkeypatch.setattr(run, "read_text", defect)
    assert run_command(["run", "-"], debug=False) == 70
    shown = capsys.readouterr().err
    assert "a defect" in shown
    assert "Traceback" not in shown
    assert run_command(["run", "-"], debug=True) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def empty_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"result = 1")))


def test_a_wrong_command_is_answered_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["rnu"], debug=False) == 2
    assert "Did you mean 'run'?" in capsys.readouterr().err


def test_debug_after_the_command_is_told_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "--debug", "x.py"], debug=False) == 2
    assert "sandbox --debug run" in capsys.readouterr().err


def test_every_command_has_help() -> None:
    context = cli.make_context("sandbox", [], resilient_parsing=True)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o777])
def test_a_runtime_directory_open_to_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(mode)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    with pytest.raises(EngineUnavailable, match="not private"):
        user_runtime_dir()
    assert stat.S_IMODE(directory.stat().st_mode) == mode


def test_an_error_ends_with_the_last_useful_lines_of_the_tool(capsys: pytest.CaptureFixture[str]) -> None:
    output = "\n".join(["first", *(f"line {number}" for number in range(11)), "", "\x1b[2Jlast" + "x" * 1_000])
    report(BuildFailed("tiny can't be built", hint="ask for another", output=output))
    sentence, hint, heading, *lines = capsys.readouterr().err.splitlines()
    assert (sentence, hint) == ("sandbox: build_failed: tiny can't be built", "  what to do: ask for another")
    assert heading == "  what the tool said last:"
    assert lines[:-1] == [f"    line {number}" for number in range(11)]
    assert lines[-1].startswith("    \\x1b[2Jlast")
    assert len(lines[-1]) < 400
    report(BuildFailed("tiny can't be built", output=["a list", "of lines"]))
    assert capsys.readouterr().err.endswith("said last:\n    a list\n    of lines\n")
    report(BuildFailed("tiny can't be built", output=""))
    assert "said last" not in capsys.readouterr().err


INTERRUPTED = """if True:
    import os, signal, sys, time
    from sandbox.cli import main, run

    class Closed:  # like a Popen that nobody waited for
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(100):
                pass

    def command(_path, **_options):
        Closed()
        print("taken apart", flush=True)
        time.sleep(20)

    run.read_text = command
    main.main(["run", "-"])"""


def test_an_interrupt_while_an_object_is_taken_apart_ends_the_command_and_shows_nothing() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (130, "taken apart\n", "")


def test_what_else_goes_wrong_while_an_object_is_taken_apart_is_shown() -> None:
    code = INTERRUPTED.replace("os.kill(os.getpid(), signal.SIGINT)", "1/0").replace("time.sleep(20)", "sys.exit(3)")
    ended = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=15, check=False
    )
    assert ended.returncode == 3
    assert "ZeroDivisionError" in ended.stderr


OPTIONS: dict[str, Any] = {
    "input_text": None,
    "timeout": None,
    "memory": None,
    "cpus": None,
    "pids": None,
    "image": None,
    "topic": "",
    "policy": "default",
    "env": (),
    "secrets": (),
}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"timeout": ""}, "--timeout ''"),
        ({"memory": ""}, "--memory ''"),
        ({"image": ""}, "--image is empty"),
        ({"cpus": float("nan")}, "--cpus nan"),
        ({"cpus": 1e300}, r"--cpus 1e\+300"),
        ({"pids": 10**30}, "--pids 1000"),
    ],
)
def test_an_empty_or_impossible_value_of_an_option_is_refused_by_its_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        run.request_fields(run.Inputs("", b"null", {}), "script.py", {**OPTIONS, **given})


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"topic": "x" * 65_536}, "topic"),
        ({"policy": ""}, "policy"),
        ({"image": "x" * 513}, "image"),
        ({"timeout": "1ms", "pids": -1}, r"limits\.processes"),
    ],
)
def test_what_no_request_may_have_is_refused_with_its_place(given: dict[str, Any], place: str) -> None:
    fields = run.request_fields(run.Inputs("", b"null", {}), "script.py", {**OPTIONS, **given})
    with pytest.raises(InvalidRequest, match=f"`{place}`") as refused:
        run.build_request(fields, b"null")
    assert refused.value.hint == "see sandbox run --help"


def test_the_options_make_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "null")
    given = {"cpus": 1.0, "pids": 4, "memory": "1g", "timeout": "2m", "image": "null", "secrets": ("TOKEN",)}
    inputs = run.Inputs("1", b"2", {"a": b"b"}, ("pandas",), ">=3.10")
    fields = run.request_fields(inputs, "a.py", {**OPTIONS, **given})
    assert run.build_request(fields, inputs.payload) == RunRequest(
        code="1",
        filename="a.py",
        payload_json=b"2",
        image="null",
        requirements=("pandas",),
        requires_python=">=3.10",
        limits=Tightening(timeout_s=120, memory_mib=1024, cpus=1, processes=4),
        secrets={"TOKEN": "null"},
        files={"a": b"b"},
    )


@pytest.mark.parametrize("option", ["--env", "--secret"])
@pytest.mark.parametrize("text", ["", "A-B", "1A", "=x", "Ä=1"])
def test_what_is_no_name_of_a_variable_is_not_said_to_be_missing(option: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not the name of a variable"):
        run.pairs((text,), option=option)


def test_a_file_without_a_name_is_not_the_working_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="the input has an empty name"):
        run.read_payload("@")
    with pytest.raises(InvalidRequest, match="is a directory") as refused:
        run.read_payload(f"@{tmp_path}")
    assert refused.value.hint == "name a file"


def test_a_run_that_stays_here_by_a_variable_is_told_of_the_variable() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_detached({"no_service": True, "policy": "default", "save_files": None}, [])
    assert "SANDBOX_NO_SERVICE" in refused.value.hint


def test_a_file_is_no_directory_for_saved_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for place in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(InvalidRequest, match="there is a file of that name, or above it") as told:
            open_directory({"save_files": str(place)})
        assert told.value.hint == "name a directory"
