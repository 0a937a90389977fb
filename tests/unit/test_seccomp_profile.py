"""The shipped profile: generated from its list, linted, and with the properties that the sandbox relies on."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import InvalidRequest, NotFound
from sandbox.policy import seccomp
from sandbox.policy.load import shipped_directory
from sandbox.policy.seccomp import (
    ALLOW,
    ENOSYS,
    EPERM,
    ERRNO,
    compile_source,
    for_architecture,
    lint,
    load_profile,
    render,
)
from sandbox.toml_file import read_toml

SOURCE = shipped_directory() / "seccomp/python.toml"
COMMITTED = shipped_directory() / "seccomp/python.json"


@pytest.fixture
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(COMMITTED.read_text())
    return loaded


def rules(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [rule for rule in document["syscalls"] if name in rule["names"]]


def answer(document: dict[str, Any], name: str, *arguments: int) -> str:
    """Evaluate the profile as the kernel does: 64-bit comparisons, and the default when no rule applies."""
    for rule in rules(document, name):
        if all(
            (
                arguments[c["index"]] & c["value"] == c.get("valueTwo", 0)
                if c["op"] == seccomp.MASKED_EQ
                else arguments[c["index"]] == c["value"]
            )
            for c in rule.get("args", [])
        ):
            return {ALLOW: "allow", ERRNO: str(rule.get("errnoRet"))}[rule["action"]]
    return str(document["defaultErrnoRet"])


def test_committed_json_is_what_the_list_describes() -> None:
    assert COMMITTED.read_text() == render(compile_source(SOURCE))


def test_shipped_profile_has_no_findings(document: dict[str, Any]) -> None:
    assert lint(document) == []


def test_unknown_calls_look_missing_and_dangerous_ones_are_refused(document: dict[str, Any]) -> None:
    assert document["defaultErrnoRet"] == ENOSYS
    assert {rule["errnoRet"] for rule in document["syscalls"] if rule["action"] == ERRNO} == {EPERM, 0}
    for name in ("unshare", "setns", "mount", "ptrace", "bpf", "keyctl", "io_uring_setup", "sched_setattr"):
        assert answer(document, name, 0, 0, 0) == str(EPERM)


IGNORED = {"ioprio_set", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "set_mempolicy"}


def test_advice_to_the_kernel_is_answered_as_done_and_nothing_else_is(document: dict[str, Any]) -> None:
    ignored = {name for rule in document["syscalls"] if rule.get("errnoRet") == 0 for name in rule["names"]}
    assert ignored == IGNORED
    for name in IGNORED:
        assert answer(document, name, 0, 0, 0) == "0"
        assert "allow" not in {answer(document, name, 0, policy, 0) for policy in range(8)}


@pytest.mark.parametrize(
    ("policy", "expected"), [(0, 0), (1, EPERM), (2, EPERM), (3, 0), (4, ENOSYS), (5, 0), (6, EPERM)]
)
@pytest.mark.parametrize("high", [0, 1 << 32])
def test_real_time_scheduling_is_refused_as_everywhere(
    document: dict[str, Any], policy: int, expected: int, high: int
) -> None:
    assert answer(document, "sched_setscheduler", 0, policy | high, 0) == str(expected)


def test_the_page_on_policies_has_the_answer_of_each_call_that_it_lists(document: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs/policies.md").read_text()
    table = page.partition("| call | answer | why |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    assert len(rows) >= 15
    words = {"works": {"allow"}, "`EPERM`": {"1"}, "`ENOSYS`": {"38"}, "done, without effect": {"0"}}
    for calls, said, why in rows:
        expected = words[said.partition(" (")[0]]
        for name in re.findall(r"`([a-z0-9_]+)`", calls):
            given = {str(rule.get("errnoRet", "allow")) for rule in rules(document, name)} or {"38"}
            assert expected <= given, (name, said, given)
            assert len(given) == 1 or " (" in said, (name, "depends on its arguments")
        assert len(why) > 10
    assert set(re.findall(r"`([a-z0-9_]+)`", " ".join(row[0] for row in rows))) >= IGNORED


def test_clone3_looks_missing_so_that_the_c_library_uses_clone(document: dict[str, Any]) -> None:
    assert rules(document, "clone3") == []


HIGH_BIT = 1 << 32


@pytest.mark.parametrize("family", [0, 3, 16, 17, 33, 38, 40, 44, 1 | HIGH_BIT, 2 | HIGH_BIT, 40 | HIGH_BIT])
def test_other_socket_families_look_missing(document: dict[str, Any], family: int) -> None:
    for kind in (1, 2, 3, 5):
        assert answer(document, "socket", family, kind, 0) == str(ENOSYS)
    assert answer(document, "socketpair", family, 1, 0) == str(ENOSYS)


CLOEXEC_NONBLOCK = 0o2004000


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "expected"),
    [
        (1, 1, 0, "allow"),
        (1, 5, 0, "allow"),
        (2, 1, 0, "allow"),
        (2, 1, 6, "allow"),
        (10, 2, 17, "allow"),
        (2, 1, 132, "38"),
        (2, 5, 0, "38"),
        (2, 6, 0, "38"),
        (2, 3, 1, "38"),
        (2, 2, 1, "38"),
        (2, 2, 136, "38"),
        (10, 1, 262, "38"),
        (2, 1, HIGH_BIT | 6, "38"),
    ],
)
def test_internet_sockets_are_tcp_and_udp(
    document: dict[str, Any], family: int, kind: int, protocol: int, expected: str
) -> None:
    assert answer(document, "socket", family, kind, protocol) == expected
    assert answer(document, "socket", family, kind | CLOEXEC_NONBLOCK, protocol) == expected


@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_clone_with_any_namespace_flag_looks_missing(document: dict[str, Any], flag: int) -> None:
    thread_flags = 0x3D0F00
    assert answer(document, "clone", thread_flags) == "allow"
    assert answer(document, "clone", thread_flags | flag) == str(ENOSYS)
    assert answer(document, "clone", thread_flags | flag | HIGH_BIT) == str(ENOSYS)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("ioctl", (0, 0x5401), "allow"),
        ("ioctl", (0, 0x5412), "38"),
        ("ioctl", (0, 0x541C), "38"),
        ("ioctl", (0, 0x5412 | HIGH_BIT), "38"),
        ("personality", (0xFFFFFFFF,), "allow"),
        ("personality", (0x40000,), "38"),
        ("prctl", (15,), "allow"),
        ("prctl", (22,), "38"),
        ("prctl", (24,), "38"),
        ("prlimit64", (0, 7, 1), "allow"),
        ("prlimit64", (1, 7, 0), "allow"),
        ("prlimit64", (1, 7, 1), "38"),
        ("mknodat", (0, 0, 0o010644), "allow"),
        ("mknodat", (0, 0, 0o020644), "38"),
        ("mknodat", (0, 0, 0o060644), "38"),
    ],
)
def test_calls_with_arguments(document: dict[str, Any], name: str, arguments: tuple[int, ...], expected: str) -> None:
    assert answer(document, name, *arguments) == expected


def test_every_group_of_the_list_has_a_reason() -> None:
    source = seccomp.SourceList.model_validate_json(json.dumps(read_toml(SOURCE, what="list").data))
    assert all(len(group.why) > 20 for group in source.groups.values())


# ---- loading -------------------------------------------------------------------------------------


def test_loaded_profile_is_native_and_its_hash_is_of_its_text() -> None:
    profile = load_profile("python", directories=[shipped_directory()])
    assert profile.document["architectures"] == [seccomp.native_architecture()]
    assert profile.sha256 == hashlib.sha256(profile.text.encode()).hexdigest()
    assert profile.path == COMMITTED


def test_profile_of_another_architecture_differs_in_nothing_else(document: dict[str, Any]) -> None:
    arm = for_architecture(document, "SCMP_ARCH_AARCH64")
    assert arm["architectures"] == ["SCMP_ARCH_AARCH64"]
    assert {**arm, "architectures": document["architectures"]} == document
    assert lint(arm) == []


def test_architecture_without_a_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    with pytest.raises(InvalidRequest, match="processor architecture s390x"):
        load_profile("python", directories=[shipped_directory()])


def test_what_is_written_is_what_was_linted(tmp_path: Path) -> None:
    profile = load_profile("python", directories=[shipped_directory()])
    path = profile.write_to(tmp_path)
    assert path.read_text() == profile.text
    assert path.stat().st_mode & 0o777 == 0o600
    assert [*tmp_path.iterdir()] == [profile.write_to(tmp_path)]


def test_unknown_profile_lists_the_known() -> None:
    with pytest.raises(NotFound) as caught:
        load_profile("none", directories=[shipped_directory()])
    assert caught.value.hint == "known profiles: python"


@pytest.mark.parametrize("name", ["../python", "", "a.json"])
def test_profile_names_are_validated(name: str) -> None:
    with pytest.raises(InvalidRequest, match="not a profile name"):
        load_profile(name, directories=[shipped_directory()])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "is a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}', "not safe to use"),
    ],
)
def test_bad_profile_is_refused_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "seccomp").mkdir()
    (tmp_path / "seccomp/bad.json").write_text(text)
    with pytest.raises(InvalidRequest, match=rf"bad\.json.*{message}"):
        load_profile("bad", directories=[tmp_path])


def test_profile_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "seccomp").mkdir()
    path = tmp_path / "seccomp/python.json"
    path.write_text(COMMITTED.read_text())
    path.chmod(0o666)
    with pytest.raises(InvalidRequest, match="changed by other users"):
        load_profile("python", directories=[tmp_path])


# ---- the source list -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[groups.a]\naction = "allow"\nwhy = "a good reason"\nnames = ["socket"]',
            "socket must not be allowed without",
        ),
        ('[groups.a]\naction = "allow"\nwhy = "a good reason"\nnames = ["mount"]', "mount must not be allowed"),
        (
            '[groups.a]\naction = "allow"\nwhy = "a good reason"\nnames = ["read"]\nwhen = ["arg0 != 1"]',
            ":6: 'arg0 != 1' is not",
        ),
        (
            '[groups.a]\naction = "allow"\nwhy = "a good reason"\nnames = ["read"]\nreason = "x"',
            ":6: there is no key groups.a.reason",
        ),
        ("[groups]\na = 1", r"groups.a is 1, but it must be a section, \[groups.a\]"),
        (
            '[groups.a]\naction = "log"\nwhy = "a good reason"\nnames = ["read"]',
            r':3: groups.a.action is "log", but it must be "allow"',
        ),
        (
            '[groups.a]\naction = "allow"\nnames = ["read"]',
            r":2: groups.a lacks why, which must be a text of at least 10 characters",
        ),
        (
            '[groups.a]\naction = "allow"\nwhy = "a good reason"\nnames = ["read"]\nextra = 1',
            r":6: there is no key groups.a.extra",
        ),
    ],
)
def test_mistake_in_the_list_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.toml"
    path.write_text('description = "x"\n' + text)
    with pytest.raises(InvalidRequest, match=message):
        compile_source(path)


# ---- lint: each check finds its own --------------------------------------------------------------


def with_rule(document: dict[str, Any], **rule: Any) -> dict[str, Any]:
    return {**document, "syscalls": [*document["syscalls"], rule]}


def allow(name: str, *args: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": ALLOW, **({"args": list(args)} if args else {})}


def eq(index: int, value: int, op: str = "SCMP_CMP_EQ", **more: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": op, **more}


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"defaultAction": "SCMP_ACT_ALLOW"}, "the default must refuse"),
        ({"defaultAction": "SCMP_ACT_LOG"}, "the default must refuse"),
        ({"defaultErrnoRet": 0}, "the default must refuse"),
        ({"defaultErrnoRet": None}, "the default must refuse"),
        ({"architectures": []}, "one native architecture"),
        ({"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]}, "one native architecture"),
        ({"architectures": ["SCMP_ARCH_X32"]}, "one native architecture"),
        ({"archMap": []}, "archMap is not supported"),
        ({"listenerPath": "/run/x"}, "listenerPath is not supported"),
        ({"flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}, "flags is not supported"),
        ({"syscalls": []}, "lists no system calls"),
        ({"syscalls": [{"action": ALLOW}]}, "no list of names"),
        ({"syscalls": [{"names": [1], "action": ALLOW}]}, "not a text"),
        ({"syscalls": [{"names": ["read"], "action": ALLOW, "args": [{"index": -1}]}]}, "malformed"),
    ],
)
def test_lint_finds_a_weak_document(document: dict[str, Any], change: dict[str, Any], finding: str) -> None:
    assert any(finding in found for found in lint({**document, **change}))


@pytest.mark.parametrize(
    ("rule", "finding"),
    [
        ({"names": ["zzz"], "action": "SCMP_ACT_NOTIFY"}, "the action of zzz"),
        ({"names": ["zzz"], "action": "SCMP_ACT_TRACE"}, "the action of zzz"),
        ({"names": ["zzz"], "action": "SCMP_ACT_LOG"}, "the action of zzz"),
        ({"names": ["zzz"]}, "the action of zzz"),
        (
            {"names": ["clone"], "action": ERRNO, "errnoRet": 1, "args": [eq(0, 40)]},
            "clone is refused under a condition",
        ),
        ({"names": ["setuid"], "action": ERRNO, "errnoRet": 0}, "setuid must not be answered as done"),
        ({"names": ["munmap", "ioprio_set"], "action": ERRNO, "errnoRet": 0}, "munmap must not be answered as done"),
        ({"names": ["zzz"], "action": ERRNO}, "gives no error number"),
        ({"names": ["zzz"], "action": ERRNO, "errnoRet": ENOSYS}, "equals the default"),
        ({**allow("zzz"), "includes": {"caps": ["CAP_SYS_ADMIN"]}}, "includes in the rule of zzz"),
        (allow("zzz", eq(0, 1, "SCMP_CMP_NE")), "compared with SCMP_CMP_NE"),
        (allow("zzz", eq(0, 1, "SCMP_CMP_LT")), "compared with SCMP_CMP_LT"),
        (allow("zzz", eq(0, 1, "SCMP_CMP_GE")), "compared with SCMP_CMP_GE"),
        (allow("zzz", eq(0, 1 << 40, "SCMP_CMP_MASKED_EQ", valueTwo=0)), "compared with SCMP_CMP_MASKED_EQ"),
        (allow("zzz", eq(0, 0, "SCMP_CMP_MASKED_EQ", valueTwo=0)), "compared with SCMP_CMP_MASKED_EQ"),
        (allow("zzz", eq(0, 1), eq(0, 2)), "at most once"),
        (allow("zzz", eq(6, 1)), "at most once"),
        (allow("read"), "read is listed twice"),
        (allow("socket", eq(0, 1)), "socket is listed twice"),
        ({"names": ["read"], "action": ERRNO, "errnoRet": 1}, "read has rules that contradict"),
        (allow("clone"), "clone has rules that contradict"),
        (allow("socket"), "socket must not be allowed without a condition"),
        (allow("ioctl"), "ioctl must not be allowed without a condition"),
        (allow("personality"), "personality must not be allowed without a condition"),
        (allow("io_setup"), "io_setup must not be allowed"),
        (allow("clone3"), "clone3 must not be allowed"),
        (allow("socket", eq(0, 40)), "socket is allowed with arguments"),
        (allow("socket", eq(1, 1)), "socket is allowed with arguments"),
        (allow("socket", eq(0, 3, "SCMP_CMP_MASKED_EQ", valueTwo=1)), "socket is allowed with arguments"),
        (allow("clone", eq(0, 0x10000000, "SCMP_CMP_MASKED_EQ", valueTwo=0)), "clone is allowed with arguments"),
        (
            allow("clone", eq(0, 0x7E020000, "SCMP_CMP_MASKED_EQ", valueTwo=0x10000000)),
            "clone is allowed with arguments",
        ),
        (allow("ioctl", eq(1, 0x5412)), "ioctl is allowed with arguments"),
        (allow("ioctl", eq(0, 1)), "ioctl is allowed with arguments"),
        (allow("personality", eq(0, 0x40000)), "personality is allowed with arguments"),
        (allow("mknod", eq(1, 0o020000)), "mknod is allowed with arguments"),
    ],
)
def test_lint_finds_a_weak_rule(document: dict[str, Any], rule: dict[str, Any], finding: str) -> None:
    assert any(finding in found for found in lint(with_rule(copy.deepcopy(document), **rule)))


def test_lint_refuses_the_default_profile_of_the_distribution() -> None:
    path = Path("/usr/share/containers/seccomp.json")
    if not path.is_file():
        pytest.skip("no default profile on this host")
    profile = json.loads(path.read_text())
    for rule in profile["syscalls"]:
        rule["args"] = rule.get("args") or []  # written as null there
    findings = " ".join(lint(profile))
    for expected in ("archMap", "unshare must not be allowed", "clone3 must not be allowed", "SCMP_CMP_NE"):
        assert expected in findings


def test_date_in_the_place_of_the_groups_is_a_mistake_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("description = 'x'\ngroups = 1979-05-27\n")
    with pytest.raises(InvalidRequest, match=r'a\.toml:2: groups is "1979-05-27", but it must be'):
        compile_source(path)
