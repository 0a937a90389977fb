"""The filters of warm containers, installed in a process of our own: what they let through and what not."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import Any

import pytest

from sandbox.cell.filter import MAKER_CALLS, MAKER_RULES, instructions, maker_profile
from sandbox.errors import NotEnforceable
from sandbox.policy.directories import shipped_directory
from sandbox.policy.seccomp import SeccompProfile, load_profile

# Takes on a filter as a cell does, then asks for system calls; the answers are error numbers, 0 for success.
ASK = """
import base64, ctypes, json, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
program = ctypes.create_string_buffer(base64.b64decode(sys.argv[1]))
block = struct.pack("HxxxxxxP", (len(program) - 1) // 8, ctypes.addressof(program))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, block, 0, 0) == 0, ctypes.get_errno()
def ask(function, *arguments):
    ctypes.set_errno(0)
    return 0 if getattr(libc, function)(*arguments) >= 0 else ctypes.get_errno()
print(json.dumps({
    "unshare": ask("unshare", 0), "unshare user": ask("unshare", 0x10000000), "ptrace": ask("ptrace", 0, 0, 0, 0),
    "mount": ask("mount", None, b"/nowhere", None, 0, None), "getpid": ask("getpid"), "filter": ask("prctl", 22, 2, 0, 0, 0),
    "drop": ask("prctl", 24, 0, 0, 0, 0), "vsock": ask("socket", 40, 1, 0), "unix": ask("socket", 1, 1, 0),
    "keyring": ask("syscall", 250, 0, 0, 0, 0, 0) if struct.calcsize("P") == 8 else 1,
}))
"""
EPERM, ENOSYS, EFAULT, EINVAL = 1, 38, 14, 22


def strict() -> SeccompProfile:
    return load_profile("python", directories=[shipped_directory()])


def answers(profile: SeccompProfile) -> Any:
    program = base64.b64encode(instructions(profile)).decode()
    done = subprocess.run([sys.executable, "-c", ASK, program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_program_s_filter_refuses_what_makes_cells() -> None:
    found = answers(strict())
    assert {found[name] for name in ("unshare", "unshare user", "ptrace", "mount")} == {EPERM}
    assert (found["filter"], found["drop"], found["vsock"]) == (ENOSYS, ENOSYS, ENOSYS)
    assert (found["getpid"], found["unix"]) == (0, 0)


def test_the_maker_s_filter_lets_through_what_makes_cells_and_no_more() -> None:
    found = answers(maker_profile(strict()))
    assert found["unshare"] == 0
    assert found["filter"] == EFAULT, "the kernel looked for the program"
    assert found["mount"] not in (ENOSYS,)
    assert (found["ptrace"], found["vsock"]) == (EPERM, ENOSYS)


def test_the_maker_s_profile_is_the_program_s_and_a_few_calls() -> None:
    def rules(profile: SeccompProfile) -> set[tuple[str, str, str]]:
        return {
            (name, rule["action"], json.dumps(rule.get("args", []), sort_keys=True))
            for rule in profile.document["syscalls"]
            for name in rule["names"]
        }

    before, after = rules(strict()), rules(maker_profile(strict()))
    assert {name for name, _, _ in after - before} == {*MAKER_CALLS, *(name for name, _ in MAKER_RULES)}
    assert {name for name, _, _ in before - after} == set(MAKER_CALLS)
    assert maker_profile(strict()).document["defaultAction"] == strict().document["defaultAction"]


def test_a_host_without_the_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.cell.filter.LIBRARY", "libnothing.so.9")
    profile = strict()
    other = SeccompProfile(name="x", path=profile.path, sha256="", document={}, text=profile.text + " ")
    with pytest.raises(NotEnforceable, match="this host has no libnothing"):
        instructions(other)
