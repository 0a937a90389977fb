"""Another user of the same machine, without a session and then without the cpu controller.

It is refused, then mended, and at the end runs `strict`.
"""

from __future__ import annotations

import json
import pwd
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import platforms
from tests.kernel.machine import NEWCOMER, as_root


@pytest.fixture
def script() -> Path:
    path = Path("/tmp/newcomers-script.py")  # a place that both users can read
    path.write_text("result = sum(payload or [])")
    return path


def sandbox(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as the newcomer."""
    user = pwd.getpwnam(NEWCOMER)
    environment = [
        f"XDG_RUNTIME_DIR=/run/user/{user.pw_uid}",
        f"HOME={user.pw_dir}",
        f"USER={NEWCOMER}",
        "LANG=C.UTF-8",
        "PATH=/usr/bin:/bin:/usr/sbin:/sbin",
    ]
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


def mend(error: dict[str, Any]) -> None:
    """Do what an error says, to the letter: it is what root types."""
    command = re.fullmatch(r"as root[^:]*: (.+)", error["hint"])
    assert command is not None, error["hint"]
    applied = as_root("sh", "-c", command[1])
    assert applied.returncode == 0, applied.stderr


@pytest.fixture
def no_session(newcomer: pwd.struct_passwd) -> None:
    """End the newcomer's session."""
    uid = newcomer.pw_uid
    assert as_root("systemctl", "stop", f"user@{uid}.service", f"user-runtime-dir@{uid}.service").returncode == 0
    # The runtime directory goes with the session; somebody has made one by hand.
    as_root("install", "-d", "-m", "0700", "-o", NEWCOMER, f"/run/user/{uid}")


def test_the_fixes_that_are_named_lead_from_no_session_to_strict(
    no_session: None, script: Path, record_property: platforms.Record
) -> None:
    without_session = document("run", script)
    assert without_session["error"]["code"] == "not_enforceable", without_session
    assert "no session of systemd" in without_session["error"]["message"]
    mend(without_session["error"])

    fallback = document("run", script)
    assert fallback.get("outcome") == "succeeded", fallback
    assert caps_of(fallback["receipt"]) == {
        "memory": ("proven", "cgroup"),
        "cpus": ("fallback", "affinity+rlimit"),
        "processes": ("proven", "cgroup"),
    }
    platforms.record(
        record_property,
        cgroup="v2, without cpu",
        receipt=fallback["receipt"],
        policies={"default": "runs", "strict": "refuses"},
    )

    refused = sandbox("run", script, "--policy", "strict", "--json")
    assert refused.returncode == 4, refused.stderr
    error = json.loads(refused.stdout)["error"]
    assert "caps CPUs by cgroup v2" in error["message"]
    assert "controller 'cpu' is not delegated" in error["message"]
    mend(error)

    mended = document("run", script, "--policy", "strict", "--input", "[20, 22]")
    assert (mended.get("outcome"), mended.get("result")) == ("succeeded", 42), mended
    assert set(caps_of(mended["receipt"]).values()) == {("proven", "cgroup")}
    assert {row["status"] for row in mended["receipt"]["controls"]} == {"proven"}
