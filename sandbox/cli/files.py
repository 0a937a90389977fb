"""Files that a command names, read and written with the caller's own rights."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from sandbox.errors import InvalidRequest, NotFound

# Far above what any policy takes; keeps a mistake such as --input @/dev/zero from eating the host's memory.
MAX_INPUT_BYTES = 512 << 20
MAX_TEXT_BYTES = 4 << 20


def read_bytes(path: str, *, what: str, max_bytes: int = MAX_INPUT_BYTES) -> bytes:
    """Return a file's content, or standard input for `-`. Raises `NotFound` or `InvalidRequest`."""
    if not path:  # which would be the working directory
        raise InvalidRequest(
            f"{what} has an empty name", hint="name a file; a variable of the shell that is not set gives an empty text"
        )
    try:
        if path == "-":
            data = sys.stdin.buffer.read(max_bytes + 1)
        else:
            with Path(path).open("rb") as stream:
                data = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise NotFound(f"{what} {path} does not exist", hint="check the path") from None
    except IsADirectoryError:
        raise InvalidRequest(f"{what} {path} is a directory", hint="name a file") from None
    except OSError as error:
        raise InvalidRequest(
            f"{what} {path} can't be read: {error.strerror}", hint="check the path and its permissions"
        ) from None
    if len(data) > max_bytes:
        raise InvalidRequest(
            f"{what} {path} has more than {max_bytes >> 20} MiB",
            hint="send less (limits.payload_mib says how much)",
        )
    return data


def read_text(path: str, *, what: str, max_bytes: int = MAX_INPUT_BYTES) -> str:
    """Return a file's content as text. Raises as `read_bytes` does."""
    try:
        return read_bytes(path, what=what, max_bytes=max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{what} {path} is not UTF-8 text: byte {error.start + 1}", hint="save it as UTF-8"
        ) from None


class Target:
    """A file that is opened before the work that gives its content, so that no work is wasted.

    It keeps its old content until then. Raises `InvalidRequest` where it can't be opened or written.
    """

    def __init__(self, path: str, what: str) -> None:
        self._path, self._what = path, what
        self._new = not os.path.lexists(path)
        with self._explained():
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._fd

    def write(self, text: str) -> None:
        """Replace its content."""
        with self._explained(), open(self._fd, "w", encoding="utf-8", closefd=False) as stream:
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.ftruncate(self._fd, 0)
            stream.write(text)
        self._new = False

    def close(self) -> None:
        """Close it; a new file that was not written goes, where its directory is still ours to write."""
        os.close(self._fd)
        if self._new:
            with contextlib.suppress(OSError):
                Path(self._path).unlink()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InvalidRequest(
                f"{self._what} can't be written to {self._path}: {error.strerror}",
                hint="name a file that you may write, with room for it",
            ) from None
