"""Boundary: only /app, /tmp and /dev/shm can be written, as far as the policy says, and nothing there runs."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.container.spec import JOB_DIR, LIB_DIR, MIB
from tests.escape.attacks import needs_known_architecture, program
from tests.escape.bench import CONTAINER_ROOT, UNCONFINED, WRITABLE_ROOT, Bench, WeakResult, tmpfs_option, weakening

WALK = """
import errno, os

def attempt(path, flags):
    try:
        os.close(os.open(path, flags, 0o600))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

answers, written = {}, []
for directory, directories, names in os.walk("/"):
    directories[:] = [name for name in directories if os.path.join(directory, name) not in ("/proc", "/sys")]
    probe = os.path.join(directory, ".written-by-a-test")
    answer = attempt(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    answers[answer] = answers.get(answer, 0) + 1
    if answer == "ok":
        written.append(directory)
        os.unlink(probe)
    for name in names:
        path = os.path.join(directory, name)
        if not os.path.islink(path) and attempt(path, os.O_WRONLY | os.O_NONBLOCK) == "ok":
            written.append(path)

def changed(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

python = os.path.realpath(__import__("sys").executable)
result = {
    "answers": answers, "written": written[:100], "mine": {path: answer for path, answer in
        ((path, attempt(path + "/.x", os.O_WRONLY | os.O_CREAT)) for path in payload)},
    "remove": changed(os.unlink, python), "rename": changed(os.rename, python, "/usr/bin/other"),
    "chmod": changed(os.chmod, python, 0o777), "link": changed(os.link, "/etc/passwd", "/app/passwd"),
    "rmdir": changed(os.rmdir, "/usr/bin"), "truncate": changed(os.truncate, "/etc/passwd", 0),
    "mkdir": changed(os.mkdir, "/data"), "utime": changed(os.utime, "/etc/passwd", (0, 0)),
}
"""

# What may be opened for writing besides the three places: devices that hold nothing.
DEVICES = {
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts/ptmx",
}
PLACES = ["/app", "/tmp", "/dev/shm"]
READ_ONLY = ["/", "/usr", "/etc", "/run", "/var/tmp", "/home", "/root", "/opt", "/dev", "/dev/mqueue", LIB_DIR, JOB_DIR]


@pytest.fixture(scope="module")
def seen(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = bench.value(WALK, payload=READ_ONLY)
    return found


def test_nothing_but_the_three_places_can_be_written(seen: dict[str, Any]) -> None:
    assert set(seen["written"]) - DEVICES == {*PLACES, "/app/attack.py"}, "and the script's own file"
    assert sum(seen["answers"].values()) > 100
    assert "ok" not in seen["mine"].values()


def test_nothing_of_the_image_can_be_changed(seen: dict[str, Any]) -> None:
    for change in ("remove", "rename", "chmod", "link", "rmdir", "truncate", "mkdir", "utime"):
        assert seen[change] in ("EROFS", "EPERM", "EACCES", "EXDEV"), change


def test_even_container_root_finds_the_image_read_only(bench: Bench) -> None:
    # Files of the image belong to root, which alone would stop the user. This shows that the mount does, too.
    weak = bench.run_weakened(WALK, CONTAINER_ROOT, payload=["/", "/usr", "/etc", LIB_DIR, JOB_DIR])
    assert weak.value["remove"] == weak.value["chmod"] == weak.value["mkdir"] == "EROFS"
    assert set(weak.value["mine"].values()) == {"EROFS"}


@pytest.mark.host_only
@pytest.mark.control
def test_with_a_writable_root_the_same_attack_changes_the_image_s_files(bench: Bench) -> None:
    weak = bench.run_weakened(WALK, CONTAINER_ROOT + WRITABLE_ROOT, payload=["/usr", "/etc"])
    assert weak.value["remove"] == weak.value["truncate"] == "ok"
    assert set(weak.value["mine"].values()) == {"ok"}
    assert "read-only root" in weak.noticed


FILL = """
import errno, os
found = {}
for place, bound in payload.items():
    written, block = 0, b"x" * 65536
    with open(place + "/filler", "wb", buffering=0) as file:
        try:
            while written < bound:
                written += file.write(block)
            found[place] = [written, "no end"]
        except OSError as error:
            found[place] = [written, errno.errorcode[error.errno]]
    os.unlink(place + "/filler")
result = found
"""


def sizes(bench: Bench) -> dict[str, int]:
    files = bench.policy().filesystem
    return {"/app": files.app_mib * MIB, "/tmp": files.tmp_mib * MIB, "/dev/shm": files.shm_mib * MIB}


def test_each_place_is_full_at_the_policy_s_size(bench: Bench) -> None:
    allowed = sizes(bench)
    found = bench.value(FILL, payload={place: size + 4 * MIB for place, size in allowed.items()})
    for place, size in allowed.items():
        written, answer = found[place]
        assert answer == "ENOSPC", place
        assert size - MIB <= written <= size, place


@pytest.mark.host_only
@pytest.mark.control
@pytest.mark.parametrize("place", PLACES)
def test_without_a_size_the_same_attack_writes_more(bench: Bench, place: str) -> None:
    bound = sizes(bench)[place] + 4 * MIB
    weak = bench.run_weakened(FILL, tmpfs_option(place, "size=", None, f"{place} unsized"), payload={place: bound})
    assert weak.value[place] == [bound, "no end"]
    assert weak.noticed == {f"tmpfs {place}"}


EXECUTE = program("""
import shutil, subprocess, mmap
found = {}
for place in payload:
    with open(place + "/script", "w") as file:
        file.write("#!/bin/sh\\necho ran\\n")
    os.chmod(place + "/script", 0o755)
    try:
        found[place] = subprocess.run([place + "/script"], capture_output=True, text=True).stdout.strip()
    except OSError as error:
        found[place] = errno.errorcode[error.errno]
    with open(place + "/code", "w+b") as file:
        file.write(b"\\xc3" * 4096)
        file.flush()
        found["map " + place] = attempt(lambda: mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))
result = found
""")


def test_nothing_that_was_written_can_be_executed(bench: Bench) -> None:
    found = bench.value(EXECUTE, payload=PLACES)
    assert {found[place] for place in PLACES} == {"EACCES"}
    assert {found["map " + place] for place in PLACES} == {"EPERM"}


@pytest.mark.host_only
@pytest.mark.control
def test_with_an_executable_app_the_same_attack_runs(bench: Bench) -> None:
    weak = bench.run_weakened(EXECUTE, tmpfs_option("/app", "noexec", "exec", "/app executable"), payload=["/app"])
    assert weak.value == {"/app": "ran", "map /app": "ok"}
    assert weak.noticed == {"tmpfs /app"}


NODES = program("""
import stat
kinds = {"character": stat.S_IFCHR, "block": stat.S_IFBLK, "socket": stat.S_IFSOCK, "file": stat.S_IFREG, "high": 1 << 32}
def node(name):
    path = ctypes.create_string_buffer(f"/app/{name}".encode())
    return path, ctypes.addressof(path)

paths = {name: node(name) for name in kinds}
seen = {"mknod " + name: call("mknodat", -100, paths[name][1], kind | 0o600, 0x0103) for name, kind in kinds.items()}
seen["fifo"] = attempt(lambda: os.mkfifo("/app/fifo"))
present = {}
for directory, _, names in os.walk("/dev"):
    for name in names:
        full = os.path.join(directory, name)
        mode = os.lstat(full).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            present[full] = "block" if stat.S_ISBLK(mode) else "character"
seen["present"] = present
seen["open"] = {path: attempt(open, path, "rb") for path in
    ("/dev/mem", "/dev/kmem", "/dev/kmsg", "/dev/vsock", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/sda", "/dev/vda",
     "/dev/mapper/control", "/dev/loop-control", "/dev/console")}
seen["queue"] = attempt(open, "/dev/mqueue/queue", "w")
result = seen
""")


@pytest.fixture(scope="module")
def nodes(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = bench.value(NODES)
    return found


def test_dev_holds_only_harmless_devices(nodes: dict[str, Any]) -> None:
    allowed = DEVICES | {"/dev/console"}
    assert set(nodes["present"]) <= allowed
    assert set(nodes["present"].values()) == {"character"}
    assert "ok" not in nodes["open"].values()


@needs_known_architecture
def test_no_device_node_can_be_made(nodes: dict[str, Any]) -> None:
    answers = {nodes[f"mknod {kind}"] for kind in ("character", "block", "socket", "file", "high")}
    assert answers == {"ENOSYS"}
    assert nodes["fifo"] == "ok"


@needs_known_architecture
@pytest.mark.host_only
@pytest.mark.control
def test_without_the_filter_the_kernel_refuses_device_nodes_itself(bench: Bench) -> None:
    weak: WeakResult = bench.run_weakened(NODES, UNCONFINED)
    assert weak.value["mknod character"] == "EPERM"
    assert weak.value["mknod file"] == "ok"
    assert weak.noticed == {"seccomp"}


def test_no_message_queue_can_be_made(bench: Bench, nodes: dict[str, Any]) -> None:
    assert nodes["queue"] in ("EMFILE", "EACCES", "ENOENT", "EROFS")


@pytest.mark.host_only
@pytest.mark.control
def test_with_capabilities_the_image_s_files_change_hands(bench: Bench) -> None:
    text = """
        import os
        try:
            os.chown("/app", 1, 1)
            result = "ok"
        except OSError as error:
            result = error.errno
    """
    assert bench.value(text) == 1
    weak = bench.run_weakened(
        text, CONTAINER_ROOT + weakening("default capabilities", "no capabilities", cap_drop=None)
    )
    assert weak.value == "ok"
    assert "no capabilities" in weak.noticed
