"""Where things are on disk: the runtime, data and configuration directories of the calling user."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from sandbox.errors import EngineUnavailable, NotFound

NAME = "podman-sandbox-runner"
MAX_RUNTIME_DIR_CHARS = 60  # below it: /podman-sandbox-runner/runs/UID/job/job.sock
RUN_USER = Path("/run/user")
SHARED = Path("/tmp")  # noqa: S108 - what lies there is checked to be ours alone before it is used


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the user's home: $HOME, or where that is no absolute path, the account's own.

    Raises `EngineUnavailable` for a user without either.
    """
    named = Path(environ.get("HOME", ""))
    if named.is_absolute():
        return named
    import pwd

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise EngineUnavailable(
            f"user id {os.getuid()} has no home directory", hint="set HOME to a directory of this user"
        ) from None


def below_home(variable: str, usual: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return our own directory below the one that an XDG variable names, or `usual` in the home.

    A relative path counts as none: https://specifications.freedesktop.org/basedir-spec/latest/
    """
    named = Path(environ.get(variable, ""))
    return (named if named.is_absolute() else home(environ) / usual) / NAME


def user_runtime_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the user's runtime directory, not yet checked to be private.

    $XDG_RUNTIME_DIR where that is a directory of this user, else systemd's, else one in /tmp, as Podman has it: after
    `su`, in cron and for users without a session the variable is missing, or another user's. Raises `EngineUnavailable`
    where the one in /tmp is somebody else's: who asks may be a client, which would tell its secrets to a socket there.
    """
    return session_runtime_path(environ) or _made(shared_runtime_path())


def session_runtime_path(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the runtime directory that a session gave this user; None without any."""
    named = Path(environ.get("XDG_RUNTIME_DIR", ""))
    usual = RUN_USER / str(os.getuid())
    return next((path for path in (named, usual) if path.is_absolute() and is_own_directory(path)), None)


def shared_runtime_path() -> Path:
    """Return the one for a user without a session, which need not be there."""
    return SHARED / f"{NAME}-{os.getuid()}"


def _made(path: Path) -> Path:
    """Return the directory in /tmp, made where it is missing: once it is ours, the sticky bit keeps it ours."""
    with contextlib.suppress(OSError):  # what is there instead is told below
        path.mkdir(mode=0o700)
    if not is_own_directory(path):
        raise EngineUnavailable(
            f"the runtime directory {path} does not belong to user id {os.getuid()}",
            hint=f"as root: install -d -m 0700 -o {os.getuid()} -g {os.getgid()} {RUN_USER / str(os.getuid())}",
        )
    return _private(path)


def _private(path: Path) -> Path:
    mode = stat.S_IMODE(path.lstat().st_mode)
    if mode & 0o077:
        raise EngineUnavailable(
            f"the runtime directory {path} is not private (mode {mode:04o})", hint=f"chmod 0700 {path}"
        )
    return path


def is_own_directory(path: Path) -> bool:
    """Tell whether `path` is a directory of this user, and no link to one."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def user_runtime_dir() -> Path:
    """Return the user's runtime directory, checked to be private.

    Raises `EngineUnavailable` when it lets others in: the job sockets and Podman's own socket lie there.
    """
    return _private(user_runtime_path())


def private_directory(path: Path) -> Path:
    """Create `path` for this user alone, with its parents, and return it; one of ours that is open to others is closed.

    Raises `EngineUnavailable` where it can't be made, or belongs to another user.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077:
            path.chmod(0o700)  # a set-up of an earlier version, or a umask, left it open
    except OSError as error:
        raise EngineUnavailable(
            f"the directory {path} can't be created: {error.strerror}",
            hint="free some space, or correct its parent's owner",
        ) from None
    if status.st_uid != os.geteuid():
        raise EngineUnavailable(
            f"the directory {path} belongs to user id {status.st_uid}",
            hint=f"as root: chown -R {os.geteuid()}:{os.getegid()} {path}",
        )
    return path


def runtime_dir() -> Path:
    """Return our own directory for sockets, workspaces and what was probed; emptied by a reboot."""
    path = user_runtime_dir()
    if len(str(path)) > MAX_RUNTIME_DIR_CHARS:
        raise EngineUnavailable(
            f"the runtime directory {path} has too long a name: a socket's path may have 107 characters in all",
            hint=f"set XDG_RUNTIME_DIR to a directory of at most {MAX_RUNTIME_DIR_CHARS} characters",
        )
    return private_directory(path / NAME)


def cache_dir() -> Path:
    """Return our own cache: all of it can be deleted at any time."""
    return private_directory(below_home("XDG_CACHE_HOME", ".cache"))


def data_dir() -> Path:
    """Return our own directory for what is worth keeping: locks, records of environments, the history."""
    return private_directory(usual_data_dir())


def usual_data_dir() -> Path:
    """Return where that directory is; looks at nothing."""
    return below_home("XDG_DATA_HOME", ".local/share")


def config_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the user's own directory for policies and the service's configuration, which need not be there."""
    return below_home("XDG_CONFIG_HOME", ".config", environ)


WHAT = "service configuration"


def find_config(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return `path`, else the file that $SANDBOX_CONFIG names, else the user's, else the system's; None without any.

    Raises `NotFound` where $SANDBOX_CONFIG names none.
    """
    if path is None and (named := environ.get("SANDBOX_CONFIG")):
        path = Path(named)
        from sandbox.toml_file import exists

        if not exists(path):
            raise NotFound(
                f"the {WHAT} {path.absolute()} does not exist", hint="$SANDBOX_CONFIG names it: correct or unset that"
            )
    if path is not None:
        return path.absolute()
    from sandbox.toml_file import exists

    try:
        user = [config_dir(environ) / "service.toml"]
    except EngineUnavailable:  # a user without a home
        user = []
    return next((file for file in [*user, Path("/etc") / NAME / "service.toml"] if exists(file)), None)


def usual_socket(environ: Mapping[str, str]) -> str:
    """Return where the service of this user listens unless something names another place."""
    return str(user_runtime_path(environ) / NAME / "service.sock")


def named_socket(environ: Mapping[str, str]) -> str | None:
    """Return where the service listens, as this user, or an administrator, has it: None when nobody says.

    $SANDBOX_SOCKET is for clients alone; then `socket.path` of the configuration, from its variable or its file. Raises
    `NotFound`, `InvalidRequest` for a file that can't be read, as the service would.
    """
    if said := environ.get("SANDBOX_SOCKET") or environ.get("SANDBOX_SOCKET__PATH", "").strip("\"'"):
        return said
    file = find_config(None, environ)
    if file is None:
        return None
    from sandbox.toml_file import read_toml

    section = read_toml(file, what=WHAT).data.get("socket")
    path = section.get("path") if isinstance(section, dict) else None
    return path if isinstance(path, str) else None
