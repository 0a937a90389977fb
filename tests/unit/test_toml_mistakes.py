"""A mistake in a file is told alike, whether the file is a policy or the service's configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import InvalidRequest
from sandbox.policy.load import HINT as POLICY_HINT
from sandbox.policy.load import load_policy
from sandbox.service.config.load import HINT as SERVICE_HINT
from sandbox.service.config.load import load_config
from sandbox.toml_file import read_toml
from sandbox.toml_mistakes import Checker


@dataclass(frozen=True, kw_only=True)
class Side:
    """One kind of file: how it is loaded, and keys of its own for each word of the table."""

    load: Callable[[Path], object]
    hint: str
    words: dict[str, str] = field(default_factory=dict)


POLICY = Side(
    load=lambda path: load_policy(str(path), directories=[path.parent]),
    hint=POLICY_HINT,
    words={
        "section": "limits",
        "whole": "memory_mib",
        "whole_range": "MiB from 32 to 1048576",
        "near": "memory_mb",
        "number": "limits.timeout_s",
        "number_range": "seconds from 0.1 to 86400",
        "choice": "images.pull",
        "choices": '"missing" or "never"',
        "flag": "build.allow_pth",
        "list": "secrets.allow",
        "list_is": 'a list of texts, such as ["A", "B"]',
        "sections": "limitz",
    },
)
SERVICE = Side(
    load=lambda path: load_config(path, {}),
    hint=SERVICE_HINT,
    words={
        "section": "pool",
        "whole": "memory_mib",
        "whole_range": "MiB from 0 to 1048576",
        "near": "memory_mb",
        "number": "stop.drain_s",
        "number_range": "seconds from 0 to 31536000",
        "choice": "log.format",
        "choices": '"auto", "human" or "json"',
        "list": "access.maintainers",
        "list_is": 'a list of users and "@group"',
        "sections": "pooll",
    },
)

# The text of a file with {words}, and what is said of it.
MISTAKES = [
    ("[{section}]\n{whole} = -1", "f:2: {section}.{whole} is -1, but it must be a whole number of {whole_range}"),
    ("[{section}]\n\n{whole} = true", "f:3: {section}.{whole} is true, but it must be a whole number of {whole_range}"),
    ("{section}.{whole} = 512.0", "f:1: {section}.{whole} is 512.0, but it must be a whole number of {whole_range}"),
    ('{section}.{whole} = "1g"', 'f:1: {section}.{whole} is "1g", but it must be a whole number of {whole_range}'),
    ("{number} = nan", "f:1: {number} is nan, but it must be a number of {number_range}"),
    ("{number} = inf", "f:1: {number} is inf, but it must be a number of {number_range}"),
    ("{number} = 1979-05-27", 'f:1: {number} is "1979-05-27", but it must be a number of {number_range}'),
    ("{number} = [1]", "f:1: {number} is [1], but it must be a number of {number_range}"),
    ("{choice} = 'x'", 'f:1: {choice} is "x", but it must be {choices}'),
    ("{choice} = 5", "f:1: {choice} is 5, but it must be {choices}"),
    ("{list} = 'A'", 'f:1: {list} is "A", but it must be {list_is}'),
    ("{list} = ['A', 5]", "f:1: entry 2 of {list} is 5, but it must be a text"),
    ("{list} = [\n'A',\n['B'],\n]", 'f:3: entry 2 of {list} is ["B"], but it must be a text'),
    ("{section} = 5", "f:1: {section} is 5, but it must be a section, [{section}]"),
    ("[[{section}]]\n{whole} = 512", "f:1: {section} is "),
    ("{section} = 1979-05-27", 'f:1: {section} is "1979-05-27", but it must be a section, [{section}]'),
    ("{list} = [07:32:00]", 'f:1: entry 1 of {list} is "07:32:00", but it must be a text'),
    (
        "'{section}.{whole}' = 5",
        "f:1: there is no key {section}.{whole}; did you mean {section}.{whole}, without quotes?",
    ),
    ("[{section}]\n{near} = 5", "f:2: there is no key {section}.{near}; did you mean {section}.{whole}?"),
    ("{whole} = 5", "f:1: there is no key {whole}; did you mean {section}.{whole}?"),
    ("[{sections}]\nx = 5", "f:1: there is no key {sections}; did you mean {section}?"),
    ("[{sections}]\n{whole} = 5", "f:1: there is no key {sections}; did you mean {section}?"),
    ("[{section}]\nxyzzyq = 5", "f:2: there is no key {section}.xyzzyq"),
    ('"\\u001b[2J" = 5', "f:1: there is no key \\u001b[2J"),
    ("{section}.{whole} = " + "[" * 300 + "]" * 300, "f:1: "),
    ("[{section}]\n{whole} = = 5", "f:2:"),
]


def said(side: Side, directory: Path, text: str) -> tuple[InvalidRequest, list[str]]:
    path = directory / "f.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest) as caught:
        side.load(path)
    messages: list[str] = caught.value.facts.get("mistakes", [caught.value.message])
    assert messages[0] == caught.value.message
    return caught.value, [message.replace(str(path), "f") for message in messages]


def worded(text: str, side: Side) -> str:
    for word, meaning in side.words.items():
        text = text.replace(f"{{{word}}}", meaning)
    return text


@pytest.mark.parametrize("side", [POLICY, SERVICE], ids=["policy", "service"])
@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_both_kinds_of_files_tell_the_same_mistake_alike(tmp_path: Path, side: Side, text: str, message: str) -> None:
    error, messages = said(side, tmp_path, worded(text, side))
    expected = worded(message, side)
    assert messages[0] == expected if len(expected) > 20 and not expected.endswith(" is ") else expected in messages[0]
    assert error.hint
    assert str(error.facts["line"]) == messages[0].split(":")[1]


@pytest.mark.parametrize("side", [POLICY, SERVICE], ids=["policy", "service"])
def test_all_mistakes_are_one_error_at_the_first_line_with_the_hint_of_its_kind(tmp_path: Path, side: Side) -> None:
    error, messages = said(side, tmp_path, worded("{choice} = 5\n[{section}]\n{whole} = -1\n{near} = '1g'\n", side))
    assert [message.split(":")[1] for message in messages] == ["1", "3", "4"]
    assert error.hint == side.hint
    text, _ = said(side, tmp_path, worded("{section}.{whole} = '1g'", side))
    assert text.hint == f"write the number alone, without quotes or unit; {side.hint}"


def test_words_of_the_table_are_there_on_both_sides() -> None:
    used = {word for text, message in MISTAKES for word in POLICY.words if f"{{{word}}}" in text + message}
    assert used | {"flag"} == set(POLICY.words)
    assert used == set(SERVICE.words)


def test_no_other_module_turns_errors_of_a_file_s_model_into_words() -> None:
    """`Checker` is the one place where a parsed file meets its model."""
    import ast

    package = Path(__file__).resolve().parents[2] / "sandbox"
    readers = [path for path in package.rglob("*.py") if "import" in (text := path.read_text()) and "read_toml" in text]
    own = {
        path.name
        for path in readers
        if any(
            isinstance(node, ast.Attribute) and node.attr == "model_validate_json"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert own == set()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = [\n1,\n[2,\n3]]", {"a": 1, "a.0": 2, "a.1": 3, "a.1.1": 4}),
        (
            "[[a]]\nb = 1\n[[a]]\nb = 2\n[a.c]\nd = 1",
            {"a": 1, "a.0.b": 2, "a.1": 3, "a.1.b": 4, "a.1.c": 5, "a.1.c.d": 6},
        ),
        (
            "[[a]]\n[[a.b]]\n[[a.b]]\nc = 1\n[[a]]\n[[a.b]]\nc = 2",
            {"a.0.b.1": 3, "a.0.b.1.c": 4, "a.1.b.0": 6, "a.1.b.0.c": 7},
        ),
        ("a = [{b = 1},\n{b = 2}]", {"a.0.b": 1, "a.1.b": 2}),
        ("[[a.b]]\nc = 1\n[[a.b]]\nc.d = 2", {"a": 1, "a.b": 1, "a.b.0.c": 2, "a.b.1.c.d": 4}),
    ],
)
def test_entries_of_lists_have_lines_of_their_own(tmp_path: Path, text: str, line: dict[str, int]) -> None:
    (tmp_path / "f.toml").write_text(text)
    found = read_toml(tmp_path / "f.toml", what="list")
    assert {key: found.lines.get(key) for key in line} == line
    location: Any = tuple(int(part) if part.isdigit() else part for part in next(reversed(line)).split("."))
    assert found.place((*location, "missing")) == f"{tmp_path}/f.toml:{line[next(reversed(line))]}"


def test_a_mistake_without_a_line_has_line_0() -> None:
    from sandbox.service.config.model import ServiceConfig

    checker = Checker(model=ServiceConfig, place=lambda _: "$VARIABLE", hint="h")
    assert checker.unknown(("queue", "x")).facts["line"] == 0
