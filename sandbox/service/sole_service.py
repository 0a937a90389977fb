"""The directory that one service alone uses as long as it lives: its lock, and who holds it.

The kernel drops the lock of a process that ends, however it ends. No other program inherits it, nor does a fork keep
it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from sandbox.errors import EngineUnavailable, InvalidRequest
from sandbox.places import private_directory

LOCK = "service.lock"
# A service that was killed holds its lock until the kernel has taken it apart.
WAIT_S = 2.0
POLL_S = 0.02


@contextlib.contextmanager
def sole_service(directory: Path, *, socket: str) -> Iterator[None]:
    """Use a directory alone for the block; `socket` is where others are told that it is served.

    Raises `InvalidRequest`, with who it is, where another service uses it.
    """
    path = private_directory(directory) / LOCK
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EngineUnavailable(
            f"the lock {path} can't be opened: {error.strerror}", hint="correct its owner and mode"
        ) from None
    held = [fd]
    os.register_at_fork(after_in_child=lambda: _close(held))
    try:
        _take(fd, directory)
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "socket": socket}).encode(), 0)
        yield
    finally:
        held.clear()
        os.close(fd)


def is_served(directory: Path) -> bool:
    """Tell whether a service that lives uses a directory."""
    try:
        fd = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:  # it can't be told, and so no run is said to have ended with its service
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _close(held: list[int]) -> None:
    while held:
        os.close(held.pop())


def _take(fd: int, directory: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _taken(fd, directory) from None
        except OSError as error:
            raise EngineUnavailable(
                f"the lock {directory / LOCK} can't be taken: {error.strerror}",
                hint="name a directory of a file system that has locks, as history.directory in the configuration",
            ) from None
        time.sleep(POLL_S)


def _taken(fd: int, directory: Path) -> InvalidRequest:
    """Return who holds the lock, in words."""
    who, stop, pid = "another service", "stop that one first", None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        holder = json.loads(os.pread(fd, 4096, 0))
        pid, place = int(holder["pid"]), str(holder["socket"])
        who, stop = f"the service with the process id {pid}, on {place},", f"stop that one first (kill {pid})"
    return InvalidRequest(
        f"{who} keeps its history in {directory}, which is for one service alone",
        hint=(
            f"{stop}, or give this one a directory of its own: set history.directory in its configuration, "
            "or the variable SANDBOX_HISTORY__DIRECTORY"
        ),
        pid=pid,
    )
