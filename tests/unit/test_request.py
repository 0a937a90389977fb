"""What is checked of a request before anything is made of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.models import MAX_FILENAME_CHARS, RunRequest, Tightening
from sandbox.run.request import check_code_size, check_request
from tests.unit.factory import policy

POLICY = policy()
CODE_BYTES = POLICY.limits.code_kib << 10


def test_code_of_the_policy_s_size_is_taken_and_one_byte_more_is_not() -> None:
    check_code_size(CODE_BYTES, POLICY.name, POLICY.limits.code_kib)
    check_request(RunRequest(code="é" * (CODE_BYTES // 2)), POLICY)
    with pytest.raises(PolicyDenied, match=r"limits\.code_kib"):
        check_code_size(CODE_BYTES + 1, POLICY.name, POLICY.limits.code_kib)
    with pytest.raises(PolicyDenied, match=r"limits\.code_kib"):
        check_request(RunRequest(code="é" * (CODE_BYTES // 2) + "x"), POLICY)


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\x1b[0m", "\u202eyp.a"])
def test_a_script_s_name_is_printable(name: str) -> None:
    with pytest.raises(InvalidRequest, match="invisible"):
        check_request(RunRequest(code="1", filename=name), POLICY)


@pytest.mark.parametrize("name", ["script.py", "/etc/passwd", "<string>", "größe 1.py", "a" * MAX_FILENAME_CHARS])
def test_a_script_may_have_any_name_that_can_be_shown(name: str) -> None:
    check_request(RunRequest(code="1", filename=name), POLICY)


@pytest.mark.parametrize("fields", [{"filename": ""}, {"filename": "a" * (MAX_FILENAME_CHARS + 1)}, {"image": ""}])
def test_a_request_has_no_empty_and_no_endless_names(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RunRequest(code="1", **fields)


@pytest.mark.parametrize("key", ["timeout_s", "memory_mib", "cpus", "processes"])
@pytest.mark.parametrize("value", [0, -1, 10**400, 2**64, float("nan"), float("inf"), 1e308])
def test_a_limit_is_a_number_that_can_be_one(key: str, value: float) -> None:
    with pytest.raises((ValidationError, OverflowError)):
        Tightening.model_validate({key: value})


@pytest.mark.parametrize("field", ["env", "secrets"])
def test_a_variable_holds_no_nul(field: str) -> None:
    request = RunRequest.model_validate({"code": "1", field: {"TOKEN": "a\0b"}})
    with pytest.raises(InvalidRequest, match="TOKEN has a NUL"):
        check_request(request, POLICY)
