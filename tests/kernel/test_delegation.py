"""Another user of the same machine, to whom systemd does not delegate the cpu controller: refused, mended, running.

The user `newcomer` belongs to the machine of `scripts/vm-test`, where sudo asks for no password.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import platforms

NEWCOMER = "newcomer"
REQUIRED = os.environ.get("SANDBOX_REQUIRE_DELEGATION", "") not in ("", "0")


def as_root(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sudo", "-n", *command], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module", autouse=True)
def other_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(NEWCOMER)
    except KeyError:
        if REQUIRED:
            pytest.fail(f"this machine has no user {NEWCOMER}", pytrace=False)
        pytest.skip(f"needs the user {NEWCOMER}, who belongs to the machine of scripts/vm-test")


@pytest.fixture(scope="module")
def script() -> Path:
    path = Path("/tmp/newcomers-script.py")  # a place that both users can read
    path.write_text("result = 1")
    return path


def sandbox(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as the newcomer."""
    user = pwd.getpwnam(NEWCOMER)
    environment = [f"XDG_RUNTIME_DIR=/run/user/{user.pw_uid}", f"HOME={user.pw_dir}", f"USER={NEWCOMER}", "LANG=C.UTF-8",
                   "PATH=/usr/bin:/bin:/usr/sbin:/sbin"]  # fmt: skip
    return as_root(
        "-u", NEWCOMER, "env", "-i", "-C", "/", *environment, sys.executable, "-m", "sandbox", *map(str, words)
    )


def document(*words: str | Path) -> dict[str, Any]:
    answer = sandbox(*words, "--json")
    assert answer.stdout, answer.stderr
    loaded: dict[str, Any] = json.loads(answer.stdout)
    return loaded


def caps_of(receipt: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {
        row["control"]: (row["status"], row["mechanism"])
        for row in receipt["controls"]
        if row["control"] in ("memory", "cpus", "processes")
    }


def test_an_undelegated_controller_is_refused_and_the_fix_that_is_named_mends_it(
    script: Path, record_property: platforms.Record
) -> None:
    refused = sandbox("run", script, "--policy", "strict", "--json")
    assert refused.returncode == 4, refused.stderr
    error = json.loads(refused.stdout)["error"]
    assert "caps CPUs by cgroup v2" in error["message"]
    assert "controller 'cpu' is not delegated" in error["message"]

    fallback = document("run", script)
    assert fallback["outcome"] == "succeeded"
    assert caps_of(fallback["receipt"]) == {
        "memory": ("proven", "cgroup"), "cpus": ("fallback", "affinity+rlimit"), "processes": ("proven", "cgroup"),
    }  # fmt: skip
    platforms.record(
        record_property, cgroup="v2, without cpu", receipt=fallback["receipt"],
        policies={"default": "runs", "strict": "refuses"},
    )  # fmt: skip

    # To the letter: what the error says is what root types.
    command = re.fullmatch(r"as root[^:]*: (.+)", error["hint"])
    assert command is not None, error["hint"]
    applied = as_root("sh", "-c", command[1])
    assert applied.returncode == 0, applied.stderr

    mended = document("run", script, "--policy", "strict")
    assert mended.get("outcome") == "succeeded", mended
    assert set(caps_of(mended["receipt"]).values()) == {("proven", "cgroup")}


def test_a_user_without_a_session_is_told_how_to_get_one(script: Path) -> None:
    user = pwd.getpwnam(NEWCOMER)
    units = (f"user@{user.pw_uid}.service", f"user-runtime-dir@{user.pw_uid}.service")
    assert as_root("systemctl", "stop", *units).returncode == 0
    try:
        # The runtime directory goes with the session; somebody has made one by hand.
        as_root("install", "-d", "-m", "0700", "-o", NEWCOMER, f"/run/user/{user.pw_uid}")
        refused = document("run", script)
        assert refused["error"]["code"] == "not_enforceable", refused
        assert "no session of systemd" in refused["error"]["message"]
        command = re.fullmatch(r"as root: (.+)", refused["error"]["hint"])
        assert command is not None, refused["error"]["hint"]
        applied = as_root("sh", "-c", command[1])
        assert applied.returncode == 0, applied.stderr
        mended = document("run", script)
        assert mended.get("outcome") == "succeeded", mended
    finally:
        as_root("systemctl", "start", f"user@{user.pw_uid}.service")
