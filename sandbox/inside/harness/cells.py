"""Makes cells: forks of process 1 in namespaces of their own."""

from __future__ import annotations

import gc
import os
import struct
from _socket import AF_INET, SOCK_DGRAM, socket

from sandbox.inside.harness.child import Child
from sandbox.inside.harness.connection import Connection, HarnessError
from sandbox.inside.harness.failures import setup_error
from sandbox.inside.harness.limits import EXIT_BROKEN
from sandbox.inside.harness.process import set_dumpable, set_limits, write_at_once
from sandbox.inside.harness.program import rehearse
from sandbox.inside.harness.serving import FAREWELL_S, live, say_ready, serve
from sandbox.inside.harness.text import clean
from sandbox.inside.harness.unseen import unseen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class CellError(Exception):
    """A cell can't be made here, in words for the receipt."""


class CellMaker:
    """Process 1 of a warm container: makes a cell for each run.

    It never reads a message nor runs a line of a user's code. A cell is a fork of this process in user, pid, mount,
    ipc, net and uts namespaces of its own, with writable places of its own, no capability and the filter that a
    container's program has. Its process 1 then is what process 1 of a container is, on a channel of its own. Source:
    user_namespaces(7), mount_namespaces(7), seccomp(2).
    """

    # unshare(2): CLONE_NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
    NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
    MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
    PR_CAPBSET_DROP, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 24, 22, 2
    CAPABILITY_VERSION = 0x20080522
    SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

    def __init__(self, connection: Connection, app_dir: str, order: dict[str, Any]) -> None:
        """Take `order`: how cells are made.

        That is the filter as base64 of its instructions, the limits, the writable places, what is to be covered, and
        the terminals.
        """
        import _signal as signal  # type: ignore[import-not-found]
        import ctypes
        import resource  # noqa: F401 - for the limits and the report
        from binascii import a2b_base64
        from fcntl import ioctl

        self.connection = connection
        self.app_dir = app_dir
        self.places: list[tuple[str, int, bool]] = [tuple(place) for place in order["places"]]
        self.limits: dict[str, int] = order["limits"]
        self.terminals: str = order["terminals"]
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.errno = ctypes.get_errno
        self.ioctl = ioctl
        instructions = a2b_base64(order["filter"])
        self._instructions = ctypes.create_string_buffer(instructions, len(instructions))
        address = ctypes.cast(self._instructions, ctypes.c_void_p).value or 0
        self.filter = struct.pack("HxxxxxxP", len(instructions) // 8, address)  # struct sock_fprog
        with open("/proc/sys/kernel/cap_last_cap") as file:
            self.last_capability = int(file.read())
        self.user, self.group = os.getuid(), os.getgid()
        self.devices = [place for place in order["devices"] if os.path.ismount(place)]
        self.directories = [place for place in order["covered"] if os.path.isdir(place)]
        self.files = [place for place in order["covered"] if os.path.exists(place) and not os.path.isdir(place)]
        rehearse(app_dir)
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for cells: the runner sees their end

    @unseen
    def make_cells(self) -> NoReturn:
        """Make a cell for every channel that comes, until the runner is gone."""
        while True:
            channel = self.connection.next_channel()
            if channel is None:
                os._exit(0)
            try:
                pid = os.fork()
            except OSError:
                pid = -1  # the channel's end tells the runner
            if pid == 0:
                live(self._become_cell, Connection(channel))
            channel.close()

    @unseen
    def _become_cell(self, connection: Connection) -> None:
        """Move into a cell and take its one job there."""
        self.connection.close()
        try:
            self._unshare()
            if os.fork():
                os._exit(0)
            self._furnish()
            self._surrender()
        except (CellError, OSError) as error:
            connection.put(b"X", setup_error(clean(str(error)), kind="CellError", cause=None))
            os._exit(EXIT_BROKEN)
        child = Child(connection, self.app_dir, preloaded=True, ahead=True, rehearsed=True)
        if not child.settled():
            raise HarnessError("the program's process did not get ready")
        say_ready(connection)
        serve(connection, self.app_dir, True, child, *connection.read())  # noqa: FBT003 - preloaded, as the parameter says
        connection.settle(FAREWELL_S)

    def _check(self, answer: int, what: str) -> None:
        if answer != 0:
            number = self.errno()
            raise CellError(f"{what}: {os.strerror(number)}")

    def _unshare(self) -> None:
        """Leave every namespace of the container; the next fork is process 1 of a new one."""
        import _signal as signal

        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # no group of processes goes beyond the cell
        # The kernel gives /proc files of a process that hides to root, who isn't here: its maps could not be written.
        set_dumpable(1)
        write_at_once("/proc/self/oom_score_adj", "500")  # when memory runs out, a cell dies, and not its maker
        self._check(self.libc.unshare(self.NAMESPACES), "new namespaces")
        write_at_once("/proc/self/setgroups", "deny")
        write_at_once("/proc/self/uid_map", f"{self.user} {self.user} 1")
        write_at_once("/proc/self/gid_map", f"{self.group} {self.group} 1")

    def _mount(self, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        answer = self.libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode())
        self._check(answer, f"mounting {target}")

    def _furnish(self) -> None:
        """Give the cell writable places of its own, and cover what it would share with others."""
        safe = self.MS_NOSUID | self.MS_NODEV
        for target, size_mib, executable in self.places:
            flags = safe | (0 if executable else self.MS_NOEXEC)
            self._mount("tmpfs", target, "tmpfs", flags, f"size={size_mib}m,mode=0700")
        # The container's would show the maker, and every other cell.
        self._mount("proc", "/proc", "proc", safe | self.MS_NOEXEC | self.MS_RDONLY)
        empty = self.directories[0]  # one for all: a file system for each place takes longer to make
        self._mount("tmpfs", empty, "tmpfs", safe | self.MS_NOEXEC | self.MS_RDONLY, "size=4k,mode=0555")
        for place in self.directories[1:]:
            self._mount(empty, place, "", self.MS_BIND)
        for place in self.files:
            self._mount("/dev/null", place, "", self.MS_BIND)
        if os.path.isdir("/dev/pts"):
            self._mount("devpts", "/dev/pts", "devpts", self.MS_NOSUID | self.MS_NOEXEC, self.terminals)
        for device in self.devices:  # the host's own: writing to them is no change, but setting their times is
            self._mount(
                "", device, "", self.MS_REMOUNT | self.MS_BIND | self.MS_RDONLY | self.MS_NOSUID | self.MS_NOEXEC
            )
        os.chdir(self.app_dir)
        self._loopback()

    def _loopback(self) -> None:
        """Bring the loopback interface up, as a container has it. Source: netdevice(7)."""
        control = socket(AF_INET, SOCK_DGRAM)
        request = bytearray(struct.pack("16sh22x", b"lo", 0))
        self.ioctl(control.fileno(), self.SIOCGIFFLAGS, request, True)  # noqa: FBT003 - changes `request`
        flags = struct.unpack_from("h", request, 16)[0]
        struct.pack_into("h", request, 16, flags | self.IFF_UP)
        self.ioctl(control.fileno(), self.SIOCSIFFLAGS, bytes(request))
        control.close()

    def _surrender(self) -> None:
        """Take on the limits, give up every capability, then take on the filter; nothing can undo any of it."""
        set_limits(self.limits)
        for number in range(self.last_capability + 1):
            self._check(self.libc.prctl(self.PR_CAPBSET_DROP, number, 0, 0, 0), "dropping a capability")
        header, data = struct.pack("Ii", self.CAPABILITY_VERSION, 0), bytes(24)
        self._check(self.libc.capset(header, data), "giving up capabilities")
        set_dumpable(0)
        self._check(
            self.libc.prctl(self.PR_SET_SECCOMP, self.SECCOMP_MODE_FILTER, self.filter, 0, 0), "installing the filter"
        )
