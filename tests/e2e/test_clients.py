"""What programs use to reach an API works unchanged through the egress proxy: httpx, requests, urllib and pip."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.command import document, environment, sandbox
from tests.integration.certificates import certified
from tests.integration.package_index import PackageIndex, package_index, wheel

pytestmark = pytest.mark.host_only

CODE = """
# /// script
# dependencies = ["httpx", "pip", "requests"]
# ///
import subprocess, sys, urllib.request
import httpx, requests

def attempt(get):
    try:
        return get()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def with_pip():
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--retries", "0"]
    return subprocess.run([*command, "--index-url", payload, "--dest", "/app/got", "tiny"], capture_output=True).returncode

page = payload + "/tiny/"
result = {
    "httpx": attempt(lambda: httpx.get(page).status_code),
    "httpx.Client": attempt(lambda: httpx.Client().get(page).status_code),
    "requests": attempt(lambda: requests.get(page).status_code),
    "urllib": attempt(lambda: urllib.request.urlopen(page).status),
    "pip": with_pip(),
}
"""
REACHED = {"httpx": 200, "httpx.Client": 200, "requests": 200, "urllib": 200, "pip": 0}


@contextmanager
def served(place: Path, *, tls: bool) -> Iterator[tuple[PackageIndex, str, dict[str, str]]]:
    """Give a server on loopback, its address for programs, and the host's variables under which it is trusted."""
    context, trusted = None, {}
    if tls:
        authority, signing = certified(place, "authority")
        certificate, key = certified(
            place, "server", "-CA", authority, "-CAkey", signing, "-addext", "subjectAltName=DNS:localhost"
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        trusted = {"PIP_CERT": str(authority)}
    with package_index(context) as server:
        server.add(wheel("tiny", "1.0", {"tiny.py": ""}))
        yield server, server.url.replace("127.0.0.1", "localhost"), trusted


@pytest.fixture(scope="module", autouse=True)
def libraries(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Install the libraries with the index that the host has; the runs below may not need it."""
    answer = sandbox("env", "build", "--with", "httpx", "--with", "pip", "--with", "requests")
    assert answer.returncode == 0, answer.stderr


def ran(place: Path, address: str, trusted: dict[str, str], allowed: str) -> dict[str, Any]:
    """Run the program under a policy that allows one host, and return its result."""
    (place / "script.py").write_text(CODE)
    (place / "reach.toml").write_text(
        f'extends = "default"\n[network]\nmode = "allowlist"\nallow = ["{allowed}"]\nallow_addresses = ["127.0.0.1",'
        ' "::1"]\n'
    )
    options = ("--policy", place / "reach.toml", "--input", json.dumps(address))
    found = document("run", place / "script.py", *options, env=environment(**trusted))
    assert found["outcome"] == "succeeded", found
    result: dict[str, Any] = found["result"]
    return result


@pytest.mark.parametrize(
    "tls",
    [False, pytest.param(True, marks=pytest.mark.embedded_only)],  # whom a service trusts is up to its own variables
    ids=["http", "https"],
)
def test_clients_work_unchanged_through_the_proxy_and_only_to_what_is_allowed(tmp_path: Path, *, tls: bool) -> None:
    with served(tmp_path, tls=tls) as (server, address, trusted):
        host = address.split("/")[2]
        assert ran(tmp_path, address, trusted, host) == REACHED
        assert server.hits["/simple/tiny/"] == len(REACHED)
        assert server.hits["/files/tiny-1.0-py3-none-any.whl"] == 1
        # The control: the same program where another host is allowed.
        server.hits.clear()
        refused = ran(tmp_path, address, trusted, "api.example.com:443")
        assert {name: value for name, value in refused.items() if not isinstance(value, str)} == {"pip": 1}
        assert server.hits.total() == 0
