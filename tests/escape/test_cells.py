"""From a cell to its maker, to the next cell, to its sibling: nothing gets there.

Nothing of a run is left for the next. All other attacks of this tier are made in cells as well:
`SANDBOX_ESCAPE_IN=cell`, the tier `cells` of scripts/test.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.cell import verify as verify_cell
from sandbox.container import harness_files as library
from sandbox.container.harness_files import write_sources
from sandbox.errors import NotEnforceable
from sandbox.kernel.family import children, family
from sandbox.models import ControlEvidence, Outcome, RunResult
from tests.escape.attacks import needs_known_architecture, program
from tests.escape.bench import Bench, CellRuns, value_of
from tests.waiting import SLOWER, until

ONE_NODE: dict[str, Any] = {"node_id": "node"}
END_S = 5.0 * SLOWER


@dataclass(frozen=True)
class Flow:
    """One caller's node: its messages, one after the other, in cells of one warm container."""

    bench: Bench
    runs: CellRuns
    policy: str

    def run(self, code: str, **fields: Any) -> RunResult:
        return self.runs.run(self.bench.request(code, policy=self.policy, **{**ONE_NODE, **fields}))

    def value(self, code: str, **fields: Any) -> Any:
        return value_of(self.run(code, **fields))

    def started(self) -> int:
        return self.runs.counts().started


@pytest.fixture(scope="module")
def policy(bench: Bench) -> str:
    return bench.policy_with(isolation__per_run="cell")


@pytest.fixture(scope="module")
def flow(bench: Bench, policy: str) -> Iterator[Flow]:
    runs = CellRuns(bench)
    try:
        yield Flow(bench, runs, policy)
    finally:
        runs.close()


# ---------------------------------------------------------------- to the next cell

LEAVE = program("""
import abc, builtins, ctypes, fcntl, json, locale, os, random, resource, signal, socket, subprocess, sys, threading, time
done = {}
def leave(name, function):
    done[name] = attempt(function)
def files():
    for place in ("/app", "/tmp", "/dev/shm"):
        with open(place + "/left", "w") as file:
            file.write("left")
        os.mkfifo(place + "/pipe")
def semaphore():
    import multiprocessing
    kept.append(multiprocessing.Semaphore(1))
    with open("/dev/shm/sem.left", "wb") as file:
        file.write(bytes(32))
def abstract():
    one = socket.socket(socket.AF_UNIX)
    one.bind("\\0left-by-the-run-before")
    one.listen()
    os.set_inheritable(one.fileno(), True)
    kept.append(one)
def port():
    one = socket.socket()
    one.bind(("127.0.0.1", 4711))
    one.listen()
    kept.append(one)
def terminal():
    kept.append(os.openpty())
def lock():
    kept.append(open("/etc/passwd"))
    fcntl.flock(kept[-1], fcntl.LOCK_SH)
def timer():
    signal.setitimer(signal.ITIMER_REAL, 3600)
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 30):
                try: signal.signal(number, signal.SIG_IGN)
                except OSError: pass
            time.sleep(600)
        os._exit(0)
def modules():
    sys.modules["left"] = sys
    json.loads = lambda text: "left"
    builtins.left = True
    os.environ["LEFT"] = "left"
    sys.path.insert(0, "/left")
    random.seed(1)
    os.umask(0)
    os.chdir("/tmp")
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    sys.setrecursionlimit(77)
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
kept = []
for function in (files, semaphore, abstract, port, terminal, lock, timer, daemon, modules):
    leave(function.__name__, function)
for name, arguments in {"shmget": (0x1EF7, 4096, 0o1777), "semget": (0x1EF7, 1, 0o1777), "msgget": (0x1EF7, 0o1777)}.items():
    done[name] = call(name, *arguments)
result = done
""")

