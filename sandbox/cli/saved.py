"""Writes the files that a run saved into one open directory, under names that nothing on the host acts upon."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandbox.cli.saved_names import kept_names
from sandbox.errors import InvalidRequest
from sandbox.printable import printable

if TYPE_CHECKING:
    from sandbox.wire.run import FileDocument

__all__ = ["open_directory", "save_files"]

OPTIONS = {"--save-files": "save_files", "--save-new": "save_new"}


def open_directory(options: Mapping[str, Any]) -> int | None:
    """Open the directory for saved files before the run, so that a run is not wasted. Raises `InvalidRequest`."""
    named = [(option, options[key]) for option, key in OPTIONS.items() if options.get(key) is not None]
    if not named:
        return None
    if len(named) > 1:
        raise InvalidRequest(
            "--save-files and --save-new each name a directory for files", hint="give --save-new alone: it saves both"
        )
    option, path = named[0]
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, f"user id {os.geteuid()} may not write there")
    except (FileExistsError, NotADirectoryError):
        raise InvalidRequest(
            f"{option} {path} can't be used: there is a file of that name, or above it", hint="name a directory"
        ) from None
    except OSError as error:
        raise InvalidRequest(
            f"{option} {path} can't be used: {error.strerror}",
            hint=f"name a directory that user id {os.geteuid()} may write",
        ) from None
    return fd


def save_files(files: Iterable[FileDocument], fd: int, *, keep_names: bool = False) -> None:
    """Write files below an open directory, and say which got another name.

    Existing links are not followed: the old entry is replaced.
    """
    files = list(files)
    for file, kept in zip(files, kept_names((file.name for file in files), as_they_are=keep_names), strict=True):
        _write(file.content, kept.name, fd)
        if kept.why:
            click.echo(
                f"sandbox: {printable(file.name)} was saved as {printable(kept.name)}: its name {kept.why}"
                " (--keep-names keeps names as they are)",
                err=True,
            )


def _write(content: bytes, name: str, fd: int) -> None:
    temporary = f".{os.urandom(16).hex()}.part"  # the program knows its run id, and not this
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=fd
    )
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
    except OSError as error:
        os.unlink(temporary, dir_fd=fd)
        raise InvalidRequest(
            f"the file {printable(name)} can't be saved: {error.strerror}",
            hint="name an empty directory with room for it",
        ) from None
