"""The service's socket: nobody else reaches it, an old one is replaced, a live one is not.

Everything else is left alone, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.errors import EngineUnavailable, InvalidRequest
from sandbox.service.config.model import Socket
from sandbox.service.config.values import MAX_PATH_BYTES
from sandbox.service.door import listen
from sandbox.service.door.listen import Listener, open_socket

OWN_GROUP = grp.getgrgid(os.getegid()).gr_name
unprivileged = pytest.mark.skipif(os.geteuid() == 0, reason="root may give files to every group")
Open = Callable[..., Listener]


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(dir="/tmp"))  # a socket's path is short
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def path(place: Path) -> Path:
    return place / "private/service.sock"


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    """Return a function that opens the socket; what it opened is closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_it(*, group: str | None = None, at: Path = path) -> Listener:
            listener = open_socket(Socket(path=str(at), group=group))
            stack.callback(listener.close)
            return listener

        yield open_it


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def stale_socket(path: Path) -> None:
    """Leave what a process leaves that was killed."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


def reaches(path: Path, listener: Listener) -> bool:
    """Tell whether who connects to the path is accepted by this listener."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        listener.socket.settimeout(10)
        connection, _ = listener.socket.accept()
        with connection:
            connection.sendall(b"yes")
        return client.recv(3) == b"yes"


# ---- opening -------------------------------------------------------------------------------------


def test_socket_and_its_new_directory_are_the_owners_alone(path: Path, opened: Open) -> None:
    listener = opened()
    assert (mode_of(path.parent), mode_of(path)) == (0o700, 0o600)
    assert reaches(path, listener)
    assert not listener.socket.get_inheritable()


def test_named_group_reaches_the_socket_and_nobody_else(place: Path, path: Path, opened: Open) -> None:
    place.chmod(0o711)
    assert reaches(path, opened(group=OWN_GROUP))
    assert (mode_of(path.parent), mode_of(path)) == (0o710, 0o660)
    assert path.parent.stat().st_gid == path.stat().st_gid == grp.getgrnam(OWN_GROUP).gr_gid


@pytest.mark.parametrize("group", [None, OWN_GROUP])
def test_socket_is_never_open_to_more_than_it_will_be(place: Path, path: Path, group: str | None) -> None:
    place.chmod(0o711)
    # Whoever watches sees the file as it is before each change of owner and mode, under the widest umask.
    code = (
        "import os, sys; from pathlib import Path\n"
        "from sandbox.service.config.model import Socket; from sandbox.service.door.listen import open_socket\n"
        "path, group = Path(sys.argv[1]), sys.argv[2] or None\n"
        "def watch(event, arguments):\n"
        "    if event in ('os.chmod', 'os.chown') and os.path.lexists(path):\n"
        "        print(event, oct(path.lstat().st_mode & 0o777))\n"
        "os.umask(0); sys.addaudithook(watch)\n"
        "open_socket(Socket(path=str(path), group=group)); assert os.umask(0) == 0"
    )
    done = subprocess.run([sys.executable, "-c", code, path, group or ""], capture_output=True, text=True, timeout=60)
    seen = done.stdout.splitlines()
    assert seen == [f"{event} 0o600" for event in (["os.chown"] if group else []) + ["os.chmod"]], done.stderr


@unprivileged
def test_group_that_we_are_not_in_is_refused_and_nothing_is_left(place: Path, path: Path, opened: Open) -> None:
    place.chmod(0o711)
    with pytest.raises(InvalidRequest, match="is not in that group") as caught:
        opened(group="root")
    assert "usermod -aG root" in caught.value.hint
    assert list(place.iterdir()) == []


def test_unknown_group_is_refused_with_the_command_that_adds_it(opened: Open) -> None:
    with pytest.raises(InvalidRequest, match="no such group") as caught:
        opened(group="no-such-group")
    assert caught.value.hint == "as root: groupadd no-such-group"


def test_path_that_is_too_long_for_a_socket_is_refused(place: Path) -> None:
    # As a default: what the configuration says is checked when it is read.
    settings = Socket.model_construct(path=str(place / ("x" * MAX_PATH_BYTES)), mode=None, group=None)
    with pytest.raises(InvalidRequest, match="at most 107 bytes"):
        open_socket(settings)
    assert list(place.iterdir()) == []


def test_longest_path_that_fits_is_served(place: Path, opened: Open) -> None:
    place.chmod(0o700)
    at = place / ("x" * (MAX_PATH_BYTES - len(str(place)) - 1))
    assert reaches(at, opened(at=at))


