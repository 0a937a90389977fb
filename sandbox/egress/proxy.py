"""The egress proxy of one sandbox: a Unix socket, who may use it, how often, and the records of what was asked."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from sandbox.egress.connection import STILL_OPEN, EgressCaps, EgressConnection, Surroundings
from sandbox.egress.own_addresses import own_addresses
from sandbox.egress.refusal import Refusal
from sandbox.egress.rules import Allowlist
from sandbox.egress.splice import Meter
from sandbox.egress.upstream import Resolve, Upstream, system_resolve
from sandbox.errors import Internal

if TYPE_CHECKING:
    from sandbox.models import EgressRecord

__all__ = ["EgressCaps", "EgressProxy"]

MAX_RECORDS = 1_000
BACKLOG = 1_024
PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
CANCEL_AGAIN_S = 0.2
ACCEPT_AGAIN_S = 0.1


class EgressProxy:
    """Serves one sandbox from entering to leaving, as an asynchronous context manager; then nothing is left of it.

    The directory of `socket_path` must be private. Only processes of `peer_uid` (of this host) are served. Rules and
    caps hold for the whole life. `resolve` gives the addresses of a host, by default the host's own resolver;
    `on_bytes` is told of each number of bytes that pass. `own_addresses` are this host's, read when not given.
    `upstream` is the way on from here, directly by default.

    `records` has the first 1000 connections in the order of their end, `records_dropped` the number of further ones.
    """

    def __init__(
        self,
        *,
        socket_path: Path,
        peer_uid: int,
        allow: Allowlist,
        caps: EgressCaps,
        resolve: Resolve | None = None,
        on_bytes: Callable[[int], None] | None = None,
        own_addresses: frozenset[str] | None = None,
        upstream: Upstream = Upstream(),  # noqa: B008 - frozen
    ) -> None:
        self._socket_path = socket_path
        self._peer_uid = peer_uid
        self._allow = allow
        self._caps = caps
        self._resolve = resolve or system_resolve
        self._on_bytes = on_bytes
        self._own = own_addresses
        self._upstream = upstream
        self._accepted = 0
        self._serving: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._listener: socket.socket
        self._around: Surroundings
        self.records: list[EgressRecord] = []
        self.records_dropped = 0

    @property
    def refusals(self) -> tuple[str, ...]:
        """The reasons why connections were not let through, in words, each once."""
        refused = [record.reason for record in self.records if not record.allowed and record.reason != STILL_OPEN]
        return tuple(dict.fromkeys(refused))

    async def __aenter__(self) -> EgressProxy:
        """Bind the socket. Raises NotEnforceable without this host's addresses, Internal when it can't be bound."""
        self._around = Surroundings(
            allow=self._allow,
            caps=self._caps,
            meter=Meter(self._caps.transfer_bytes, self._on_bytes),
            resolve=self._resolve,
            own=own_addresses() if self._own is None else self._own,
            upstream=self._upstream,
        )
        self._loop = asyncio.get_running_loop()
        self._listener = self._bound()
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut every connection and remove the socket, also while being cancelled."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._socket_path.unlink(missing_ok=True)
        interruption: asyncio.CancelledError | None = None
        while self._serving:
            for task in self._serving:
                task.cancel()
            try:
                # Before Python 3.12, wait_for may swallow one cancellation; it won't swallow two.
                await asyncio.wait(self._serving, timeout=CANCEL_AGAIN_S)
            except asyncio.CancelledError as cancelled:
                interruption = cancelled
        if interruption is not None:
            raise interruption

    def _bound(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.bind(str(self._socket_path))
        except OSError as error:
            listener.close()
            raise Internal(
                f"the egress socket {self._socket_path} can't be made: {error.strerror or error}",
                hint="check the space and the permissions of the runtime directory",
            ) from None
        self._socket_path.chmod(0o666)  # the sandbox's user has another uid; the directory above is ours alone
        listener.listen(BACKLOG)
        return listener

    def _listen(self) -> None:
        """Take connections, as long as there is room for one more; the others wait in the socket's queue."""
        if self._listener.fileno() >= 0 and len(self._serving) < self._caps.simultaneous:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no file descriptor is free: others will end
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_AGAIN_S, self._listen)
            return
        client.settimeout(0)
        connection = EgressConnection(client, self._around)
        task = self._loop.create_task(self._serve(client, connection))
        self._serving.add(task)
        task.add_done_callback(lambda _: self._ended(task, connection))
        if len(self._serving) >= self._caps.simultaneous:
            self._loop.remove_reader(self._listener)

    async def _serve(self, client: socket.socket, connection: EgressConnection) -> None:
        _, uid, _ = PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
        if uid != self._peer_uid:
            connection.drop(f"a process of another user connected (uid {uid})")
            return
        self._accepted += 1
        if self._accepted > self._caps.connections:
            reason = f"the {self._caps.connections} connections that may be made are used up"
            await connection.refuse(Refusal(HTTPStatus.TOO_MANY_REQUESTS, reason))
        else:
            await connection.serve()

    def _ended(self, task: asyncio.Task[None], connection: EgressConnection) -> None:
        """Clean up outside of the task: one that is cancelled before its first step runs no code of its own."""
        self._serving.discard(task)
        if not task.cancelled() and (defect := task.exception()):
            connection.drop(f"the proxy failed: {type(defect).__name__}: {defect}")
        connection.close()
        self._keep(connection.record())
        self._listen()

    def _keep(self, record: EgressRecord) -> None:
        if len(self.records) < MAX_RECORDS:
            self.records.append(record)
        else:
            self.records_dropped += 1