LOOK = program("""
import builtins, fcntl, json, os, random, resource, signal, socket, sys
def names(place):
    return sorted(os.listdir(place))
def answers(address, family):
    with socket.socket(family) as one:
        return attempt(lambda: one.connect(address))
def locked():
    with open("/etc/passwd") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
mask = os.umask(0o22)
result = {
    "files": {place: names(place) for place in ("/app", "/tmp", "/dev/shm")},
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()), "own": os.getpid(),
    "abstract": answers("\\0left-by-the-run-before", socket.AF_UNIX),
    "port": answers(("127.0.0.1", 4711), socket.AF_INET),
    "terminals": names("/dev/pts"), "lock": attempt(locked), "timer": signal.getitimer(signal.ITIMER_REAL),
    "memory": open("/proc/sysvipc/shm").read().count("\\n"), "semaphores": open("/proc/sysvipc/sem").read().count("\\n"),
    "queues": open("/proc/sysvipc/msg").read().count("\\n"), "names": open("/proc/net/unix").read().count("@left"),
    "module": "left" in sys.modules, "json": json.loads("1"), "builtin": hasattr(builtins, "left"),
    "variable": os.environ.get("LEFT"), "path": "/left" in sys.path, "umask": mask, "cwd": os.getcwd(),
    "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "recursion": sys.getrecursionlimit(), "random": random.random(),
}
""")


OWN_ALONE = {"/app": ["attack.py"], "/tmp": [], "/dev/shm": []}  # the file of the script that looks


def test_nothing_of_any_kind_is_left_for_the_next_cell(flow: Flow) -> None:
    untouched = flow.value(LOOK)
    done = flow.value(LEAVE)
    kinds = ("files", "semaphore", "abstract", "port", "lock", "timer", "daemon", "modules")
    assert {kind: done[kind] for kind in kinds} == dict.fromkeys(kinds, "ok"), "what is to be left must be there first"
    before = flow.started()
    seen = flow.value(LOOK)
    assert flow.started() == before == 1, "another container would show nothing"
    assert seen.pop("random") != untouched.pop("random")
    assert seen == untouched
    assert seen["files"] == OWN_ALONE
    assert seen["processes"] == [1, seen["own"]]
    assert (seen["abstract"], seen["port"]) == ("ECONNREFUSED", "ECONNREFUSED")


def test_a_program_that_fails_hangs_or_floods_leaves_nothing_either(flow: Flow) -> None:
    for code, outcome in (
        (LEAVE + "\nraise SystemExit(3)", Outcome.FAILED),
        (LEAVE + "\nos.kill(os.getpid(), 9)", Outcome.KILLED),
        (LEAVE + "\nwhile True: print('x' * 9999)", Outcome.OUTPUT_LIMIT),
    ):
        assert flow.run(code).outcome is outcome
        seen = flow.value(LOOK)
        assert seen["files"] == OWN_ALONE
        assert seen["processes"] == [1, seen["own"]]
    assert flow.run(LEAVE + "\nwhile True: pass", limits={"timeout_s": 1}).outcome is Outcome.TIMED_OUT


def test_every_process_of_a_cell_is_gone_with_its_run(flow: Flow) -> None:
    flow.value(LOOK)
    maker = flow.runs.makers()[-1].sandbox.pid
    flow.value(LEAVE)
    # What is left is the cell that waits for the next message: its process 1, and the program's process.
    until(lambda: len(family(maker)), 3)


def test_numbers_drawn_in_cells_differ(flow: Flow) -> None:
    drawn = [
        flow.value("import os, random, uuid\nresult = [random.random(), uuid.uuid4().hex, os.urandom(4).hex()]")
        for _ in range(3)
    ]
    assert len({number for numbers in drawn for number in map(str, numbers)}) == 9


# ---------------------------------------------------------------- to the maker and to siblings

REACH = program("""
import ctypes, os, signal, socket, struct
found, kept = {}, []
def at(data):
    kept.append(ctypes.create_string_buffer(data))
    return ctypes.addressof(kept[-1])
numbers = [pid for pid in range(1, 400) if os.path.exists(f"/proc/{pid}")]
found["seen"] = numbers
found["own"] = os.getpid()
found["parent"] = os.getppid()
found["kill all"] = attempt(lambda: os.kill(-1, 0))
for pid in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30):
    if pid != os.getpid():
        found[f"signal {pid}"] = attempt(lambda: os.kill(pid, signal.SIGTERM))
found["ptrace 1"] = call("ptrace", 16, 1, 0, 0)
found["read 1"] = attempt(lambda: open("/proc/1/mem", "rb").read(1))
found["root of 1"] = attempt(lambda: os.listdir("/proc/1/root"))
found["other proc"] = os.listdir("/.proc")
found["groups"] = os.listdir("/sys/fs/cgroup") if os.path.isdir("/sys/fs/cgroup") else []
found["queues"] = os.listdir("/dev/mqueue") if os.path.isdir("/dev/mqueue") else []
found["channels"] = attempt(lambda: os.listdir("/run/sandbox/job"))
found["descriptors"] = sorted(int(name) for name in os.listdir("/proc/self/fd"))
found["namespaces"] = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("user", "pid", "mnt", "net", "ipc", "uts")}
found["uncover"] = [call("umount2", at(path.encode()), 0) for path in ("/proc", "/app", "/.proc")]
found["enter"] = [call("unshare", flag) for flag in (0x10000000, 0x20000000, 0x00020000, 0)]
found["capset"] = call("capset", at(struct.pack("Ii", 0x20080522, 0)), at(bytes(24)))
found["filter"] = call("prctl", 22, 2, 0, 0, 0)
found["maps"] = open("/proc/self/uid_map").read().split()
found["status"] = {line.split(":")[0]: line.split(":")[1].strip() for line in open("/proc/self/status") if line.startswith(("Cap", "Seccomp", "NoNew", "NSpid"))}
result = found
""")


