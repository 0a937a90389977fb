"""The egress proxy behind another proxy, which is the only way out: a real one, with a network of its own.

No Podman is needed. What the tests serve is in that network, and this host can't reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from sandbox.egress.proxy import EgressCaps, EgressProxy
from sandbox.egress.rules import Allowlist, parse_rule
from sandbox.egress.upstream import Upstream
from sandbox.proxies import Proxies, parse_proxy, read_proxies
from tests.integration.company_network import ADDRESS, NAME, CompanyNetwork, company_network
from tests.integration.test_egress_proxy import Names, http

BOUND_S = 20
LOGIN = "ada:Pr0xy-s3cr3t"
PRIVATE = "10.9.8.7"
METADATA = "169.254.169.254"
HOSTS = {
    NAME: ADDRESS, "private.company.invalid": PRIVATE, "metadata.company.invalid": METADATA,
    "refused.company.invalid": ADDRESS,
}  # fmt: skip # a table


Test = Callable[..., Awaitable[None]]


def scenario(test: Test) -> Callable[..., None]:
    """Run an asynchronous test, bounded in time."""

    @functools.wraps(test)
    def wrapped(**arguments: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**arguments), BOUND_S))

    return wrapped


class Answers:
    """Gives one answer to each connection, and keeps what was asked."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        self.requests: list[bytes] = []
        self._name = name
        self._listener = listener
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data and (part := client.recv(65536)):
                data += part
            self.requests.append(data)
            client.sendall(http(self._name.encode()))
            client.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CompanyNetwork]:
    listen = [(ADDRESS, 80), (PRIVATE, 80), (METADATA, 80)]
    place = tmp_path_factory.mktemp("company")
    with company_network(place, hosts=HOSTS, listen=listen, login=LOGIN, refuses="^refused|^203.0.113.9") as made:
        yield made


@pytest.fixture(scope="module")
def servers(company: CompanyNetwork) -> list[Answers]:
    return [
        Answers(listener, name)
        for listener, name in zip(company.sockets, ("public", "private", "metadata"), strict=True)
    ]


def upstream(company: CompanyNetwork, *, resolver: str = "host", login: str = LOGIN, proxy: str = "") -> Upstream:
    server = parse_proxy(proxy or company.proxy, "HTTPS_PROXY", login=login)
    return Upstream(proxies=Proxies(http=server, https=server), resolver=resolver)  # type: ignore[arg-type] # of tests


@contextlib.asynccontextmanager
async def egress(
    place: Path, names: Names, way: Upstream, *, addresses: str = "", timeout_s: float = 5
) -> AsyncIterator[EgressProxy]:
    allow = tuple(
        parse_rule(f"{name}:80")
        for name in (*HOSTS, "unknown.company.invalid", "nine.company.invalid", "several.company.invalid", PRIVATE)
    )
    networks = (ip_network(addresses),) if addresses else ()
    async with EgressProxy(
        socket_path=place / "egress.sock",
        peer_uid=os.getuid(),
        allow=Allowlist(allow, networks),
        caps=EgressCaps(transfer_bytes=1 << 20, connections=100, connect_timeout_s=timeout_s),
        resolve=names,
        upstream=way,
    ) as proxy:
        yield proxy


