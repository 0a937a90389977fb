"""Labels of a value are in its JSON, or a warning says that they are not.

What needs pandas and its like: tests/e2e/test_labels.py.
"""

from __future__ import annotations

import argparse
import collections
import csv
import os
import sqlite3
import sys
import time
import types
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
        (types.SimpleNamespace(machine="press"), {"machine": "press"}),
        (argparse.Namespace(machine="press"), {"machine": "press"}),
        (
            time.struct_time((1970, 1, 2, 3, 4, 5, 4, 2, 0)),
            {
                "tm_year": 1970,
                "tm_mon": 1,
                "tm_mday": 2,
                "tm_hour": 3,
                "tm_min": 4,
                "tm_sec": 5,
                "tm_wday": 4,
                "tm_yday": 2,
                "tm_isdst": 0,
                "tm_zone": None,
                "tm_gmtoff": None,
            },
        ),
    ],
)
def test_a_record_is_an_object(value: Any, expected: Any) -> None:
    assert converted(value) == (expected, [])
    assert converted([value, [value]]) == ([expected, [expected]], [])


def test_what_the_system_tells_of_a_file_keeps_its_names() -> None:
    found, warnings = converted(os.stat("/"))
    assert {"st_mode", "st_size", "st_mtime"} <= found.keys()
    assert not warnings
    assert converted(sys.version_info)[0]["major"] == sys.version_info.major


def test_what_can_be_gone_through_once_is_a_list() -> None:
    with sqlite3.connect(":memory:") as database:
        assert converted(database.execute("SELECT 1 UNION SELECT 2"))[0] == [[1], [2]]
    database.close()
    assert converted(csv.DictReader(["a,b", "1,2"]))[0] == [{"a": "1", "b": "2"}]
    assert converted({"rows": csv.reader(["a,b"]), "again": iter([1])})[0] == {"rows": [["a", "b"]], "again": [1]}


def test_an_open_file_is_no_list() -> None:
    with open(os.devnull) as file, pytest.raises(TypeError, match="has no JSON form"):
        converted(file)


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
