"""What programs expect of any system, and find in the base image: names, tables, libraries and tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandbox.container.spec import HOSTNAME
from tests.command import document, left_behind
from tests.integration.service import Service, served

pytestmark = pytest.mark.podman

OUTSIDE = 'extends = "default"\n[network]\nmode = "allowlist"\nallow = ["api.example.com:443"]\n'

PROGRAM = """
import ctypes, ctypes.util, getpass, http.server, os, platform, socket, subprocess, sys, threading, urllib.request

def shell(command):
    return subprocess.run(command, shell=True, capture_output=True, text=True).stdout.strip()

name = socket.gethostname()
server = http.server.HTTPServer((name, 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
result = {
    "own name": [name, socket.gethostbyname(name), socket.getfqdn()],
    "every address": sorted({each[4][0] for each in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)}),
    "own server": urllib.request.urlopen(f"http://{name}:{server.server_port}/").status,
    "localhost": socket.gethostbyname("localhost"),
    "services": [socket.getservbyname("https"), socket.getservbyport(5432), socket.getservbyname("ntp", "udp")],
    "protocols": [socket.getprotobyname("tcp"), socket.getprotobyname("icmp")],
    "libraries": [ctypes.CDLL(ctypes.util.find_library(each)) is not None for each in ("c", "m", "gomp", "stdc++", "z")],
    "no library": ctypes.util.find_library("surely-not-there"),
    "interpreters": [shell(f"{each} -c 'import sys; print(sys.version_info[0])'") for each in ("python", "python3", "env python")],
    "system": platform.freedesktop_os_release()["ID"] != "",
    "text tools": shell("printf 'b 2\\\\na 1\\\\n' | sort | grep -v x | sed s/1/one/ | awk '{print $2}' | xargs echo"),
    "archives": shell("cd /tmp && echo hello > f && tar czf f.tgz f && rm f && tar xzf f.tgz && cat f"),
    "search": shell("find /app -maxdepth 0 -type d; which which bash hostname"),
    "merged": [os.path.samefile(f"/bin/{each}", f"/usr/bin/{each}") for each in ("sh", "ls", "env", "python3", "bash")],
}
"""
EXPECTED: dict[str, Any] = {
    "own name": [HOSTNAME, "127.0.0.1", "localhost"],
    "every address": ["127.0.0.1"],
    "own server": 200,
    "localhost": "127.0.0.1",
    "services": [443, "postgresql", 123],
    "protocols": [6, 1],
    "libraries": [True] * 5,
    "no library": None,
    "interpreters": ["3"] * 3,
    "system": True,
    "text tools": "one 2",
    "archives": "hello",
    "search": "/app\n/usr/bin/which\n/usr/bin/bash\n/usr/bin/hostname",
    "merged": [True] * 5,
}

Way = Callable[[str], Any]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("service")
    (home / "policies").mkdir()
    (home / "policies/outside.toml").write_text(OUTSIDE)
    with served(home) as running:
        yield running
    assert left_behind() == []


@pytest.fixture(params=["command", "default", "cells", "outside"])
def way(request: pytest.FixtureRequest, service: Service) -> Iterator[Way]:
    if request.param == "command":
        yield lambda program: document("run", "-", stdin=program)["result"]
        return
    with service.client() as client:
        # The second run of a kind is one that a sandbox was kept ready for.
        yield lambda program: [client.run(program, policy=request.param, node_id="n").value for _ in range(2)][1]


def test_a_program_finds_what_every_system_has(way: Way) -> None:
    assert way(PROGRAM) == EXPECTED


@pytest.mark.parametrize("name", ["python", "python3", "env python"])
def test_every_name_of_the_interpreter_has_the_libraries_of_the_run(name: str) -> None:
    program = f"result = run_command(\"{name} -c 'import six; print(six.__version__)'\")"
    answer = document("run", "--with", "six", "-", stdin=program)
    assert answer["result"]["returncode"] == 0, answer["result"]
