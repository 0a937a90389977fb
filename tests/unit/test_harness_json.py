"""Values in and out: what becomes of everything a program may set as its result."""

from __future__ import annotations

import argparse
import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import itertools
import json
import math
import pathlib
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json as strict_from_json

from sandbox.inside.harness.json_text import as_json_text, from_json
from sandbox.inside.harness.values import ResultTooLargeError

SAFE = 2**53
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-SAFE, SAFE) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
any_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.characters(categories=["Cs", "Ll"]))
    | st.binary()
    | st.decimals()
    | st.fractions()
    | st.datetimes()
    | st.timedeltas()
    | st.dates()
    | st.times()
    | st.complex_numbers()
    | st.uuids(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers() | st.floats() | st.booleans() | st.dates(), inner)
        | st.tuples(inner, inner)
    ),
)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Reading:
    name: str
    values: list[float]


Point = collections.namedtuple("Point", "x y")


def converted(value: Any) -> Any:
    return json.loads(as_json_text(value)[0])


def warnings_of(value: Any) -> str:
    return "\n".join(as_json_text(value)[1])


@given(plain_values)
def test_plain_data_comes_out_as_it_went_in_without_a_warning(value: Any) -> None:
    text, warnings = as_json_text(value)
    assert json.loads(text) == value
    assert warnings == []


@given(any_values)
def test_every_convertible_value_becomes_strict_json(value: Any) -> None:
    try:
        text, _ = as_json_text(value)
    except TypeError as error:
        assert "result" in str(error)  # noqa: PT017 - either outcome is fine
        return
    strict_from_json(text, allow_inf_nan=False)


@given(st.binary())
def test_bytes_survive_the_way_out_and_in_as_node_buffers(value: bytes) -> None:
    text, _ = as_json_text({"a": [value, bytearray(value), memoryview(value)]})
    assert from_json(text) == {"a": [value] * 3}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (dt.datetime(2024, 5, 1, 10, 30, tzinfo=dt.timezone.utc), "2024-05-01T10:30:00+00:00"),
        (dt.date(2024, 5, 1), "2024-05-01"),
        (dt.time(10, 30), "10:30:00"),
        (dt.timedelta(minutes=1, milliseconds=500), 60.5),
        (decimal.Decimal(3), 3),
        (decimal.Decimal("3.00"), 3),
        (decimal.Decimal("0.1"), 0.1),
        (decimal.Decimal("0.1000000000000000055511151231257827"), "0.1000000000000000055511151231257827"),
        (decimal.Decimal("1E+400"), "1E+400"),
        (decimal.Decimal("NaN"), None),
        (fractions.Fraction(1, 4), 0.25),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset(["b", "a"]), ["a", "b"]),
        ((1, (2,)), [1, [2]]),
        (collections.deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        ((n * n for n in range(3)), [0, 1, 4]),
        (map(str, [1]), ["1"]),
        ({"a": 1}.values(), [1]),
        ({"a": 1}.keys(), ["a"]),
        (itertools.islice(itertools.count(), 2), [0, 1]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (array.array("i", [1, 2]), [1, 2]),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Reading("t", [1.5]), {"name": "t", "values": [1.5]}),
        (Point(1, Colour.RED), {"x": 1, "y": "red"}),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (pathlib.PurePosixPath("/app/a.txt"), "/app/a.txt"),
        (types.SimpleNamespace(a=1, b=types.SimpleNamespace(c=[2])), {"a": 1, "b": {"c": [2]}}),
        (argparse.Namespace(verbose=True), {"verbose": True}),
        (zoneinfo.ZoneInfo("Asia/Tokyo"), "Asia/Tokyo"),
        (dt.timezone.utc, "UTC"),
        (1 + 2j, {"real": 1.0, "imag": 2.0}),
        ({1: "a", 1.5: "b", "k": "c", None: "d"}, {"1": "a", "1.5": "b", "k": "c", "null": "d"}),
        ({True: 1}, {"true": 1}),
        ({dt.date(2024, 1, 1): 1, Colour.RED: 2}, {"2024-01-01": 1, "red": 2}),
    ],
)
def test_a_value_becomes(value: Any, expected: Any) -> None:
    assert converted(value) == expected
    if not isinstance(value, collections.abc.Iterator):
        assert converted({"deep": [value]}) == {"deep": [expected]}


def test_nan_and_infinity_become_null_and_the_warning_says_where_and_how_often() -> None:
    value = {"a": [1.0, math.nan], "b": math.inf, "c": -math.inf}
    assert converted(value) == {"a": [1.0, None], "b": None, "c": None}
    assert "3 times, first at result['a'][1]" in warnings_of(value)


def test_integers_that_javascript_cannot_hold_stay_exact_and_warn() -> None:
    assert converted([2**53 + 1]) == [2**53 + 1]
    assert "result[0]" in warnings_of([2**53 + 1])
    assert warnings_of([2**53, -(2**53)]) == ""


def test_an_integer_too_long_for_text_is_an_error_in_words() -> None:
    with pytest.raises(ValueError, match=r"result\['n'\] is an integer of over 4,200 digits"):
        as_json_text({"n": 10**5000})


def test_keys_that_become_the_same_text_warn_and_the_later_one_wins() -> None:
    assert converted({1: "a", "1": "b"}) == {"1": "b"}
    assert "result['1']" in warnings_of({1: "a", "1": "b"})


