"""Boundary: kernel interfaces with a history of escapes are closed, and so is everything not on the list."""

from __future__ import annotations

import pytest

from sandbox.policy.seccomp import load_profile
from tests.escape.attacks import needs_known_architecture, needs_x86_64, program, system_calls
from tests.escape.bench import UNCONFINED, Bench, WeakResult

pytestmark = needs_known_architecture

# Wrong arguments that the kernel looks at before it looks at the caller, so that its own answer isn't EPERM.
PROBE = program("""
import fcntl

def typed_into_a_terminal():
    leader, follower = os.openpty()
    return call_ioctl(follower, 0x5412)

def call_ioctl(descriptor, request):
    ctypes.set_errno(0)
    value = libc.ioctl(descriptor, ctypes.c_ulong(request), ctypes.c_char_p(b"x"))
    return name_of(value, ctypes.get_errno())

word = ctypes.addressof(ctypes.create_string_buffer(8))
result = {
    "keyctl": call("keyctl", 0, -3, 1),
    "add_key": call("add_key", BAD, BAD, 0, 0, -3),
    "request_key": call("request_key", BAD, BAD, 0, -3),
    "bpf": call("bpf", 0, BAD, 1 << 20),
    "io_uring_setup": call("io_uring_setup", 1, BAD),
    "io_uring_enter": call("io_uring_enter", -1, 0, 0, 0x7fffff00, 0, 0),
    "io_uring_register": call("io_uring_register", -1, 0x7fffff00, 0, 0),
    "userfaultfd": call("userfaultfd", 1),
    "perf_event_open": call("perf_event_open", BAD, 0, -1, -1, 0x7fffff00),
    "seccomp": call("seccomp", 99, 0, 0),
    "fanotify_init": call("fanotify_init", 0x200, 0),
    "fanotify_mark": call("fanotify_mark", -1, 0x7fffff00, 0, 0, 0),
    "name_to_handle_at": call("name_to_handle_at", -1, BAD, BAD, BAD, 0x7fffff00),
    "open_by_handle_at": call("open_by_handle_at", -1, BAD, 0),
    "splice": call("splice", -1, 0, -1, 0, 1, 0x7fffff00),
    "tee": call("tee", -1, -1, 1, 0x7fffff00),
    "vmsplice": call("vmsplice", -1, BAD, 1, 0x7fffff00),
    "sched_setaffinity": call("sched_setaffinity", 0, 8, BAD),
    "shmget": call("shmget", 0, 4096, 0o1600),
    "msgget": call("msgget", 0, 0o1600),
    "semget": call("semget", 0, 1, 0o1600),
    "setxattr": call("setxattr", BAD, BAD, BAD, 1, 0),
    "syslog": call("syslog", 10, BAD, 1),
}
result["personality"] = call("personality", 0x0040000)
result["TIOCSTI"] = typed_into_a_terminal()
""")

# What the kernel itself says where it has the interface; ENOSYS and the like where it lacks it proves nothing.
KERNEL = {
    "keyctl": "ok", "add_key": "EFAULT", "request_key": "EFAULT", "bpf": "E2BIG", "io_uring_setup": "EFAULT",
    "io_uring_enter": "EINVAL", "io_uring_register": "EINVAL", "userfaultfd": "ok", "perf_event_open": "EINVAL",
    "seccomp": "EINVAL", "fanotify_init": "ok", "fanotify_mark": "EINVAL", "name_to_handle_at": "EINVAL",
    "splice": "EINVAL", "tee": "EINVAL", "vmsplice": "EINVAL", "sched_setaffinity": "EFAULT", "shmget": "ok",
    "msgget": "ok", "semget": "ok", "setxattr": "EFAULT", "syslog": "ok", "personality": "ok",
}  # fmt: skip # a table
# open_by_handle_at checks the caller first, and so is told apart by the profile alone.
EPERM = (*(name for name in KERNEL if name not in ("personality", "sched_setaffinity")), "open_by_handle_at")


@pytest.fixture(scope="module")
def seen(bench: Bench) -> dict[str, str]:
    found: dict[str, str] = bench.value(PROBE)
    return found


