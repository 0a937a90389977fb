"""Secrets in what is kept: found in the forms that programs write them in, also where text is cut."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.models import LogRecord, Outcome, ProgramError, RunResult
from sandbox.service.history.secret_mask import MARK, MAX_CHARS, MAX_FORMS, PIECE_CHARS, Mask
from sandbox.service.history.told import told

FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "repr": repr,
    "ascii": ascii,
    "bytes": lambda text: repr(text.encode()),
    "json": json.dumps,
    "json in utf-8": lambda text: json.dumps(text, ensure_ascii=False),
    "json in json": lambda text: json.dumps(json.dumps({"k": text})),
    "json in repr": lambda text: repr(json.dumps([text])),
    "repr of a dict": lambda text: repr({"it's": text, 'a"': text}),
    "repr in a message": lambda text: repr(f'it\'s "{text}"'),
    "url": quote,
    "url, whole": lambda text: quote(text, safe=""),
    "form": quote_plus,
    "url in lower case": lambda text: quote(text, safe="").lower(),
    "html": html.escape,
    "hex": lambda text: text.encode().hex(),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64url": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "basic auth": lambda text: base64.b64encode(f"user:{text}".encode()).decode(),
    "base64 of more": lambda text: base64.b64encode(f"ab{text}, and more".encode()).decode(),
    "base64 in lines": lambda text: base64.encodebytes(f"u{text}".encode()).decode(),
    "base64 in lines, as bytes": lambda text: repr(base64.encodebytes(f"user{text}".encode())),
}
SECRETS = [
    "hunter2-hunter2",
    "pä$$w/rd=&+ \"x\" 'y' \\z",
    "line one of it\nline two of it\n\ttab",
    "日本語のパスワード",
    "a<b>&'\"",
    "=" * 9,
    "-----KEY\n" + "QUJD" * 40 + "\n---",
    "".join(hashlib.sha256(bytes([n])).hexdigest() for n in range(40)),
    "".join(f"{n} 'é\\\"" for n in range(400)),
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_masked_in_every_usual_form(form: str, secret: str) -> None:
    if form == "url in lower case" and secret.lower() != secret:
        secret = secret.lower()
    text = FORMS[form](secret)
    masked = Mask(iter([secret])).text(f"before {text} after")
    assert MARK in masked
    left = masked.replace(MARK, "")
    assert secret not in left
    core = text.strip("'\"b[]{}")
    pieces = [core[at : at + 12] for at in range(0, max(1, len(core) - 12), 4)]
    assert len([piece for piece in pieces if len(piece) == 12 and piece in left]) <= 2, "what stands around it alone"
    assert masked.startswith("before")
    assert masked.endswith("after")


def test_each_line_of_a_secret_with_lines_is_masked_and_what_is_stripped() -> None:
    masked = Mask(["-----BEGIN\nMIIEvAIBADAN\nBgkqhkiG9w0B\n", "  token-of-mine \n"]).text(
        "line MIIEvAIBADAN\nline BgkqhkiG9w0B; token-of-mine;"
    )
    assert masked == f"line {MARK}\nline {MARK}; {MARK};"


@pytest.mark.parametrize(
    "secret",
    [
        "x" * (MAX_CHARS + 1),
        "\n".join(f"{n:08}" for n in range(2_000)),
        "\n".join(f"\x01'\"\\é{n}" * 20 for n in range(200)),
        "".join(map(chr, range(256, 25_000))),
    ],
)
def test_what_it_costs_to_look_for_a_secret_is_bounded_and_what_can_t_be_looked_for_leaves_nothing(secret: str) -> None:
    mask = Mask([secret])
    assert mask.takes_long
    assert mask.reach <= 80 * PIECE_CHARS, "however long the value"
    forms = mask._forms
    if forms is None:
        assert mask.text("anything") == mask.end("anything", 3) == mask.beginning("anything", 3) == MARK
        assert mask.text("") == ""
    else:
        assert len(forms) <= MAX_FORMS
        assert mask.text(f"before {secret} after") == f"before {MARK} after"


def test_secrets_that_are_nearly_everywhere_leave_nothing_and_take_no_time() -> None:
    mask = Mask(["a" * length for length in range(1, 250)])
    assert mask._forms, "all are looked for"
    began = time.process_time()
    for masked in (
        mask.text("a" * 65_536),
        mask.end("a" * 65_536, 9_000),
        mask.beginning("a" * 65_536, 9_000),
        *mask.each(["a" * 65_536]),
    ):
        assert masked == MARK
    assert mask.each(["a" * 65_536, ""]) == [MARK, ""]
    assert time.process_time() - began < 5


def test_thousands_of_log_records_are_masked_as_fast_as_one_text() -> None:
    mask = Mask([f"secret {number:04}'\"\\" for number in range(200)])
    mask.prepare()
    records = tuple(
        LogRecord(level="info", message="x" if number % 100 else f"a secret {number % 200:04}'\"\\", elapsed_s=0.0)
        for number in range(10_000)
    )
    began = time.process_time()
    text = told(RunResult(run_id="r", outcome=Outcome.FAILED, logs=records), mask, 16 << 10)
    assert time.process_time() - began < 0.7, "each by itself takes seconds"
    found = json.loads(text)
    assert {record["message"] for record in found["logs"]} == {"x", f"a {MARK}"}
    assert len(found["logs"]) + found["left_out"]["logs"] == len(records)
    assert len(found["logs"]) > 2_500


@given(st.lists(st.text("ab\0\n", max_size=9), max_size=6), st.text("ab\0", min_size=1, max_size=4))
def test_several_texts_together_are_masked_at_least_as_each_by_itself(texts: list[str], secret: str) -> None:
    mask = Mask([secret])
    together = mask.each(texts)
    assert len(together) == len(texts)
    if "\0" not in secret:
        assert together == [mask.text(text) for text in texts]
    assert not [text for text in together if secret in text.replace(MARK, "\n")]


def test_secrets_that_overlap_leave_nothing_of_either() -> None:
    assert Mask(["abcdef", "defghi"]).text("xabcdefghix") == f"x{MARK}x"
    assert Mask(["aaaa"]).text("aaaaaa") == MARK


def test_without_secrets_nothing_changes_and_an_empty_one_masks_nothing() -> None:
    for mask in (Mask([]), Mask([""])):
        assert mask.text("what it is\x00") == "what it is\x00"
        assert mask.end("abc", 2) == "bc"
        assert mask.end("abc", 0) == mask.beginning("abc", 0) == ""


@given(st.text("ab\n", max_size=60), st.text("ab", min_size=1, max_size=6), st.integers(0, 40))
@example("aab", "aab", 2)
def test_a_cut_never_leaves_a_part_of_a_secret_that_the_whole_has_not(text: str, secret: str, chars: int) -> None:
    mask = Mask([secret])
    whole = mask.text(text)
    assert whole.endswith(mask.end(text, chars))
    assert whole.startswith(mask.beginning(text, chars).removesuffix(MARK))


@given(st.binary(max_size=200), st.integers(1, 50))
def test_the_end_of_any_bytes_is_text_of_that_length_at_most(data: bytes, size: int) -> None:
    result = RunResult(run_id="r", outcome=Outcome.FAILED, stdout=data)
    text = told(result, Mask([]), size)
    if data:
        found = json.loads(text)
        assert len(found["stdout"]) <= size
        assert found["left_out"]["stdout_bytes"] == max(0, len(data) - size)


def test_a_secret_that_is_cut_by_the_end_of_output_leaves_nothing() -> None:
    secret = "correct-horse-battery-staple"
    for size in range(1, 80):
        result = RunResult(run_id="r", outcome=Outcome.FAILED, stdout=f"é{secret}".encode() * 3)
        text = told(result, Mask([secret]), size)
        assert set((json.loads(text)["stdout"] if text else "").replace(MARK, "")) <= {"é"}


def test_everything_that_a_run_told_is_masked_and_bounded() -> None:
    secret = "s3cr3t-value"
    record = LogRecord(level="info", message=f"with {secret} " + "x" * 500, elapsed_s=1.0)
    error = ProgramError(
        type=f"E{secret}", message=f"no {secret}", line=3, traceback="y" * 5_000 + f"\nE{secret}: no {secret}\n"
    )
    result = RunResult(
        run_id="r",
        outcome=Outcome.FAILED,
        stdout=b"o" * 5_000 + secret.encode(),
        stderr=secret.encode(),
        logs=(record,) * 9,
        error=error,
    )
    text = told(result, Mask([secret]), 1_000)
    assert secret not in text
    assert text.isascii()
    found = json.loads(text)
    assert found["error"] == {
        "type": f"E{MARK}",
        "message": f"no {MARK}",
        "line": 3,
        "traceback": found["error"]["traceback"],
    }
    assert found["error"]["traceback"].endswith(f"E{MARK}: no {MARK}\n")
    assert len(found["error"]["traceback"]) <= 1_000 + len(MARK)
    assert found["left_out"] == {"stdout_bytes": 4_012, "stderr_bytes": 0, "logs": 8}
    assert len(text) < 6_000
    assert told(RunResult(run_id="r", outcome=Outcome.KILLED), Mask([]), 1_000) == ""
