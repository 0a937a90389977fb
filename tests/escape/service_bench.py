"""A service inside the tests' own process, with a socket per user: who connects to it counts as that user.

A test can't become another user; the kernel's word for who connected is tested in tests/unit/test_service_access.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from sandbox.client import Client
from sandbox.runner import Places
from sandbox.service.application import application
from sandbox.service.config.model import ServiceConfig
from sandbox.service.door.access import Access, Caller, Identity, decide
from sandbox.service.server import accepting, running

OWNER_UID = 424_242


@dataclasses.dataclass(frozen=True)
class User:
    """A user as the kernel and the account database would name it; `socket` leads to the service."""

    identity: Identity
    socket: str

    def client(self) -> Client:
        """Return a client of this user."""
        return Client(self.socket, timeout_s=60)


class Named(Access):
    """Access rules for whoever uses a socket, by the socket's name in place of the kernel's word."""

    def __init__(self, config: ServiceConfig, users: Sequence[User]) -> None:
        super().__init__(config, owner_uid=OWNER_UID)
        self._rules = config
        self._users = {user.socket: user.identity for user in users}

    async def caller(self, connection: socket.socket) -> Caller:
        """Return who is on the other end."""
        return decide(
            self._users[connection.getsockname()],
            self._rules.access,
            owner_uid=OWNER_UID,
            socket_group=self._rules.socket.group,
            usual=self._rules.queue.limits.quota,
        )


@contextlib.contextmanager
def service_for(users: Sequence[User], config: ServiceConfig, places: Places) -> Iterator[None]:
    """Serve these users until the block ends."""
    ready: Future[asyncio.Event] = Future()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with running(config, places) as state, contextlib.AsyncExitStack() as doors:
            access = Named(config, users)
            doors.callback(access.close)
            served = application(state, access)
            for user in users:
                opened = doors.enter_context(socket.socket(socket.AF_UNIX))
                opened.bind(user.socket)
                await doors.enter_async_context(accepting(served, opened))
            over = asyncio.Event()
            ready.set_result(over)
            await over.wait()

    def work() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    over = ready.result(60)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60)


def user(directory: Path, number: int, name: str, *groups: str) -> User:
    """Return a user with a socket in `directory`."""
    return User(Identity(uid=number, user=name, groups=frozenset(groups)), f"{directory}/{name}")
