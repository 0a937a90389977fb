"""An image's files, judged from a tar stream that is never unpacked on the host.

The stream is hostile: its size, its number of files and its links are bounded, and no name in it is opened.
"""

from __future__ import annotations

import posixpath
import re
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, cast

from sandbox.errors import ImageUnavailable
from sandbox.image.verdicts import FilesystemVerdict

MAX_MEMBERS = 1_000_000
MAX_REASONS = 20
MAX_BYTES = 64 << 30
MAX_LINKS = 40
OLDEST_PYTHON = (3, 8)
# Where the sandbox mounts something, or where the runtime looks before our own settings hold.
_DIRECTORIES = frozenset(
    {"dev", "dev/shm", "proc", "sys", "etc", "app", "tmp", "run"}
    | {"run/sandbox", "run/sandbox/job", "run/sandbox/lib"}
)
MAX_LINK_BYTES = 64 << 20
_FILES = frozenset({"etc/passwd", "etc/group"})
_SEARCHED = ("/usr/local/bin", "/usr/bin", "/opt/conda/bin", "/bin")


class TarStream:
    """A bounded, read-only file over chunks of bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""
        self._total = 0
        self._end_of_data = 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end."""
        parts = [self._rest]
        have = len(self._rest)
        while have < size and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            have += len(chunk)
            if data := chunk.rstrip(b"\0"):
                self._end_of_data = self._total + len(data)
            self._total += len(chunk)
            if self._total > MAX_BYTES:
                raise tarfile.ReadError(f"more than {MAX_BYTES >> 30} GiB of files")
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]

    def check_end(self, offset: int) -> None:
        """Raise unless the archive ended at `offset` in the way a complete one does: with two blocks of zeros.

        tarfile takes a stream that breaks off for a complete one: what it never saw would be admitted.
        """
        while self.read(1 << 20):
            pass
        if self._end_of_data > offset or self._total < offset + 2 * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("the stream broke off")


@dataclass
class _Walk:
    """What is remembered of a walk: enough to follow a path, and no more."""

    links: dict[str, str] = field(default_factory=dict)
    programs: set[str] = field(default_factory=set)
    hard_links: dict[str, str] = field(default_factory=dict)
    library_versions: dict[str, set[str]] = field(default_factory=dict)
    link_bytes: int = 0
    privileged: int = 0
    world_writable: int = 0
    refusals: list[str] = field(default_factory=list)

    def refuse(self, reason: str) -> None:
        if len(self.refusals) < MAX_REASONS:
            self.refusals.append(reason)


def inspect_filesystem(chunks: Iterator[bytes], *, path_variable: str) -> FilesystemVerdict:
    """Read an image's files as a tar stream and judge them.

    Raises `ImageUnavailable` when the stream is no tar or is larger than any image should be.
    """
    walk = _Walk()
    stream = TarStream(chunks)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as archive:
            for count, member in enumerate(archive):
                archive.members = []  # type: ignore[attr-defined]  # else every header is kept in memory
                if count >= MAX_MEMBERS:
                    raise tarfile.ReadError(f"more than {MAX_MEMBERS:,} files")
                _look_at(member, walk)
            stream.check_end(archive.offset)
    except (tarfile.TarError, EOFError, ValueError, UnicodeError) as error:
        raise ImageUnavailable(
            f"the files of the image can't be read: {error}", hint="remove the image and fetch it again"
        ) from None
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    return _judge(walk, path_variable)


def _look_at(member: tarfile.TarInfo, walk: _Walk) -> None:
    name = _normal(member.name)
    if name is None:
        walk.refuse(f"a file has the impossible name {member.name[:80]!r}")
        return
    if member.ischr() or member.isblk():
        walk.refuse(f"/{name[:80]} is a device")
    is_file = member.isreg() or member.islnk()
    if (name in _DIRECTORIES and not member.isdir()) or (name in _FILES and not is_file):
        walk.refuse(f"/{name} is {'a symbolic link' if member.issym() else 'not what it should be'}")
    if member.issym():
        walk.link_bytes += len(name) + len(member.linkname)
        if walk.link_bytes > MAX_LINK_BYTES:
            raise ImageUnavailable("the image's symbolic links are longer than 64 MiB in all", hint="use another image")
        walk.links[name] = member.linkname
        return
    if member.mode & 0o6000 and member.isreg():
        walk.privileged += 1
    if member.mode & 0o002 and not (member.isdir() and member.mode & stat.S_ISVTX):
        walk.world_writable += 1
    base = posixpath.basename(name)
    if re.fullmatch(r"python3(\.\d+)?", base):
        _remember_python(member, name, walk)


def _remember_python(member: tarfile.TarInfo, name: str, walk: _Walk) -> None:
    if member.isdir() and posixpath.basename(posixpath.dirname(name)).startswith("lib"):
        prefix = posixpath.dirname(posixpath.dirname(name))
        walk.library_versions.setdefault(prefix, set()).add(posixpath.basename(name))
    elif member.islnk() and (target := _normal(member.linkname)) is not None:
        walk.hard_links[name] = target
        walk.programs.add(name)
    elif member.isreg() and member.mode & 0o111:
        walk.programs.add(name)


def _judge(walk: _Walk, path_variable: str) -> FilesystemVerdict:
    verdict = FilesystemVerdict(refusals=list(walk.refusals))
    if walk.privileged:
        verdict.findings.append(f"{walk.privileged} files are setuid or setgid, which has no effect in a sandbox")
    if walk.world_writable:
        verdict.findings.append(f"{walk.world_writable} files or directories can be written by everyone")
    own = [entry for entry in path_variable.split(":") if entry.startswith("/")]
    for directory in dict.fromkeys((*own, *_SEARCHED)):
        asked = posixpath.normpath(posixpath.join(directory, "python3"))
        found = _followed(asked, walk.links)
        if found is not None and found in walk.programs:
            verdict.python_path = asked
            verdict.python_version = _version(found, walk)
            break
    else:
        verdict.refusals.append("it has no python3")
    if verdict.python_version is not None and verdict.python_version < OLDEST_PYTHON:
        verdict.refusals.append(f"its Python {'.'.join(map(str, verdict.python_version))} is older than 3.8")
    return verdict


def _version(program: str, walk: _Walk) -> tuple[int, int] | None:
    found = re.search(r"python(\d+)\.(\d+)$", walk.hard_links.get(program, program)) or re.search(
        r"python(\d+)\.(\d+)$", program
    )
    if found is None:
        prefix = posixpath.dirname(posixpath.dirname(program))
        versions = [name for name in walk.library_versions.get(prefix, ()) if "." in name]
        found = re.fullmatch(r"python(\d+)\.(\d+)", versions[0]) if len(versions) == 1 else None
    return (int(found[1]), int(found[2])) if found is not None else None


def _followed(path: str, links: dict[str, str]) -> str | None:
    """Follow symbolic links among the listed names only; None for a loop."""
    pending = [part for part in path.split("/") if part]
    done: list[str] = []
    budget = MAX_LINKS
    while pending:
        part = pending.pop(0)
        if part in {"", "."}:
            continue
        if part == "..":
            done = done[:-1]
            continue
        target = links.get("/".join([*done, part]))
        if target is None:
            done.append(part)
            continue
        budget -= 1
        if budget < 0:
            return None
        if target.startswith("/"):
            done = []
        pending = target.split("/")[:4096] + pending
    return "/".join(done)


def _normal(name: str) -> str | None:
    """Return a member's path without `./`, or None when it is absolute, climbs or holds a NUL."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    return None if name.startswith("/") or ".." in parts or "\0" in name else "/".join(parts)
