"""Checks an administrator's file against a model: a mistake becomes words with its line and the nearest key.

One engine for every kind of file that has a model. `Checker` says nothing that the model doesn't know: what a value
must be comes from its type, its range and its unit, or from `expected` in the extra of its field where that says it
better.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from sandbox.errors import InvalidRequest
from sandbox.toml_file import shown

# In an address, which a person may have written with a password.
LOGIN = re.compile(r"//[^\s\"]*@")

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["Checker", "ConflictError", "Location", "Strict", "expectation", "range_of", "unit_of"]

Location = tuple[int | str, ...]
M = TypeVar("M", bound=BaseModel)

UNIT_WORDS = {"s": "seconds"}


class Strict(BaseModel):
    """Base of every model of a file: no unknown field, no coercion, no change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class ConflictError(ValueError):
    """Two or more keys that can't hold together; `keys` are their dotted names. Raised by a model's validator."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


@dataclass(frozen=True, kw_only=True)
class Checker(Generic[M]):
    """Makes a model of TOML data, or says what is wrong with it.

    `place` returns `file:line` (or what else has set a value) of a location; `hint` says where a reader finds every
    key. The data may stand `below` a table of the file, where a value may also be what `alternative` names, such as
    "true or ".
    """

    model: type[M]
    place: Callable[[Location], str]
    hint: str
    below: tuple[str, ...] = ()
    alternative: str = ""

    def read(self, data: dict[str, Any]) -> M:
        """Return the model. Raises one `InvalidRequest` for the first mistake; its fact `mistakes` lists them all."""
        try:
            # By way of JSON: strict Python mode refuses TOML's lists, lax mode reads true as 1.
            # A date becomes what no key of a model takes, whatever its type: a number beyond every range.
            return self.model.model_validate_json(json.dumps(data, default=lambda _: math.inf))
        except ValidationError as error:
            mistakes = sorted((self._mistake(each, data) for each in error.errors()), key=lambda m: m.facts["line"])
        mistakes[0].facts["mistakes"] = [mistake.message for mistake in mistakes]
        raise mistakes[0]

    def unknown(self, location: Location) -> InvalidRequest:
        """Return the error for a key that doesn't exist, naming the nearest that does."""
        table = _kind_at(self.model, location[:-1])[1] if len(location) > 2 else None
        if _is_model(table):
            near = difflib.get_close_matches(str(location[-1]), table.model_fields, n=1)
        else:
            near = _nearest(_dotted(location), _known_keys(self.model))
        suggestion = f"; did you mean {near[0]}?" if near else ""
        if near == [_dotted(location)]:  # one name with a dot in it
            suggestion = f"; did you mean {near[0]}, without quotes?"
        return self._at(location, f"there is no key {shown(_counted(self.below + location))[1:-1]}{suggestion}")

    def _mistake(self, details: Any, data: dict[str, Any]) -> InvalidRequest:
        location: Location = details["loc"]
        problem = details.get("ctx", {}).get("error")
        if isinstance(problem, ConflictError):
            return self._at(tuple(problem.keys[0].split(".")), str(problem), f"change one of them; {self.hint}")
        if details["type"] == "extra_forbidden":
            return self.unknown(location)
        expected = self._expected(location)
        if details["type"] == "missing":
            parent = _counted(self.below + location[:-1]) or "it"
            return self._at(location[:-1], f"{parent} lacks {location[-1]}, which must be {expected}")
        value: Any = data
        for part in location:
            value = value[part]
        # A float as it is: 512.0 is no whole number, and shown as 512 it would be one.
        written = str(value) if isinstance(value, float) else LOGIN.sub("//...@", shown(value))
        what = str(problem) if details["type"] == "value_error" else f"must be {expected}"
        alone = isinstance(value, str) and "number of " in expected
        return self._at(
            location,
            f"{_counted(self.below + location) or 'it'} is {written}, but it {what}",
            f"write the number alone, without quotes or unit; {self.hint}" if alone else self.hint,
        )

    def _expected(self, location: Location) -> str:
        """Return what the value at a location must be, to follow "must be"."""
        field, kind = _kind_at(self.model, location)
        if not location or kind is None:
            return "less deeply nested"
        if _is_model(kind):
            return "a table" if any(isinstance(part, int) for part in location) else f"a section, [{_dotted(location)}]"
        return self.alternative + (expectation(field) if field else _of_kind(kind))

    def _at(self, location: Location, problem: str, hint: str = "") -> InvalidRequest:
        whole = self.below + location
        place = self.place(whole)
        line = place.rpartition(":")[2]
        return InvalidRequest(
            f"{place}: {problem}",
            hint=hint or self.hint,
            key=_dotted(whole),
            line=int(line) if line.isdigit() else 0,
        )


