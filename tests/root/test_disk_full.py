"""A full disk: one clear sentence, the right status, nothing left. Root mounts a full file system in a namespace of its own."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

SANDBOX = "/usr/local/bin/sandbox"


def sandbox_on_full(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command where `place` is a file system without any room."""
    account = pwd.getpwnam("sandbox")
    options = f"size=4k,nr_inodes=2,mode=0700,uid={account.pw_uid},gid={account.pw_gid}"
    script = 'mount -t tmpfs -o "$1" full "$2" && head -c 4096 /dev/zero >"$2/filler"; shift 2; exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", options, str(place), SANDBOX, *arguments],
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


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


def test_the_same_run_succeeds_with_room(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("result = 1")
    answer = subprocess.run([SANDBOX, "run", str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0
