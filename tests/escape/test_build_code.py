"""Boundary: code of a package runs in a build only where a policy allows it.

What it tries there is in `test_build_attacks.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.models import Outcome
from tests.escape.build_bench import Builds, hostile_wheel, probing_sdist
from tests.integration.package_index import PackageIndex, package_index, sdist
from tests.waiting import until

pytestmark = pytest.mark.host_only


@pytest.fixture(scope="module")
def other() -> Iterator[PackageIndex]:
    """Give a server on loopback that is not the index."""
    with package_index() as server:
        server.redirects = {}
        server.files = {"x": b""}
        yield server


def port_of(server: PackageIndex) -> int:
    return int(server.url.split(":")[2].split("/")[0])


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
    for pid in until(lambda: running(outside)):
        os.kill(pid, signal.SIGKILL)


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


SHIM = (
    "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == 'local';"
    " enabled and __import__('_distutils_hack').add_shim(); \n"
)
HACK = "import sys\ndef add_shim():\n    sys.started = True\n"
STARTED = "import sys\nresult = getattr(sys, 'started', False)"


@pytest.mark.parametrize(
    "content",
    [
        SHIM + "import os; os.environ['STARTED'] = '1'\n",
        SHIM.replace("_distutils_hack", "distutils_hack"),
        "import started\n",
    ],
)
def test_a_path_file_with_a_known_name_and_other_code_is_refused(builds: Builds, content: str) -> None:
    files = {"distutils-precedence.pth": content, "started.py": "import sys\nsys.started = True\n"}
    assert "executes at every start" in builds.wheel_refused(hostile_wheel("started", files)).message


def test_a_copy_of_a_known_path_file_runs_no_code_of_the_package_that_brings_it(builds: Builds) -> None:
    wheel = hostile_wheel("copied", {"distutils-precedence.pth": SHIM, "_distutils_hack.py": HACK})
    assert builds.value_in(builds.wheel_built(wheel), STARTED) is False
    # The control: where a policy trusts such files, it does.
    trusted = builds.wheel_built(wheel, policy=builds.policy(allow_pth=True))
    assert builds.value_in(trusted, STARTED) is True