def expectation(field: FieldInfo) -> str:
    """Return what the value of a field must be, to follow "must be"."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "expected" in extra:
        return str(extra["expected"])
    kind = _plain(field.annotation)
    low, high = range_of(field)
    if low is not None and high is not None:
        number = "a whole number" if kind is int else "a number"
        return f"{number} of {UNIT_WORDS.get(unit_of(field), unit_of(field))} from {low:g} to {high:.12g}"
    if get_origin(kind) in (tuple, list):
        return f"a list of texts, such as {json.dumps((field.examples or [['A', 'B']])[0])}"
    least, most = _first(field, "min_length"), _first(field, "max_length")
    bounds = [f"at {word} {size}" for word, size in (("least", least), ("most", most)) if size is not None]
    return _of_kind(kind) + (f" of {' and '.join(bounds)} characters" if bounds else "")


def unit_of(field: FieldInfo) -> str:
    """Return the unit of a field, or an empty text."""
    extra = field.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def range_of(field: FieldInfo) -> tuple[float | None, float | None]:
    """Return the lowest and highest value of a field; None where it isn't a number."""
    return _first(field, "ge"), _first(field, "le")


def _first(field: FieldInfo, name: str) -> Any:
    return next((getattr(rule, name) for rule in field.metadata if hasattr(rule, name)), None)


def _of_kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *others, last = (json.dumps(choice) for choice in get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    return "true or false" if kind is bool else "a text"


# ---- what a model has at a location ----------------------------------------------------------------


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _plain(kind: Any) -> Any:
    """Return a type without what is said about it, and without None."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return _plain(next(each for each in get_args(kind) if each is not types.NoneType))
    return kind


def _kind_at(kind: Any, location: Location) -> tuple[FieldInfo | None, Any]:
    """Return the field that a location ends in, if it ends in one, and the type there; None where nothing should be."""
    field: FieldInfo | None = None
    for part in location:
        kind, outer, field = _plain(kind), _plain(kind), None
        if _is_model(outer):
            field = outer.model_fields.get(str(part))
            kind = field.annotation if field else None
        elif get_origin(outer) in (tuple, list):
            kind = get_args(outer)[0]
        else:
            kind = get_args(outer)[1] if get_origin(outer) is dict else None
    return field, _plain(kind)


# ---- keys ----------------------------------------------------------------------------------------


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _counted(location: Location) -> str:
    """Return a location as a reader counts: `users in entry 2 of access.runners`."""
    words, in_list = "", False
    for part in location:
        if isinstance(part, int):
            words, in_list = f"entry {part + 1} of {words}", True
        elif in_list:
            words = f"{part} in {words}"
        else:
            words = f"{words}.{part}" if words else part
    return words


def _known_keys(model: type[BaseModel]) -> list[str]:
    """Return every key of a model by its dotted name, then sections, and keys that are in none."""
    kinds = {name: _plain(field.annotation) for name, field in model.model_fields.items()}
    return [f"{name}.{key}" for name, kind in kinds.items() if _is_model(kind) for key in kind.model_fields] + [*kinds]


def _nearest(key: str, known: list[str]) -> list[str]:
    """Return the key that is most likely meant, if any."""
    bare = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == bare]
    if same:  # right, in the wrong section or in none: then the first, not the one that happens to be shortest
        return same[:1] if bare == key else difflib.get_close_matches(key, same, n=1, cutoff=0)
    if nearest := difflib.get_close_matches(key, known, n=1, cutoff=0.75):
        return nearest
    by_last_part = {name.rpartition(".")[2]: name for name in reversed(known)}
    return [by_last_part[last] for last in difflib.get_close_matches(bare, by_last_part, n=1)]