@pytest.fixture(scope="module")
def unconfined(bench: Bench) -> WeakResult:
    return bench.run_weakened(PROBE, UNCONFINED)


@pytest.mark.parametrize("name", EPERM)
def test_the_filter_refuses(seen: dict[str, str], name: str) -> None:
    assert seen[name] == "EPERM"


def test_advice_on_cores_is_answered_as_done_without_the_kernel_looking_at_it(seen: dict[str, str]) -> None:
    assert seen["sched_setaffinity"] == "ok"


@pytest.mark.parametrize("name", ["personality", "TIOCSTI"])
def test_the_filter_does_not_know_this_variant(seen: dict[str, str], name: str) -> None:
    assert seen[name] == "ENOSYS"


# A kernel may lack an interface (ENOSYS), or keep it from ordinary users by a setting of its own (EPERM). Neither
# says anything about the filter, so these are known by name and everything else must be reached.
CLOSED_BY_SETTING = {"io_uring_setup", "perf_event_open", "syslog", "bpf"}


@pytest.mark.host_only
@pytest.mark.control
@pytest.mark.parametrize("name", KERNEL)
def test_without_the_filter_the_kernel_answers_instead(unconfined: WeakResult, name: str) -> None:
    own = {"ENOSYS", "EPERM"} if name in CLOSED_BY_SETTING else {"ENOSYS"}
    assert unconfined.value[name] in {KERNEL[name]} | own


def test_most_refusals_are_told_apart_from_the_kernel_s(unconfined: WeakResult) -> None:
    reached = [name for name in KERNEL if unconfined.value[name] == KERNEL[name]]
    assert len(reached) >= len(KERNEL) - len(CLOSED_BY_SETTING)


@pytest.mark.host_only
@pytest.mark.control
def test_without_the_filter_is_noticed(unconfined: WeakResult) -> None:
    assert unconfined.noticed == {"seccomp"}


# Kernels from 6.14 on, and patched older ones, let these pass every filter: they belong to probes that the kernel
# itself has put into a program, and end whoever else calls them ("seccomp: passthrough uretprobe systemcall without
# filtering").
PROBE_CALLS = ("uretprobe", "uprobe")


@needs_x86_64
@pytest.mark.parametrize("number", [335, 336])
def test_calls_that_pass_every_filter_do_nothing_for_a_program(bench: Bench, number: int) -> None:
    text = program(f"result = in_child(lambda: name_of(*raw({number}, -1, -1)))")
    assert bench.value(text) in ("SIGILL", "ENOSYS", "EPERM", "ENXIO")


def test_every_system_call_outside_the_list_is_refused(bench: Bench) -> None:
    try:
        known = dict(system_calls())
    except OSError:
        pytest.skip("no libseccomp here to name system calls with")
    profile = load_profile(bench.policy().seccomp.profile, directories=bench.places.policy_dirs).document
    answers = {
        name: "allowed" if rule["action"] == "SCMP_ACT_ALLOW" else "EPERM" if rule["errnoRet"] else "ok"
        for rule in profile["syscalls"]
        for name in rule["names"]
        if rule["action"] == "SCMP_ACT_ALLOW" or not rule.get("args")  # no argument below meets a condition
    }
    expected = {number: answers.get(name, "ENOSYS") for number, name in known.items()}
    # The runtime of the container calls these itself, below our rules' level, on its way to our program.
    refused = {number: answer for number, answer in expected.items() if answer != "allowed"}
    # Numbers that nobody has given a name yet are refused like unknown names.
    refused |= dict.fromkeys(range(max(known) + 1, 600), "ENOSYS")
    refused = {number: answer for number, answer in refused.items() if known.get(number) not in PROBE_CALLS}
    text = program("result = [[number, name_of(*raw(number, -1, -1, -1, -1, -1, -1))] for number in payload]")
    found = dict(bench.value(text, payload=list(refused)))
    wrong = {
        known.get(number, number): (found[number], answer)
        for number, answer in refused.items()
        if found[number] != answer
    }
    assert len(refused) > 200
    assert wrong == {}
