"""Telling a program outside that a run has ended: one small POST, tried a few times.

It goes to an address that the configuration allows. A caller chooses among the addresses that the administrator lists;
so this is no way for a caller to reach what the service's host reaches.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from sandbox.egress.own_addresses import own_addresses
from sandbox.errors import AccessDenied, InvalidRequest, SandboxError
from sandbox.service.webhooks.rules import address_of, allows, refused
from sandbox.wire.events import Notification
from sandbox.wire.given import encoded

LOG = logging.getLogger("sandbox.service")
TIMEOUT_S = 10.0
PAUSES_S = (0.0, 2.0, 10.0, 30.0)
AT_ONCE = 8
MAX_WAITING = 1_000
SIGNATURE = "X-Sandbox-Signature"


class Resolver(AbstractResolver):
    """Finds the addresses of a name just before connecting, and lets those through that the rule can mean.

    An address stands for itself, localhost for this host, and every other name for hosts of the Internet: whoever
    answers for a name may not lead to what is private here.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return where a name may be reached. Raises `OSError`."""
        try:
            own = await asyncio.to_thread(own_addresses)
        except SandboxError as error:
            raise OSError(error.message) from None
        found = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        answers: list[ResolveResult] = []
        for kind, _, protocol, _, address in found:
            if (problem := refused(host, str(address[0]), own)) is not None:
                raise OSError(f"{host} is at {problem}")
            answers.append(
                ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=0)
            )
        return answers

    async def close(self) -> None:
        """Do nothing: nothing is open."""


@dataclass(eq=False)
class _Line:
    """What goes to one host, so much of it at once."""

    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


class WebhookSender:
    """Sends what ended to who is to know. `allowed` are the rules; what is sent is signed where `key` is not empty."""

    def __init__(self, allowed: Sequence[str], *, key: bytes = b"", pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._rules = [address_of(rule) for rule in allowed]
        self._key = key
        self._pauses_s = pauses_s
        # Each host has a line of its own: one that hangs keeps back nothing that goes to others.
        self._lines = {rule.origin: _Line() for rule in self._rules}

    def check(self, url: str) -> None:
        """Check that a caller may have this address told. Raises `InvalidRequest`, `AccessDenied`."""
        wanted = address_of(url)
        if not any(allows(rule, wanted) for rule in self._rules):
            raise AccessDenied(
                f"the configuration of this service allows no webhook to {url[:200]!r}",
                hint=(
                    "its administrator can list the address in webhooks.allowed; without it, ask for GET"
                    " /v1/runs/{id}/result"
                ),
            )

    def tell(self, url: str, run_id: str, outcome: str) -> None:
        """Tell it, now and then, beside everything else."""
        line = self._lines[address_of(url).origin]
        if len(line.tasks) >= MAX_WAITING:
            LOG.error("run %s: its webhook is given up: %d others wait to be sent", run_id, MAX_WAITING)
            return
        body = encoded(Notification(run_id=run_id, outcome=outcome, result=f"/v1/runs/{run_id}/result"))
        task = asyncio.create_task(self._told(url, run_id, body, line.turns))
        line.tasks.add(task)
        task.add_done_callback(line.tasks.discard)

    async def settle(self, timeout_s: float) -> int:
        """Wait for what is on its way, then give up the rest; return how many that were."""
        if going := self._going():
            await asyncio.wait(going, timeout=timeout_s)
        left = self._going()
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return len(left)

    def _going(self) -> list[asyncio.Task[None]]:
        return [task for line in self._lines.values() for task in line.tasks]

    async def _told(self, url: str, run_id: str, body: bytes, turns: asyncio.Semaphore) -> None:
        for number, pause_s in enumerate(self._pauses_s, start=1):
            await asyncio.sleep(pause_s)
            async with turns:
                problem = await self._sent(url, body)
            if problem is None:
                LOG.info("run %s: its webhook was sent, at attempt %d", run_id, number)
                return
            LOG.warning(
                "run %s: attempt %d of %d to send its webhook failed: %s", run_id, number, len(self._pauses_s), problem
            )

    async def _sent(self, url: str, body: bytes) -> str | None:
        """Send it once; return why it was not taken, or None. What the other side answers is not read."""
        headers = {"Content-Type": "application/json", "User-Agent": "podman-sandbox-runner"}
        if self._key:
            headers[SIGNATURE] = f"sha256={hmac.new(self._key, body, hashlib.sha256).hexdigest()}"
        options: dict[str, Any] = {"data": body, "headers": headers, "allow_redirects": False}
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(resolver=Resolver(), use_dns_cache=False, force_close=True),
                    trust_env=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                    auto_decompress=False,
                ) as session,
                session.post(url, **options) as answer,
            ):
                return None if 200 <= answer.status < 300 else f"it answered {answer.status}"
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            return str(error)[:200] or type(error).__name__


def key_of(path: str | None) -> bytes:
    """Return the key that webhooks are signed with: what is in the file, without the space around it.

    Raises `InvalidRequest`.
    """
    if path is None:
        return b""
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise InvalidRequest(
            f"webhooks.key_file {path} can't be read: {error.strerror}", hint="correct the path or its mode"
        ) from None
    if not key:
        raise InvalidRequest(f"webhooks.key_file {path} is empty", hint="write a long random text into it")
    return key
