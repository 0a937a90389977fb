"""The two agreements with systemd, by environment variables: sockets that it opened, and reports of state.

Without systemd neither is there, and both functions do nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping

from sandbox.errors import InvalidRequest

FIRST_FD = 3
NOTIFY_WAIT_S = 1.0


def listen_fds(environ: MutableMapping[str, str], pid: int) -> list[int]:
    """Return the descriptors handed over to the process `pid`, closed for its children from now on.

    The variables are removed from `environ`: they are meant for no other process. Raises `InvalidRequest` when a
    promised descriptor is not open.
    """
    count, meant_for = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    for name in ("LISTEN_FDNAMES", "LISTEN_PIDFDID"):
        environ.pop(name, None)
    if meant_for != str(pid) or not (count.isascii() and count.isdigit()) or len(count) > 4:
        return []
    fds = list(range(FIRST_FD, FIRST_FD + int(count)))
    for fd in fds:
        try:
            os.set_inheritable(fd, False)  # noqa: FBT003 - takes it by position alone
        except OSError as error:
            raise InvalidRequest(
                f"LISTEN_FDS promises {count} open sockets, but descriptor {fd} can't be used: {error.strerror}",
                hint="start the service from its .socket unit, or unset LISTEN_FDS and LISTEN_PID",
            ) from None
    return fds


def reloading(now_ns: Callable[[], int] = time.monotonic_ns) -> str:
    """Return the state to tell when a reload begins; with the moment, without which Type=notify-reload ignores it."""
    return f"RELOADING=1\nMONOTONIC_USEC={now_ns() // 1000}"


def notify(environ: Mapping[str, str], state: str) -> None:
    """Tell systemd the state, such as `READY=1`; never raises, waits a second at most.

    NOTIFY_SOCKET names a socket in the file system or, after an @, an abstract one.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with (
        contextlib.suppress(OSError, ValueError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        sender.settimeout(NOTIFY_WAIT_S)
        sender.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
