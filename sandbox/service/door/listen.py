"""The service's socket: opened so that nobody else ever reaches it, and removed only while it is still ours.

A socket in the file system outlives its process, so an old one is told from a live one by connecting. Looking and
replacing happen under a lock on the directory; two starts at once can't both find the old socket and replace it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import shlex
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import EngineUnavailable, InvalidRequest, SandboxError
from sandbox.service.config.model import Socket
from sandbox.service.config.values import MAX_PATH_BYTES
from sandbox.service.door.access import peer_of

BACKLOG = 512
LOCK_WAIT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The group that the socket is for."""

    gid: int
    name: str


class Listener:
    """A listening socket. `path` is None where systemd opened it: then it isn't ours to remove."""

    def __init__(self, opened: socket.socket, path: Path | None) -> None:
        self.socket = opened
        self.path = path
        # Held open, so that no other file can get the inode's number while we compare with it.
        self._file = None if path is None else os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)

    def close(self) -> None:
        """Stop listening and remove the socket from the file system, unless another one has taken its place."""
        if self.path is not None and self._file is not None:
            file, self._file = self._file, None
            # What can't be removed now is recognised as stale by the next start.
            with contextlib.suppress(OSError, SandboxError), _locked(self.path.parent):
                if os.path.samestat(self.path.lstat(), os.fstat(file)):
                    self.path.unlink()
            os.close(file)
        self.socket.close()


def open_socket(settings: Socket, *, inherited: Sequence[int] = ()) -> Listener:
    """Return a socket that listens: the one that systemd handed over, else a new one at `settings.path`.

    Raises `InvalidRequest` where the path, its directory, the group or a handed-over socket is not as it must be, or
    where a service listens already; `EngineUnavailable` where the system refuses.
    """
    if inherited:
        return Listener(_handed_over(inherited), None)
    path = Path(settings.path)
    if not path.is_absolute() or len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise InvalidRequest(
            f"the socket's path {path} is not an absolute path of at most {MAX_PATH_BYTES} bytes",
            hint="set socket.path to a shorter one, such as /run/podman-sandbox-runner/service.sock",
        )
    group = None if settings.group is None else _group(settings.group)
    try:
        _prepare(path.parent, group)
        with _locked(path.parent):
            _make_room(path)
            return _listen(path, settings.permissions, group)
    except OSError as error:
        raise EngineUnavailable(
            f"the socket {path} can't be opened: {error.strerror}",
            hint="correct the directory, or set socket.path to another",
        ) from None


def _group(name: str) -> _Group:
    try:
        return _Group(gid=grp.getgrnam(name).gr_gid, name=name)
    except KeyError:
        raise InvalidRequest(
            f"socket.group is {name}, but there is no such group", hint=f"as root: groupadd {shlex.quote(name)}"
        ) from None


# ---- the directory -------------------------------------------------------------------------------


def _prepare(directory: Path, group: _Group | None) -> None:
    """Create the directory where it is missing, and check that it lets in the right people, and no others."""
    created = False
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)  # not its parents: nobody said whose they are
        created = True
    if created and group is not None:
        try:
            _give(directory, group, 0o710)
        except InvalidRequest:
            directory.rmdir()
            raise
    status = directory.lstat()
    quoted = shlex.quote(str(directory))
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise InvalidRequest(
            f"the socket's directory {directory} is not a directory of user {os.geteuid()}",
            hint="set socket.path to a place in a directory of this user",
        )
    if group is None and status.st_mode & 0o077:
        raise InvalidRequest(f"the socket's directory {directory} is open to other users", hint=f"chmod 0700 {quoted}")
    if group is not None and (status.st_gid != group.gid or status.st_mode & 0o037 != 0o010):
        raise InvalidRequest(
            f"the socket's directory {directory} is not for the members of {group.name} to pass through, and for them"
            " alone",
            hint=(
                f"chgrp {shlex.quote(group.name)} {quoted} && chmod 0710 {quoted}; or set socket.path to another place"
            ),
        )
    for parent in directory.parents:
        _check_parent(parent, directory, group)


