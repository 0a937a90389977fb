"""Webhooks: which addresses a caller may have told, what is sent there, and what is not followed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.errors import AccessDenied, InvalidRequest, SandboxError
from sandbox.service.config.load import load_config
from sandbox.service.webhooks.rules import address_of, refused
from sandbox.service.webhooks.sending import AT_ONCE, PAUSES_S, SIGNATURE, Resolver, WebhookSender, key_of

RULES = ("http://127.0.0.1:1880/ended", "https://hooks.example.org/a/", "http://[::1]:80/x")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1880/ended",
        "http://127.0.0.1:1880/ended/more?x=1",
        "HTTP://127.0.0.1:1880/ended?y=/../",
        "https://HOOKS.example.org/a/b",
        "https://hooks.example.org:443/a/",
        "http://[::1]/x",
    ],
)
def test_what_a_rule_covers_is_taken(url: str) -> None:
    WebhookSender(RULES).check(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "//127.0.0.1:1880/ended",
        "http://127.0.0.1:1880",
        "http://127.0.0.1:1880/",
        "http://127.0.0.1:1880/endedx",
        "http://127.0.0.1/ended",
        "https://127.0.0.1:1880/ended",
        "http://127.0.0.1:1881/ended",
        "http://127.0.0.2:1880/ended",
        "http://localhost:1880/ended",
        "http://127.1:1880/ended",
        "http://2130706433:1880/ended",
        "http://0x7f000001:1880/ended",
        "http://[::ffff:127.0.0.1]:1880/ended",
        "http://127.0.0.1:1880/ended/../admin",
        "http://127.0.0.1:1880/ended/%2e%2e/admin",
        "http://127.0.0.1:1880/ended//admin",
        "http://127.0.0.1:1880/ended/./x",
        "http://127.0.0.1:1880\\@evil/ended",
        "http://127.0.0.1:1880@evil.example/ended",
        "http://evil@127.0.0.1:1880/ended",
        "http://127.0.0.1:1880/ended#x",
        "http://127.0.0.1:1880/ended\r\nX: y",
        "http://127.0.0.1:1880/ended x",
        "http://127.0.0.1:99999/ended",
        "http://127.0.0.1:port/ended",
        "file:///etc/passwd",
        "gopher://127.0.0.1:1880/ended",
        "https://hooks.example.org.evil/a/b",
        "https://evil.hooks.example.org/a/b",
        "https://hooks.example.org./a/b",
        "https://hooks.example.org/b",
        "http://hooks.example.org/a/b",
        "https://hooks.example.org/a/" + "x" * 2_000,
        "http://127.0.0.1:1880/endé",
        "http://127.0.0.1:1880/ended/..;/admin",
        "http://127.0.0.1:1880/ended/;x/admin",
        "http://127.0.0.1:1880/ended/.;y/x",
        "http://[::1]:0/x",
        "http://evil.example[::1]/x",
        "http://[::1]evil.example/x",
    ],
)
def test_everything_else_is_refused_in_words(url: str) -> None:
    with pytest.raises((InvalidRequest, AccessDenied)) as caught:
        WebhookSender(RULES).check(url)
    assert caught.value.hint


def test_without_rules_nothing_is_allowed_and_the_hint_says_who_can() -> None:
    with pytest.raises(AccessDenied) as caught:
        WebhookSender(()).check("http://127.0.0.1:1880/ended")
    assert "webhooks.allowed" in caught.value.hint


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "fe80::1", "::ffff:10.0.0.1", "0.0.0.0"],
)
def test_a_name_leads_nowhere_that_is_private(address: str) -> None:
    assert refused("hooks.example.org", address)
    assert refused("hooks.example.org", "93.184.216.34") is None
    assert refused("hooks.example.org", "93.184.216.34", own={"93.184.216.34"}), "nor to this host's own address"
    assert (refused("localhost", address) is None) == (address in ("127.0.0.1", "::1"))


def test_the_address_is_looked_at_when_the_connection_is_made() -> None:
    async def resolve(name: str) -> list[str]:
        return [one["host"] for one in await Resolver().resolve(name, 80)]

    assert "127.0.0.1" in asyncio.run(resolve("localhost"))
    for name in ("127.1", "0x7f.1", "2130706433"):
        with pytest.raises(OSError, match="an address of this host"):
            asyncio.run(resolve(name))


class Listener:
    """An HTTP server on loopback that keeps what it is sent, and answers with these statuses in turn."""

    def __init__(self, statuses: list[str]) -> None:
        self.statuses = statuses
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.port = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(
            next(line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length"))
        )
        self.bodies.append(await reader.readexactly(length))
        self.heads.append(head)
        status = self.statuses.pop(0)
        writer.write(
            f"HTTP/1.1 {status}\r\nLocation: http://127.0.0.1:{self.port}/elsewhere\r\nContent-Length: 0\r\n\r\n".encode()
        )
        writer.close()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield f"http://127.0.0.1:{self.port}/ended"


def sent(statuses: list[str], *, key: bytes = b"", attempts: int = 3) -> tuple[Listener, int]:
    """Send one webhook; return what arrived, and how many were given up."""
    listener = Listener(statuses)

    async def act() -> int:
        async with listener.listening() as url:
            hooks = WebhookSender([url], key=key, pauses_s=[0.0] * attempts)
            hooks.check(url)
            hooks.tell(url, "1" * 32, "succeeded")
            return await hooks.settle(10)

    return listener, asyncio.run(act())


def test_it_says_which_run_how_it_ended_and_where_its_result_is_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    listener, given_up = sent(["204 No Content"], key=b"k")
    (body,), (head,) = listener.bodies, listener.heads
    assert json.loads(body) == {"run_id": "1" * 32, "outcome": "succeeded", "result": f"/v1/runs/{'1' * 32}/result"}
    assert f"{SIGNATURE}: sha256={hmac.new(b'k', body, hashlib.sha256).hexdigest()}" in head
    assert given_up == 0
    assert [record.getMessage() for record in caplog.records] == [f"run {'1' * 32}: its webhook was sent, at attempt 1"]


def test_it_is_tried_so_many_times_each_logged_and_no_redirect_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    listener, _ = sent(["500 No", "302 Found", "404 No", "200 never"])
    assert len(listener.bodies) == 3
    assert all(" /ended " in head for head in listener.heads)
    said = [record.getMessage() for record in caplog.records]
    assert [f"attempt {number} of 3" in line for number, line in zip((1, 2, 3), said, strict=True)] == [True] * 3
    assert "it answered 302" in said[1]


def test_the_second_attempt_may_come_through_and_a_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    listener, _ = sent(["503 Later", "200 OK"])
    assert len(listener.bodies) == 2
    assert SIGNATURE not in listener.heads[0]


def test_when_the_service_stops_what_is_not_sent_is_given_up() -> None:
    async def act() -> int:
        hooks = WebhookSender(["http://127.0.0.1:9/x"], pauses_s=PAUSES_S)
        hooks.tell("http://127.0.0.1:9/x", "1" * 32, "failed")
        return await hooks.settle(0.05)

    assert asyncio.run(act()) == 1


def test_a_host_that_hangs_keeps_back_nothing_that_goes_to_another() -> None:
    listener = Listener(["200 OK"])

    async def act() -> None:
        arrived = asyncio.Event()
        hanging = asyncio.Semaphore(0)

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hanging.release()
            await reader.read(-1)
            writer.close()
            await writer.wait_closed()
            hanging.release()

        deaf = await asyncio.start_server(hang, "127.0.0.1", 0)
        async with deaf, listener.listening() as url:
            slow = f"http://127.0.0.1:{deaf.sockets[0].getsockname()[1]}/x"
            hooks = WebhookSender([slow, url], pauses_s=[0.0])
            for _ in range(2 * AT_ONCE):
                hooks.tell(slow, "1" * 32, "failed")
            for _ in range(AT_ONCE):
                await hanging.acquire()
            hooks.tell(url, "2" * 32, "succeeded")
            (task,) = hooks._lines[address_of(url).origin].tasks
            task.add_done_callback(lambda _: arrived.set())
            await asyncio.wait_for(arrived.wait(), 10)
            assert await hooks.settle(0) == 2 * AT_ONCE
            for _ in range(AT_ONCE):
                await hanging.acquire()

    asyncio.run(act())
    assert json.loads(listener.bodies[0])["run_id"] == "2" * 32


def test_rules_that_could_mean_two_things_and_keys_that_are_none_are_mistakes(tmp_path: Path) -> None:
    for rule in ("http://x/../y", "ftp://x/", "http://u@x/", "http://x/?q", "x"):
        with pytest.raises(SandboxError, match=r"webhooks\.allowed"):
            load_config(None, {"SANDBOX_WEBHOOKS__ALLOWED": json.dumps([rule]), "HOME": str(tmp_path)})
    (tmp_path / "key").write_bytes(b" \n")
    for path in (tmp_path / "key", tmp_path / "none"):
        with pytest.raises(InvalidRequest, match="key_file"):
            key_of(str(path))
    (tmp_path / "key").write_bytes(b"secret\n")
    assert (key_of(str(tmp_path / "key")), key_of(None)) == (b"secret", b"")