@needs_known_architecture
def test_a_cell_reaches_neither_its_maker_nor_its_sibling(flow: Flow) -> None:
    flow.value("result = 1")
    before = flow.started()
    first = flow.value(REACH)
    assert first["seen"] == [1, first["own"]]
    # Process 1 is its own; it takes no signal that would end it from inside.
    assert {answer for name, answer in first.items() if name.startswith("signal ") and name != "signal 1"} == {"ESRCH"}
    assert first["ptrace 1"] == "EPERM"
    assert first["read 1"] in ("EACCES", "EPERM")
    assert first["root of 1"] in ("EACCES", "EPERM")
    assert first["other proc"] == first["groups"] == first["queues"] == []
    assert first["channels"] == "EACCES"
    assert set(first["uncover"]) == set(first["enter"]) == {"EPERM"}
    assert first["capset"] == "EPERM"
    assert first["filter"] in ("EPERM", "ENOSYS", "EFAULT")
    assert first["filter"] != "EFAULT", "the maker's call is open to a program"
    assert first["maps"][0] == first["maps"][1], "its user id is its own, and no other is there"
    assert first["maps"][2] == "1"
    assert first["status"]["NSpid"].split() == [str(first["own"])]
    assert {first["status"][name] for name in first["status"] if name.startswith("Cap")} == {"0" * 16}
    second = flow.value(REACH)
    assert not set(first["namespaces"].values()) & set(second["namespaces"].values())
    assert flow.started() == before, "the maker lives on"


def test_a_cell_that_floods_its_process_count_leaves_room_for_the_next(flow: Flow) -> None:
    ended = flow.run("import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(60)")
    assert ended.outcome in (Outcome.TOO_MANY_PROCESSES, Outcome.FAILED)
    assert flow.value("import os\nresult = [os.fork() and os.wait()[1] for _ in range(1)] if True else 0") is not None


FULL = program("""
import os, time
held = bytearray(b"x") * (4 << 20)
for _ in range(payload["processes"]):
    if os.fork() == 0:
        for place in range(0, len(held), 4096):
            held[place] = 1
        time.sleep(60)
if payload["too much"]:
    time.sleep(0.3)
    kept = []
    while True: kept.append(bytearray(b"x") * (1 << 20))
result = "all"
""")


def test_a_run_has_all_its_processes_while_those_of_the_run_before_are_ended(flow: Flow) -> None:
    allowed = flow.bench.policy(flow.policy).limits.processes - 4
    for _ in range(5 if SLOWER == 1 else 2):
        ended = flow.run(FULL, payload={"processes": allowed, "too much": True})
        assert ended.outcome is Outcome.OUT_OF_MEMORY
        assert flow.value(FULL, payload={"processes": allowed, "too much": False}) == "all"


def test_a_cell_that_takes_all_memory_leaves_the_next_its_own(flow: Flow) -> None:
    assert flow.run("kept = []\nwhile True: kept.append(bytearray(b'x') * (1 << 20))").outcome is Outcome.OUT_OF_MEMORY
    assert flow.value("result = len(bytearray(b'x') * (64 << 20))") == 64 << 20


