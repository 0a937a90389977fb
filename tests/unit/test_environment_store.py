"""What is kept of environments: locks, records, leases, and what pruning takes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.environment.store import EnvironmentRecord, PruneLimits, Store, prunable
from sandbox.errors import BuildFailed

DAY_S = 86_400.0
NOW = 1_000 * DAY_S
RECORD = EnvironmentRecord(
    id="a" * 64,
    image="localhost/sandbox-environment:a",
    image_id="b" * 64,
    base="localhost/sandbox-python:latest",
    base_digest="sha256:0",
    lock_hash="sha256:1",
    build_hash="sha256:2",
    packages=("six==1.0",),
    requirements=("six",),
    size_bytes=100,
    created=NOW - 10 * DAY_S,
    last_used=NOW - 5 * DAY_S,
)


def aged(name: str, *, used_days: float, built_days: float = 10, size_bytes: int = 100) -> EnvironmentRecord:
    return replace(
        RECORD, id=name, last_used=NOW - used_days * DAY_S, created=NOW - built_days * DAY_S, size_bytes=size_bytes
    )


def taken(records: list[EnvironmentRecord], limits: PruneLimits, *in_use: str) -> list[str]:
    return [record.id for record in prunable(records, limits, now=NOW, in_use=frozenset(in_use))]


def test_pruning_takes_what_was_not_used_for_long() -> None:
    records = [aged("new", used_days=1), aged("old", used_days=40)]
    assert taken(records, PruneLimits(unused_s=30 * DAY_S)) == ["old"]


def test_pruning_takes_what_was_built_long_ago_though_used_today() -> None:
    records = [aged("new", used_days=0, built_days=1), aged("old", used_days=0, built_days=90)]
    assert taken(records, PruneLimits(older_s=60 * DAY_S)) == ["old"]


def test_a_budget_takes_the_least_recently_used_first_and_no_more_than_needed() -> None:
    records = [aged("a", used_days=1), aged("b", used_days=3), aged("c", used_days=2)]
    assert taken(records, PruneLimits(budget_bytes=250)) == ["b"]
    assert taken(records, PruneLimits(budget_bytes=150)) == ["b", "c"]
    assert taken(records, PruneLimits(budget_bytes=300)) == []


def test_what_is_in_use_stays_whatever_the_limits_say() -> None:
    records = [aged("a", used_days=400), aged("b", used_days=400)]
    limits = PruneLimits(unused_s=1, older_s=1, budget_bytes=0)
    assert taken(records, limits, "a") == ["b"]
    assert taken(records, limits, "a", "b") == []


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1_000)), max_size=12),
    st.integers(0, 5_000),
    st.sets(st.integers(0, 11)),
)
def test_after_a_budget_the_rest_fits_or_is_in_use(
    rows: list[tuple[float, int]], budget_bytes: int, used: set[int]
) -> None:
    records = [aged(str(n), used_days=days, size_bytes=size) for n, (days, size) in enumerate(rows)]
    in_use = {str(n) for n in used}
    gone = taken(records, PruneLimits(budget_bytes=budget_bytes), *in_use)
    left = [record for record in records if record.id not in gone]
    assert not in_use & set(gone)
    assert sum(record.size_bytes for record in left) <= budget_bytes or all(record.id in in_use for record in left)


def test_a_record_comes_back_as_it_was_kept_with_the_time_of_its_last_use(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep(RECORD)
    os.utime(tmp_path / "environments" / f"{RECORD.id}.json", (1_000, 2_000))
    assert store.record(RECORD.id) == replace(RECORD, last_used=2_000.0)
    store.touch(RECORD.id)
    touched = store.record(RECORD.id)
    assert touched is not None
    assert touched.last_used > 2_000


def test_a_lease_notes_the_use_of_its_environment_and_of_no_other(tmp_path: Path) -> None:
    store, other = Store(tmp_path), replace(RECORD, id="b" * 64)
    for record in (RECORD, other):
        store.keep(record)
        os.utime(tmp_path / "environments" / f"{record.id}.json", (1_000, 2_000))

    async def use() -> None:
        async with store.in_use(RECORD.id[:32]):
            pass

    asyncio.run(use())
    assert [record.id for record in store.records() if record.last_used > 2_000] == [RECORD.id]


def test_a_damaged_record_hides_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep(RECORD)
    (tmp_path / "environments" / "broken.json").write_text('{"id": 3')
    assert [record.id for record in store.records()] == [RECORD.id]


def test_a_forgotten_record_takes_its_lock_along(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep(RECORD)
    store.write_environment_lock(RECORD.id, "lock")
    store.forget(RECORD.id)
    assert list((tmp_path / "environments").iterdir()) == []


def test_what_is_kept_is_private(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    store.keep(RECORD)
    store.write_lock("key", "text")
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "data").rglob("*"))


def test_a_lock_that_can_t_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.write_lock("key", "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BuildFailed, match="No space left"):
        store.write_lock("key", "new")
    monkeypatch.undo()
    assert store.read_lock("key") == "old"
    assert [path.name for path in (tmp_path / "locks").iterdir()] == ["key.toml"]


def test_only_one_at_a_time_works_on_a_key_and_the_other_waits(tmp_path: Path) -> None:
    store, order = Store(tmp_path), []

    async def work(name: str) -> None:
        async with store.alone("key"):
            order.append(f"{name} in")
            await asyncio.sleep(0.05)
            order.append(f"{name} out")

    async def both() -> None:
        await asyncio.gather(work("a"), work("b"))

    asyncio.run(both())
    assert order in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])


def test_an_environment_in_use_by_another_process_is_known_until_that_process_is_killed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    code = (
        "import asyncio, sys, pathlib\nfrom sandbox.environment.store import Store\n"
        "async def use():\n"
        "    async with Store(pathlib.Path(sys.argv[1])).in_use('env'):\n"
        "        print('using', flush=True)\n        await asyncio.sleep(60)\n"
        "asyncio.run(use())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"using\n"
        assert store.used_now() == {"env"}
        with store.unused("env") as free:
            assert not free
        user.kill()
        user.wait()
    assert store.used_now() == frozenset()
    with store.unused("env") as free:
        assert free