async def asked(place: Path, host: str) -> bytes:
    """Ask for a page in plain http, as a program does; return the whole answer."""
    reader, writer = await asyncio.open_unix_connection(str(place / "egress.sock"))
    writer.write(f"GET http://{host}/page HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic own\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def names() -> Names:
    table = {name.replace(".", "_"): [[address]] for name, address in HOSTS.items()}
    several = ["2001:db8::5", "203.0.113.9", ADDRESS]
    return Names(**table, nine_company_invalid=[["203.0.113.9"]], several_company_invalid=[several])


@scenario
async def test_a_name_that_was_looked_up_here_is_asked_for_by_its_address(
    tmp_path: Path, company: CompanyNetwork, servers: list[Answers]
) -> None:
    async with egress(tmp_path, names(), upstream(company)) as proxy:
        assert (await asked(tmp_path, NAME)).endswith(b"public")
    assert company.asked()[-1] == f"CONNECT {ADDRESS}:80"
    (record,) = proxy.records
    assert (record.allowed, record.address, record.proxy) == (True, ADDRESS, company.proxy)
    assert b"s3cr3t" not in repr(proxy.records).encode() + servers[0].requests[-1]
    assert b"Proxy-" not in servers[0].requests[-1]


@scenario
async def test_of_several_addresses_the_proxy_is_asked_for_one_after_the_other(
    tmp_path: Path, company: CompanyNetwork, servers: list[Answers]
) -> None:
    async with egress(tmp_path, names(), upstream(company)) as proxy:
        assert (await asked(tmp_path, "several.company.invalid")).endswith(b"public")
    assert company.asked()[-2:] == ["CONNECT 203.0.113.9:80", f"CONNECT {ADDRESS}:80"]
    assert proxy.records[0].address == ADDRESS
    # A login that is refused is not tried again.
    before = len(company.asked())
    async with egress(tmp_path, names(), upstream(company, login="ada:wrong")):
        assert (await asked(tmp_path, "several.company.invalid")).startswith(b"HTTP/1.1 502")
    assert len(company.asked()) == before + 1


@scenario
async def test_a_name_may_be_left_to_the_proxy_where_the_policy_says_so(
    tmp_path: Path, company: CompanyNetwork, servers: list[Answers]
) -> None:
    table = Names()
    async with egress(tmp_path, table, upstream(company, resolver="proxy")) as proxy:
        assert (await asked(tmp_path, NAME)).endswith(b"public")
    assert table.asked == []
    assert company.asked()[-1] == f"GET http://{NAME}/page"
    assert f"Host: {NAME}".encode() in servers[0].requests[-1]
    assert b"Basic" not in servers[0].requests[-1]  # neither the proxy's login nor the program's own
    (record,) = proxy.records
    assert (record.address, record.proxy) == ("", company.proxy)


@pytest.mark.parametrize(("name", "number"), [("private.company.invalid", 1), ("metadata.company.invalid", 2)])
@scenario
async def test_a_name_that_leads_to_a_private_address_is_refused(
    tmp_path: Path, company: CompanyNetwork, servers: list[Answers], name: str, number: int
) -> None:
    before, requests = len(company.asked()), len(servers[number].requests)
    async with egress(tmp_path, names(), upstream(company)) as proxy:
        assert (await asked(tmp_path, name)).startswith(b"HTTP/1.1 403")
    assert not proxy.records[0].allowed
    assert len(company.asked()) == before
    # The control, and what `resolver = "proxy"` gives up: left to the proxy, the name leads there.
    async with egress(tmp_path, names(), upstream(company, resolver="proxy")):
        assert (await asked(tmp_path, name)).endswith((b"private", b"metadata"))
    assert len(servers[number].requests) == requests + 1


@scenario
async def test_an_address_of_a_rule_is_checked_also_where_names_are_left_to_the_proxy(
    tmp_path: Path, company: CompanyNetwork, servers: list[Answers]
) -> None:
    async with egress(tmp_path, names(), upstream(company, resolver="proxy")):
        assert (await asked(tmp_path, PRIVATE)).startswith(b"HTTP/1.1 403")
    # The control: excepted by the policy, it is reached, through the proxy.
    async with egress(tmp_path, names(), upstream(company, resolver="proxy"), addresses="10.0.0.0/8"):
        assert (await asked(tmp_path, PRIVATE)).endswith(b"private")


@scenario
async def test_what_no_rule_allows_is_not_asked_of_the_proxy(tmp_path: Path, company: CompanyNetwork) -> None:
    before = len(company.asked())
    async with egress(tmp_path, names(), upstream(company, resolver="proxy")):
        assert (await asked(tmp_path, "other.company.invalid")).startswith(b"HTTP/1.1 403")
        assert (await asked(tmp_path, f"{NAME}:8080")).startswith(b"HTTP/1.1 403")
    assert len(company.asked()) == before


@pytest.mark.parametrize(
    ("host", "options", "status", "words"),
    [
        (NAME, {"login": ""}, 502, "wants a login (HTTP 407)"),
        (NAME, {"login": "ada:wrong-s3cr3t"}, 502, "refuses the login that it was given (HTTP 401)"),
        (NAME, {"login": "", "resolver": "proxy"}, 502, "wants a login (HTTP 407)"),
        (NAME, {"proxy": "http://127.0.0.1:1"}, 502, "can't be reached: Connection refused"),
        (NAME, {"proxy": "http://proxy.company.invalid:1"}, 502, "can't be reached: its name has no address"),
        ("nine.company.invalid", {}, 502, "refuses to connect to 203.0.113.9:80 (HTTP 403"),
        ("unknown.company.invalid", {}, 502, "unknown.company.invalid has no address here"),
    ],
)
@scenario
async def test_why_the_proxy_does_not_let_through_is_told_to_the_program(
    tmp_path: Path, company: CompanyNetwork, host: str, options: dict[str, str], status: int, words: str
) -> None:
    async with egress(tmp_path, names(), upstream(company, **options)) as proxy:
        answer = await asked(tmp_path, host)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert words.encode() in answer
    assert words in proxy.records[0].reason
    assert proxy.records[0].allowed
    assert b"s3cr3t" not in answer
    # A program learns that there is a proxy, not where it is.
    assert str(company.port).encode() not in answer


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"SSH-2.0-x\r\n\r\n", "is no HTTP proxy"),
        (b"", "is no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000, "is no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nearly", "bytes came before"),
        (b"HTTP/1.1 302 Found\r\nLocation: x\r\n\r\n", "HTTP 302 Found"),
    ],
)
@scenario
async def test_what_is_no_proxy_gives_no_connection(
    tmp_path: Path, company: CompanyNetwork, said: bytes, words: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(OSError):
            writer.write(said)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with egress(tmp_path, names(), upstream(company, proxy=f"http://127.0.0.1:{port}")):
            assert words.encode() in await asked(tmp_path, NAME)


@scenario
async def test_a_proxy_that_never_answers_is_not_waited_for_without_end(
    tmp_path: Path, company: CompanyNetwork
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        way = upstream(company, proxy=f"http://127.0.0.1:{silent.getsockname()[1]}")
        async with egress(tmp_path, names(), way, timeout_s=0.5):
            assert b"does not answer in time" in await asked(tmp_path, NAME)


@scenario
async def test_hosts_of_no_proxy_are_reached_directly_and_checked(tmp_path: Path, company: CompanyNetwork) -> None:
    before = len(company.asked())
    environ = {"http_proxy": company.proxy, "no_proxy": "company.invalid"}
    way = Upstream(proxies=read_proxies(environ), resolver="proxy")
    async with egress(tmp_path, names(), way) as proxy:
        assert (await asked(tmp_path, "private.company.invalid")).startswith(b"HTTP/1.1 403")
    assert proxy.records[0].proxy == ""
    assert len(company.asked()) == before
