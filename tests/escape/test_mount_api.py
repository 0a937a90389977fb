"""Boundary: nothing can be mounted, unmounted or remounted, by the old calls or the new ones."""

from __future__ import annotations

import pytest

from tests.escape.attacks import needs_known_architecture, program
from tests.escape.bench import UNCONFINED, Bench, WeakResult

pytestmark = needs_known_architecture

# Arguments are wrong on purpose. Where the kernel looks at them before it looks at the caller, its own answer is
# not EPERM; where it looks at the caller first, the control below first takes a user namespace with every capability.
PROBE = program("""
def calls():
    return {
        "mount": call("mount", 0, BAD, 0, 0, 0),
        "umount2": call("umount2", BAD, 0x7fffffff),
        "pivot_root": call("pivot_root", BAD, BAD),
        "chroot": call("chroot", BAD),
        "open_tree": call("open_tree", -1, BAD, -1),
        "move_mount": call("move_mount", -1, BAD, -1, BAD, 0x7fffff00),
        "fsopen": call("fsopen", BAD, 0),
        "fsconfig": call("fsconfig", -1, 99, 0, 0, 0),
        "fsmount": call("fsmount", -1, 0x7fffff00, 0),
        "fspick": call("fspick", -1, BAD, 0x7fffff00),
        "mount_setattr": call("mount_setattr", -1, BAD, 0x7fffff00, 0, 0),
        "statmount": call("statmount", BAD, BAD, 0, 99),
        "listmount": call("listmount", BAD, BAD, 0, 99),
    }

def with_every_capability():
    for flags in (0x10000000 | 0x00020000, ):
        if call("unshare", flags) != "ok":
            return {"unshare": "refused"}
    found = calls()
    found["a tmpfs over /app"] = mounted("tmpfs")
    return found

def mounted(kind):
    kind, target = ctypes.create_string_buffer(kind.encode()), ctypes.create_string_buffer(b"/app")
    return call("mount", ctypes.addressof(kind), ctypes.addressof(target), ctypes.addressof(kind), 0, 0)

import json
found = calls()
found["a tmpfs over /app"] = mounted("tmpfs")
found["remount"] = attempt(lambda: os.stat("/app")) and call("mount", 0, BAD, 0, 0x1021, 0)
result = {"direct": found, "with capabilities": json.loads(in_child(lambda: json.dumps(with_every_capability())))}
""")

NEWER = {"statmount", "listmount", "mount_setattr"}  # Linux 6.8 and 5.12: older kernels answer ENOSYS themselves
UNNAMED = {(name, "ENOSYS") for name in NEWER}


@pytest.fixture(scope="module")
def seen(bench: Bench) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = bench.value(PROBE)
    return found


@pytest.fixture(scope="module")
def unconfined(bench: Bench) -> WeakResult:
    return bench.run_weakened(PROBE, UNCONFINED)


def test_every_call_is_refused_before_the_kernel_looks_at_it(seen: dict[str, dict[str, str]]) -> None:
    # A libseccomp that has no name for the newest calls leaves them to the default answer, ENOSYS.
    answers = {name: answer for name, answer in seen["direct"].items() if (name, answer) not in UNNAMED}
    assert set(answers.values()) == {"EPERM"}, seen["direct"]


def test_no_user_namespace_helps(seen: dict[str, dict[str, str]]) -> None:
    assert seen["with capabilities"] == {"unshare": "refused"}


@pytest.mark.host_only
@pytest.mark.control
def test_without_the_filter_the_kernel_answers_instead(unconfined: WeakResult) -> None:
    direct = unconfined.value["direct"]
    assert direct["mount"] == direct["chroot"] == "EFAULT"
    assert direct["open_tree"] == direct["umount2"] == "EINVAL"
    assert unconfined.noticed == {"seccomp"}


@pytest.mark.host_only
@pytest.mark.control
def test_without_the_filter_a_user_namespace_mounts_what_it_likes(unconfined: WeakResult) -> None:
    answers = dict(unconfined.value["with capabilities"])
    if "unshare" in answers:
        pytest.skip("this host allows no nested user namespaces")
    assert answers.pop("a tmpfs over /app") == "ok"
    assert "EPERM" not in answers.values(), answers
    assert {name for name, answer in answers.items() if answer == "ENOSYS"} <= NEWER