COUNTS = program("""
import signal, time
def touch(path):
    os.utime(path, ns=(1, 1))
def terminals():
    kept = []
    try:
        while len(kept) < 100:
            kept.append(os.openpty())
    except OSError:
        pass
    return len(kept)
def queued():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    block = ctypes.create_string_buffer(128)
    block[8:12] = struct.pack("i", -1)
    count = 0
    while count < 5000 and libc.syscall(NUMBERS["rt_sigqueueinfo"], os.getpid(), signal.SIGRTMIN, block) == 0:
        count += 1
    return count
result = {
    "touched": {path: attempt(lambda: touch(path)) for path in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")},
    "written": attempt(lambda: open("/dev/null", "wb").write(b"x")), "read": len(open("/dev/urandom", "rb").read(8)),
    "terminals": terminals(), "queued": queued(), "watch": attempt(lambda: os.close(libc.inotify_init())),
}
""")


@needs_known_architecture
def test_what_the_host_s_user_has_few_of_can_t_be_taken(flow: Flow) -> None:
    found = flow.value(COUNTS)
    assert set(found["touched"].values()) <= {"EROFS", "EPERM", "ENXIO"}
    assert (found["written"], found["read"]) == ("ok", 8)
    assert 0 < found["terminals"] <= 16
    assert 0 < found["queued"] <= 256
    assert found["watch"] == "EBADF", "there are no file watchers to be had"


def test_the_map_of_project_ids_that_all_sandboxes_share_is_written_before_a_library_or_a_cell_could(
    flow: Flow,
) -> None:
    result = flow.run("result = open('/proc/self/projid_map').read()")
    assert value_of(result) == "", "a cell's own map, which it can't write"
    maker = flow.runs.makers()[-1].sandbox
    assert Path(f"/proc/{maker.pid}/projid_map").read_text().split() != []
    assert result.receipt is not None
    row = next(row for row in result.receipt.controls if row.control == "project ids")
    assert row.mechanism == "user namespace"


def test_two_nodes_and_two_callers_never_share_a_container(flow: Flow) -> None:
    def maker_of(result: RunResult) -> str:
        assert result.outcome is Outcome.SUCCEEDED
        return str(result.result_json)

    before = flow.started()
    code = "import os\nresult = os.stat('/app').st_uid"
    seen = {maker_of(flow.run(code, node_id=name)) for name in ("one", "two")}
    other = flow.runs.run(flow.bench.request(code, policy=flow.policy, node_id="one"), caller="somebody else")
    seen.add(maker_of(other))
    assert len(seen) == 3
    assert flow.started() == before + 3
    flow.run(code, node_id="one")
    assert flow.started() == before + 3


def test_a_maker_that_dies_takes_its_cells_along_and_is_replaced(flow: Flow) -> None:
    flow.value("result = 1")
    before = flow.started()
    maker = flow.runs.makers()[-1].sandbox.pid  # of the node that was used last
    cells = until(lambda: children(maker))  # the next cell is made while nobody waits for it
    os.kill(maker, signal.SIGKILL)
    until(lambda: any(Path(f"/proc/{pid}").exists() for pid in cells), False)
    assert flow.value("result = 2") == 2
    assert flow.started() == before + 1


# ---------------------------------------------------------------- each part is needed, and its absence noticed


@dataclass(frozen=True)
class Weak:
    """What came of runs in cells that lack one thing: the last value, and the controls that verification missed."""

    value: Any
    noticed: set[str]


def weakened(bench: Bench, policy: str, changes: dict[str, str], *codes: str, **fields: Any) -> Weak:
    """Run programs in the cells of a harness that was changed; verification's objection is noted, not obeyed."""
    source = library.harness_source()
    for old, new in changes.items():
        assert old in source
        source = source.replace(old, new)
    noticed: set[str] = set()
    real = verify_cell.compare

    def compare(*arguments: Any) -> tuple[ControlEvidence, ...]:
        try:
            return real(*arguments)
        except NotEnforceable as refusal:
            noticed.update(refusal.facts["controls"])
            return (
                ControlEvidence(control="isolation", wanted="", status="proven", mechanism="namespaces", evidence=""),
            )

    directory = bench.places.runtime_dir / "weak-harness"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    write_sources(directory)
    (directory / "harness.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sandbox.container.standby.harness_directory", lambda _: directory)
        patch.setattr("sandbox.cell.verify.compare", compare)
        runs = CellRuns(bench)
        try:
            results = [runs.run(bench.request(code, policy=policy, **{**ONE_NODE, **fields})) for code in codes]
            return Weak(value_of(results[-1]), noticed)
        finally:
            runs.close()
            shutil.rmtree(directory)


