"""Turns values of Python into plain data for JSON."""

from __future__ import annotations

import gc
import os

from sandbox.inside.harness.labelled import Pairs, Table, is_of, labelled, offers
from sandbox.inside.harness.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any


MAX_DEPTH = 100
MAX_ITERATOR_ITEMS = 1_000_000
MAX_EXACT_INT = 2**53
SAME_NAME = "two keys became the same text; the later one was kept"
COLUMN_TYPES = (
    ("numpy", "dtype"), ("pandas.api.extensions", "ExtensionDtype"), ("polars", "DataType"), ("pyarrow", "DataType"),
)  # fmt: skip # a table
MAX_INT_BITS = 14_000  # a little below Python's own limit of 4300 digits


class ResultTooLargeError(Exception):
    """The JSON text of a value is certain to be longer than its cap."""


def _is_plain(value: object, *, depth: int, max_bytes: int) -> bool:
    """Tell whether the JSON encoder can take `value` as it is, with nothing to convert or to warn of.

    Level by level, with the loops in C: as fast as encoding, where a walk in Python would cost five times
    as much. A cycle shows as excess depth. Raises ResultTooLargeError.
    """
    from itertools import chain
    from math import isfinite

    level = [value]
    size = 0
    for _ in range(depth):
        kinds = set(map(type, level))
        if not kinds <= {str, int, float, bool, type(None), list, dict, tuple}:
            return False
        if int in kinds:
            integers = [item for item in level if type(item) is int]
            if max(integers) > MAX_EXACT_INT or min(integers) < -MAX_EXACT_INT:
                return False
        if float in kinds and not all(map(isfinite, [item for item in level if type(item) is float])):
            return False
        if str in kinds:
            size += sum(map(len, [item for item in level if type(item) is str]))
        containers: list[Any] = [item for item in level if type(item) in (list, dict, tuple)]
        # Counted before the next level is built: a few shared lists can stand for billions of items.
        size += sum(map(len, containers))
        if size > max_bytes:
            raise ResultTooLargeError
        if not containers:
            return True
        keys = chain.from_iterable([item for item in containers if type(item) is dict])
        if not set(map(type, keys)) <= {str}:
            return False
        level = gc.get_referents(*containers)
    return False


