"""An installed tree on its way out of a sandbox: a stream of records, and how it is checked.

"Tree 1" is a sequence of records: kind (1 byte), length of the path (4), length of the body (8), all big-endian; then
the path in UTF-8 and the body: a file's content, or where a link leads. It ends with a record of kind 0, without path
and body. The format has no owner, no mode, no time, no device and no absolute path, so a hostile stream can't ask for
one. The top of the tree is what will be a directory of Python's modules.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass
from typing import Protocol

from sandbox.environment.startup_files import what_is_lost
from sandbox.errors import BuildFailed

__all__ = ["Kind", "TreeDecoder", "TreeLimits", "TreeRefused", "TreeSink", "encode_header", "starts_code"]

HEADER = struct.Struct(">BIQ")
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_DEPTH = 40
MAX_TARGET_BYTES = 1024
MAX_STARTUP_BYTES = 64 << 10
# All paths together: they are kept in memory.
MAX_PATHS_CHARS = 64 << 20
# What extraction of an image's layer would take for "this file is gone from the layers below".
WHITEOUT = ".wh."
# Modules that Python imports by itself at every start, whatever kind of file they are in.
STARTUP_MODULES = frozenset({"sitecustomize", "usercustomize"})
OWN_MODULES = frozenset({"harness"})
# Read at every start, as .pth files are; from Python 3.15 on (PEP 829).
STARTUP_FILES = (".pth", ".start")
# What begins a line is wider than "\n": universal newlines before Python 3.13, str.splitlines() since then.
_LINE = rb"(?:\A|[\r\n\x0b\x0c\x1c-\x1e\x85]|\xe2\x80[\xa8\xa9])(?:\xef\xbb\xbf)*"
_EXECUTED = re.compile(_LINE + rb"import[ \t]")
_SEARCHED = re.compile(_LINE + rb"[^#\s]")
_ALLOW_PTH = "if it is to be trusted, set build.allow_pth = true in the policy"


class Kind(enum.IntEnum):
    """What a record describes."""

    END = 0
    DIRECTORY = 1
    FILE = 2
    EXECUTABLE = 3
    LINK = 4


class TreeRefused(BuildFailed):
    """A tree that may not become part of an environment; `facts["path"]` names the entry, clipped and printable."""


@dataclass(frozen=True, kw_only=True)
class TreeLimits:
    """What one tree may be: number of entries, bytes of all bodies, and whether it may have code run at every start."""

    files_count: int
    installed_bytes: int
    allow_pth: bool = False


class TreeSink(Protocol):
    """Takes the entries of a tree in the order of the stream. It may raise to end the decoding."""

    def entry(self, kind: Kind, path: str, size_bytes: int) -> None:
        """Take note of an entry, whose body of `size_bytes` follows in calls of `data`."""

    def data(self, chunk: memoryview) -> None:
        """Take the next piece of the last entry's body: a view of what was fed."""


def starts_code(path: str, content: memoryview) -> bool:
    """Tell whether Python would execute lines of a file at every start, as an entry of a tree that was accepted."""
    return "/" not in path and path.endswith(STARTUP_FILES) and bool(_EXECUTED.search(content))


def encode_header(kind: Kind, path: str, size_bytes: int) -> bytes:
    """Return what precedes a body in the stream; `encode_header(Kind.END, "", 0)` ends it."""
    name = path.encode()
    return HEADER.pack(kind, len(name), size_bytes) + name


