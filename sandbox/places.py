"""Where things lie on disk: the runtime, data and configuration directories of the calling user."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sandbox.errors import EngineUnavailable

NAME = "podman-sandbox-runner"
MAX_RUNTIME_DIR_CHARS = 60  # below it: /podman-sandbox-runner/runs/UID/job/job.sock


def user_runtime_dir() -> Path:
    """Return the user's runtime directory, checked to be private.

    Raises `EngineUnavailable` when it is missing, belongs to someone else or lets others in: the job sockets and
    Podman's own socket lie there.
    """
    path = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    fix = f"as root: install -d -m 0700 -o {os.getuid()} -g {os.getgid()} {path}"
    try:
        status = path.lstat()
    except OSError as error:
        raise EngineUnavailable(f"the runtime directory {path} can't be used: {error.strerror}", hint=fix) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise EngineUnavailable(f"the runtime directory {path} does not belong to user id {os.getuid()}", hint=fix)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise EngineUnavailable(
            f"the runtime directory {path} is not private (mode {stat.S_IMODE(status.st_mode):04o})",
            hint=f"chmod 0700 {path}",
        )
    return path


def private_directory(path: Path) -> Path:
    """Create `path` for this user alone, with its parents, and return it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EngineUnavailable(
            f"the directory {path} can't be created: {error.strerror}",
            hint="free some space, or mend its parent's owner",
        ) from None
    return path


def runtime_dir() -> Path:
    """Return our own directory for sockets, workspaces and what was probed; emptied by a reboot."""
    path = user_runtime_dir()
    if len(str(path)) > MAX_RUNTIME_DIR_CHARS:
        raise EngineUnavailable(
            f"the runtime directory {path} has too long a name: a socket's path may have 107 characters in all",
            hint=f"set XDG_RUNTIME_DIR to a directory of at most {MAX_RUNTIME_DIR_CHARS} characters",
        )
    os.environ["XDG_RUNTIME_DIR"] = str(path)
    return private_directory(path / NAME)


def cache_dir() -> Path:
    """Return our own cache: all of it can be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME")
    return private_directory((Path(base) if base else Path.home() / ".cache") / NAME)


def data_dir() -> Path:
    """Return our own directory for what is worth keeping: locks and the records of environments."""
    return private_directory(usual_data_dir())


def usual_data_dir() -> Path:
    """Return where that directory is; looks at nothing."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local/share") / NAME
