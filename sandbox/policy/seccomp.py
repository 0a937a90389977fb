"""Seccomp profiles: from a commented source list to the JSON that a runtime reads, and its lint.

A profile is an allow-list for the native architecture. `lint` holds each property that makes it one;
`load_profile` never returns a profile that fails it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sandbox.errors import InvalidRequest, NotFound
from sandbox.policy.directories import NAME
from sandbox.toml_file import exists, read_toml, read_trusted
from sandbox.toml_mistakes import Checker

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
EQ, MASKED_EQ = "SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"
EPERM, ENOSYS = 1, 38
NATIVE = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
COMMITTED_ARCHITECTURE = "SCMP_ARCH_X86_64"
NAMESPACE_FLAGS = 0x7E020000
SOCKET_FAMILIES = frozenset({1, 2, 10})
TERMINAL_INJECTION = frozenset({0x5412, 0x541C})
INT_MASK = 0xFFFFFFFF
SOURCE_HINT = "a group has: action, why, names, and where needed when"

DANGEROUS = frozenset((
    "acct", "add_key", "bpf", "capset", "chroot", "clock_settime", "clone3", "delete_module", "execveat",
    "fanotify_init", "fanotify_mark", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick",
    "init_module", "io_setup", "io_submit", "io_uring_enter", "io_uring_register", "io_uring_setup",
    "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "listmount", "lookup_dcookie",
    "memfd_create", "memfd_secret", "migrate_pages", "modify_ldt", "mount", "mount_setattr", "move_mount", "move_pages",
    "msgget", "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree", "open_tree_attr",
    "perf_event_open", "pidfd_getfd", "pivot_root", "process_madvise", "process_mrelease",
    "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "quotactl_fd", "reboot",
    "remap_file_pages", "request_key", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "seccomp", "semget", "set_mempolicy_home_node", "setdomainname", "setgid",
    "setgroups", "sethostname", "setns", "setresgid", "setresuid", "settimeofday", "setuid", "shmget",
    "socketcall", "splice", "statmount", "swapoff", "swapon", "syslog", "tee", "umount", "umount2",
    "unshare", "uselib", "userfaultfd", "vhangup", "vm86", "vm86old", "vmsplice",
))  # fmt: skip # a table
# Advice to the scheduler and on memory: no program can rely on its being followed.
IGNORABLE = frozenset({
    "ioprio_set", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "set_mempolicy",
})  # fmt: skip # a table
CONDITIONAL = frozenset({"clone", "ioctl", "mknod", "mknodat", "personality", "prctl", "socket", "socketpair"})


class _SourceModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CallGroup(_SourceModel):
    """Calls that are answered alike, and why."""

    action: Literal["allow", "EPERM", "ignore"]
    why: str = Field(min_length=10)
    names: tuple[str, ...] = Field(min_length=1)
    when: tuple[str, ...] = ()


class SourceList(_SourceModel):
    """The commented source of a profile, as written in TOML."""

    description: str
    groups: dict[str, CallGroup]


@dataclass(frozen=True, kw_only=True)
class SeccompProfile:
    """A linted profile for this host. `text` is the JSON that a runtime must be given, `sha256` its hash.

    `path` is the file it came from; on another architecture than x86_64 its bytes differ from `text`.
    """

    name: str
    path: Path
    sha256: str
    document: dict[str, Any]
    text: str

    def write_to(self, directory: Path) -> Path:
        """Write `text` to a file named by its hash and return its path: what was linted is what is used."""
        path = directory / f"seccomp-{self.name}-{self.sha256[:16]}.json"
        temporary = directory / f".{path.name}.{os.getpid()}"
        temporary.write_text(self.text)
        temporary.chmod(0o600)
        temporary.replace(path)
        return path


def native_architecture() -> str:
    """Return libseccomp's name of this host's architecture. Raises `InvalidRequest` for an unknown one."""
    machine = platform.machine()
    if machine not in NATIVE:
        raise InvalidRequest(
            f"there is no seccomp profile for the processor architecture {machine}",
            hint=f"use a host with one of: {', '.join(sorted(NATIVE))}",
        )
    return NATIVE[machine]


def for_architecture(document: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return the same profile for one other architecture (a name in `NATIVE`'s values)."""
    return {**document, "architectures": [architecture]}


