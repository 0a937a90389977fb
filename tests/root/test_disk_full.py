"""A full disk: one clear sentence, the right status, nothing left.

Root mounts a full file system in a namespace of its own.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.integration.package_index import package_index, wheel

SANDBOX = "/usr/local/bin/sandbox"


def sandbox_on_full(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command where `place` is a file system without any room."""
    account = pwd.getpwnam("sandbox")
    options = f"size=4k,nr_inodes=2,mode=0700,uid={account.pw_uid},gid={account.pw_gid}"
    script = 'mount -t tmpfs -o "$1" full "$2" && head -c 4096 /dev/zero >"$2/filler"; shift 2; exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", options, str(place), SANDBOX, *arguments],
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip # a command line


def places() -> dict[str, Path]:
    account = pwd.getpwnam("sandbox")
    return {
        "runtime": Path(f"/run/user/{account.pw_uid}/podman-sandbox-runner"),
        "cache": Path(account.pw_dir) / ".cache/podman-sandbox-runner",
    }


@pytest.mark.parametrize("name", ["runtime", "cache"])
def test_a_full_disk_is_named_with_the_fix_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    assert os.geteuid() == 0
    place = places()[name]
    assert place.is_dir()
    script = tmp_path / "script.py"
    script.write_text("result = 1")
    answer = sandbox_on_full(place, "run", str(script))
    assert answer.returncode == 13, answer.stderr
    assert "No space left on device" in answer.stderr
    assert "free some space" in answer.stderr
    assert "Traceback" not in answer.stderr
    runs = places()["runtime"] / "runs"
    assert [path for path in runs.iterdir() if path.is_dir()] == []


# A machine within the machine: caches, records, Podman's storage and its processes are of this build alone, and go with
# it. What is left in the cache, and the images, are printed at the end.
BUILD = """
as_user() { setpriv --reuid sandbox --regid sandbox --init-groups env -i HOME="$home" XDG_RUNTIME_DIR="$run" PATH="$PATH" "$@"; }
own() { mount -t tmpfs -o "size=$1,mode=0700,uid=$user,gid=$group" own "$2"; }
cd /
as_user podman save --quiet --output "$place/base.tar" localhost/sandbox-python:latest
own "$cache_size" "$cache"
own 64m "$home/.local/share/podman-sandbox-runner"
own "$storage_size" "$home/.local/share/containers/storage"
own 64m "$run"
as_user podman load --quiet --input "$place/base.tar" >/dev/null
"$@"
status=$?
find "$cache/wheels" "$cache/trees" "$cache/builds" -type f 2>/dev/null
as_user podman images --format '{{.Repository}}'
kill "$(cat "$run/libpod/tmp/pause.pid")"
exit "$status"
"""


def built(
    package: str, *, size_mib: int, cache_size: str = "400m", storage_size: str = "600m"
) -> tuple[int, list[str], str]:
    """Build an environment of one wheel of this size; return the status, what was printed in lines, and the errors."""
    account = pwd.getpwnam("sandbox")
    with tempfile.TemporaryDirectory(prefix="full-") as directory, package_index() as index:
        os.chown(directory, account.pw_uid, account.pw_gid)
        Path(directory).chmod(0o755)
        policy = Path(directory, "local.toml")
        policy.write_text('extends = "default"\nbuild.allow_addresses = ["127.0.0.1"]\n')
        index.add(wheel(package, "1.0", {f"{package}.bin": os.urandom(size_mib << 20)}))
        known = {
            "user": account.pw_uid,
            "group": account.pw_gid,
            "home": account.pw_dir,
            "cache": places()["cache"],
            "run": places()["runtime"].parent,
            "place": directory,
            "cache_size": cache_size,
            "storage_size": storage_size,
            "PATH": os.environ["PATH"],
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": index.url,
        }
        command = [SANDBOX, "env", "build", "--policy", str(policy), "--with", package]
        answer = subprocess.run(
            ["unshare", "--mount", "sh", "-c", BUILD, "sh", *command],
            capture_output=True, text=True, timeout=180, check=False, stdin=subprocess.DEVNULL,
            env={name: str(value) for name, value in known.items()},
        )  # fmt: skip # a command line
    return answer.returncode, answer.stdout.splitlines(), answer.stderr


def test_a_build_that_fills_the_disk_of_the_cache_names_the_package_and_leaves_nothing() -> None:
    status, left, said = built("large", size_mib=24, cache_size="16m")
    assert status == 12, said
    assert "build_failed: large-1.0-py3-none-any.whl can't be kept: " in said
    assert "can't be written: No space left on device" in said
    assert "sandbox env prune" in said
    assert left == ["localhost/sandbox-python"]


def test_a_build_that_fills_podman_s_storage_says_so_and_leaves_no_image() -> None:
    status, left, said = built("large", size_mib=64, storage_size="96m")
    assert status == 12, said
    assert "build_failed: storing large failed: Podman could not add localhost/sandbox-environment:" in said
    assert "no space left on device" in said.lower()
    assert left[-1:] == ["localhost/sandbox-python"]
    assert "localhost/sandbox-environment" not in left


def test_the_same_build_succeeds_with_room_for_both() -> None:
    status, left, said = built("large", size_mib=64)
    assert status == 0, said
    assert {"localhost/sandbox-environment", "localhost/sandbox-python"} <= set(left)
    assert sorted(Path(line).suffix for line in left if line.startswith("/")) == [".tree", ".whl"]


def test_the_same_run_succeeds_with_room(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("result = 1")
    answer = subprocess.run([SANDBOX, "run", str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0