# ---- the directory -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o755, 0o770, 0o777])
def test_directory_that_is_open_to_others_is_refused_with_the_fix(path: Path, opened: Open, mode: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    with pytest.raises(InvalidRequest, match="is open to other users") as caught:
        opened()
    assert caught.value.hint == f"chmod 0700 {path.parent}"
    assert mode_of(path.parent) == mode
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o700, 0o711, 0o715, 0o730, 0o770, 0o777])
def test_directory_for_a_group_is_for_that_group_alone(place: Path, path: Path, opened: Open, mode: int) -> None:
    place.chmod(0o711)
    path.parent.mkdir()
    path.parent.chmod(mode)
    with pytest.raises(InvalidRequest, match="for them alone") as caught:
        opened(group=OWN_GROUP)
    assert f"chmod 0710 {path.parent}" in caught.value.hint
    path.parent.chmod(0o710)
    opened(group=OWN_GROUP)


def test_group_that_can_not_come_near_is_told_before_it_wonders(place: Path, path: Path, opened: Open) -> None:
    with pytest.raises(InvalidRequest, match=f"can't reach the socket: {place} lets nobody but its owner through"):
        opened(group=OWN_GROUP)


def test_directory_that_others_could_exchange_is_refused(place: Path, path: Path, opened: Open) -> None:
    place.chmod(0o777)
    with pytest.raises(InvalidRequest, match=f"anybody may write in {place}"):
        opened()
    place.chmod(0o1777)
    opened()


def test_link_in_the_place_of_the_directory_is_refused(place: Path, path: Path, opened: Open) -> None:
    (place / "elsewhere").mkdir(mode=0o700)
    path.parent.symlink_to("elsewhere")
    with pytest.raises(InvalidRequest, match="is not a directory of user"):
        opened()
    assert list((place / "elsewhere").iterdir()) == []


@unprivileged
def test_directory_of_somebody_else_is_refused(opened: Open) -> None:
    with pytest.raises(InvalidRequest, match="the socket's directory / is not a directory of user"):
        opened(at=Path("/service.sock"))


def test_missing_directories_above_are_not_made_up(place: Path, opened: Open) -> None:
    with pytest.raises(EngineUnavailable, match="No such file or directory"):
        opened(at=place / "a/b/service.sock")
    assert list(place.iterdir()) == []


# ---- what is there already -----------------------------------------------------------------------


def test_socket_of_a_dead_service_is_replaced(path: Path, opened: Open) -> None:
    stale_socket(path)
    assert reaches(path, opened())


def test_socket_of_a_killed_service_is_replaced(path: Path, opened: Open) -> None:
    path.parent.mkdir(mode=0o700)
    code = (
        "import signal, sys; from sandbox.service.config.model import Socket; from sandbox.service.door.listen import"
        " open_socket\nlistener = open_socket(Socket(path=sys.argv[1])); print(flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        service.stdout.readline()
        with pytest.raises(InvalidRequest, match=f"process {service.pid} listens on {path} already"):
            opened()
        service.send_signal(signal.SIGKILL)
    assert reaches(path, opened())


def test_live_service_is_left_alone_and_its_process_named(path: Path, opened: Open) -> None:
    first = opened()
    with pytest.raises(InvalidRequest, match=f"process {os.getpid()} listens on {path} already") as caught:
        opened()
    assert caught.value.facts["pid"] == os.getpid()
    first.socket.accept()[0].close()  # the connection that asked
    assert reaches(path, first)


def test_service_that_is_too_busy_to_accept_is_alive(path: Path, opened: Open) -> None:
    path.parent.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(InvalidRequest, match="a process listens on"):
            opened()
        assert path.is_socket()


def test_live_socket_of_another_kind_is_left_alone(path: Path, opened: Open) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(InvalidRequest, match="listens on"):
            opened()
    assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "link", "pipe"])
def test_what_is_no_socket_is_never_removed(place: Path, path: Path, opened: Open, kind: str) -> None:
    stale_socket(place / "private/other.sock")
    if kind == "link":
        path.symlink_to("other.sock")
    else:
        {"file": os.mknod, "directory": os.mkdir, "pipe": os.mkfifo}[kind](path)
    before = path.lstat()
    with pytest.raises(InvalidRequest, match="is not a socket, so it stays as it is"):
        opened()
    assert os.path.samestat(path.lstat(), before)


