"""Labels of a value are in its JSON, or a warning says that they are not.

What needs pandas and its like: tests/e2e/test_labels.py.
"""

from __future__ import annotations

import collections
import sqlite3
from email.message import Message
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import pytest

from sandbox.inside.harness.values import Converter


class Reading(NamedTuple):
    machine: str
    celsius: float


class Row(list[Any]):
    """A row as psycopg2's DictCursor gives it: a list with keys."""

    def keys(self) -> list[str]:
        return ["machine", "celsius"]


class Report:
    """What only looks like a table."""

    columns = ("machine", "celsius")
    index = range(2)

    def to_dict(self) -> dict[str, int]:
        return {"pages": 3}


class Anything:
    """Has an attribute of every name, as a series has one for each label."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: [name]


class Group:
    """Keys and values, as a group of h5py has them."""

    def keys(self) -> list[str]:
        return ["a", "b"]

    def values(self) -> list[int]:
        return [1, 2]

    def __getitem__(self, key: str) -> int:
        return {"a": 1, "b": 2}[key]


def converted(value: Any) -> tuple[Any, list[str]]:
    converter = Converter("result", 1 << 20)
    return converter.convert(value), converter.warnings()


def row(query: str) -> sqlite3.Row:
    with sqlite3.connect(":memory:") as database:
        database.row_factory = sqlite3.Row
        found: sqlite3.Row = database.execute(query).fetchone()
    database.close()
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (row("SELECT 'press' AS machine, 21.5 AS celsius"), {"machine": "press", "celsius": 21.5}),
        (Reading("press", 21.5), {"machine": "press", "celsius": 21.5}),
        (Row(["press", 21.5]), {"machine": "press", "celsius": 21.5}),
        (collections.ChainMap({"a": 1}, {"b": 2}), {"b": 2, "a": 1}),
        (Group(), {"a": 1, "b": 2}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
    ],
)
def test_a_record_is_an_object(value: Any, expected: Any) -> None:
    assert converted(value) == (expected, [])
    assert converted([value, [value]]) == ([expected, [expected]], [])


def test_columns_of_one_name_are_warned_of() -> None:
    found, warnings = converted(row("SELECT 1 AS id, 2 AS id, 3 AS n"))
    assert found == {"id": 2, "n": 3}
    assert "two keys became the same text" in warnings[0]
    message = Message()
    message["a"], message["b"], message["a"] = "1", "2", "3"
    assert "two keys became the same text" in converted(message)[1][0]


@pytest.mark.parametrize("value", [Report(), Anything(), ET.fromstring("<a><b/></a>"), Report])
def test_what_only_looks_like_a_table_or_a_record_is_refused_in_words(value: Any) -> None:
    with pytest.raises(TypeError, match="has no JSON form"):
        converted(value)


def test_a_record_that_contains_itself_is_refused_in_words() -> None:
    own = Row(["press", None])
    own[1] = own
    with pytest.raises(ValueError, match="contains itself"):
        converted(own)