class Converter:
    """Turns Python values into plain JSON values, collecting warnings about what JSON cannot say.

    Converts dates, `Decimal`, sets, dataclasses, enums, named tuples (to objects), bytes (to Node Buffers), values
    with labels (`labelled`), and arrays; those of libraries without importing them.
    """

    def __init__(self, root: str, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.path: list[object] = []
        self.active: set[int] = set()
        self.size = 0
        self.counts: dict[str, tuple[int, str]] = {}

    def warnings(self) -> list[str]:
        """Return one sentence for each kind of surprise: how often, and where first."""
        return [
            f"{text} ({count} times, first at {where})" if count > 1 else f"{text} (at {where})"
            for text, (count, where) in self.counts.items()
        ]

    def convert(self, value: Any) -> Any:
        """Return `value` as plain data. Raises TypeError or ValueError, which name the place."""
        if _is_plain(value, depth=MAX_DEPTH, max_bytes=self.max_bytes):
            return value
        return self._plain(value)

    def _where(self) -> str:
        keys = self.path if len(self.path) <= 8 else [*self.path[:4], ..., *self.path[-3:]]
        parts = ["[...]" if key is ... else f"[{clean(repr(key), 80)}]" for key in keys]
        return self.root + "".join(parts)

    def _warn(self, text: str) -> None:
        count, where = self.counts.get(text, (0, ""))
        self.counts[text] = (count + 1, where or self._where())

    def _grow(self, size: int) -> None:
        self.size += size
        if self.size > self.max_bytes:
            raise ResultTooLargeError

    def _plain(self, value: Any) -> Any:
        self._grow(1)
        if value is None or value is True or value is False:
            return value
        kind = type(value)
        if kind is str:
            self._grow(len(value))
            return value
        if kind is int:
            return self._integer(value)
        if kind is float:
            return self._float(value)
        if kind in (list, tuple, dict):
            if len(value) > 1000 and _is_plain(
                value, depth=MAX_DEPTH - len(self.path), max_bytes=self.max_bytes - self.size
            ):
                return value
            return self._object(value) if kind is dict else self._array(value)
        return self._converted(value)

    def _integer(self, value: int) -> int:
        if not -MAX_EXACT_INT <= value <= MAX_EXACT_INT:
            if value.bit_length() > MAX_INT_BITS:
                raise ValueError(f"{self._where()} is an integer of over 4,200 digits: turn it into text")
            self._warn("an integer beyond 2**53 loses digits in JavaScript; send it as text")
            self._grow(value.bit_length() // 4)
        return value

    def _float(self, value: float) -> float | None:
        if value - value == 0:
            return value
        self._warn("NaN or infinity became null: JSON has no such number")
        return None

    def _inside(self, value: object, levels: int = 1) -> None:
        if id(value) in self.active:
            raise ValueError(f"{self._where()} contains itself: JSON cannot express a cycle")
        if len(self.path) + levels > MAX_DEPTH:
            raise ValueError(f"{self._where()} is nested more than {MAX_DEPTH} levels deep")

    def _array(self, values: Iterable[Any], owner: object = None) -> list[Any]:
        marker = id(values if owner is None else owner)
        self._inside(values if owner is None else owner)
        self.active.add(marker)
        self.path.append(0)
        converted = []
        for index, item in enumerate(values):
            self.path[-1] = index
            converted.append(self._plain(item))
        self.path.pop()
        self.active.discard(marker)
        return converted

    def _object(self, value: Any, owner: object = None) -> dict[str, Any]:
        marker = id(value if owner is None else owner)
        self._inside(value if owner is None else owner)
        self.active.add(marker)
        self.path.append(None)
        converted: dict[str, Any] = {}
        for key, item in value.items():
            self.path[-1] = key
            name = key if type(key) is str else self._key(key)
            self._grow(len(name))
            if name in converted:
                self._warn(SAME_NAME)
            converted[name] = self._plain(item)
        self.path.pop()
        self.active.discard(marker)
        return converted

    def _key(self, key: Any) -> str:
        """Return the text of a key of an object; numbers as JSON writes them."""
        if isinstance(key, str):
            return str.__str__(key)
        if isinstance(key, (bytes, bytearray)):
            return key.decode("utf-8", "backslashreplace")
        if isinstance(key, tuple):
            self._warn("a tuple used as a key became text")
            return str(key)
        if isinstance(key, float):
            return float.__repr__(key)
        plain = self._converted(key) if key is not None and type(key) not in (bool, int) else key
        if isinstance(plain, str):
            return plain
        if plain is None or isinstance(plain, bool):
            return {None: "null", True: "true", False: "false"}[plain]
        if isinstance(plain, (int, float)):
            return str(self._integer(plain)) if isinstance(plain, int) else repr(plain)
        raise TypeError(f"{self._where()}: a {type_name(key)} cannot be a key of a JSON object")

    def _converted(self, value: Any) -> Any:
        """Convert a value of any type other than the plain ones."""
        if is_of(value, "enum", "Enum"):
            return self._plain(value.value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._buffer(bytes(value))
        if isinstance(value, str):
            return self._plain(str.__str__(value))
        if isinstance(value, int):
            return self._plain(int.__int__(value))
        if isinstance(value, float):
            return self._plain(float.__float__(value))
        if isinstance(value, dict):
            return self._object(value)
        if isinstance(value, (list, tuple)) and not offers(value, "keys") and not offers(value, "_asdict"):
            return self._array(value)
        if isinstance(value, complex):
            return self._object({"real": value.real, "imag": value.imag})
        if isinstance(value, (set, frozenset)):
            return self._array(_in_order(value), value)
        if type_name(value).endswith("NAType"):
            return None
        for convert in (self._of_library, self._of_labelled, self._of_duck, self._of_iterable):
            done, converted = convert(value)
            if done:
                return converted
        raise TypeError(
            f"{self._where()} is a {type_name(value)}, which has no JSON form: "
            "turn it into text, numbers, lists or dicts first"
        )

    def _buffer(self, value: bytes) -> dict[str, Any]:
        self._grow(2 * len(value))
        self._inside(value, levels=2)
        return {"type": "Buffer", "data": list(value)}

    def _of_library(self, value: Any) -> tuple[bool, Any]:
        """Convert values of the standard library."""
        if is_of(value, "datetime", "datetime"):
            if value != value:  # pandas' NaT
                return True, None
            return True, value.isoformat()
        if is_of(value, "datetime", "date") or is_of(value, "datetime", "time"):
            return True, value.isoformat()
        if is_of(value, "datetime", "timedelta"):
            seconds = value.total_seconds()
            return True, self._float(seconds)
        if is_of(value, "decimal", "Decimal"):
            return True, self._decimal(value)
        if is_of(value, "fractions", "Fraction"):
            try:
                return True, float(value)
            except OverflowError:
                return True, str(value)
        if is_of(value, "uuid", "UUID") or type(value).__module__ == "ipaddress" or is_of(value, "datetime", "tzinfo"):
            return True, str(value)
        if is_of(value, "types", "SimpleNamespace") or is_of(value, "argparse", "Namespace"):
            return True, self._object(vars(value), value)
        if isinstance(value, os.PathLike):
            return True, self._plain(os.fsdecode(os.fspath(value)))
        names = getattr(type(value), "__dataclass_fields__", None)
        if names is not None:
            return True, self._object({name: getattr(value, name) for name in names if hasattr(value, name)})
        return False, None

    def _decimal(self, value: Any) -> Any:
        if not value.is_finite():
            return self._float(float("nan"))
        if abs(value) <= MAX_EXACT_INT and value == value.to_integral_value():
            return int(value)
        number = float(value)
        return number if type(value)(repr(number)) == value else str(value)

    def _of_labelled(self, value: Any) -> tuple[bool, Any]:
        """Convert tables, series and records: labels become names."""
        if isinstance(value, type):
            return False, None
        found = labelled(value, self._warn)
        if isinstance(found, Table):
            return True, self._table(found)
        if isinstance(found, Pairs):
            return True, self._object(found, value)
        return found is not None, self._plain(found)

    def _table(self, table: Table) -> list[Any]:
        """Return a list of objects, one for each row."""
        names = [name if type(name) is str else self._key(name) for name in table.names]
        if len(set(names)) < len(names):
            self._warn(SAME_NAME)
        rows = len(table.columns[0]) if names else 0
        if rows * len(names) + self.size > self.max_bytes:
            raise ResultTooLargeError
        plain: list[Any] = self._plain([dict(zip(names, row)) for row in zip(*table.columns)])  # noqa: B905
        return plain

    def _of_duck(self, value: Any) -> tuple[bool, Any]:
        """Convert what NumPy and its like have, by the methods that its class offers."""
        if isinstance(value, type):
            return False, None
        if any(is_of(value, module, kind) for module, kind in COLUMN_TYPES):
            return True, str(value)
        for method in ("to_dicts", "to_pylist", "as_py", "tolist", "to_list"):  # Polars, Arrow, NumPy, Polars
            if offers(value, method):
                break
        else:
            return False, None
        if is_of(value, "numpy", "ndarray", "generic") and value.dtype.kind in ("M", "m"):
            value = value.astype("datetime64[us]" if value.dtype.kind == "M" else "timedelta64[us]")
        listed = getattr(value, method)()
        if type(listed) is type(value):  # a long double has no Python equivalent
            return True, self._float(float(value))
        return True, self._plain(listed)

    def _of_iterable(self, value: Any) -> tuple[bool, Any]:
        """Convert mappings, ranges, generators and other one-pass iterables, bounded."""
        from collections import abc

        if isinstance(value, abc.Mapping):
            return True, self._object(dict(value.items()))
        known = (abc.Sequence, abc.Set, abc.ValuesView, abc.Generator)
        lazy = (map, filter, zip, enumerate, reversed)
        module = type(value).__module__
        if not isinstance(value, (*known, *lazy)) and module not in ("itertools", "collections"):
            return False, None
        if not isinstance(value, abc.Iterable):
            return False, None
        return True, self._array(self._bounded(value), value)

    def _bounded(self, values: Iterable[Any]) -> Iterator[Any]:
        for count, item in enumerate(values):
            if count >= MAX_ITERATOR_ITEMS:
                raise ValueError(f"{self._where()} gives more than {MAX_ITERATOR_ITEMS:,} items")
            yield item


def type_name(value: object) -> str:
    """Return what a value's class is called, with its module where that says more."""
    kind = type(value)
    module = kind.__module__
    return kind.__qualname__ if module in ("builtins", "__main__") else f"{module}.{kind.__qualname__}"


def _in_order(values: Iterable[Any]) -> list[Any]:
    try:
        return sorted(values)
    except Exception:
        return list(values)
