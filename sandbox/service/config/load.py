"""The service's configuration, read: one TOML file, and variables of the environment that override it.

The keys themselves are in `sandbox.service.config.model`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from sandbox.errors import InvalidRequest
from sandbox.models import Strict
from sandbox.places import WHAT, find_config
from sandbox.policy.mistakes import shown
from sandbox.policy.model import ConflictError
from sandbox.service.config.model import KEYS, SECTIONS, ServiceConfig, tables_of
from sandbox.toml_file import TomlFile, parse, read_toml

__all__ = ["DEFAULT", "KEYS", "LoadedConfig", "ServiceConfig", "load_config", "variable_of"]

DEFAULT = "default"
PREFIX = "SANDBOX_"
HINT = "`sandbox config show` prints every key with its meaning"


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """A configuration, its file if there is one, and where each dotted key comes from.

    `origins` has `DEFAULT`, `file:line`, or the variable as `$SANDBOX_QUEUE__RUNNING`.
    """

    config: ServiceConfig
    path: Path | None
    origins: dict[str, str]


def load_config(path: Path | None, environ: Mapping[str, str]) -> LoadedConfig:
    """Read the configuration.

    The file is `path`, else the one that $SANDBOX_CONFIG names, else the user's, else the system's; without any, the
    defaults hold. Raises `NotFound` for a named file that isn't there, `InvalidRequest` for one that others can change
    and for the first mistake, whose fact `mistakes` lists them all.
    """
    found = find_config(path, environ)
    source = _ConfigSource(read_toml(found, what=WHAT) if found else None, dict(_overrides(environ)))
    data = source.data()
    try:
        # By way of JSON: strict Python mode refuses TOML's lists, lax mode reads true as 1.
        config = ServiceConfig.model_validate_json(json.dumps(data, default=lambda value: {"not JSON": str(value)}))
    except ValidationError as error:
        mistakes = sorted((_mistake(d, data, source) for d in error.errors()), key=lambda m: m.facts["line"])
        mistakes[0].facts["mistakes"] = [mistake.message for mistake in mistakes]
        raise mistakes[0] from None
    return LoadedConfig(config=config, path=found, origins={key: source.origin(key) for key in KEYS})


def variable_of(key: str) -> str:
    """Return the variable that overrides a dotted key, such as SANDBOX_QUEUE__RUNNING."""
    return PREFIX + key.replace(".", "__").upper()


# ---- where values come from ----------------------------------------------------------------------


def _overrides(environ: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield key and value of each variable of the form SANDBOX_SECTION__KEY."""
    variables = {variable_of(key): key for key in KEYS}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or "__" not in name:
            continue
        if name not in variables:
            near = difflib.get_close_matches(name.upper(), variables, n=1)
            raise InvalidRequest(
                f"the variable {shown(name)[1:-1]} overrides no key of the service"
                f"{f'; did you mean {near[0]}?' if near else ''}",
                hint=f"unset it; {HINT}",
            )
        yield variables[name], _value(name, variables[name], environ[name])


