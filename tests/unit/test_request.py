from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.models import RunRequest
from sandbox.request import line_of, syntax_error

# Python finds this one after parsing, when it no longer has the text and looks for it in the file.
LATE = "\n\ndef f(x, x): pass"


def test_a_late_syntax_error_shows_the_caller_s_own_line_and_no_file_of_the_host(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one\ntwo\nthe password\n")
    with pytest.raises(SyntaxError) as control:
        compile(LATE, str(secret), "exec")
    assert "the password" in str(control.value.text), "what Python does with a path"
    error = syntax_error(RunRequest(code=LATE, filename=str(secret)))
    assert error is not None
    assert "the password" not in str(error)
    assert "line 3" in error.message
    assert error.message.endswith(": def f(x, x): pass")


def test_a_name_that_would_block_whoever_opens_it_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert syntax_error(RunRequest(code=LATE, filename=str(tmp_path / "pipe"))) is not None


def test_a_byte_order_mark_is_no_syntax_error() -> None:
    assert syntax_error(RunRequest(code="\ufeffresult = 1")) is None


@pytest.mark.parametrize(
    ("code", "number", "line"),
    [("a\nb", 2, "b"), ("a\r\nb\rc", 3, "c"), ("a\fb\u2028c\nd", 2, "d"), ("a", 2, ""), ("a", 0, "")],
)
def test_lines_are_counted_as_python_counts_them(code: str, number: int, line: str) -> None:
    assert line_of(code, number) == line