def _check_parent(parent: Path, directory: Path, group: _Group | None) -> None:
    mode = parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise InvalidRequest(
            f"anybody may write in {parent}, and so could put something else in the place of {directory}",
            hint=f"chmod o-w {shlex.quote(str(parent))}; or set socket.path to another place",
        )
    if group is not None and not mode & 0o011:
        raise InvalidRequest(
            f"members of {group.name} can't reach the socket: {parent} lets nobody but its owner through",
            hint="set socket.path to a place that they reach, such as /run/podman-sandbox-runner/service.sock",
        )


def _give(path: Path, group: _Group, mode: int) -> None:
    """Hand a file of ours to a group; only then may the mode let the group in."""
    try:
        os.chown(path, -1, group.gid)
    except PermissionError:
        raise InvalidRequest(
            f"socket.group is {group.name}, but user {os.geteuid()} is not in that group and so can't hand a socket"
            " to it",
            hint=(
                f"as root: usermod -aG {shlex.quote(group.name)} USER, for the user of the service; then start it anew"
            ),
        ) from None
    path.chmod(mode)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock on a directory. Raises `EngineUnavailable` when another process keeps it for too long."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EngineUnavailable(
                        f"another start of the service holds the lock on {directory}",
                        hint=f"wait for it, or look for it with: fuser {shlex.quote(str(directory))}",
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)


# ---- the socket ----------------------------------------------------------------------------------


def _make_room(path: Path) -> None:
    """Remove what a service that died left. Raises `InvalidRequest` for a live one, and for what is no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidRequest(
            f"{path} is not a socket, so it stays as it is", hint="move it away, or set socket.path to another place"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)  # noqa: FBT003 - takes it by position alone
        reached = probe.connect_ex(str(path))
        if reached == errno.ECONNREFUSED:  # the one answer that says that nobody has it open
            path.unlink()
            return
        pid = peer_of(probe).pid if reached == 0 else 0
    who = f"process {pid}" if pid > 0 else "a process"
    raise InvalidRequest(
        f"{who} listens on {path} already", hint="stop it first, or set socket.path to another place", pid=pid or None
    )


def _listen(path: Path, mode: int, group: _Group | None) -> Listener:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        before = os.umask(0o177)
        try:
            opened.bind(str(path))
        finally:
            os.umask(before)
        try:
            if group is not None:
                _give(path, group, mode)
            else:
                path.chmod(mode)
            opened.listen(BACKLOG)  # only now can anybody connect
            return Listener(opened, path)
        except BaseException:
            path.unlink()
            raise
    except BaseException:
        opened.close()
        raise


def _handed_over(fds: Sequence[int]) -> socket.socket:
    """Return the socket that systemd opened, if it is one that we would have opened."""
    fix = "the .socket unit needs ListenStream= with one path, and SocketMode=0660 or 0600"
    if len(fds) != 1:
        raise InvalidRequest(f"systemd handed over {len(fds)} sockets; the service takes one", hint=fix)
    try:
        opened = socket.socket(fileno=fds[0])
    except OSError as error:
        raise InvalidRequest(f"what systemd handed over is no socket: {error.strerror}", hint=fix) from None
    problem = _misfit(opened)
    if problem:
        opened.close()
        raise InvalidRequest(f"the socket that systemd handed over {problem}", hint=fix)
    return opened


def _misfit(opened: socket.socket) -> str:
    """Return what is wrong with a handed-over socket, or an empty text."""
    if opened.family != socket.AF_UNIX or opened.type != socket.SOCK_STREAM:
        return "is not a Unix stream socket"
    if not opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen"
    name = opened.getsockname()
    if not isinstance(name, str) or not name.startswith("/"):
        return "has no path, and so no mode that keeps others out"
    try:  # to connect, one must be allowed to write
        mode = Path(name).lstat().st_mode
    except OSError as error:
        return f"can't be looked at: {name}: {error.strerror}"
    return f"is open to everybody: {name} has the mode {stat.S_IMODE(mode):04o}" if mode & stat.S_IWOTH else ""
