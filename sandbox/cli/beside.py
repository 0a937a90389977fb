"""The modules that lie beside a script and that its imports name: found, read with the caller's own rights, and named.

Nothing outside the script's own directory is read: directories are opened one below the other, and no link is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

import click

from sandbox.errors import InvalidRequest
from sandbox.printable import printable
from sandbox.run.imports import roots_of

__all__ = ["modules_for", "script_of"]

MAX_FILES = 200
MAX_BYTES = 8 << 20
MAX_DEPTH = 12
SHOWN = 20
MAIN = "__main__.py"
HINT = "--no-local sends none; --file sends those that you name"


def script_of(file: str) -> str:
    """Return the script that is meant: of a directory, its `__main__.py`, as for Python. Raises `InvalidRequest`."""
    if file == "-" or not Path(file).is_dir():
        return file
    main = Path(file, MAIN)
    if not main.is_file():
        raise InvalidRequest(
            f"the script {file} is a directory without a {MAIN}", hint=f"name a script, or the directory of a {MAIN}"
        )
    return str(main)


def modules_for(script: str, code: str, *, without: Collection[str], quiet: bool) -> dict[str, bytes]:
    """Return the modules that a script needs from beside it, by their names below its directory, and name them.

    `without` are those that are sent anyway. Raises `InvalidRequest` for too many.
    """
    # As Python does, for a script that is a link.
    place, _, name = os.path.realpath(script).rpartition("/")
    try:
        found = Modules(os.open(place or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), {name, *without})
    except OSError:
        return {}
    try:
        found.follow(code)
    finally:
        os.close(found.directory)
    if not quiet:
        for path in found.links:
            click.echo(
                f"sandbox: {printable(path)} is a link and is not sent along; --file {printable(path)}=PATH", err=True
            )
        if found.files:
            click.echo(f"sandbox: sent along with {printable(name)}: {shown(found.files)} (--no-local: none)", err=True)
    return found.files


def shown(paths: Collection[str]) -> str:
    """Return the names of modules for a line, those of a package together."""
    counts: dict[str, int] = {}
    for path in paths:
        package, slash, _ = path.partition("/")
        counts[package + slash] = counts.get(package + slash, 0) + 1
    names = [printable(f"{name} ({count} files)" if count > 1 else name) for name, count in counts.items()]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def is_module(name: str) -> bool:
    """Tell whether a file of that name could be imported by its text."""
    return name.endswith(".py") and name[:-3].isidentifier()


class Modules:
    """The modules of one directory that a script needs, as far as they are known."""

    def __init__(self, directory: int, without: Collection[str]) -> None:
        self.directory = directory
        self.files: dict[str, bytes] = {}
        self.links: list[str] = []
        self._without = without
        self._size_bytes = 0

    def follow(self, code: str) -> None:
        """Take what a text imports, and what that imports. Raises `InvalidRequest` for too much."""
        roots = list(roots_of(code))
        for root in roots:  # which grows
            for path in self._paths_of(root):
                if path not in self._without and path not in self.files and self._take(path):
                    text = self.files[path].decode("utf-8", "replace")
                    roots += [other for other in roots_of(text) if other not in roots]

    def _paths_of(self, root: str) -> Iterator[str]:
        """Yield the paths of a module's files: those of a package come before a file of that name, as for Python."""
        package, module = self._kind(root), self._kind(f"{root}.py")
        if package == stat.S_IFLNK or (module == stat.S_IFLNK and package is None):
            self.links.append(root if package else f"{root}.py")
        elif package == stat.S_IFDIR and (module != stat.S_IFREG or self._kind(f"{root}/__init__.py")):
            yield from self._below(root)
        elif module == stat.S_IFREG:
            yield f"{root}.py"

    def _kind(self, path: str) -> int | None:
        try:
            return stat.S_IFMT(os.stat(path, dir_fd=self.directory, follow_symlinks=False).st_mode)
        except OSError:
            return None

    def _below(self, root: str) -> Iterator[str]:
        for place, directories, names, _ in os.fwalk(root, dir_fd=self.directory):
            hidden = place.count("/") >= MAX_DEPTH
            kept = [
                name for name in sorted(directories) if name.isidentifier() and name != "__pycache__" and not hidden
            ]
            self.links += [f"{place}/{name}" for name in kept if self._kind(f"{place}/{name}") == stat.S_IFLNK]
            directories[:] = kept
            yield from (f"{place}/{name}" for name in sorted(names) if is_module(name))

    def _take(self, path: str) -> bool:
        """Read one file; return whether it goes along."""
        if self._kind(path) == stat.S_IFLNK:
            self.links.append(path)
            return False
        try:
            data = self._read(path)
        except OSError as error:
            raise InvalidRequest(f"the module {path} can't be read: {error.strerror}", hint=HINT) from None
        if data is None:
            return False
        self._size_bytes += len(data)
        self.files[path] = data
        if len(self.files) > MAX_FILES or self._size_bytes > MAX_BYTES:
            raise InvalidRequest(
                f"the script's imports name more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB beside it, the last"
                f" of them {path}",
                hint=HINT,
            )
        return True

    def _read(self, path: str) -> bytes | None:
        """Return a regular file's content, at most one byte more than may be sent. Raises OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        parent = os.dup(self.directory)
        try:
            *directories, name = path.split("/")
            for directory in directories:
                inner = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                os.close(parent)
                parent = inner
            with os.fdopen(os.open(name, flags, dir_fd=parent), "rb") as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    return None
                return stream.read(MAX_BYTES + 1)
        finally:
            os.close(parent)
