"""The service's configuration, read: one TOML file, and variables of the environment that override it.

The keys themselves are in `sandbox.service.config.model`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sandbox.errors import InvalidRequest
from sandbox.places import WHAT, find_config
from sandbox.service.config.model import KEYS, ServiceConfig
from sandbox.toml_file import TomlFile, parse, read_toml, shown
from sandbox.toml_mistakes import Checker, Location

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
    config = Checker(model=ServiceConfig, place=source.place, hint=HINT).read(source.data())
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

    def place(self, location: Location) -> str:
        """Return where a mistake stands: the variable, or file and line."""
        top = ".".join(str(part) for part in location[:2])
        return f"${variable_of(top)}" if top in self.overrides or self.file is None else self.file.place(location)
