"""The two filters of a warm container: what its maker may do besides a program, and a program's own as instructions.

The maker of cells needs a few calls that no program gets. Each cell then takes on, on top, the filter that a
container's program has: libseccomp turns the profile into the instructions that the kernel is given, as the runtime has
it do.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
from typing import Any

from sandbox.errors import NotEnforceable
from sandbox.policy.seccomp import ALLOW, EQ, ERRNO, SeccompProfile, render

LIBRARY = "libseccomp.so.2"
# Source: seccomp_init(3), seccomp_rule_add(3), seccomp_attr_set(3).
ACT_ALLOW, ACT_ERRNO = 0x7FFF0000, 0x00050000
OPERATORS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
ATTRIBUTE_OPTIMIZE, BINARY_TREE = 8, 2
INSTRUCTION_BYTES = 8
# The kernel takes no longer program: BPF_MAXINSNS.
MAX_INSTRUCTIONS = 4096


def _is(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": EQ}


# What making a cell takes, and no program may.
MAKER_CALLS = ("capset", "mount", "unshare")
MAKER_RULES: tuple[tuple[str, tuple[dict[str, Any], ...]], ...] = (
    ("prctl", (_is(0, 22), _is(1, 2))),  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER: the filter of the cell
    ("prctl", (_is(0, 24),)),  # PR_CAPBSET_DROP
    ("ioctl", (_is(1, 0x8913),)),  # SIOCGIFFLAGS, SIOCSIFFLAGS: loopback
    ("ioctl", (_is(1, 0x8914),)),
)


def maker_profile(profile: SeccompProfile) -> SeccompProfile:
    """Return the profile of a warm container: a program's, and what making cells needs."""
    rules = []
    for rule in profile.document["syscalls"]:
        names = [name for name in rule["names"] if name not in MAKER_CALLS]
        rules += [{**rule, "names": names}] if names else []
    rules.append({"names": list(MAKER_CALLS), "action": ALLOW})
    rules += [{"names": [name], "action": ALLOW, "args": list(conditions)} for name, conditions in MAKER_RULES]
    document = {**profile.document, "syscalls": rules}
    text = render(document)
    return SeccompProfile(
        name=f"{profile.name}-maker",
        path=profile.path,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        document=document,
        text=text,
    )


class _Condition(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("index", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("value_two", ctypes.c_uint64),
    )


def instructions(profile: SeccompProfile) -> bytes:
    """Return a profile as the instructions that prctl(2) takes. Raises `NotEnforceable`."""
    return _instructions_of(profile.text)


@functools.lru_cache(maxsize=16)
def _instructions_of(text: str) -> bytes:
    document = json.loads(text)
    library = _library()
    context = library.seccomp_init(_action(document["defaultAction"], document["defaultErrnoRet"]))
    if not context:
        raise _failed("seccomp_init", -1)
    try:
        _done("seccomp_attr_set", library.seccomp_attr_set(context, ATTRIBUTE_OPTIMIZE, BINARY_TREE))
        for rule in document["syscalls"]:
            _add_rule(library, context, rule)
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise NotEnforceable(
            f"the filter of a cell can't be made: this host has no {LIBRARY}", hint="install it (Debian: libseccomp2)"
        ) from None
    library.seccomp_init.argtypes, library.seccomp_init.restype = [ctypes.c_uint32], ctypes.c_void_p
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Condition),
    ]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    return library


def _add_rule(library: ctypes.CDLL, context: int, rule: dict[str, Any]) -> None:
    conditions = [
        _Condition(arg["index"], OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo") or 0)
        for arg in rule.get("args") or ()
    ]
    array = (_Condition * max(1, len(conditions)))(*conditions)
    action = _action(rule["action"], rule.get("errnoRet"))
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # one that this processor does not have is left out, as the runtimes do
            _done(name, library.seccomp_rule_add_array(context, action, number, len(conditions), array))


def _action(name: str, error_number: int | None) -> int:
    return ACT_ERRNO | (error_number or 0) if name == ERRNO else ACT_ALLOW


def _exported(library: ctypes.CDLL, context: int) -> bytes:
    descriptor = os.memfd_create("filter", os.MFD_CLOEXEC)
    try:
        _done("seccomp_export_bpf", library.seccomp_export_bpf(context, descriptor))
        program = os.pread(descriptor, (MAX_INSTRUCTIONS + 1) * INSTRUCTION_BYTES, 0)
    finally:
        os.close(descriptor)
    if not 0 < len(program) <= MAX_INSTRUCTIONS * INSTRUCTION_BYTES:
        raise _failed("seccomp_export_bpf", 0)
    return program


def _done(what: str, answer: int) -> None:
    if answer < 0:
        raise _failed(what, answer)


def _failed(what: str, answer: int) -> NotEnforceable:
    return NotEnforceable(
        f"the filter of a cell can't be made: {what} answered {answer}", hint="use a policy whose runs get containers"
    )
