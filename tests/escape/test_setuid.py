"""Boundary: no file changes the user that a program runs as."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.escape.bench import NEW_PRIVILEGES, UNCONFINED, Bench, extra_mount, tmpfs_option

# The host file belongs to the calling user, who is root inside: executing it makes a process of container root.
ATTACK = """
import os, subprocess
answer = subprocess.run(["/mnt/setuid", "-u"], capture_output=True, text=True)
result = {"inside": os.geteuid(), "reached": answer.stdout.strip(), "said": answer.stderr}
"""


@pytest.fixture
def setuid_mount(bench: Bench) -> Iterator[Path]:
    # The image's own program: the host's may need another libc.
    given = bench.run("save_file('id', open('/usr/bin/id', 'rb').read())\nresult = 1")
    directory = Path(tempfile.mkdtemp(prefix="setuid-", dir=Path.home()))
    directory.chmod(0o755)
    (directory / "setuid").write_bytes(given.files[0].content)
    (directory / "setuid").chmod(0o4755)
    yield directory
    shutil.rmtree(directory)


def test_the_image_has_no_file_that_changes_user_or_group(bench: Bench) -> None:
    text = """
        import os, stat
        found, seen = [], 0
        for directory, _, names in os.walk("/"):
            if directory.startswith(("/proc", "/sys")):
                continue
            for name in names:
                try:
                    status = os.lstat(os.path.join(directory, name))
                except OSError:
                    continue
                seen += 1
                if stat.S_ISREG(status.st_mode) and status.st_mode & 0o6000:
                    found.append(os.path.join(directory, name))
        result = {"found": found, "seen": seen}
    """
    walked = bench.value(text)
    assert walked["found"] == []
    assert walked["seen"] > 500


def test_a_setuid_file_gives_nothing(bench: Bench, setuid_mount: Path) -> None:
    # Mounted with setuid allowed: what holds here is "no new privileges" alone.
    weak = bench.run_weakened(ATTACK, extra_mount(setuid_mount, "/mnt", "ro", "suid", "exec"))
    assert weak.value["reached"] == str(weak.value["inside"]), weak.value
    assert weak.noticed == {"mounts"}


@pytest.mark.host_only
@pytest.mark.control
def test_with_new_privileges_the_same_file_gives_root(bench: Bench, setuid_mount: Path) -> None:
    # Without "no new privileges" the runtime installs the filter before it gives up root, and our list is too short
    # for that; so the filter goes as well.
    weaken = extra_mount(setuid_mount, "/mnt", "ro", "suid", "exec") + NEW_PRIVILEGES + UNCONFINED
    weak = bench.run_weakened(ATTACK, weaken)
    assert weak.value["reached"] == "0", weak.value
    assert {"mounts", "no new privileges", "seccomp"} <= weak.noticed


def test_a_program_cannot_make_itself_another_user(bench: Bench) -> None:
    text = """
        import os
        def refused(function, *arguments):
            try:
                function(*arguments)
            except OSError as error:
                return error.errno
            return 0
        own = os.getuid()
        result = [refused(os.setuid, 0), refused(os.setgid, 0), refused(os.setresuid, 0, 0, 0),
                  refused(os.setgroups, [0]), refused(os.setreuid, own, 0), os.getresuid() == (own, own, own)]
    """
    assert bench.value(text) == [1, 1, 1, 1, 1, True]


def test_a_setuid_bit_of_one_s_own_making_is_ignored(bench: Bench) -> None:
    # The places that can be written are mounted nosuid and, by default, noexec; here the latter is off.
    text = f"""
        import os, shutil, subprocess
        shutil.copy("/usr/bin/id" if os.path.exists("/usr/bin/id") else {sys.executable!r}, "/app/tool")
        os.chmod("/app/tool", 0o6755)
        flags = next(line.split()[5] for line in open("/proc/self/mountinfo") if " /app " in line)
        result = {{"flags": flags.split(","), "own": str(os.getuid()),
                  "uid": subprocess.run(["/app/tool", "-u"], capture_output=True, text=True).stdout.strip()}}
    """
    weak = bench.run_weakened(text, tmpfs_option("/app", "noexec", "exec", "/app executable"))
    assert "nosuid" in weak.value["flags"]
    assert weak.value["uid"] == weak.value["own"]
    assert weak.noticed == {"tmpfs /app"}
