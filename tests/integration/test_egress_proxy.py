"""The egress proxy on real sockets of this machine: each known way around such a proxy, and that what is allowed works.

Names are given addresses by the tests; servers listen on loopback, which the rules except. No Podman is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.egress import proxy as proxy_module
from sandbox.egress.own_addresses import own_addresses
from sandbox.egress.proxy import EgressCaps, EgressProxy
from sandbox.egress.rules import Allowlist, parse_rule
from sandbox.errors import Internal

BOUND_S = 10
CAPS: dict[str, Any] = {"transfer_bytes": 64 << 20, "connections": 100}
ALERT = b"\x15\x03\x03\x00\x02\x02\x31"  # access_denied

Test = Callable[..., Awaitable[None]]


def scenario(test: Test) -> Callable[..., None]:
    """Run an asynchronous test, bounded in time; it leaves no task and no open file."""

    async def run(arguments: dict[str, Any]) -> None:
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))
        await asyncio.wait_for(test(**arguments), BOUND_S)
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= files

    @functools.wraps(test)
    def wrapped(**arguments: Any) -> None:
        asyncio.run(run(arguments))

    return wrapped


class Names:
    """A resolver that answers from a table, each list of addresses once and the last for ever, and counts."""

    def __init__(self, **table: list[list[str]]) -> None:
        self.table = {name.replace("_", "."): answers for name, answers in table.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.table[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Listener:
    """Accepts on loopback, and serves each connection in a thread of its own until the test is over."""

    def __init__(self) -> None:
        self.port = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._last: object = None
        self._last_came = threading.Event()

    def serve(self, client: socket.socket) -> None:
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def listening(self, *, host: str = "127.0.0.1") -> AsyncIterator[Any]:
        with socket.create_server((host, 0), backlog=100) as listener:
            self.port = listener.getsockname()[1]
            accepting = threading.Thread(target=self._accept, args=(listener,))
            accepting.start()
            try:
                yield self
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                await asyncio.to_thread(accepting.join)
                for client in self._open:
                    with contextlib.suppress(OSError):
                        client.shutdown(socket.SHUT_RDWR)
                for thread in self._threads:
                    await asyncio.to_thread(thread.join)

    async def settled(self) -> Any:
        """Return it once it has accepted everybody who had connected, and heard each to the end.

        Its threads run behind.

        Asked at once, it would often not know yet of a connection that should not be.
        """
        with socket.socket() as last:
            last.bind(("127.0.0.1", 0))
            self._last = last.getsockname()
            self._last_came.clear()
            last.connect(("127.0.0.1", self.port))
            assert await asyncio.to_thread(self._last_came.wait, BOUND_S)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, BOUND_S)
            assert not thread.is_alive(), "a connection is still open"
        return self

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, peer = listener.accept()
                if peer == self._last:  # the kernel gives connections in their order
                    client.close()
                    self._last_came.set()
                    continue
                self._open.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self.serve(client)


class Server(Listener):
    """Keeps what it received. It gives its `answer` to one request, or echoes, or hangs up."""

    def __init__(self, answer: bytes = b"", *, echo: bool = True, context: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.echo = echo
        self.context = context
        self.received = b""
        self.connections = 0

    def serve(self, client: socket.socket) -> None:
        self.connections += 1
        if self.context:
            with self.context.wrap_socket(client, server_side=True) as inner:
                return self._talk(inner)
        return self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        if self.answer:
            self._request(client)
            client.sendall(self.answer)
            if not self.context:
                client.shutdown(socket.SHUT_WR)
        while (self.echo or self.answer) and (data := client.recv(65536)):
            self.received += data
            if not self.answer:
                client.sendall(data)

    def _request(self, client: socket.socket) -> None:
        data = b""
        while (end := data.find(b"\r\n\r\n") + 4) < 4 or not complete(data[:end], data[end:]):
            part = client.recv(65536)
            self.received += part
            data += part
            if not part:
                raise ConnectionError


def complete(head: bytes, body: bytes) -> bool:
    if b"chunked" in head:
        return b"0\r\n\r\n" in body
    length = re.search(rb"Content-Length: ([0-9]+)", head)
    return length is None or len(body) >= int(length[1])


def http(body: bytes = b"hello", status: str = "200 OK", *fields: str) -> bytes:
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *fields))
    return head.encode() + b"\r\n\r\n" + body


def anonymous(side: int) -> ssl.SSLContext:
    """Return a TLS context without certificates: the tests have no key to keep."""
    context = ssl.SSLContext(side)
    if side == ssl.PROTOCOL_TLS_CLIENT:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context


def hello(name: str | None) -> bytes:
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        anonymous(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


class Bench:
    """A running proxy, and a program's side of it: blocking sockets in threads."""

    def __init__(self, proxy: EgressProxy, path: Path, names: Names) -> None:
        self.proxy = proxy
        self.path = path
        self.names = names

    async def say(self, *parts: bytes) -> bytes:
        """Send the parts, each as a segment of its own, and return what comes until the end."""
        return await asyncio.to_thread(self._say, parts)

    async def tunnel(self, target: str, *parts: bytes) -> bytes:
        """Open a tunnel, send the parts, end the sending side, and return what comes after the 200."""
        return await asyncio.to_thread(self._tunnel, target, parts)

    def connected(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(BOUND_S)
        client.connect(str(self.path))
        return client

    def opened(self, target: str) -> socket.socket:
        """Return a socket after the 200 of a tunnel."""
        client = self.connected()
        client.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            chunk = client.recv(1)
            assert chunk, answer
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return client

    def _say(self, parts: Sequence[bytes]) -> bytes:
        with self.connected() as client:
            with contextlib.suppress(BrokenPipeError):
                for part in parts:
                    client.sendall(part)
            return rest_of(client)

    def _tunnel(self, target: str, parts: Sequence[bytes]) -> bytes:
        with self.opened(target) as client:
            with contextlib.suppress(BrokenPipeError):
                for part in parts:
                    client.sendall(part)
                client.shutdown(socket.SHUT_WR)
            return rest_of(client)


def rest_of(client: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            answer += chunk
    return answer


@contextlib.asynccontextmanager
async def proxied(
    tmp_path: Path,
    *rules: str,
    names: Names | None = None,
    addresses: Sequence[str] = ("127.0.0.1/32",),
    own: frozenset[str] | None = None,
    peer_uid: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
    **caps: Any,
) -> AsyncIterator[Bench]:
    names = names or Names(api_test=[["127.0.0.1"]])
    path = tmp_path / "egress.sock"
    proxy = EgressProxy(
        socket_path=path,
        peer_uid=os.getuid() if peer_uid is None else peer_uid,
        resolve=names,
        on_bytes=on_bytes,
        allow=Allowlist(tuple(map(parse_rule, rules)), tuple(map(ip_network, addresses))),
        caps=EgressCaps(**{**CAPS, **caps}),
        own_addresses=own,
    )
    async with proxy:
        yield Bench(proxy, path, names)
    assert not path.exists()
    assert [record.reason for record in proxy.records if "the proxy failed" in record.reason] == []


def get(url: str, *fields: str, host: str = "", method: str = "GET", body: bytes = b"") -> bytes:
    host = host or url.partition("://")[2].partition("/")[0]
    return "\r\n".join((f"{method} {url} HTTP/1.1", f"Host: {host}", *fields)).encode("latin-1") + b"\r\n\r\n" + body


def status(answer: bytes) -> int:
    match = re.match(rb"HTTP/1.1 ([0-9]{3}) [ -~]+\r\n", answer)
    assert match, answer
    return int(match[1])


# What is allowed works


@scenario
async def test_an_allowed_plain_request_reaches_the_server_and_its_answer_the_program(tmp_path: Path) -> None:
    total: list[int] = []
    async with Server(http()).listening() as server:
        async with proxied(tmp_path, f"api.test:{server.port}", on_bytes=total.append) as bench:
            answer = await bench.say(get(f"http://api.test:{server.port}/x?y=1", "Proxy-Authorization: secret"))
        assert status(answer) == 200
        assert answer.endswith(b"hello")
        assert server.received.startswith(f"GET /x?y=1 HTTP/1.1\r\nHost: api.test:{server.port}\r\n".encode())
        assert b"secret" not in server.received
        (record,) = bench.proxy.records
        assert (record.host, record.port, record.address) == ("api.test", server.port, "127.0.0.1")
        assert (record.allowed, record.reason) == (True, "")
        assert (record.bytes_up, record.bytes_down) == (len(server.received), len(answer))
        assert sum(total) == record.bytes_up + record.bytes_down


@scenario
async def test_an_allowed_tls_connection_works_to_the_end(tmp_path: Path) -> None:
    async with Server(context=anonymous(ssl.PROTOCOL_TLS_SERVER)).listening() as server:
        async with proxied(tmp_path, f"api.test:{server.port}") as bench:

            def talk() -> bytes:
                raw = bench.opened(f"api.test:{server.port}")
                with anonymous(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(raw, server_hostname="api.test") as client:
                    client.sendall(b"x" * 300_000)
                    answer = b""
                    while len(answer) < 300_000:
                        answer += client.recv(65536)
                    return answer

            assert await asyncio.to_thread(talk) == b"x" * 300_000
        assert [record.allowed for record in bench.proxy.records] == [True]


@scenario
async def test_a_half_closed_tunnel_still_brings_the_answer(tmp_path: Path) -> None:
    async with Server().listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        sent = hello("api.test") + os.urandom(1 << 20)
        assert await bench.tunnel(f"api.test:{server.port}", sent) == sent


@scenario
async def test_bodies_are_forwarded_by_length_and_in_chunks(tmp_path: Path) -> None:
    chunked = b"5\r\nhello\r\n0\r\n\r\n"
    for fields, body in (("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", chunked)):
        async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
            url = f"http://api.test:{server.port}/"
            answer = await bench.say(get(url, fields, method="POST", body=body[:3]), body[3:])
            assert status(answer) == 200
            assert server.received.endswith(b"\r\n\r\n" + body)


@scenario
async def test_clients_that_people_use_work_and_show_the_reason_of_a_refusal(tmp_path: Path) -> None:
    async with (
        Server(http()).listening() as server,
        proxied(tmp_path, f"api.test:{server.port}") as bench,
        Bridge(bench).listening() as bridge,
    ):
        session = requests.Session()
        session.trust_env = False
        session.proxies = {"http": bridge.url, "https": bridge.url}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": bridge.url, "https": bridge.url}))

        def use() -> None:
            url = f"http://api.test:{server.port}/"
            assert session.get(url, timeout=BOUND_S).text == "hello"
            with opener.open(url, timeout=BOUND_S) as answer:
                assert answer.read() == b"hello"
            refused = session.get("http://evil.test/", timeout=BOUND_S)
            assert (refused.status_code, refused.reason) == (403, "evil.test:80 is not in the policy's network.allow")
            assert refused.text == f"{refused.reason}\n"
            with pytest.raises(requests.exceptions.ProxyError, match=r"403 evil\.test:443 is not in the policy's"):
                session.get("https://evil.test/", timeout=BOUND_S)
            with pytest.raises(urllib.error.URLError, match=r"403 evil\.test:443 is not in the policy's"):
                opener.open("https://evil.test/", timeout=BOUND_S)
            session.close()

        await asyncio.to_thread(use)


class Bridge(Listener):
    """The proxy as a port on loopback, as it is inside a sandbox."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, client: socket.socket) -> None:
        with self._bench.connected() as inner:
            back = threading.Thread(target=copy, args=(inner, client))
            back.start()
            copy(client, inner)
            back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


# The corpus of ways around a proxy, one test each


@scenario
async def test_corpus_fronting_inside_tls_is_beyond_what_the_proxy_sees(tmp_path: Path) -> None:
    """A documented limit: whoever serves an allowed name may serve others under it.

    The name outside has to be allowed.
    """
    async with (
        Server(http(), context=anonymous(ssl.PROTOCOL_TLS_SERVER)).listening() as server,
        proxied(tmp_path, f"api.test:{server.port}") as bench,
    ):

        def front() -> bytes:
            raw = bench.opened(f"api.test:{server.port}")
            with anonymous(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(raw, server_hostname="api.test") as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
                return client.recv(65536)

        assert status(await asyncio.to_thread(front)) == 200
        assert await bench.tunnel(f"api.test:{server.port}", hello("evil.test")) == ALERT


@pytest.mark.parametrize("name", ["evil.test", "api.test.evil.test", "xapi.test", "test"])
@scenario
async def test_corpus_tls_name_that_differs_from_the_tunnel(tmp_path: Path, name: str) -> None:
    async with Server().listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        assert await bench.tunnel(f"api.test:{server.port}", hello(name)) == ALERT
        assert (await server.settled()).received == b""
        allowed = hello("API.test")
        assert await bench.tunnel(f"api.test:{server.port}", allowed) == allowed
    assert bench.proxy.refusals == (f"the TLS handshake names '{name}', but the tunnel is to api.test",)


@scenario
async def test_corpus_tls_without_a_name(tmp_path: Path) -> None:
    async with Server().listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        assert await bench.tunnel(f"api.test:{server.port}", hello(None)) == ALERT
        assert (await server.settled()).received == b""
    assert bench.proxy.refusals == ("the TLS handshake names no server; it has to name api.test",)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"EHLO x\r\n", b"\x80\x2e\x01\x00\x02"])
@scenario
async def test_corpus_something_other_than_tls_in_a_tunnel(tmp_path: Path, first: bytes) -> None:
    async with Server().listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        assert await bench.tunnel(f"api.test:{server.port}", first) == ALERT
        assert (await server.settled()).received == b""


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[fe80::1%25lo]",
        "127.0.0.1.",
        "localhost",
    ],
)
@scenario
async def test_corpus_addresses_in_all_spellings(tmp_path: Path, host: str) -> None:
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        target = f"{host}:{server.port}"
        assert status(await bench.say(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())) == 403
        assert status(await bench.say(get(f"http://{target}/"))) == 403
        assert bench.names.asked == []
        assert (await server.settled()).connections == 0
        assert status(await bench.say(get(f"http://api.test:{server.port}/"))) == 200


@scenario
async def test_corpus_an_address_that_is_a_rule_is_reached_as_the_rule_says_it(tmp_path: Path) -> None:
    async with Server().listening() as server, proxied(tmp_path, f"127.0.0.1:{server.port}") as bench:
        nameless = hello(None)
        assert await bench.tunnel(f"127.0.0.1:{server.port}", nameless) == nameless
        assert await bench.tunnel(f"127.0.0.1:{server.port}", hello("evil.test")) == ALERT
        assert status(await bench.say(get(f"http://127.1:{server.port}/"))) == 403
        assert bench.names.asked == []
    async with Server(http()).listening() as server:
        async with proxied(tmp_path, f"127.0.0.1:{server.port}", addresses=()) as bench:
            answer = await bench.say(get(f"http://127.0.0.1:{server.port}/"))
            assert status(answer) == 403
            assert b"127.0.0.1 is" in answer
        assert (await server.settled()).connections == 0


@scenario
async def test_corpus_rebinding_resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(api_test=[["127.0.0.1"], ["127.0.0.2"]])
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}", names=names) as bench:

        def forbidden(*_arguments: object, **_options: object) -> None:
            raise AssertionError("a second resolution")

        monkeypatch.setattr(socket, "getaddrinfo", forbidden)
        assert status(await bench.say(get(f"http://api.test:{server.port}/"))) == 200
        assert bench.names.asked == ["api.test"]
        answer = await bench.say(get(f"http://api.test:{server.port}/"))
        assert status(answer) == 403
        assert b"api.test: 127.0.0.2 is a loopback address" in answer
        assert (await server.settled()).connections == 1
    assert [record.address for record in bench.proxy.records] == ["127.0.0.1", ""]


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "127.0.0.2",
        "0.0.0.0",
        "::1",
        "::ffff:127.0.0.1",
        "fd00::1",
        "fe80::1%lo",
    ],
)
@scenario
async def test_corpus_a_name_that_leads_to_a_private_address(tmp_path: Path, address: str) -> None:
    async with Server(http()).listening(host="0.0.0.0") as server:
        names = Names(api_test=[[address]])
        async with proxied(tmp_path, f"api.test:{server.port}", names=names) as bench:
            assert status(await bench.say(get(f"http://api.test:{server.port}/"))) == 403
            assert status(await bench.say(f"CONNECT api.test:{server.port} HTTP/1.1\r\n\r\n".encode())) == 403
        assert (await server.settled()).connections == 0


@pytest.mark.parametrize("order", [1, -1])
@scenario
async def test_corpus_one_private_address_among_others(tmp_path: Path, order: int) -> None:
    names = Names(api_test=[["127.0.0.1", "10.0.0.1"][::order]])
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}", names=names) as bench:
        answer = await bench.say(get(f"http://api.test:{server.port}/"))
        assert status(answer) == 403
        assert b"10.0.0.1 is a private address" in answer
        assert (await server.settled()).connections == 0


@scenario
async def test_corpus_trailing_dot(tmp_path: Path) -> None:
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        assert status(await bench.say(get(f"http://api.test.:{server.port}/"))) == 403
        assert await bench.tunnel(f"api.test:{server.port}", hello("api.test.")) == ALERT
        assert (await server.settled()).received == b""


@scenario
async def test_corpus_upper_case_is_the_same_host(tmp_path: Path) -> None:
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        assert status(await bench.say(get(f"http://API.Test:{server.port}/"))) == 200
        assert f"\r\nHost: api.test:{server.port}\r\n".encode() in server.received
        assert status(await bench.say(get(f"http://EVIL.test:{server.port}/"))) == 403


@scenario
async def test_corpus_punycode(tmp_path: Path) -> None:
    names = Names(**{"xn--bcher-kva.test": [["127.0.0.1"]]})
    async with (
        Server(http()).listening() as server,
        proxied(tmp_path, f"xn--bcher-kva.test:{server.port}", names=names) as bench,
    ):
        assert status(await bench.say(get(f"http://XN--bcher-kva.test:{server.port}/"))) == 200
        assert status(await bench.say(get(f"http://b\xfccher.test:{server.port}/"))) == 400
        assert status(await bench.say(get(f"http://xn--bcher-kvb.test:{server.port}/"))) == 403
        assert bench.names.asked == ["xn--bcher-kva.test"]


@scenario
async def test_corpus_nul_in_the_host(tmp_path: Path) -> None:
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        for host, refusal in (
            ("api.test\0.evil.test", 400),
            ("evil.test\0.api.test", 400),
            ("api.test%00.evil.test", 403),
        ):
            assert status(await bench.say(get(f"http://{host}:{server.port}/"))) == refusal
            target = f"{host}:{server.port}"
            assert status(await bench.say(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())) == refusal
        assert (
            await bench.tunnel(f"api.test:{server.port}", hello("api.test").replace(b"api.test", b"api\0test")) == ALERT
        )
        assert (await server.settled()).received == b""


@pytest.mark.parametrize(
    "target", ["api.test:{port}@evil.test:443", "evil.test@api.test:{port}", "api.test:{port}:443"]
)
@scenario
async def test_corpus_user_names_and_further_ports(tmp_path: Path, target: str) -> None:
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        target = target.format(port=server.port)
        assert status(await bench.say(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())) == 400
        assert status(await bench.say(get(f"http://{target}/"))) == 400
        assert ((await server.settled()).connections, bench.names.asked) == (0, [])


@scenario
async def test_corpus_absolute_form_against_host_header(tmp_path: Path) -> None:
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        url = f"http://api.test:{server.port}/"
        assert status(await bench.say(get(url, host="evil.test"))) == 400
        assert status(await bench.say(get("http://evil.test/", host=f"api.test:{server.port}"))) == 400
        assert status(await bench.say(get(url, f"Host: api.test:{server.port}"))) == 400
        assert (await server.settled()).connections == 0
        assert status(await bench.say(get(url))) == 200


@scenario
async def test_corpus_redirect_to_a_private_address(tmp_path: Path) -> None:
    async with Server(http()).listening() as inner:
        redirect = http(b"", "302 Found", f"Location: http://127.0.0.1:{inner.port}/secret")
        async with (
            Server(redirect).listening() as server,
            proxied(tmp_path, f"api.test:{server.port}") as bench,
            Bridge(bench).listening() as bridge,
        ):

            def follow() -> int:
                with requests.Session() as session:
                    session.trust_env = False
                    answer = session.get(
                        f"http://api.test:{server.port}/", proxies={"http": bridge.url}, timeout=BOUND_S
                    )
                return answer.status_code

            assert await asyncio.to_thread(follow) == 403
            assert ((await server.settled()).connections, (await inner.settled()).connections) == (1, 0)


@scenario
async def test_corpus_http2_with_prior_knowledge(tmp_path: Path) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    async with Server().listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        assert status(await bench.say(preface)) == 505
        assert await bench.tunnel(f"api.test:{server.port}", preface) == ALERT
        upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
        assert status(await bench.say(get(f"http://api.test:{server.port}/", *upgrade))) == 400
        assert (await server.settled()).received == b""


@scenario
async def test_corpus_websocket_only_inside_tls_to_an_allowed_host(tmp_path: Path) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAA", "Sec-WebSocket-Version: 13")
    async with Server().listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        assert status(await bench.say(get(f"http://api.test:{server.port}/", *upgrade))) == 400
        assert (await server.settled()).received == b""
    async with (
        Server(context=anonymous(ssl.PROTOCOL_TLS_SERVER)).listening() as server,
        proxied(tmp_path, f"api.test:{server.port}") as bench,
    ):

        def talk() -> bytes:
            raw = bench.opened(f"api.test:{server.port}")
            with anonymous(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(raw, server_hostname="api.test") as client:
                client.sendall(b"\x81\x85masked frame")
                return client.recv(100)

        assert await asyncio.to_thread(talk) == b"\x81\x85masked frame"


@pytest.mark.parametrize("port", [22, 25, 80, 444, 1, 65535])
@scenario
async def test_corpus_other_ports_of_an_allowed_host(tmp_path: Path, port: int) -> None:
    async with proxied(tmp_path, "api.test:443") as bench:
        answer = await bench.say(f"CONNECT api.test:{port} HTTP/1.1\r\n\r\n".encode())
        assert status(answer) == 403
        assert f"api.test:{port} is not in the policy's network.allow".encode() in answer
        assert bench.names.asked == []


@scenario
async def test_corpus_a_second_request_behind_a_body(tmp_path: Path) -> None:
    second = b"GET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n"
    for fields, body in (
        ((), b""),
        (("Content-Length: 5",), b"hello"),
        (("Transfer-Encoding: chunked",), b"5\r\nhello\r\n0\r\n\r\n"),
    ):
        async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
            url = f"http://api.test:{server.port}/"
            assert status(await bench.say(get(url, *fields, method="POST", body=body + second), second)) == 200
            assert b"smuggled" not in (await server.settled()).received
            assert server.received.endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (("Content-Length: 5", "Transfer-Encoding: chunked"), b"0\r\n\r\n"),
        (("Content-Length: 0", "Content-Length: 40"), b""),
        (("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), b"0\r\n\r\n"),
        (("Transfer-Encoding:\x0bchunked",), b"0\r\n\r\n"),
        (("Transfer-Encoding: xchunked",), b"0\r\n\r\n"),
        (("Transfer-Encoding\t: chunked",), b"0\r\n\r\n"),
        (("Content-Length: 5\nX: y",), b"hello"),
    ],
)
@scenario
async def test_corpus_ambiguous_lengths(tmp_path: Path, fields: tuple[str, ...], body: bytes) -> None:
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        url = f"http://api.test:{server.port}/"
        assert status(await bench.say(get(url, *fields, method="POST", body=body))) == 400
        assert (await server.settled()).connections == 0


@pytest.mark.parametrize(
    "body", [b"5;x=\ny\r\nhello\r\n", b"5\nhello\n0\n\n", b"3\r\nhello\r\n", b"0\r\nHost: evil.test\r\n\r\n"]
)
@scenario
async def test_corpus_ambiguous_chunks(tmp_path: Path, body: bytes) -> None:
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        url = f"http://api.test:{server.port}/"
        answer = await bench.say(get(url, "Transfer-Encoding: chunked", method="POST", body=body))
        assert status(answer) == 400
        assert b"evil" not in (await server.settled()).received


@scenario
async def test_corpus_relay_through_a_proxy_in_the_sandbox(tmp_path: Path) -> None:
    async with (
        Server().listening() as server,
        proxied(tmp_path, f"api.test:{server.port}") as bench,
        Bridge(bench).listening() as relay,
    ):

        def through_relay(data: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", relay.port), timeout=BOUND_S) as client:
                client.sendall(data)
                return rest_of(client)

        assert status(await asyncio.to_thread(through_relay, b"CONNECT evil.test:443 HTTP/1.1\r\n\r\n")) == 403
        inner = b"CONNECT evil.test:443 HTTP/1.1\r\n\r\n"
        assert await bench.tunnel(f"api.test:{server.port}", inner, hello("evil.test")) == ALERT
        assert (await server.settled()).received == b""


@scenario
async def test_corpus_quic_and_other_protocols_find_no_service(tmp_path: Path) -> None:
    def inodes(table: str) -> set[str]:
        with open(f"/proc/self/net/{table}") as lines:
            return {line.split()[9] for line in list(lines)[1:]}

    async with Server().listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_is_there(fd)}
        datagram = inodes("udp") | inodes("udp6")
        assert {name for name in mine if name.removeprefix("socket:[").rstrip("]") in datagram} == set()
        assert status(await bench.say(b"\x05\x01\x00")) == 400  # SOCKS 5
        assert status(await bench.say(b"\x04\x01\x01\xbb\x7f\x00\x00\x01\x00")) == 400  # SOCKS 4
        masque = get(f"http://api.test:{server.port}/masque", "Upgrade: connect-udp", "Connection: Upgrade")
        assert status(await bench.say(masque)) == 400
        assert status(await bench.say(b"CONNECT-UDP api.test:443 HTTP/1.1\r\n\r\n")) == 400
        assert (await server.settled()).received == b""


def fd_is_there(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@scenario
async def test_corpus_dns_over_https_needs_an_allowed_host_as_any_request_does(tmp_path: Path) -> None:
    """A documented limit: an allowed host that answers DNS queries is a way to ask for names, as any content is."""
    query = ("Content-Type: application/dns-message", "Content-Length: 4")
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        refused = await bench.say(get("http://dns.test/dns-query", *query, method="POST", body=b"\0\1\2\3"))
        assert status(refused) == 403
        url = f"http://api.test:{server.port}/dns-query"
        assert status(await bench.say(get(url, *query, method="POST", body=b"\0\1\2\3"))) == 200
        assert bench.names.asked == ["api.test"]


@scenario
async def test_corpus_slowloris_in_the_head_and_in_the_handshake(tmp_path: Path) -> None:
    async with Server(http()).listening() as server:
        async with proxied(tmp_path, f"api.test:{server.port}", head_timeout_s=0.3) as bench:
            url = f"http://api.test:{server.port}/"
            assert status(await bench.say(get(url)[:-2])) == 408
            assert status(await bench.say(*(bytes([byte]) for byte in get(url)))) == 200

            def stall() -> bytes:
                with bench.opened(f"api.test:{server.port}") as client:
                    client.sendall(hello("api.test")[:-1])
                    return rest_of(client)

            assert await asyncio.to_thread(stall) == ALERT
        assert bench.proxy.records[-1].reason == "the TLS handshake did not come within 0.3 s"


@scenario
async def test_corpus_a_head_of_a_mebibyte(tmp_path: Path) -> None:
    async with Server(http()).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        url = f"http://api.test:{server.port}/"
        assert status(await bench.say(get(url, f"X: {'x' * (1 << 20)}"))) == 431
        assert status(await bench.say(get(f"{url}{'x' * (1 << 20)}"))) == 431
        assert status(await bench.say(get(url, f"X: {'x' * (17 << 10)}"))) == 431
        assert status(await bench.say(get(url, f"X: {'x' * (15 << 10)}"))) == 200


@scenario
async def test_corpus_oversized_client_hello(tmp_path: Path) -> None:
    huge = b"\x16\x03\x01\x40\x00\x01\xff\xff\xff\x03\x03" + bytes(1 << 20)
    async with Server().listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        assert await bench.tunnel(f"api.test:{server.port}", huge) == ALERT
        assert (await server.settled()).received == b""


@scenario
async def test_corpus_client_hello_in_many_records_and_segments(tmp_path: Path) -> None:
    def crumbs(name: str) -> list[bytes]:
        return [b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in hello(name)[5:]]

    async with Server().listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        parts = [bytes([byte]) for crumb in crumbs("api.test") for byte in crumb]
        assert await bench.tunnel(f"api.test:{server.port}", *parts) == b"".join(parts)
        before = (await server.settled()).received
        assert await bench.tunnel(f"api.test:{server.port}", *crumbs("evil.test")) == ALERT
        assert (await server.settled()).received == before


@scenario
async def test_bytes_before_the_tunnel_is_open_are_refused(tmp_path: Path) -> None:
    async with Server().listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        early = f"CONNECT api.test:{server.port} HTTP/1.1\r\n\r\n".encode() + hello("api.test")
        assert status(await bench.say(early)) == 400
        assert (await server.settled()).connections == 0


@pytest.mark.control
@scenario
async def test_control_a_connection_is_counted_however_late_its_thread_runs(tmp_path: Path) -> None:
    class Late(Server):
        def serve(self, client: socket.socket) -> None:
            time.sleep(0.2)
            super().serve(client)

    async with Late().listening() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"heard")
        assert (await server.settled()).connections == 1
        assert server.received == b"heard"


# Addresses of this host, peers, limits, failures, the end


@scenario
async def test_this_hosts_own_addresses_are_not_reached_even_when_they_are_public(tmp_path: Path) -> None:
    empty = Allowlist(())
    own = [address for address in own_addresses() if "." in address and not empty.address_problem(address)]
    if not own:
        pytest.skip("this machine has no address of its own that is not refused for what it is")
    names = Names(api_test=[[own[0]]])
    async with Server(http()).listening(host=own[0]) as server:
        for known in (None, frozenset[str]()):  # as read at the start, and an address that came later
            rule = f"api.test:{server.port}"
            async with proxied(tmp_path, rule, names=names, addresses=(), own=known) as bench:
                answer = await bench.say(get(f"http://{rule}/"))
                assert status(answer) == 403
                assert b"is an address of this host" in answer
            async with proxied(tmp_path, rule, names=names, addresses=own[:1], own=known) as bench:
                assert status(await bench.say(get(f"http://{rule}/"))) == 200


@scenario
async def test_only_the_sandboxs_user_is_served(tmp_path: Path) -> None:
    async with Server(http()).listening() as server:
        async with proxied(tmp_path, f"api.test:{server.port}", peer_uid=os.getuid() + 1) as bench:
            assert await bench.say(get(f"http://api.test:{server.port}/")) == b""
        (record,) = bench.proxy.records
        assert not record.allowed
        assert record.reason == f"a process of another user connected (uid {os.getuid()})"
        assert (await server.settled()).connections == 0


@scenario
async def test_the_number_of_connections_is_limited(tmp_path: Path) -> None:
    async with Server(http()).listening() as server:
        async with proxied(tmp_path, f"api.test:{server.port}", connections=2) as bench:
            url = f"http://api.test:{server.port}/"
            assert [status(await bench.say(get(url))) for _ in range(4)] == [200, 200, 429, 429]
        assert bench.proxy.records[-1].reason == "the 2 connections that may be made are used up"


@scenario
async def test_further_connections_wait_for_their_turn(tmp_path: Path) -> None:
    async with (
        Server(http()).listening() as server,
        proxied(tmp_path, f"api.test:{server.port}", simultaneous=2) as bench,
    ):
        idle = [bench.connected() for _ in range(2)]
        waiting = asyncio.create_task(bench.say(get(f"http://api.test:{server.port}/")))
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done
        idle.pop().close()
        assert status(await waiting) == 200
        idle.pop().close()


@pytest.mark.parametrize("up", [True, False])
@scenario
async def test_a_running_transfer_is_cut_at_the_limit(tmp_path: Path, up: bool) -> None:
    limit = 3 << 20
    async with Server(http(bytes(8 << 20)), echo=False).listening() as server:
        async with proxied(tmp_path, f"api.test:{server.port}", transfer_bytes=limit) as bench:
            url = f"http://api.test:{server.port}/"
            if up:
                server.answer = b""
                server.echo = True
                answer = await bench.say(get(url, f"Content-Length: {8 << 20}", method="PUT", body=bytes(8 << 20)))
            else:
                answer = await bench.say(get(url))
                assert limit - (1 << 20) < len(answer) < limit
            assert len((await server.settled()).received) <= limit
            again = await bench.say(get(url))
            assert status(again) == 429
            assert b"the 3 MiB that may be sent and received are used up" in again
            assert (await server.settled()).connections == 1
        assert bench.proxy.records[0].reason == "the 3 MiB that may be sent and received are used up"


@scenario
async def test_a_program_that_does_not_read_holds_no_memory_and_is_cut(tmp_path: Path) -> None:
    async with Server(http(bytes(48 << 20)), echo=False).listening() as server:
        async with proxied(tmp_path, f"api.test:{server.port}", idle_timeout_s=0.5) as bench:

            def stall() -> int:
                with bench.connected() as client:
                    client.sendall(get(f"http://api.test:{server.port}/"))
                    while not bench.proxy.records:
                        client.recv(1, socket.MSG_PEEK)
                return bench.proxy.records[0].bytes_down

            assert await asyncio.to_thread(stall) < 2 << 20
        assert bench.proxy.records[0].reason == "not a byte came for 0.5 s"


@scenario
async def test_what_cannot_be_reached_is_said_in_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names = Names(api_test=[["127.0.0.1"]], empty_test=[[]])
    rules = [f"{host}:{port}" for host in ("api.test", "empty.test", "nowhere.test")]
    async with proxied(tmp_path, *rules, names=names) as bench:
        for rule, words in zip(
            rules, ("Connection refused", "has no address", "Name or service not known"), strict=True
        ):
            answer = await bench.say(get(f"http://{rule}/"))
            assert status(answer) == 502
            assert words.encode() in answer
    assert [record.allowed for record in bench.proxy.records] == [True] * 3


@scenario
async def test_a_server_that_says_nothing_is_a_502(tmp_path: Path) -> None:
    async with Server(echo=False).listening() as server, proxied(tmp_path, f"api.test:{server.port}") as bench:
        answer = await bench.say(get(f"http://api.test:{server.port}/"))
        assert status(answer) == 502
        assert b"closed the connection" in answer or b"broke" in answer


@scenario
async def test_a_resolver_that_hangs_is_a_502(tmp_path: Path) -> None:
    class Hanging(Names):
        async def __call__(self, host: str, port: int) -> Sequence[str]:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async with proxied(tmp_path, "api.test:80", names=Hanging(), connect_timeout_s=0.2) as bench:
        assert status(await bench.say(get("http://api.test/"))) == 502


@scenario
async def test_the_hosts_own_resolver_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "egress.sock"
    async with Server(http()).listening() as server:
        allow = Allowlist((parse_rule(f"localhost:{server.port}"),), (ip_network("127.0.0.1"), ip_network("::1")))
        async with EgressProxy(socket_path=path, peer_uid=os.getuid(), allow=allow, caps=EgressCaps(**CAPS)) as proxy:
            bench = Bench(proxy, path, Names())
            assert status(await bench.say(get(f"http://localhost:{server.port}/"))) == 200


@scenario
async def test_records_are_bounded_and_printable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "MAX_RECORDS", 3)
    async with proxied(tmp_path) as bench:
        for number in range(5):
            await bench.say(f"CONNECT {number}{'x' * 10_000}'\"\\:443 HTTP/1.1\r\n\r\n".encode())
    assert len(bench.proxy.records) == 3
    assert bench.proxy.records_dropped == 2
    assert all(len(record.host) < 120 and record.host.isprintable() for record in bench.proxy.records)
    assert len(bench.proxy.refusals) == 1


@pytest.mark.parametrize("cancelled", [False, True])
@scenario
async def test_the_end_leaves_nothing_whatever_is_going_on(tmp_path: Path, cancelled: bool) -> None:
    held: list[socket.socket] = []
    entered = asyncio.Event()
    bench: list[Bench] = []

    async def run(server: Server) -> None:
        async with proxied(tmp_path, f"api.test:{server.port}") as running:
            bench.append(running)
            held.append(running.connected())  # no head yet
            held.append(await asyncio.to_thread(running.opened, f"api.test:{server.port}"))  # no handshake yet
            held.append(await asyncio.to_thread(running.opened, f"api.test:{server.port}"))
            held[-1].sendall(hello("api.test"))
            await asyncio.to_thread(held[-1].recv, 10)  # in full flow
            held.append(running.connected())  # not accepted yet
            entered.set()
            if cancelled:
                await asyncio.get_running_loop().create_future()

    async with Server().listening() as server:
        task = asyncio.create_task(run(server))
        await entered.wait()
        if cancelled:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task
        assert not (tmp_path / "egress.sock").exists()
        ended = [record.reason for record in bench[0].proxy.records]
        assert ended == ["open when the sandbox ended"] * len(ended)
        assert bench[0].proxy.refusals == ()
        for client in held:
            with contextlib.suppress(ConnectionResetError):
                while client.recv(65536):
                    pass
            client.close()


@scenario
async def test_a_socket_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "egress.sock", tmp_path / ("x" * 200)):
        proxy = EgressProxy(socket_path=path, peer_uid=0, allow=Allowlist(()), caps=EgressCaps(**CAPS))
        with pytest.raises(Internal, match="can't be made"):
            await proxy.__aenter__()


@scenario
async def test_many_at_once_work(tmp_path: Path) -> None:
    async with (
        Server(http(bytes(100_000))).listening() as server,
        proxied(tmp_path, f"api.test:{server.port}") as bench,
    ):
        url = f"http://api.test:{server.port}/"
        answers = await asyncio.gather(*(bench.say(get(url)) for _ in range(60)))
        assert {status(answer) for answer in answers} == {200}
        assert {len(answer) for answer in answers} == {len(http(bytes(100_000)))}