def test_of_several_starts_at_once_one_replaces_the_stale_socket(path: Path) -> None:
    # Eight processes begin at the same moment, and each hesitates before it removes the old socket. "1" is from one
    # that serves, "0" from one that was refused.
    code = (
        "import os, sys, time; from sandbox.errors import SandboxError\n"
        "from sandbox.service.config.model import Socket; from sandbox.service.door.listen import open_socket\n"
        "sys.addaudithook(lambda event, _: time.sleep(0.05) if event == 'os.remove' else None)\n"
        "begin, results, end = os.pipe(), os.pipe(), os.pipe()\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        os.close(begin[1]); os.close(end[1]); os.read(begin[0], 1)\n"
        "        try: listener = open_socket(Socket(path=sys.argv[1])); said = b'1'\n"
        "        except SandboxError: said = b'0'\n"
        "        os.write(results[1], said); os.read(end[0], 1); os._exit(0)\n"
        "os.close(begin[1]); said = b''\n"
        "while len(said) < 8: said += os.read(results[0], 8)\n"
        "os.close(end[1]); print(sorted(said.decode()))"
    )
    stale_socket(path)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=100)
    assert done.stdout == f"{sorted('00000001')}\n", done.stderr


def test_lock_that_another_process_keeps_is_waited_for_only_so_long(
    path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "LOCK_WAIT_S", 0.05)
    path.parent.mkdir(mode=0o700)
    fd = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(EngineUnavailable, match="holds the lock on"):
        opened()
    os.close(fd)
    opened()


# ---- closing -------------------------------------------------------------------------------------


def test_close_removes_the_socket(path: Path, opened: Open) -> None:
    listener = opened()
    listener.close()
    listener.close()
    assert list(path.parent.iterdir()) == []


def test_close_leaves_the_socket_of_a_successor(path: Path, opened: Open) -> None:
    first = opened()
    path.unlink()
    second = opened()
    first.close()
    assert reaches(path, second)


def test_close_knows_a_successor_also_when_the_socket_was_closed_before(path: Path, opened: Open) -> None:
    first = opened()
    first.socket.close()  # as an event loop does
    second = opened()
    first.close()
    assert reaches(path, second)


def test_close_is_quiet_when_the_directory_is_gone(path: Path, opened: Open) -> None:
    listener = opened()
    shutil.rmtree(path.parent)
    listener.close()
    assert listener.socket.fileno() == -1


def test_open_and_close_leak_no_descriptor(path: Path, opened: Open) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        opened().close()
    assert os.listdir("/proc/self/fd") == before


# ---- handed over by systemd ----------------------------------------------------------------------


@contextlib.contextmanager
def handed(
    place: Path, *, mode: int = 0o660, kind: int = socket.SOCK_STREAM, listening: bool = True
) -> Iterator[list[int]]:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(place / "s"))
    (place / "s").chmod(mode)
    if listening:
        sock.listen()
    yield [sock.detach()]


def test_handed_over_socket_is_used_and_stays(place: Path) -> None:
    with handed(place) as fds:
        listener = open_socket(Socket(), inherited=fds)
        assert listener.path is None
        assert reaches(place / "s", listener)
        listener.close()
        assert (place / "s").is_socket()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kind": socket.SOCK_DGRAM, "listening": False}, "is not a Unix stream socket"),
        ({"listening": False}, "does not listen"),
        ({"mode": 0o662}, "is open to everybody: .*/s has the mode 0662"),
    ],
)
def test_handed_over_socket_that_we_would_not_have_opened_is_refused(
    place: Path, options: dict[str, int], problem: str
) -> None:
    with (
        handed(place, **options) as fds,  # type: ignore[arg-type]
        pytest.raises(InvalidRequest, match=f"that systemd handed over {problem}") as caught,
    ):
        open_socket(Socket(), inherited=fds)
    assert "SocketMode=0660" in caught.value.hint


def test_handed_over_socket_of_the_network_is_refused() -> None:
    with socket.socket(socket.AF_INET) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with pytest.raises(InvalidRequest, match="is not a Unix stream socket"):
            open_socket(Socket(), inherited=[os.dup(sock.fileno())])


def test_handed_over_abstract_socket_is_refused() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0sandbox-test-listen-{os.getpid()}")
        sock.listen()
        with pytest.raises(InvalidRequest, match="has no path"):
            open_socket(Socket(), inherited=[os.dup(sock.fileno())])


def test_only_one_socket_is_taken() -> None:
    with pytest.raises(InvalidRequest, match="handed over 2 sockets; the service takes one"):
        open_socket(Socket(), inherited=[3, 4])


def test_handed_over_file_is_refused(place: Path) -> None:
    with (place / "f").open("w") as file, pytest.raises(InvalidRequest, match="is no socket"):
        open_socket(Socket(), inherited=[file.fileno()])
