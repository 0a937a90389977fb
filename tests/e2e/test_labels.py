"""What tables, series and arrays of real libraries become, in real runs.

Labels are there, or a warning says that they are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.command import document
from tests.e2e.libraries import TABLES

# What a table becomes is up to the harness and the library: no kernel has a part in it.
pytestmark = pytest.mark.host_only

FRAME = """
import numpy as np, pandas as pd
frame = pd.DataFrame({"machine": ["press", "saw", "press"], "celsius": [21.5, 18.0, 23.5], "n": [1, 2, 3]})
grouped = frame.groupby("machine")
day = pd.Timestamp("2024-01-01")
"""
COLUMNS = "import polars as pl, pyarrow as pa, xarray as xr"
PANDAS: list[tuple[str, Any]] = [
    ("frame[['n']]", [{"n": 1}, {"n": 2}, {"n": 3}]),
    ("frame.iloc[:0]", []),
    ("grouped.sum()", [{"machine": "press", "celsius": 45.0, "n": 4}, {"machine": "saw", "celsius": 18.0, "n": 2}]),
    ("grouped.sum(numeric_only=True).loc['saw']", {"celsius": 18.0, "n": 2.0}),
    ("frame[['n']].describe().loc[['min', 'max']]", [{"index": "min", "n": 1.0}, {"index": "max", "n": 3.0}]),
    ("frame['machine'].value_counts()", {"press": 2, "saw": 1}),
    ("frame['n'].value_counts().sort_index()", {"1": 1, "2": 1, "3": 1}),
    ("frame['n']", [1, 2, 3]),
    ("frame.iloc[0]", {"machine": "press", "celsius": 21.5, "n": 1}),
    ("pd.Series([1, 2], index=['columns', 'to_dicts'])", {"columns": 1, "to_dicts": 2}),
    ("pd.Series([1.5], index=[day])", {"2024-01-01T00:00:00": 1.5}),
    ("pd.Series([1.5], index=pd.period_range('2024-01', periods=1, freq='M'))", {"2024-01": 1.5}),
    ("pd.cut(pd.Series([1, 3]), [0, 2, 4]).value_counts(sort=False)", {"(0, 2]": 1, "(2, 4]": 1}),
    ("frame.groupby(['machine', 'n'])['celsius'].sum().head(1)", [{"machine": "press", "n": 1, "celsius": 21.5}]),
    ("frame.groupby(['machine', 'n']).sum().head(1)", [{"machine": "press", "n": 1, "celsius": 21.5}]),
    ("pd.Series([7], index=pd.MultiIndex.from_tuples([('a', 1)]))", [{"level_0": "a", "level_1": 1, "value": 7}]),
    ("grouped.sum().index", ["press", "saw"]),
    ("frame.columns", ["machine", "celsius", "n"]),
    ("frame.groupby(['machine', 'n']).sum().index[:1]", [{"machine": "press", "n": 1}]),
    ("frame.set_index('n', drop=False)[['n']].head(1)", [{"index": 1, "n": 1}]),
    ("frame.rename_axis('row')[['n']].head(1)", [{"row": 0, "n": 1}]),
    ("frame[['n', 'celsius']].dtypes", {"n": "int64", "celsius": "float64"}),
    ("frame['machine'].astype('category').dtype", "category"),
    ("frame[['n']].corr()", [{"index": "n", "n": 1.0}]),
    ("frame[['n']].T", [{"index": "n", "0": 1, "1": 2, "2": 3}]),
    (
        "[day.to_period('M'), pd.Interval(0, 1), pd.Categorical(['a', 'b']), pd.NA, pd.NaT]",
        ["2024-01", "(0, 1]", ["a", "b"], None, None],
    ),
    ("{'n': grouped['n'].sum()}", {"n": {"press": 4, "saw": 2}}),
    ("frame['machine'].astype('category')", ["press", "saw", "press"]),
    ("pd.Series([1, None], dtype='Int64')", [1, None]),
    ("pd.Series([day, pd.NaT])", ["2024-01-01T00:00:00", None]),
    ("pd.Series([pd.Timedelta('1s')])", [1.0]),
    ("pd.array(['2024-01-01'], dtype='datetime64[ns]')", ["2024-01-01T00:00:00"]),
    (
        "np.array([('a', 1), ('b', 2)], dtype=[('name', 'U1'), ('n', 'i4')])",
        [{"name": "a", "n": 1}, {"name": "b", "n": 2}],
    ),
    ("np.array([('a', 1)], dtype=[('name', 'U1'), ('n', 'i4')])[0]", {"name": "a", "n": 1}),
    ("np.array([('a', 1)], dtype=[('name', 'U1'), ('n', 'i4')]).view(np.recarray)", [{"name": "a", "n": 1}]),
    (
        "np.array([[((1, 2), 'NaT')]], dtype=[('p', [('x', 'i4'), ('y', 'i4')]), ('t', 'M8[s]')])",
        [[{"p": {"x": 1, "y": 2}, "t": None}]],
    ),
    ("np.zeros(1, dtype=[('v', 'f8', (2,))])", [{"v": [0.0, 0.0]}]),
    ("np.arange(4).reshape(2, 2)", [[0, 1], [2, 3]]),
    ("[np.int64(3), np.float64(0.5), np.bool_(True), np.longdouble(1.5), np.str_('a')]", [3, 0.5, True, 1.5, "a"]),
    ("np.array(['2024-01-01', 'NaT'], 'M8[ns]')", ["2024-01-01T00:00:00", None]),
    ("[np.datetime64('2024-01-01', 'ns'), np.array([1500], 'm8[ms]')]", ["2024-01-01T00:00:00", [1.5]]),
    ("np.ma.array([1, 2], mask=[0, 1])", [1, None]),
    ("{np.int64(7): 1, np.str_('a'): 2}", {"7": 1, "a": 2}),
]
OTHERS: list[tuple[str, Any]] = [
    ("pl.DataFrame({'a': [1, 2], 'b': ['x', None]})", [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
    ("pl.Series('a', [1, None])", [1, None]),
    ("dict(pl.DataFrame({'a': [1]}).schema)", {"a": "Int64"}),
    ("pl.DataFrame({'k': ['x', 'x'], 'v': [1, 2]}).group_by('k').sum()", [{"k": "x", "v": 3}]),
    ("pl.Series([{'x': 1}])", [{"x": 1}]),
    ("pa.table({'a': [1, 2], 'b': ['x', None]})", [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
    ("pa.record_batch({'a': [1]})", [{"a": 1}]),
    ("pa.array([1, None])", [1, None]),
    ("pa.array([1]).type", "int64"),
    ("pa.chunked_array([[1], [2]])", [1, 2]),
    ("pa.scalar({'x': 1})", {"x": 1}),
    (
        "xr.DataArray([1.5, 2.5], dims='city', coords={'city': ['Lyon', 'Oslo']}, name='t')",
        {
            "dims": ["city"],
            "attrs": {},
            "data": [1.5, 2.5],
            "coords": {"city": {"dims": ["city"], "attrs": {}, "data": ["Lyon", "Oslo"]}},
            "name": "t",
        },
    ),
    (
        "xr.Dataset({'t': ('city', [1.5])}, coords={'city': ['Lyon']})",
        {
            "coords": {"city": {"dims": ["city"], "attrs": {}, "data": ["Lyon"]}},
            "attrs": {},
            "dims": {"city": 1},
            "data_vars": {"t": {"dims": ["city"], "attrs": {}, "data": [1.5]}},
        },
    ),
]
WARNED: list[tuple[str, Any, str]] = [
    ("pd.Series([3, 1, 3]).value_counts()", [2, 1], "row numbers"),
    ("frame['n'][frame['n'] > 1]", [2, 3], "row numbers"),
    ("frame[frame['n'] > 1][['n']]", [{"n": 2}, {"n": 3}], "row numbers"),
    ("pd.Series([1, 2], index=['a', 'a'], name='n')", [{"index": "a", "n": 1}, {"index": "a", "n": 2}], "label occurs"),
    ("frame[['n', 'celsius']].set_axis(['x', 'x'], axis=1).head(1)", [{"x": 21.5}], "two keys"),
]


def given(directory: Path, before: str, expressions: str, *libraries: str) -> tuple[Any, list[str]]:
    """Return the result of a program that gives these, and its warnings."""
    (directory / "labels.py").write_text(f"{before}\nresult = [{expressions}]\n")
    answer = document("run", directory / "labels.py", *[word for name in libraries for word in ("--with", name)])
    assert answer.get("outcome") == "succeeded", answer
    return answer["result"], answer["warnings"]


def check(directory: Path, before: str, cases: list[tuple[str, Any]], *libraries: str) -> None:
    """Fail where an expression becomes something else, or is warned of."""
    found, warnings = given(directory, before, ", ".join(expression for expression, _ in cases), *libraries)
    assert {expression: value for (expression, _), value in zip(cases, found, strict=True)} == dict(cases)
    assert warnings == []


def test_labels_of_pandas_and_numpy_are_kept(tmp_path: Path) -> None:
    check(tmp_path, FRAME, PANDAS, *TABLES)


def test_labels_of_polars_arrow_and_xarray_are_kept(tmp_path: Path) -> None:
    check(tmp_path, COLUMNS, OTHERS, "polars", "pyarrow", "xarray")


@pytest.mark.parametrize(("expression", "expected", "reason"), WARNED)
def test_a_label_that_is_left_out_is_warned_of(tmp_path: Path, expression: str, expected: Any, reason: str) -> None:
    found, (warning,) = given(tmp_path, FRAME, expression, *TABLES)
    assert found == [expected]
    assert reason in warning


def test_a_table_of_many_rows_is_a_list_of_as_many_objects(tmp_path: Path) -> None:
    found, warnings = given(tmp_path, FRAME, 'pd.DataFrame({"a": range(50_000), "b": ["x"] * 50_000})', *TABLES)
    assert found == [[{"a": number, "b": "x"} for number in range(50_000)]]
    assert warnings == []
