"""Files of an administrator: where they are searched, whether to trust them, and on which line each key is.

Knows nothing of what a policy means; `sandbox.policy.load` and `sandbox.policy.seccomp` give the meaning.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.errors import InvalidRequest, NotFound

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # from 3.11 on it is in the library

MAX_FILE_BYTES = 256 * 1024
# TOML readers take time, and lists of keys take memory, that grow with the square of a key.
MAX_DOTS = 16
MAX_WORD_CHARS = 200
MAX_KEY_CHARS = 1_000
MAX_DEPTH = 32


@dataclass(frozen=True, kw_only=True)
class TomlFile:
    """A parsed file and the 1-based line of each key, by dotted name; an entry of a list has its index as name."""

    path: Path
    data: dict[str, Any]
    lines: dict[str, int]

    def at(self, key: str) -> str:
        """Return `file:line` of a dotted key, or of the nearest table that holds it."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.path}:{self.lines.get(key, 1)}"

    def place(self, location: Sequence[int | str]) -> str:
        """Return the same of a location, which names entries of lists by their indices."""
        return self.at(".".join(str(part) for part in location))


def exists(path: Path) -> bool:
    """Tell whether `path` is there, in words when its directory can't be entered."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InvalidRequest(
            f"{path} cannot be looked up: {error.strerror}", hint="make its directory readable to this user"
        ) from None
    return True


def read_trusted(path: Path, *, what: str) -> str:
    """Return the text of a file that only root, this user or this package's owner can have written.

    Raises `NotFound`, or `InvalidRequest` with the command that mends it.
    """
    try:
        # Not blocking: opening a named pipe would otherwise wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"the {what} {path} does not exist", hint="check the path") from None
    except OSError as error:
        raise InvalidRequest(
            f"the {what} {path} cannot be read: {error.strerror}", hint=f"chmod a+r {shlex.quote(str(path))}"
        ) from None
    try:
        _check_trusted(path, os.fstat(descriptor), what)
        with open(
            descriptor, "rb", closefd=False
        ) as stream:  # a directory, which this refuses, was refused above in our own words
            content = stream.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        raise InvalidRequest(f"the {what} {path} is larger than {MAX_FILE_BYTES // 1024} KiB", hint="shorten it")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidRequest(f"{path}:{line}: the {what} is not UTF-8 text", hint="save it as UTF-8") from None


def _check_trusted(path: Path, status: os.stat_result, what: str) -> None:
    quoted = shlex.quote(str(path))
    package = Path(__file__).stat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(f"the {what} {path} is not a regular file", hint="point to a file")
    if status.st_uid not in {0, os.geteuid(), package.st_uid}:
        raise InvalidRequest(
            f"the {what} {path} belongs to user {status.st_uid}, who could change it at any time",
            hint=f"chown {os.geteuid()} {quoted}",
        )
    group_writes = status.st_mode & stat.S_IWGRP and status.st_gid not in {0, os.getegid(), package.st_gid}
    if status.st_mode & stat.S_IWOTH or group_writes:
        raise InvalidRequest(f"the {what} {path} can be changed by other users", hint=f"chmod go-w {quoted}")
    directory = path.parent.stat()
    if directory.st_mode & stat.S_IWOTH and not directory.st_mode & stat.S_ISVTX:
        raise InvalidRequest(
            f"the {what} {path} can be replaced by other users, who may write in its directory",
            hint=f"chmod o-w {shlex.quote(str(path.parent))}",
        )


def parse(text: str) -> dict[str, Any]:
    """Parse TOML whose numbers and keys are no longer than anybody needs.

    Raises `ValueError` (with line and column), and `RecursionError` for what is nested too deeply.
    """
    dots = 0
    for word, line in _tokens(text):
        dots = dots + 1 if word == "." else 0 if word in "[]{}=,\n" else dots
        if dots > MAX_DOTS or (len(word) > MAX_WORD_CHARS and word[0] not in "\"'"):
            raise _too_long(line)
    data: dict[str, Any] = tomllib.loads(text)
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inside for value in values if isinstance(value, (dict, list))]
    if level:
        raise RecursionError
    return data


def _too_long(line: int) -> ValueError:
    return ValueError(f"a key or a number is too long (at line {line}, column 1)")


def read_toml(path: Path, *, what: str) -> TomlFile:
    """Read, trust and parse a TOML file. Raises `NotFound` or `InvalidRequest` (file, line, column)."""
    text = read_trusted(path, what=what)
    try:
        data = parse(text)
        lines = key_lines(text)
    except ValueError as error:  # TOMLDecodeError is one; a number of thousands of digits is another
        raise _syntax_error(path, text, str(error)) from None
    except RecursionError:
        raise InvalidRequest(f"{path}:1: the {what} is nested too deeply", hint="flatten it", line=1) from None
    return TomlFile(path=path, data=data, lines=lines)


def _syntax_error(path: Path, text: str, reason: str) -> InvalidRequest:
    found = re.search(r" \(at line (\d+), column (\d+)\)$", reason)
    if found:
        line, column, reason = int(found[1]), int(found[2]), reason[: found.start()]
    else:
        line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
        reason = reason.removesuffix(" (at end of document)")
    return InvalidRequest(
        f"{path}:{line}:{column}: this is not valid TOML: {reason[:1].lower()}{reason[1:]}",
        hint="texts are quoted, lists stand in [ ], a section is a line like [limits]",
        line=line,
        column=column,
    )


_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|\#[^\n]*)
    |(?P<text>\"{3}(?:\\[\s\S]|[^\\])*?(?:\"{3,5}|\\?\Z)|'{3}[\s\S]*?(?:'{3,5}|\Z)
        |"(?:\\.|[^"\\\n])*"?|'[^'\n]*'?)
    |(?P<mark>[][{}=,.\n])
    |(?P<bare>[^][{}=,.\s\#"']+)""",
    re.VERBOSE,
)


