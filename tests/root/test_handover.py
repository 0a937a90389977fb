"""Called as root, the command hands itself over to the user `sandbox`.

These tests run as root, and start no container as root.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.client import Client
from tests.integration.package_index import wheel

SANDBOX = "/usr/local/bin/sandbox"
NOTE = "called as root, going on as user 'sandbox'"


@pytest.fixture(autouse=True)
def as_root() -> None:
    assert os.geteuid() == 0, "this tier runs as root: scripts/test as root includes it"


def sandbox(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SANDBOX, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )


@pytest.mark.parametrize("words", ["logs ", "stop ", "env show ", "policy show "])
def test_completion_says_nothing_while_root_types(words: str) -> None:
    line = f"sandbox {words}"
    count = str(len(line.split()))
    answer = sandbox(_SANDBOX_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=count)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text("import os\nresult = os.getuid()\n")
    path.chmod(0o600)
    return path


def test_root_says_once_that_it_goes_on_as_another_user(script: Path) -> None:
    answer = sandbox("run", str(script))
    assert answer.returncode == 0
    assert answer.stderr.count(NOTE) == 1


def test_quiet_says_nothing(script: Path) -> None:
    assert sandbox("run", str(script), "--quiet").stderr == ""


def test_the_container_belongs_to_the_unprivileged_user(script: Path) -> None:
    found = json.loads(sandbox("run", str(script), "--json").stdout)
    control = next(row for row in found["receipt"]["controls"] if row["control"] == "non-root user")
    host_uid = int(control["evidence"].split()[1])
    account = pwd.getpwnam("sandbox")
    assert host_uid not in (0, account.pw_uid)
    first = next(
        line.split(":")[1] for line in Path("/etc/subuid").read_text().splitlines() if line.startswith("sandbox:")
    )
    assert int(first) <= host_uid < int(first) + 65_536


def test_a_script_that_only_root_can_read_runs(script: Path) -> None:
    assert sandbox("run", str(script)).returncode == 0


def test_roots_own_container_storage_is_never_touched(script: Path) -> None:
    storage = Path("/var/lib/containers/storage")
    before = storage.exists()
    sandbox("run", str(script))
    sandbox("doctor")
    sandbox("image", "list")
    assert storage.exists() == before


def test_a_runtime_directory_that_a_reboot_took_is_made_again(script: Path) -> None:
    account = pwd.getpwnam("sandbox")
    runtime = Path(f"/run/user/{account.pw_uid}")
    aside = runtime.with_name(f"{account.pw_uid}.aside")
    runtime.rename(aside)
    try:
        answer = sandbox("run", str(script))
        assert answer.returncode == 0, answer.stderr
        assert runtime.stat().st_mode & 0o777 == 0o700
        assert runtime.stat().st_uid == account.pw_uid
        subprocess.run(["rm", "-rf", str(runtime)], check=True)
    finally:
        aside.rename(runtime)


def test_a_directory_that_the_user_cannot_write_is_refused_before_the_run(script: Path, tmp_path: Path) -> None:
    target = tmp_path / "only-root"
    target.mkdir(mode=0o700)
    answer = sandbox("run", str(script), "--save-files", str(target))
    assert answer.returncode == 2
    assert "--save-files" in answer.stderr


@pytest.fixture
def packages() -> Iterator[Path]:
    """Give a directory of packages that every user can read."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


def test_a_lock_is_written_where_only_root_may_write(packages: Path, tmp_path: Path) -> None:
    library = f"rooted{uuid.uuid4().hex[:8]}"
    file, content = wheel(library, "1.0", {f"{library}.py": ""})
    (packages / file).write_bytes(content)
    only_root = tmp_path / "only-root"
    only_root.mkdir(mode=0o700)
    target = only_root / "pylock.toml"
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(packages), "PIP_CONFIG_FILE": "/dev/null"}
    answer = sandbox("env", "lock", "--with", library, "--output", str(target), **index)
    assert answer.returncode == 0, answer.stderr
    assert f'name = "{library}"' in target.read_text()
    assert target.stat().st_uid == 0
    # The control: the rest of the command has root's rights no more.
    assert NOTE in answer.stderr


# ---- descriptors


def open_files(pid: int) -> list[str]:
    """Return what a process has open; it opens and closes meanwhile."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


@pytest.mark.parametrize("meant_for_it", [True, False], ids=["for the service", "for another process"])
def test_a_socket_that_systemd_opened_is_all_that_the_service_takes_along(meant_for_it: bool) -> None:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as place,
        socket.socket(socket.AF_UNIX) as opened,
        open("/etc/shadow") as shadow,
    ):
        os.chmod(place, 0o755)
        opened.bind(f"{place}/s")
        os.chmod(f"{place}/s", 0o600)
        opened.listen()
        pid = "$$" if meant_for_it else "1"
        script = (
            f"exec 3<&{opened.fileno()} 9<&{shadow.fileno()}; export LISTEN_FDS=1 LISTEN_PID={pid}; exec {SANDBOX}"
            " serve"
        )
        service = subprocess.Popen(
            ["/bin/bash", "-c", script],
            pass_fds=[opened.fileno(), shadow.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "SANDBOX_SOCKET__PATH": f"{place}/absent/s",
                "SANDBOX_POOL__MEMORY_MIB": "0",
                "SANDBOX_CELLS__MEMORY_MIB": "0",
            },
        )
        try:
            if not meant_for_it:
                assert "absent/s can't be opened" in service.communicate(timeout=60)[1].decode()
                return
            with Client(f"{place}/s", timeout_s=60) as client:
                assert client.health()["status"] in ("ok", "degraded")
            assert "/etc/shadow" not in open_files(service.pid)
        finally:
            service.terminate()
            service.communicate(timeout=60)