@pytest.mark.host_only
@pytest.mark.parametrize(
    "kept",
    [
        "import mmap, json; json.kept = mmap.mmap(-1, 4096)",
        "import json, tempfile; json.kept = tempfile.TemporaryFile()",
    ],
    ids=["shared memory", "an open file"],
)
def test_a_library_that_keeps_what_cells_would_share_is_not_imported_ahead(
    bench: Bench, policy: str, kept: str
) -> None:
    code = "import sys\nahead = 'decimal' in sys.modules\nimport json\nresult = [ahead, hasattr(json, 'kept')]"
    imports = "        __import__(name)\n"
    harmless = weakened(bench, policy, {imports: imports + "        import json\n"}, code, preload=("decimal",))
    assert harmless.value == [True, False]
    assert weakened(bench, policy, {imports: f"{imports}        {kept}\n"}, code, preload=("decimal",)).value == [
        False,
        False,
    ]


@pytest.mark.host_only
@pytest.mark.control
def test_without_places_of_its_own_a_cell_finds_the_files_of_the_last(bench: Bench, policy: str) -> None:
    mount = 'self._mount("tmpfs", target, "tmpfs", flags, f"size={size_mib}m,mode=0700")'
    weak = weakened(bench, policy, {mount: "flags"}, LEAVE, LOOK)
    assert "left" in weak.value["files"]["/tmp"]
    assert "cell mounts" in weak.noticed


@pytest.mark.host_only
@pytest.mark.control
def test_without_a_proc_of_its_own_a_cell_sees_its_sibling_and_its_maker(bench: Bench, policy: str) -> None:
    mount = 'self._mount("proc", "/proc", "proc", safe | self.MS_NOEXEC | self.MS_RDONLY)'
    weak = weakened(bench, policy, {mount: "pass"}, REACH)
    assert len(weak.value["seen"]) > 3
    assert "cell mounts" in weak.noticed


@pytest.mark.host_only
@pytest.mark.control
@pytest.mark.parametrize("number", ["0x04000000", "0x08000000", "0x40000000"], ids=["uts", "ipc", "net"])
def test_a_missing_namespace_is_noticed(bench: Bench, policy: str, number: str) -> None:
    listed = "0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000"
    fewer = {f"NAMESPACES = {listed}": f"NAMESPACES = ({listed}) & ~{number}", "        self._loopback()\n": ""}
    weak = weakened(bench, policy, fewer, LOOK)
    assert "isolation" in weak.noticed


@needs_known_architecture
@pytest.mark.host_only
@pytest.mark.control
def test_without_its_filter_a_cell_may_do_what_its_maker_does(bench: Bench, policy: str) -> None:
    install = "self.libc.prctl(self.PR_SET_SECCOMP, self.SECCOMP_MODE_FILTER, self.filter, 0, 0)"
    weak = weakened(bench, policy, {install: "0"}, REACH)
    assert "ok" in weak.value["enter"]
    assert "seccomp" in weak.noticed


@pytest.mark.host_only
@pytest.mark.control
@pytest.mark.parametrize(
    "kept",
    [
        'self._check(self.libc.prctl(self.PR_CAPBSET_DROP, number, 0, 0, 0), "dropping a capability")',
        'self._check(self.libc.capset(header, data), "giving up capabilities")',
    ],
    ids=["bounding set", "other sets"],
)
def test_a_capability_that_is_kept_is_noticed(bench: Bench, policy: str, kept: str) -> None:
    weak = weakened(bench, policy, {kept: "pass"}, LOOK)
    assert "no capabilities" in weak.noticed


@pytest.mark.host_only
@pytest.mark.control
def test_a_filter_that_can_not_be_installed_means_no_cell_and_a_container_that_says_so(
    bench: Bench, policy: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sandbox.cell.filter.MAKER_CALLS", ("mount", "capset"))
        runs = CellRuns(bench, expected="container")
        try:
            result = runs.run(bench.request("result = 5", policy=policy, **ONE_NODE))
            again = runs.run(bench.request("result = 6", policy=policy, **ONE_NODE))
        finally:
            runs.close()
    assert (value_of(result), value_of(again)) == (5, 6)
    for ended in (result, again):
        assert ended.receipt is not None
        row = next(row for row in ended.receipt.controls if row.control == "isolation")
        assert (row.wanted, row.mechanism) == ("a cell", "container")
        assert "new namespaces: Operation not permitted" in row.evidence
