"""Errors: one tree, unique codes, exit statuses that don't collide, one shape."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from msgspec import convert

import sandbox.cli.main as main
from sandbox import errors
from sandbox.cli.main import run_command
from sandbox.document import error_document
from sandbox.errors import MAX_FACT_CHARS, SandboxError
from sandbox.models import EXIT_STATUS, Outcome
from sandbox.wire.errors import ErrorBody

CLASSES: list[type[SandboxError]] = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, SandboxError) and value is not SandboxError
]
ROW = re.compile(r"^\s*[├└]── (?P<name>\w+)\s+(?P<code>\w+)\s+(?P<exit>\d+)\s+(?P<http>\d+)\s+\S", re.MULTILINE)
SHARED = {2: {"invalid_request", "not_found"}}  # both are the caller's words, and shells know 2 as wrong usage
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.code)


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(codes) == len(set(codes))


def test_tree_in_the_docstring_has_every_class_with_its_numbers() -> None:
    drawn = {
        row["name"]: (row["code"], int(row["exit"]), int(row["http"])) for row in ROW.finditer(errors.__doc__ or "")
    }
    assert drawn == {kind.__name__: (kind.code, kind.exit_status, kind.http_status) for kind in CLASSES}


def test_errors_share_an_exit_status_only_where_it_is_meant() -> None:
    by_status: dict[int, set[str]] = {}
    for kind in CLASSES:
        by_status.setdefault(kind.exit_status, set()).add(kind.code)
    assert {status: codes for status, codes in by_status.items() if len(codes) > 1} == SHARED


def test_every_outcome_has_an_exit_status_of_its_own() -> None:
    assert set(EXIT_STATUS) == set(Outcome)
    assert len(set(EXIT_STATUS.values())) == len(Outcome)


def test_no_error_exits_like_an_outcome() -> None:
    assert {kind.exit_status for kind in CLASSES} & set(EXIT_STATUS.values()) == set()


def test_only_success_exits_with_zero() -> None:
    assert [outcome for outcome, status in EXIT_STATUS.items() if status == 0] == [Outcome.SUCCEEDED]
    assert all(0 < kind.exit_status < 126 for kind in CLASSES)  # from 126 on, shells have meanings of their own


@every_class
def test_http_status_says_whose_fault_it_is(kind: type[SandboxError]) -> None:
    assert 400 <= kind.http_status <= 599


@every_class
def test_every_error_has_the_same_json_shape(kind: type[SandboxError]) -> None:
    error = kind("it failed because of a reason", hint="do this", number=3, path=object)
    document = json.loads(error_document(error))
    assert set(document) == {"error"}
    body = convert(document["error"], ErrorBody)
    assert (body.code, body.message, body.hint) == (kind.code, "it failed because of a reason", "do this")
    assert body.facts["number"] == 3
    assert isinstance(body.facts["path"], str)


def test_long_messages_are_cut_and_marked() -> None:
    error = errors.Internal("x" * (MAX_FACT_CHARS + 1), hint="y" * (MAX_FACT_CHARS + 1))
    assert error.message.endswith(f"[truncated, {MAX_FACT_CHARS + 1} characters in all]")
    assert len(error.message) < MAX_FACT_CHARS + 60
    assert "[truncated" in error.hint


def test_text_of_an_error_ends_with_what_to_do() -> None:
    assert str(errors.NotFound("it is not there", hint="look elsewhere")) == "it is not there (look elsewhere)"
    assert str(errors.NotFound("it is not there")) == "it is not there"


def test_command_line_table_has_every_status() -> None:
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", main.__doc__ or "", re.MULTILINE)}
    assert {*EXIT_STATUS.values(), *(kind.exit_status for kind in CLASSES)} <= listed


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["policy", "show", "no-such-policy"], errors.NotFound),
        (["template", "show", "no-such-template"], errors.NotFound),
        (["run", "no-such-script.py"], errors.NotFound),
        (["template", "run", "simple", "--input", "hello"], errors.InvalidRequest),
        (["template", "run", "simple", "--timeout", "soon"], errors.InvalidRequest),
        (["template", "run", "simple", "--secret", "TOKEN=1"], errors.InvalidRequest),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_line_names_the_code_and_what_to_do(
    arguments: list[str], kind: type[SandboxError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments, debug=False) == kind.exit_status
    shown = capsys.readouterr()
    first, second = shown.err.splitlines()
    assert first.startswith(f"sandbox: {kind.code}: ")
    assert second.startswith("  what to do: ")
    assert shown.out == ""


@pytest.mark.parametrize("arguments", [["run"], ["run", "--no-such-option"], ["no-such-command"]], ids=" ".join)
def test_wrong_usage_exits_with_2_and_no_traceback(arguments: list[str]) -> None:
    result = CliRunner().invoke(main.cli, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--debug", "policy", "show", "no-such-policy"], debug=True) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_json_error_goes_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run_command(["template", "run", "simple", "--input", "hello", "--json"], debug=False) == 2
    body = convert(json.loads(capfdbinary.readouterr().out)["error"], ErrorBody)
    assert body.code == "invalid_request"
    assert body.hint