def render(document: dict[str, Any]) -> str:
    """Return the one text of a profile: the same document always gives the same bytes."""
    return json.dumps(document, indent=2, ensure_ascii=True) + "\n"


def load_profile(name: str, *, directories: Sequence[Path]) -> SeccompProfile:
    """Return the first `seccomp/NAME.json` of the search path, for this host's architecture.

    Raises `NotFound`, or `InvalidRequest` for a file that isn't a profile or fails the lint.
    """
    if not NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} is not a profile name", hint="names look like: python, python-strict")
    candidates = [directory / "seccomp" / f"{name}.json" for directory in directories]
    path = next((candidate for candidate in candidates if exists(candidate)), None)
    if path is None:
        known = sorted({p.stem for d in directories for p in (d / "seccomp").glob("*.json")})
        raise NotFound(
            f"there is no seccomp profile named {name}", hint=f"known profiles: {', '.join(known) or 'none'}"
        )
    return _checked(name, path, read_trusted(path, what="seccomp profile"), native_architecture())


@functools.lru_cache(maxsize=16)
def _checked(name: str, path: Path, content: str, architecture: str) -> SeccompProfile:
    """Lint a profile's text; the same text is linted once per process."""
    document = _parse(path, content)
    if findings := lint(document):
        raise InvalidRequest(
            f"the seccomp profile {path} is not safe to use: {findings[0]}",
            hint="generate it with `sandbox policy seccomp` from its source list",
            findings=findings,
        )
    native = for_architecture(document, architecture)
    text = render(native)
    return SeccompProfile(
        name=name, path=path, sha256=hashlib.sha256(text.encode()).hexdigest(), document=native, text=text
    )


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f":{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise InvalidRequest(f"{path}{where}: this is not valid JSON: {reason}", hint="generate it again") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path}: a seccomp profile is a JSON object", hint="generate it again")
    return document


# ---- from the source list to the document --------------------------------------------------------


def compile_source(path: Path) -> dict[str, Any]:
    """Return the profile document that a source list describes, for x86_64.

    Raises `InvalidRequest` (file, line) for a list that can't be read, or one whose profile fails the lint.
    """
    source_file = read_toml(path, what="seccomp source list")
    source = Checker(model=SourceList, place=source_file.place, hint=SOURCE_HINT).read(source_file.data)
    rules: list[dict[str, Any]] = []
    for name, group in source.groups.items():
        where = source_file.at(f"groups.{name}.when")
        rules += _rules(group, [_conditions(text, where) for text in group.when])
    document = {
        "defaultAction": ERRNO,
        "defaultErrnoRet": ENOSYS,
        "architectures": [COMMITTED_ARCHITECTURE],
        "syscalls": rules,
    }
    if findings := lint(document):
        raise InvalidRequest(
            f"{path}: the profile this list describes is not safe to use: {findings[0]}",
            hint="correct the list",
            findings=findings,
        )
    return document


