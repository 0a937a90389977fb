"""Boundary: locks of files, which take memory of the kernel that Linux charges to nobody, are counted on every host."""

from __future__ import annotations

import pytest

from sandbox.kernel import memory as kernel_memory
from sandbox.models import Outcome
from tests.escape.bench import Bench

LOCKING = """
import fcntl, os, threading, time

def lock(count, name, files=40):
    "Hold `count` locks of one byte each."
    opened = [os.open(f"/app/{name}-{number}", os.O_RDWR | os.O_CREAT) for number in range(files)]
    for place in range(count // files):
        for file in opened:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 * place)
"""
LOCKS = {
    "one process": "lock(payload, 'all', files=300)",
    "many processes": (
        """
        reading, writing = os.pipe()
        for number in range(8):
            if os.fork() == 0:
                lock(payload // 8, number)
                os.write(writing, b"x")
                time.sleep(60)
        for _ in range(8):
            os.read(reading, 1)
    """
    ),
    "a process whose first thread has ended": (
        """
        import ctypes
        reading, writing = os.pipe()
        def later():
            while "zombie" not in open(f"/proc/{os.getpid()}/status").read():
                time.sleep(0.01)
            lock(payload, "later", files=300)
            os.write(writing, b"x")
            time.sleep(60)
        if os.fork() == 0:
            threading.Thread(target=later).start()
            ctypes.CDLL(None).pthread_exit(None)
        os.read(reading, 1)
    """
    ),
}
MANY = 2 * kernel_memory.MAX_LOCKS


def locking(name: str) -> str:
    return (
        LOCKING + "if True:\n        pass\n        " + LOCKS[name].lstrip() + "\ntime.sleep(1)\nresult = 'had them'\n"
    )


@pytest.fixture(scope="module")
def tight(bench: Bench) -> str:
    return bench.policy_with(limits__memory_mib=64, limits__timeout_s=12, limits__open_files=1024)


@pytest.mark.parametrize("name", LOCKS)
def test_locks_without_end_are_not_had(bench: Bench, tight: str, name: str) -> None:
    # 192 bytes of the kernel's memory each, which not even cgroup v2 charges.
    ended = bench.run(locking(name), policy=tight, payload=MANY)
    assert ended.outcome is Outcome.OUT_OF_MEMORY, (ended.outcome, ended.explanation, ended.error, ended.stderr)
    assert "file locks" in ended.explanation


@pytest.mark.parametrize("name", LOCKS)
def test_unless_they_are_counted(bench: Bench, tight: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_memory, "MAX_LOCKS", 2 * MANY)
    assert bench.value(locking(name), policy=tight, payload=MANY) == "had them"


def test_locks_that_programs_need_work(bench: Bench) -> None:
    text = """
        import dbm.dumb, fcntl, os, shelve, sqlite3
        for mode in ("delete", "wal"):
            name = f"/app/{mode}.db"
            first = sqlite3.connect(name, timeout=20)
            first.execute(f"pragma journal_mode={mode}")
            first.execute("create table t(x)")
            first.commit()
            children = []
            for number in range(6):
                children.append(os.fork())
                if children[-1] == 0:
                    own = sqlite3.connect(name, timeout=20)
                    for x in range(20):
                        with own:
                            own.execute("insert into t values (?)", (x,))
                    os._exit(0)
            assert all(os.waitpid(child, 0)[1] == 0 for child in children)
            others = [sqlite3.connect(name) for _ in range(8)]
            assert [other.execute("select count(*) from t").fetchone() for other in others] == [(120,)] * 8
        with shelve.open("/app/shelf") as shelf:
            shelf["x"] = [1]
        with open("/app/locked", "w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            if os.fork() == 0:
                try:
                    fcntl.lockf(os.open("/app/locked", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os._exit(0)
                os._exit(1)
            assert os.wait()[1] == 0
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        result = "all"
    """
    assert bench.value(text) == "all"
