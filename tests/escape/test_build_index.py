"""Boundary: an index that lies, breaks or points elsewhere leads to an error and to no other host."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sandbox.environment import environments as environment
from sandbox.index.files import discover_file_hosts
from tests.escape.build_bench import Builds, hostile_wheel
from tests.integration.package_index import PackageIndex, package_index, wheel
from tests.waiting import SLOWER

pytestmark = pytest.mark.host_only


@pytest.fixture(scope="module")
def other() -> Iterator[PackageIndex]:
    """Give another server on loopback, with the same files where a test puts them there."""
    with package_index() as server:
        yield server


def root(index: PackageIndex) -> str:
    return index.url.removesuffix("/simple")


def test_another_file_than_the_one_that_was_locked_is_refused(builds: Builds) -> None:
    name, honest = hostile_wheel("swapped", {"swapped.py": "A = 1"})
    lock = builds.lock_of((name, honest))
    builds.index.files[name] = hostile_wheel("swapped", {"swapped.py": "A = 'evil'"})[1]
    assert "hash" in builds.refused("swapped", lock=lock).message
    builds.index.files[name] = honest  # the control, and what was refused is not in the way
    assert builds.value_in(builds.build("swapped", lock=lock), "import swapped\nresult = swapped.A") == 1


def test_a_redirection_leads_to_no_host_that_is_not_allowed(builds: Builds, other: PackageIndex) -> None:
    archive = hostile_wheel("moved", {"moved.py": "A = 1"})
    lock = builds.lock_of(archive)
    other.add(archive)
    builds.index.redirects[f"/files/{archive[0]}"] = f"{root(other)}/files/{archive[0]}"
    error = builds.refused("moved", lock=lock)
    assert other.hits.total() == 0
    assert root(other).removeprefix("http://") in str(error.facts["refused"])
    port = root(other).rpartition(":")[2]
    assert builds.build("moved", lock=lock, policy=builds.policy(allow=["@index", f"127.0.0.1:{port}"])).name


def test_a_redirection_to_the_machine_s_credentials_is_refused_even_where_it_is_listed(builds: Builds) -> None:
    archive = hostile_wheel("meta", {"meta.py": "A = 1"})
    lock = builds.lock_of(archive)
    builds.index.redirects[f"/files/{archive[0]}"] = "http://169.254.169.254/latest/meta-data"
    policy = builds.policy(allow=["@index", "169.254.169.254:80"], allow_addresses=["127.0.0.1", "169.254.0.0/16"])
    assert "metadata" in str(builds.refused("meta", lock=lock, policy=policy).facts["refused"])


def page_with(monkeypatch: pytest.MonkeyPatch, index: PackageIndex, body: Callable[[str], bytes | None]) -> None:
    monkeypatch.setattr(index, "page", lambda package, as_json: body(package))


@pytest.mark.parametrize("address", ["127.0.0.2:80", "10.0.0.1:80", "169.254.169.254:80", "[::1]:80"])
def test_a_page_can_not_open_private_addresses(builds: Builds, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    package = "private" + "".join(char for char in address if char.isdigit())
    name, _ = hostile_wheel(package, {})
    link = (
        f'{{"meta": {{"api-version": "1.0"}}, "name": "{package}", "files": [{{"filename": "{name}", "url":'
        f' "http://{address}/{name}", "hashes": {{"sha256": "{"0" * 64}"}}}}]}}'
    )
    page_with(monkeypatch, builds.index, lambda _: link.encode())
    error = builds.refused(package)
    assert "address" in str(error.facts["refused"]), error


@pytest.mark.parametrize(
    "host", ["exa_mple.com", "example.com.", "[::1", "[fe80::1%25eth0]", "127.1", "a b", "*", "example.com:99999"]
)
def test_a_page_with_an_address_that_is_none_is_an_error(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    name, _ = hostile_wheel("nowhere", {})
    link = (
        f'{{"meta": {{"api-version": "1.0"}}, "name": "nowhere", "files": [{{"filename": "{name}", "url":'
        f' "http://{host}/{name}", "hashes": {{"sha256": "{"0" * 64}"}}}}]}}'
    )
    page_with(monkeypatch, builds.index, lambda _: link.encode())
    builds.refused("nowhere")


@pytest.mark.parametrize(
    "body", [b"", b"\xff" * 1000, b"{", b"[" * 100_000, bytes(40 << 20)], ids=["empty", "bytes", "half", "deep", "huge"]
)
def test_a_page_of_garbage_is_an_error(builds: Builds, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    page_with(monkeypatch, builds.index, lambda _: body)
    began = time.monotonic()
    error = builds.refused("garbage")
    assert time.monotonic() - began < 15 * SLOWER
    assert len(str(error)) < 5_000


SLOW = {
    "silence": [b""],
    "a drop now and then": [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 100000\r\n\r\n",
        *[b"x"] * 70,
    ],
    "a head without end": [b"HTTP/1.1 200 OK\r\n", *[b"X"] * 70],
}


@pytest.mark.parametrize(
    "name",
    [
        "silence",
        "a drop now and then",
        "a head without end",
    ],
)
def test_an_index_that_never_finishes_is_given_up(builds: Builds, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stop = threading.Event()

    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            for piece in SLOW[name]:
                try:
                    client.sendall(piece)
                except OSError:
                    return
                if stop.wait(0.1):
                    return
            stop.wait(30)

    monkeypatch.setattr(environment, "discover_file_hosts", functools.partial(discover_file_hosts, timeout_s=0.3))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{listener.getsockname()[1]}/simple")
        began = time.monotonic()
        try:
            builds.refused("endless")
            assert time.monotonic() - began < 5 * SLOWER
        finally:
            stop.set()


def test_of_two_indexes_the_higher_version_is_taken(
    builds: Builds, other: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with pip: whoever adds an index trusts it for every name. The lock says where each file is from.
    builds.index.add(hostile_wheel("confused", {"confused.py": "A = 'ours'"}))
    other.add(wheel("confused", "9.0", {"confused.py": "A = 'theirs'"}))
    assert [package.version for package in builds.build("confused").lock.packages] == ["1.0"]
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", other.url)
    runner, request = builds.bench.runner(), builds.request("confused>0")

    [package] = asyncio.run(runner.lock(request, lambda _: None)).packages
    assert (package.version, root(other) in package.file.url) == ("9.0", True)