def test_lone_surrogates_are_replaced_with_a_warning() -> None:
    assert converted(["a\ud800b", "\ud83d\ude00"]) == ["a\ufffdb", "\U0001f600"]
    assert "valid Unicode" in warnings_of(["a\ud800b"])
    assert converted({"\udc80": 1}) == {"\ufffd": 1}


@pytest.mark.parametrize("value", [object(), print, int, Exception("x"), types.ModuleType("m"), open])
def test_what_has_no_json_form_is_an_error_naming_place_and_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r"result\['a'\]\[3\] is a .* no JSON form"):
        as_json_text({"a": [0, 1, 2, value]})


def test_a_cycle_is_an_error_in_words() -> None:
    loop: list[Any] = [1]
    loop.append({"again": loop})
    with pytest.raises(ValueError, match=r"result\[1\]\['again'\] contains itself"):
        as_json_text(loop)


def test_the_same_value_twice_is_no_cycle() -> None:
    shared = {"when": dt.date(2024, 1, 1)}
    assert converted([shared, shared]) == [{"when": "2024-01-01"}] * 2


@pytest.mark.parametrize("leaf", [1, dt.date(2024, 1, 1)])
def test_nesting_is_allowed_up_to_100_levels(leaf: Any) -> None:
    def nested(levels: int) -> Any:
        value = leaf
        for _ in range(levels):
            value = [value]
        return value

    as_json_text(nested(99))
    with pytest.raises(ValueError, match="nested more than 100 levels"):
        as_json_text(nested(5000))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ["x" * 1000] * 10_000,
        lambda: [["y"] * 10_000] * 10_000,
        lambda: [b"x" * 100_000, *[b"x" * 100_000] * 100],
        lambda: [dt.date(2024, 1, 1), [1] * 900] * 10_000,
        lambda: {str(n): "x" * 1000 for n in range(10_000)} | {"d": dt.date(2024, 1, 1)},
    ],
)
def test_a_result_certain_to_exceed_its_cap_is_refused_before_it_is_built(make: Callable[[], Any]) -> None:
    with pytest.raises(ResultTooLargeError):
        as_json_text(make(), max_bytes=1_000_000)


def test_an_endless_generator_is_refused() -> None:
    with pytest.raises((ValueError, ResultTooLargeError)):
        as_json_text(itertools.count(), max_bytes=100_000)
    with pytest.raises(ValueError, match="more than 1,000,000 items"):
        as_json_text(itertools.count())


def test_large_containers_are_encoded_in_batches_without_a_seam() -> None:
    rows = [{"id": n, "v": n / 3} for n in range(5000)]
    value = {"rows": rows, "index": {str(n): [n] for n in range(5000)}, "empty": [[], {}, ()], "t": (1,) * 2000}
    assert converted(value) == {**value, "empty": [[], {}, []], "t": [1] * 2000}
    assert converted({**value, "when": dt.date(2024, 1, 1)})["rows"] == rows


class FakeScalar:
    """What NumPy's scalars offer."""

    dtype = types.SimpleNamespace(kind="i")

    def __init__(self, value: Any) -> None:
        self.value = value

    def tolist(self) -> Any:
        return self.value


class FakeArray(FakeScalar):
    """What NumPy's arrays and Arrow's offer."""


class NAType:
    """pandas' NA: it refuses to be compared."""

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    def __eq__(self, other: object) -> Any:
        return self

    __hash__ = None  # type: ignore[assignment]


class NaT(dt.datetime):
    """pandas' NaT: a datetime unequal to itself."""

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class LongDouble(FakeScalar):
    """A scalar whose Python form is itself."""

    def tolist(self) -> Any:
        return self

    def __float__(self) -> float:
        return 1.5


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (FakeScalar(3), 3),
        (FakeArray([[1.0, math.nan], [2.0, 3.0]]), [[1.0, None], [2.0, 3.0]]),
        (NAType(), None),
        (NaT(2024, 1, 1), None),
        (LongDouble(0), 1.5),
        ({FakeScalar(7): 1}, {"7": 1}),
    ],
)
def test_values_of_libraries_convert_by_what_their_class_offers(value: Any, expected: Any) -> None:
    assert converted(value) == expected
    assert converted({"x": value}) == {"x": expected}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"type":"Buffer","data":[104,105]}', b"hi"),
        ('{"a":[{"type":"Buffer","data":[]}]}', {"a": [b""]}),
        ('{"type":"Buffer","data":[256]}', {"type": "Buffer", "data": [256]}),
        ('{"type":"Buffer","data":["a"]}', {"type": "Buffer", "data": ["a"]}),
        ('{"type":"Buffer","data":[1],"x":1}', {"type": "Buffer", "data": [1], "x": 1}),
        ('{"type":"Buffer"}', {"type": "Buffer"}),
        ('"Buffer"', "Buffer"),
    ],
)
def test_node_buffers_become_bytes_and_nothing_else_does(text: str, expected: Any) -> None:
    assert from_json(text.encode()) == expected


def functions_called(call: Callable[[], object]) -> int:
    """Return how many calls of Python functions it takes: what it costs, whatever else the machine does."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
    return calls


def test_plain_data_is_left_to_the_json_module() -> None:
    rows = [{"id": n, "name": f"sensor {n}", "v": n * 0.37, "ok": True} for n in range(60_000)]
    assert json.loads(as_json_text(rows)[0]) == rows
    assert functions_called(lambda: as_json_text(rows)) < len(rows) / 10, "none for each value, nor for each row"
    # The control: what the module can't encode is walked.
    assert functions_called(lambda: as_json_text([dt.date(2024, 1, 1)] * 1_000)) > 1_000