def key_lines(text: str) -> dict[str, int]:
    """Return the line on which each key, table and entry of a list first appears, by dotted name.

    The text must be valid TOML.
    """
    return _KeyScanner(text).document()


class _KeyScanner:
    """Walks the tokens of TOML that tomllib has accepted, so it never has to judge."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._part, self._line = next(self._tokens)
        self._found: dict[str, int] = {}
        self._last: dict[tuple[str, ...], int] = {}  # of a list of tables, the index of its last one

    def document(self) -> dict[str, int]:
        table: tuple[str, ...] = ()
        while self._part:
            if self._part == "\n":
                self._next()
            elif self._part == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._found

    def _next(self) -> None:
        self._part, self._line = next(self._tokens, ("", self._line))

    def _header(self) -> tuple[str, ...]:
        brackets, line = 0, self._line
        while self._part == "[":
            brackets += 1
            self._next()
        table = self._key((), new_entry=brackets == 2)
        if brackets == 2:
            self._last[table] = self._last.get(table, -1) + 1
            table = self._entry(table, self._last[table], line)
        while self._part == "]":
            self._next()
        return table

    def _pair(self, table: tuple[str, ...]) -> None:
        key = self._key(table)
        self._next()  # the equals sign
        self._value(key)

    def _key(self, prefix: tuple[str, ...], *, new_entry: bool = False) -> tuple[str, ...]:
        parts = prefix
        while self._part not in ("]", "=", ""):
            if self._part != ".":
                parts = (*parts, _unquoted(self._part))
                if sum(map(len, parts)) > MAX_KEY_CHARS:
                    raise _too_long(self._line)
                self._found.setdefault(".".join(parts), self._line)
            self._next()
            if parts in self._last and not (new_entry and self._part == "]"):
                parts = (*parts, str(self._last[parts]))  # a table below a list of tables is in its last one
        return parts

    def _entry(self, key: tuple[str, ...], index: int, line: int) -> tuple[str, ...]:
        entry = (*key, str(index))
        self._found.setdefault(".".join(entry), line)
        return entry

    def _value(self, key: tuple[str, ...]) -> None:
        if self._part == "[":
            self._next()
            index = 0
            while self._part not in ("]", ""):
                if self._part in (",", "\n"):
                    self._next()
                else:
                    self._value(self._entry(key, index, self._line))
                    index += 1
            self._next()
        elif self._part == "{":
            self._next()
            while self._part not in ("}", ""):
                if self._part in (",", "\n"):
                    self._next()
                else:
                    self._pair(key)
            self._next()
        else:
            while self._part not in (",", "]", "}", "\n", ""):
                self._next()


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        token = match[0]
        if match.lastgroup != "space":
            yield token, line
        line += token.count("\n")
    yield "", line


def _unquoted(part: str) -> str:
    if part[0] not in "\"'":
        return part
    return str(parse(f"key = {part}")["key"])


def shown(value: Any) -> str:
    """Return a value as TOML would write it, clipped; nothing in it can steer a terminal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def toml_value(value: Any) -> str:
    """Return a value as TOML writes it, whole."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
