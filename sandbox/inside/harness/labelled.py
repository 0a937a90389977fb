"""Values with labels (tables, series, records), taken apart without importing the libraries that they are from.

What a value is, its class tells: a label of a series may have any name, also that of a method.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


LEFT_OUT = "row numbers other than 0, 1, 2, … were left out; reset_index() makes a column of them"
TWICE = "a label occurs twice, so the series became a list of objects"


def is_of(value: object, module: str, *names: str) -> bool:
    """Tell whether `value` is an instance of a class of a module that may not even be imported."""
    there = sys.modules.get(module)
    for name in names:
        kind = getattr(there, name, None)
        if isinstance(kind, type) and isinstance(value, kind):
            return True
    return False


def offers(value: object, *names: str) -> bool:
    """Tell whether the class of a value has all these."""
    return all(hasattr(type(value), name) for name in names)


def has_names(value: list[Any] | tuple[Any, ...]) -> bool:
    """Tell whether the items of a sequence have names as well."""
    kind = type(value)
    return any(hasattr(kind, name) for name in ("keys", "_asdict", "n_sequence_fields"))


class Pairs:
    """Names and values, of which a name may occur twice."""

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Return them in their order."""
        return self.pairs


class Table:
    """Columns, each with its name, and all of the same length."""

    def __init__(self, names: list[Any], columns: list[list[Any]]) -> None:
        self.names = names
        self.columns = columns


def labelled(value: Any, warn: Callable[[str], None]) -> Any:
    """Return a value as `Table`, `Pairs`, text or list, or None when it has no labels.

    Only the outermost level is taken apart.
    """
    if is_of(value, "pandas", "Period", "Interval"):
        return str(value)
    if is_of(value, "pandas", "Index"):
        return _of_index(value)
    if is_of(value, "pandas", "Series"):
        return _of_series(value, warn)
    if is_of(value, "pandas", "DataFrame") or offers(value, "columns", "index", "iloc", "items"):  # or one like it
        return _of_frame(value, warn)
    if is_of(value, "xarray", "Dataset", "DataArray"):
        return Pairs(value.to_dict().items())
    if is_of(value, "pyarrow", "Table", "RecordBatch"):
        return Table(list(value.schema.names), [column.to_pylist() for column in value.columns])
    if offers(value, "tolist", "dtype") and getattr(value.dtype, "names", None):
        return _of_structured(value)
    return _of_record(value)


def _of_frame(frame: Any, warn: Callable[[str], None]) -> Table:
    """Take a table of pandas apart, or one of a library with the same interface."""
    found = [(name, column.tolist()) for name, column in frame.items()]
    levels = _levels(frame.index, [name for name, _ in found], warn)
    names, columns = zip(*levels, *found) if levels or found else ((), ())  # noqa: B905
    return Table(list(names), list(columns))


def _of_series(series: Any, warn: Callable[[str], None]) -> Any:
    values, name = series.tolist(), "value" if series.name is None else series.name
    levels = _levels(series.index, [name], warn)
    if not levels:
        return values
    if len(levels) == 1 and series.index.is_unique:
        return Pairs(zip(levels[0][1], values))  # noqa: B905 - Python 3.8
    if len(levels) == 1:
        warn(TWICE)
    return Table([*(label for label, _ in levels), name], [*(labels for _, labels in levels), values])


def _of_index(index: Any) -> Any:
    """Return labels as they are; those of several named levels are records."""
    names = list(index.names)
    if len(names) == 1 or None in names:
        return index.tolist()
    return Table(names, [index.get_level_values(place).tolist() for place in range(len(names))])


def _levels(index: Any, taken: list[Any], warn: Callable[[str], None]) -> list[tuple[Any, list[Any]]]:
    """Return the names and the labels of an index, level by level: none where its labels only count the rows."""
    names = list(index.names)
    if names == [None] and getattr(index.dtype, "kind", "") in ("i", "u"):
        if index.tolist() != list(range(len(index))):
            warn(LEFT_OUT)
        return []
    found: list[tuple[Any, list[Any]]] = []
    for place, name in enumerate(names):
        used = [*taken, *(other for other, _ in found)]
        if name is None or name in used:
            usual = ("index", "level_0") if len(names) == 1 else (f"level_{place}",)
            name = next(one for one in (*usual, *map("level_{}".format, range(1000))) if one not in used)
        found.append((name, index.get_level_values(place).tolist()))
    return found


def _of_structured(array: Any) -> Any:
    """Take an array of records of NumPy apart, or one of its records."""
    if array.ndim == 0:
        return Pairs([(name, array[name]) for name in array.dtype.names])
    if array.ndim > 1:
        return list(array)
    return Table(list(array.dtype.names), [_listed(array[name]) for name in array.dtype.names])


def _listed(array: Any) -> list[Any]:
    """Return the items of an array; those that have parts or units of their own stay what they are."""
    return list(array) if array.dtype.names or array.dtype.kind in ("M", "m") or array.ndim > 1 else array.tolist()


def _of_record(value: Any) -> Pairs | None:
    """Return the names and values of a named tuple, a database's row, an object of fields and the like."""
    from collections.abc import Sequence

    fields = _fields(value)
    if fields is not None:
        return Pairs([(name, getattr(value, name)) for name in fields if hasattr(value, name)])
    if offers(value, "_fields", "_asdict"):
        names = value._fields
    elif offers(value, "keys") and (isinstance(value, Sequence) or offers(value, "values", "__getitem__")):
        names = list(value.keys())
    else:
        return None
    # By place where there is one: two columns may have one name.
    placed = isinstance(value, Sequence) and len(value) == len(names)
    return Pairs(zip(names, value) if placed else [(name, value[name]) for name in names])  # noqa: B905 - Python 3.8


def _fields(value: Any) -> Iterable[str] | None:
    """Return the names of the attributes that a value is made of, if its class says which."""
    kind: Any = type(value)
    if is_of(value, "pydantic", "BaseModel"):
        fields: dict[str, Any] = (
            getattr(kind, "model_fields", None) or kind.__fields__
        )  # its second version, or its first
        return list(fields)
    if "__attrs_attrs__" in vars(kind):
        return [field.name for field in kind.__attrs_attrs__]
    if is_of(value, "msgspec", "Struct"):
        return list(kind.__struct_fields__)
    if isinstance(value, tuple) and hasattr(kind, "n_sequence_fields"):  # what os.stat() and time.localtime() give
        names = [name for name, member in vars(kind).items() if type(member).__name__ == "member_descriptor"]
        return [name for name in names if not name.endswith("_ns")]  # the same once more, beyond 2**53
    return None