def _value(name: str, key: str, text: str) -> Any:
    """Return what the text of a variable means for its key: a TOML value, or the text itself."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"the variable {name} is not UTF-8 text", hint="correct or unset it") from None
    try:
        document = parse(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    annotation = KEYS[key].annotation
    meant_as_text = str in (annotation, *get_args(annotation)) and not isinstance(document["value"], str)
    return text if meant_as_text or len(document) > 1 else document["value"]


@dataclass(frozen=True)
class _ConfigSource:
    """The file and the overriding values by dotted key."""

    file: TomlFile | None
    overrides: dict[str, Any]

    def data(self) -> dict[str, Any]:
        """Return what the file says, overridden."""
        data = dict(self.file.data) if self.file else {}
        for key, value in self.overrides.items():
            section, _, name = key.partition(".")
            if isinstance(data.setdefault(section, {}), dict):
                data[section] = {**data[section], name: value}
        return data

    def origin(self, key: str) -> str:
        """Return where the value of a key comes from, as in `LoadedConfig.origins`."""
        if key in self.overrides:
            return f"${variable_of(key)}"
        section, _, name = key.partition(".")
        if self.file is not None and name in self.file.data.get(section, {}):
            return self.file.at(key)
        return DEFAULT

    def place(self, location: tuple[int | str, ...]) -> str:
        """Return where a mistake stands: the variable, or file and line."""
        key = ".".join(str(part) for part in location if isinstance(part, str))
        top = ".".join(key.split(".")[:2])
        if top in self.overrides or self.file is None:
            return f"${variable_of(top)}"
        # Of several tables with one name, the line of the first alone is known.
        first = location[2:3] in ((), (0,)) or _table(location[:2]) is None
        return self.file.at(key) if first else str(self.file.path)


# ---- mistakes, in words --------------------------------------------------------------------------


def _mistake(details: Any, data: dict[str, Any], source: _ConfigSource) -> InvalidRequest:
    location: tuple[int | str, ...] = details["loc"]
    conflict = details.get("ctx", {}).get("error")
    if isinstance(conflict, ConflictError):
        return _at(source, tuple(conflict.keys[0].split(".")), str(conflict), f"change one of them; {HINT}")
    if details["type"] == "extra_forbidden":
        return _unknown(location, source)
    written = _written(location)
    if details["type"] == "missing":
        parent = _written(location[:-1])
        return _at(source, location[:-1], f"{parent} lacks {location[-1]}, which must be {_expected(location)}", HINT)
    value: Any = data
    for part in location:
        value = value[part]
    hint = HINT
    if isinstance(value, str) and "number" in _expected(location):
        hint = f"write the number alone, without quotes or unit; {HINT}"
    if details["type"] == "value_error":
        problem = str(conflict)
    elif location and isinstance(location[-1], int):
        problem = "must be a table" if _table(location) else "must be a text"
    else:
        problem = f"must be {_expected(location) or 'less deeply nested'}"
    return _at(source, location, f"{written or 'it'} is {shown(value)}, but it {problem}", hint)


def _unknown(location: tuple[int | str, ...], source: _ConfigSource) -> InvalidRequest:
    """Return the error for a key that doesn't exist, naming the nearest that does."""
    key = ".".join(str(part) for part in location)
    table = _table(location[:-1]) if len(location) > 2 else None
    if table:
        near = difflib.get_close_matches(str(location[-1]), table.model_fields, n=1)
    else:
        by_last_part = {name.rpartition(".")[2]: name for name in [*reversed(KEYS), *SECTIONS]}
        last = difflib.get_close_matches(key.rpartition(".")[2], by_last_part, n=1)
        nearest = difflib.get_close_matches(key, [*KEYS, *SECTIONS], n=1, cutoff=0.75)
        own = [by_last_part[str(location[-1])]] if location[-1] in by_last_part else []  # right, in the wrong section
        near = own or nearest or [by_last_part[name] for name in last]
    suggestion = f"; did you mean {near[0]}?" if near else ""
    return _at(source, location, f"there is no key {shown(_written(location))[1:-1]}{suggestion}", HINT)


def _at(source: _ConfigSource, location: tuple[int | str, ...], problem: str, hint: str) -> InvalidRequest:
    place = source.place(location)
    line = place.rpartition(":")[2]
    return InvalidRequest(
        f"{place}: {problem}", hint=hint,
        key=".".join(str(part) for part in location), line=int(line) if line.isdigit() else 0,
    )  # fmt: skip


def _written(location: tuple[int | str, ...]) -> str:
    """Return a location as a reader counts: `users in entry 2 of access.runners`."""
    words = ".".join(str(part) for part in location[:2])
    for part in location[2:]:
        words = f"entry {part + 1} of {words}" if isinstance(part, int) else f"{part} in {words}"
    return words


def _table(location: tuple[int | str, ...]) -> type[Strict] | None:
    """Return the model of the table that stands at a location; None where none should."""
    model: type[Strict] | None = ServiceConfig
    for part in location:
        if isinstance(part, str):
            model = tables_of(model.model_fields[part]) if model and part in model.model_fields else None
    return model


def _expected(location: tuple[int | str, ...]) -> str:
    """Return what the value at a location must be, to follow "must be"."""
    if len(location) == 1:
        return f"a section, [{location[0]}]"
    names = [part for part in location if isinstance(part, str)]
    table = _table(tuple(names[:-1]))
    extra = table.model_fields[names[-1]].json_schema_extra if table and names else None
    return str(extra["expected"]) if isinstance(extra, dict) else ""