def _rules(group: CallGroup, ways: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    # An error number of 0 is success: the call returns, and the kernel has not carried it out (seccomp(2)).
    number = {"EPERM": EPERM, "ignore": 0}
    answer = {"action": ALLOW} if group.action == "allow" else {"action": ERRNO, "errnoRet": number[group.action]}
    names = sorted(group.names)
    if not ways:
        yield {"names": names, **answer}
    for conditions in ways:
        yield {"names": names, **answer, "args": conditions}


_CONDITION = re.compile(r"arg([0-5])(?: & (0x[0-9a-f]+))? == (0x[0-9a-f]+|\d+)")


def _conditions(text: str, where: str) -> list[dict[str, Any]]:
    conditions = []
    for part in text.split(" and "):
        found = _CONDITION.fullmatch(part)
        if not found:
            raise InvalidRequest(
                f"{where}: {part!r} is not a condition", hint='write "arg0 == 1" or "arg0 & 0xff == 1"'
            )
        index, value = int(found[1]), int(found[3], 0)
        if found[2]:
            mask = int(found[2], 16)
            conditions.append({"index": index, "value": mask, "valueTwo": value, "op": MASKED_EQ})
        else:
            conditions.append({"index": index, "value": value, "op": EQ})
    return conditions


# ---- lint ----------------------------------------------------------------------------------------


def lint(document: dict[str, Any]) -> list[str]:
    """Return what makes a profile unsafe or ambiguous, one part of a sentence each; empty for a good one."""
    if finding := _shape(document):
        return [finding]
    return [finding for check in CHECKS for finding in check(document)]


def _shape(document: dict[str, Any]) -> str | None:
    rules = document.get("syscalls")
    if not isinstance(rules, list) or not rules:
        return "it lists no system calls"
    for rule in rules:
        if not isinstance(rule, dict) or not isinstance(rule.get("names"), list) or not rule["names"]:
            return "a rule has no list of names"
        if not all(isinstance(name, str) for name in rule["names"]):
            return "a rule has a name that is not a text"
        args = rule.get("args", [])
        if not isinstance(args, list) or not all(_is_condition(arg) for arg in args):
            return f"the conditions of {rule['names'][0]} are malformed"
    return None


def _is_condition(arg: object) -> bool:
    if not isinstance(arg, dict) or not set(arg) <= {"index", "value", "valueTwo", "op"}:
        return False
    numbers = [arg.get("index"), arg.get("value"), arg.get("valueTwo", 0)]
    return all(type(number) is int and number >= 0 for number in numbers) and isinstance(arg.get("op"), str)


def _check_default(document: dict[str, Any]) -> Iterator[str]:
    if document.get("defaultAction") != ERRNO or document.get("defaultErrnoRet") not in (EPERM, ENOSYS):
        yield "the default must refuse with EPERM or ENOSYS"


def _check_architecture(document: dict[str, Any]) -> Iterator[str]:
    architectures = document.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or architectures[0] not in NATIVE.values():
        yield "it must name one native architecture: every further one is a way around the argument rules"


def _check_keys(document: dict[str, Any]) -> Iterator[str]:
    known = {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}
    for key in sorted(set(document) - known):
        yield f"{key} is not supported (flags, listeners and architecture maps weaken a profile)"
    for rule in document["syscalls"]:
        for key in sorted(set(rule) - {"names", "action", "errnoRet", "args"}):
            yield f"{key} in the rule of {rule['names'][0]} is not supported"


def _check_actions(document: dict[str, Any]) -> Iterator[str]:
    allowed = {name for rule in _allowing(document) for name in rule["names"]}
    for rule in document["syscalls"]:
        first = rule["names"][0]
        if rule.get("action") not in (ALLOW, ERRNO):
            yield f"the action of {first} must be to allow it or to refuse it with an error number"
        if rule.get("action") == ERRNO and rule.get("args") and not allowed.isdisjoint(rule["names"]):
            yield f"{first} is refused under a condition, which a high bit in the argument walks around"
        if rule.get("action") == ERRNO and type(rule.get("errnoRet")) is not int:
            yield f"the refusal of {first} gives no error number"
        if rule.get("action") == ERRNO and rule.get("errnoRet") == document.get("defaultErrnoRet"):
            yield f"the rule of {first} equals the default, so a runtime leaves it out"
        if rule.get("action") == ERRNO and rule.get("errnoRet") == 0 and not IGNORABLE.issuperset(rule["names"]):
            yield f"{first} must not be answered as done when it is not"


def _check_comparisons(document: dict[str, Any]) -> Iterator[str]:
    for rule in document["syscalls"]:
        first, args = rule["names"][0], rule.get("args", [])
        indexes = [arg["index"] for arg in args]
        if len(set(indexes)) != len(indexes) or any(index > 5 for index in indexes):
            yield f"a rule of {first} must compare each of its arguments 0 to 5 at most once"
        for arg in args:
            masked = arg["op"] == MASKED_EQ and 0 < arg["value"] <= INT_MASK and "valueTwo" in arg
            if not masked and (arg["op"] != EQ or arg.get("valueTwo")):
                yield f"{first} is compared with {arg['op']}; only EQ or a MASKED_EQ of 32 bits holds for an int"


def _check_duplicates(document: dict[str, Any]) -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    answers: dict[str, set[str]] = {}
    for rule in document["syscalls"]:
        way = json.dumps(sorted(rule.get("args", []), key=str), sort_keys=True)
        for name in rule["names"]:
            if (name, way) in seen:
                yield f"{name} is listed twice"
            seen.add((name, way))
            answers.setdefault(name, set()).add(f"{rule.get('action')} {'if' if rule.get('args') else 'always'}")
    for name in sorted(name for name, ways in answers.items() if len(ways) > 1):
        yield f"{name} has rules that contradict each other"


def _check_dangerous(document: dict[str, Any]) -> Iterator[str]:
    for rule in _allowing(document):
        for name in rule["names"]:
            if name in DANGEROUS:
                yield f"{name} must not be allowed"
            if name in CONDITIONAL and not rule.get("args"):
                yield f"{name} must not be allowed without a condition on its arguments"


def _check_arguments(document: dict[str, Any]) -> Iterator[str]:
    for rule in _allowing(document):
        for name in rule["names"]:
            if name in ARGUMENT_RULES and rule.get("args") and not ARGUMENT_RULES[name](rule["args"]):
                yield f"{name} is allowed with arguments that must be refused"


def _allowing(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (rule for rule in document["syscalls"] if rule.get("action") != ERRNO)


def _equals(args: list[dict[str, Any]], index: int) -> int | None:
    """Return the one value that argument `index` must have, if the rule fixes it."""
    for arg in args:
        if arg["index"] == index and arg["op"] == EQ:
            return int(arg["value"])
        if arg["index"] == index and arg["op"] == MASKED_EQ and arg["value"] == INT_MASK:
            return int(arg.get("valueTwo", -1))
    return None


def _clone_makes_no_namespace(args: list[dict[str, Any]]) -> bool:
    return any(
        (arg["index"], arg["op"]) == (0, MASKED_EQ)
        and arg["value"] & NAMESPACE_FLAGS == NAMESPACE_FLAGS
        and arg.get("valueTwo", 0) & NAMESPACE_FLAGS == 0
        for arg in args
    )


def _makes_a_named_pipe(args: list[dict[str, Any]], index: int) -> bool:
    wanted = {"index": index, "op": MASKED_EQ, "value": 0o170000, "valueTwo": 0o010000}
    return wanted in args


ARGUMENT_RULES: dict[str, Callable[[list[dict[str, Any]]], bool]] = {
    "clone": _clone_makes_no_namespace,
    "ioctl": lambda args: _equals(args, 1) not in (None, *TERMINAL_INJECTION),
    "mknod": lambda args: _makes_a_named_pipe(args, 1),
    "mknodat": lambda args: _makes_a_named_pipe(args, 2),
    "personality": lambda args: _equals(args, 0) in (0, INT_MASK),
    "prctl": lambda args: _equals(args, 0) is not None,
    "socket": lambda args: _equals(args, 0) in SOCKET_FAMILIES,
    "socketpair": lambda args: _equals(args, 0) in SOCKET_FAMILIES,
}
CHECKS = (
    _check_default, _check_architecture, _check_keys, _check_actions, _check_comparisons, _check_duplicates,
    _check_dangerous, _check_arguments,
)  # fmt: skip # a table
