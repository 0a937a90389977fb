"""Files that a command names, read with the caller's own rights."""

from __future__ import annotations

import sys
from pathlib import Path

from sandbox.errors import InvalidRequest, NotFound

# Far above what any policy takes; keeps a mistake such as --input @/dev/zero from eating the host's memory.
MAX_INPUT_BYTES = 512 << 20
MAX_TEXT_BYTES = 4 << 20


def read_bytes(path: str, *, what: str, max_bytes: int = MAX_INPUT_BYTES) -> bytes:
    """Return a file's content, or standard input for `-`. Raises `NotFound` or `InvalidRequest`."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(max_bytes + 1)
        else:
            with Path(path).open("rb") as stream:
                data = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise NotFound(f"{what} {path} does not exist", hint="check the path") from None
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
