"""What is checked of a request before anything is made of it."""

from __future__ import annotations

import json
import os
import pprint
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.models import MAX_FILENAME_CHARS, RunRequest, Tightening
from sandbox.run.decision import Run
from sandbox.run.request import check_code_size, check_request, checked, request_from
from sandbox.service.history.record import mask_of
from sandbox.service.intake.asked import run_asked
from sandbox.service.intake.bodies import run_body
from sandbox.service.intake.parser_program import Understood
from tests.unit.factory import policy, wanted

ROOT = Path(__file__).parents[2]
POLICY = policy()
PATH_MAX = 4_096
CODE_BYTES = POLICY.limits.code_kib << 10


def test_code_of_the_policy_s_size_is_taken_and_one_byte_more_is_not() -> None:
    check_code_size(CODE_BYTES, POLICY.name, POLICY.limits.code_kib)
    check_request(RunRequest(code="é" * (CODE_BYTES // 2)), POLICY)
    with pytest.raises(PolicyDenied, match=r"limits\.code_kib"):
        check_code_size(CODE_BYTES + 1, POLICY.name, POLICY.limits.code_kib)
    with pytest.raises(PolicyDenied, match=r"limits\.code_kib"):
        check_request(RunRequest(code="é" * (CODE_BYTES // 2) + "x"), POLICY)


def test_a_policy_may_be_a_file_at_the_end_of_a_long_path() -> None:
    path = "/p" * (PATH_MAX // 2)
    assert checked(RunRequest(code="1", policy=path)).policy == path
    with pytest.raises(InvalidRequest, match="`policy`"):
        checked(RunRequest(code="1", policy=path + "p"))


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\x1b[0m", "\u202eyp.a"])
def test_a_script_s_name_is_printable(name: str) -> None:
    with pytest.raises(InvalidRequest, match="invisible"):
        check_request(RunRequest(code="1", filename=name), POLICY)


@pytest.mark.parametrize("name", ["script.py", "/etc/passwd", "<string>", "größe 1.py", "a" * MAX_FILENAME_CHARS])
def test_a_script_may_have_any_name_that_can_be_shown(name: str) -> None:
    check_request(RunRequest(code="1", filename=name), POLICY)


# Each is wrong in the field that is named; none of them is refused when the request is made.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("filename", {"filename": ""}),
    ("filename", {"filename": "a" * (MAX_FILENAME_CHARS + 1)}),
    ("image", {"image": ""}),
    ("policy", {"policy": ""}),
    ("policy", {"policy": None}),
    ("topic", {"topic": "x" * 65_536}),
    ("node_id", {"node_id": 7}),
    ("code", {"code": b"result = 1"}),
    ("payload_json", {"payload_json": "bnVsbA=="}),
    ("message_json", {"message_json": None}),
    ("requirements", {"requirements": "pandas"}),
    ("preload", {"preload": [7]}),
    ("env", {"env": {"A": 1}}),
    ("env", {"env": {1: "A"}}),
    ("secrets", {"secrets": {"A": 20_261_129}}),
    ("secrets", {"secrets": "hunter2"}),
    ("files", {"files": {"a": "b"}}),
    ("limits", {"limits": None}),
    ("limits.cpus", {"limits": {"cpus": "1"}}),
    ("limits.cpus", {"limits": Tightening(cpus=True)}),
    *(
        (f"limits.{key}", {"limits": Tightening(**cast("Any", {key: value}))})
        for key in ("timeout_s", "memory_mib", "cpus", "processes")
        for value in (0, -1, 10**400, 2**64, float("nan"), float("inf"), 1e308)
    ),
]


@pytest.mark.parametrize(("place", "fields"), WRONG)
def test_what_a_field_can_t_be_is_told_with_its_place_and_without_its_value(place: str, fields: dict[str, Any]) -> None:
    request = RunRequest(**{"code": "1", **fields})
    with pytest.raises(InvalidRequest) as caught:
        checked(request)
    assert re.search(rf"`{place}(\[[^`]*\])?`$", caught.value.message)
    assert not re.search("hunter2|20.?261.?129", str(caught.value))


def test_a_request_that_can_be_one_stays_as_it_is_and_as_it_was_checked() -> None:
    payload = b"[1]"
    request = RunRequest(
        code="1",
        payload_json=payload,
        limits=Tightening(timeout_s=1, cpus=0.5),
        env={"A": "b"},
        files={"f": b"c"},
        warnings=(),
    )
    found = checked(request)
    assert found == request
    assert found.payload_json is payload
    request.env["A"] = request.env["B"] = "\0"
    assert found.env == {"A": "b"}


def test_a_request_has_the_form_of_what_a_client_sends() -> None:
    given: dict[str, Any] = {"code": "1", "limits": {"memory_mib": 64}, "secrets": {"A": "b"}, "payload_json": b"1"}
    assert request_from(given, hint="") == RunRequest(
        code="1", limits=Tightening(memory_mib=64), secrets={"A": "b"}, payload_json=b"1"
    )
    for wrong in ({"unknown": 1}, {"limits": {"unknown": 1}}, {"limits": {"memory_mib": 0}}):
        with pytest.raises(InvalidRequest, match=r"unknown|memory_mib") as caught:
            request_from(given | wrong, hint="what to do")
        assert caught.value.hint == "what to do"


@pytest.mark.parametrize("field", ["env", "secrets"])
def test_a_variable_holds_no_nul(field: str) -> None:
    fields: dict[str, Any] = {"code": "1", field: {"TOKEN": "a\0b"}}
    request = RunRequest(**fields)
    with pytest.raises(InvalidRequest, match="TOKEN has a NUL") as caught:
        check_request(request, POLICY)
    assert "a\0b" not in str(caught.value)


# ---- nobody is shown a secret

SECRET = "hunter2"
BODY = json.dumps({"code": "1", "secrets": {"TOKEN": SECRET}}).encode()
HOLDERS: dict[str, Callable[[], Any]] = {
    "what the runner takes": lambda: RunRequest(code="1", secrets={"TOKEN": SECRET}),
    "what an embedder got wrong": lambda: RunRequest(code="1", secrets=cast("Any", [SECRET])),
    "a run on its way": lambda: Run(request=RunRequest(code="1", secrets={"TOKEN": SECRET})),
    "a body": lambda: run_body(BODY)[0],
    "what a body asks for": lambda: run_asked(BODY, {"default": 1}),
    "what the parser answers": lambda: Understood(run_asked(BODY, {"default": 1})[0], []),
    "what is run of it": lambda: wanted(BODY),
    "what the history masks": lambda: mask_of(wanted(BODY)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_holds_a_secret_shows_its_name_alone(holder: str) -> None:
    held = HOLDERS[holder]()
    try:
        raise RuntimeError
    except RuntimeError as error:
        quoted = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "held = " in quoted
    rich = list(held.__rich_repr__()) if hasattr(held, "__rich_repr__") else []
    for text in (repr(held), str(held), f"{held}", pprint.pformat(held), repr(rich), quoted):
        assert SECRET not in text
    if isinstance(held, RunRequest) and isinstance(held.secrets, dict):
        assert "secrets={'TOKEN': " in repr(held)
        assert held.secrets == {"TOKEN": SECRET}


@pytest.mark.parametrize(("compared", "shown"), [("one == other", False), ("one.secrets == other.secrets", True)])
def test_a_test_that_fails_shows_no_secret_of_a_request(tmp_path: Path, compared: str, *, shown: bool) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os\n"
        "from sandbox.models import RunRequest\n"
        "def test_it():\n"
        "    one = RunRequest(code='1', secrets={'TOKEN': os.environ['VALUE']})\n"
        "    other = RunRequest(code='1', secrets={'TOKEN': os.environ['VALUE'] + '!'})\n"
        f"    assert {compared}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-vv", "-l", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        env={**os.environ, "VALUE": SECRET, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert (SECRET in done.stdout) == shown