class TreeDecoder:
    """Decodes and checks one stream, fed in pieces of any size; what the sink got is good only once `finish` returned.

    Every method raises `TreeRefused`. Nothing is copied: bodies go to the sink as views of what was fed.
    """

    def __init__(self, limits: TreeLimits, sink: TreeSink | None = None) -> None:
        self._limits = limits
        self._sink = sink
        self._head = bytearray()
        self._wanted = HEADER.size  # bytes of the head, path included as soon as its length is known
        self._left = 0  # bytes of the body
        self._kinds: dict[str, Kind] = {"": Kind.DIRECTORY}
        self._implied: set[str] = set()
        self._targets: dict[str, str] = {}
        self._installed_bytes = 0
        self._paths_chars = 0
        self._path = ""
        self._kept: bytearray | None = None  # the body, where it is judged as a whole
        self._searches_below = ""  # a .pth file with directories of the tree where Python is to look for modules
        self._startup_module = ""  # an entry that Python would run at every start if it looked there
        self._ended = False

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next piece of the stream."""
        rest = memoryview(chunk)
        while rest:
            if self._ended:
                raise TreeRefused("the installed tree goes on after its end")
            if self._left:
                taken = rest[: self._left]
                self._left -= len(taken)
                self._take(taken)
            else:
                taken = rest[: self._wanted - len(self._head)]
                self._head += taken
                if len(self._head) == self._wanted:
                    self._take_head()
            rest = rest[len(taken) :]

    def finish(self) -> None:
        """Take note that nothing follows."""
        if not self._ended:
            raise TreeRefused("the installed tree breaks off before its end")

    def _take(self, piece: memoryview) -> None:
        if self._sink is not None:
            self._sink.data(piece)
        if self._kept is not None:
            self._kept += piece
            if not self._left:
                self._judge_kept()

    def _take_head(self) -> None:
        number, path_bytes, size_bytes = HEADER.unpack_from(self._head)
        if self._wanted == HEADER.size and path_bytes:
            if path_bytes > MAX_PATH_BYTES:
                raise TreeRefused(f"the installed tree has a path of {path_bytes} bytes; {MAX_PATH_BYTES} are allowed")
            self._wanted += path_bytes
            return
        raw = bytes(self._head[HEADER.size :])
        self._head.clear()
        self._wanted = HEADER.size
        try:
            kind = Kind(number)
        except ValueError:
            raise _refused(raw, f"is of the unknown kind {number}") from None
        if kind is Kind.END:
            self._end(raw, size_bytes)
        else:
            self._begin(kind, raw, size_bytes)

    def _begin(self, kind: Kind, raw: bytes, size_bytes: int) -> None:
        self._path = path = _checked_path(raw)
        self._place(kind, path)
        self._check_size(kind, size_bytes)
        self._kept = None
        self._check_startup(kind, path, size_bytes)
        if kind is Kind.LINK:
            self._kept = bytearray()
        self._left = size_bytes
        if self._sink is not None:
            self._sink.entry(kind, path, size_bytes)

    def _end(self, raw: bytes, size_bytes: int) -> None:
        if raw or size_bytes:
            raise TreeRefused("the installed tree ends with a record that has a path or a body")
        for path, target in self._targets.items():
            if problem := self._target_problem(path, target):
                raise _refused(path, f"is a link to {_shown(target)}, {problem}")
        if self._searches_below and self._startup_module:
            why = f"could have {_shown(self._startup_module)} run at every start of Python"
            raise _refused(self._searches_below, why, hint=_ALLOW_PTH)
        self._ended = True

    def _place(self, kind: Kind, path: str) -> None:
        """Give an entry its place. What is there, or leads there, must be a directory that no record has named yet."""
        if path in self._implied and kind is Kind.DIRECTORY:
            self._implied.remove(path)
            return
        if path in self._kinds:
            raise _refused(path, "comes twice")
        self._remember(path, kind)
        parent = path.rpartition("/")[0]
        while (above := self._kinds.get(parent)) is None:
            self._remember(parent, Kind.DIRECTORY)
            self._implied.add(parent)
            parent = parent.rpartition("/")[0]
        if above is not Kind.DIRECTORY:
            raise _refused(path, f"lies below {_shown(parent)}, which is a {'link' if above is Kind.LINK else 'file'}")

    def _remember(self, path: str, kind: Kind) -> None:
        self._kinds[path] = kind
        self._paths_chars += len(path)
        if len(self._kinds) - 1 > self._limits.files_count:
            raise TreeRefused(
                f"the libraries have more than {self._limits.files_count:,} files and directories",
                hint="raise build.files_count in the policy, or install fewer libraries",
            )
        if self._paths_chars > MAX_PATHS_CHARS:
            raise TreeRefused(f"the paths of the installed tree have more than {MAX_PATHS_CHARS:,} characters in all")

    def _check_size(self, kind: Kind, size_bytes: int) -> None:
        if kind is Kind.DIRECTORY and size_bytes:
            raise _refused(self._path, f"is a directory with {size_bytes} bytes of content")
        if kind is Kind.LINK and not 0 < size_bytes <= MAX_TARGET_BYTES:
            raise _refused(self._path, f"is a link to a path of {size_bytes} bytes")
        self._installed_bytes += size_bytes
        if self._installed_bytes > self._limits.installed_bytes:
            raise TreeRefused(
                f"the libraries are larger than {self._limits.installed_bytes / (1 << 20):,.0f} MiB,"
                f" which {_shown(self._path)} would exceed",
                hint="raise build.installed_mib in the policy, or install fewer libraries",
                path=_shown(self._path),
            )

    def _check_startup(self, kind: Kind, path: str, size_bytes: int) -> None:
        """Judge what Python looks for by name, at every start or in place of ours."""
        modules = [part.partition(".")[0] for part in path.split("/")]
        if modules[0] in OWN_MODULES:
            raise _refused(path, f"has the name of a module of the sandbox's own: {modules[0]}")
        if self._limits.allow_pth:
            return
        if modules[0] in STARTUP_MODULES:
            raise _refused(path, "would run at every start of Python", hint=_ALLOW_PTH)
        if not STARTUP_MODULES.isdisjoint(modules):
            self._startup_module = path
        if len(modules) > 1 or not path.endswith(STARTUP_FILES) or kind is Kind.DIRECTORY:
            return
        if kind is Kind.LINK or path.endswith(".start"):
            raise _refused(path, "could run code at every start of Python", hint=_ALLOW_PTH)
        if size_bytes > MAX_STARTUP_BYTES:
            raise _refused(path, f"is larger than {MAX_STARTUP_BYTES >> 10} KiB", hint=_ALLOW_PTH)
        self._kept = bytearray()

    def _judge_kept(self) -> None:
        kept, self._kept = bytes(self._kept or b""), None
        if self._kinds[self._path] is Kind.LINK:
            self._targets[self._path] = _checked_target(self._path, kept)
        elif _EXECUTED.search(kept):
            if what_is_lost(kept) is None:
                raise _refused(self._path, "has lines that Python executes at every start", hint=_ALLOW_PTH)
        elif _SEARCHED.search(kept):
            self._searches_below = self._path

    def _target_problem(self, path: str, target: str) -> str:
        """Say what is wrong with where a link leads, or ""; no link may be on the way, so names alone decide."""
        place = path.split("/")[:-1]
        parts = target.split("/")
        for count, part in enumerate(parts, 1):
            if part == ".." and not place:
                return "which leaves the tree"
            place = place[:-1] if part == ".." else [*place, part]
            found = self._kinds.get("/".join(place))
            if found is None:
                return "which is not in the tree"
            if found is Kind.LINK:
                return "which is or passes through another link"
            if found is not Kind.DIRECTORY and count < len(parts):
                return "which passes through a file"
        return ""


def _checked_path(raw: bytes) -> str:
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        raise _refused(raw, "has a name that is not UTF-8") from None
    if not path.isprintable():
        raise _refused(path, "has a name with characters that can't be printed")
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        raise _refused(path, f"lies deeper than {MAX_DEPTH} directories")
    for part in parts:
        if part in {"", ".", ".."}:
            raise _refused(path, "has a name that does not lead straight into the tree")
        if len(part) * 4 > MAX_NAME_BYTES and len(part.encode()) > MAX_NAME_BYTES:
            raise _refused(path, f"has a name longer than {MAX_NAME_BYTES} bytes")
        if part.startswith(WHITEOUT):
            raise _refused(path, f"has a name that would delete another file ({WHITEOUT})")
    return path


def _checked_target(path: str, raw: bytes) -> str:
    try:
        target = raw.decode()
    except UnicodeDecodeError:
        raise _refused(path, "is a link to a path that is not UTF-8") from None
    if not target.isprintable() or {"", "."} & set(target.split("/")):
        raise _refused(path, f"is a link to {_shown(target)}, which does not lead straight into the tree")
    return target


def _shown(path: str | bytes) -> str:
    text = path.decode(errors="replace") if isinstance(path, bytes) else path
    return ascii(text) if len(text) <= 200 else f"{text[:200]!a}..."


def _refused(path: str | bytes, why: str, *, hint: str = "") -> TreeRefused:
    return TreeRefused(f"the installed file {_shown(path)} {why}", hint=hint, path=_shown(path))
