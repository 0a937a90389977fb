"""What pruning takes and leaves, on an engine in memory."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.environment.identity import image_name
from sandbox.environment.removal import Removal
from sandbox.environment.store import CACHED_FILES, EnvironmentRecord, PruneLimits, Store
from sandbox.environment.wheel_cache import FileCache
from tests.fake_engine import BASE, FakeEngine
from tests.unit.test_environment_store import RECORD

KEY, OTHER = "a" * 64, "b" * 64


class Bench:
    """A store, a cache of files and an engine, below one directory."""

    def __init__(self, top: Path) -> None:
        self.engine = FakeEngine()
        self.store = Store(top / "data")
        self.cache = FileCache(top / "trees", ".tree")
        self.removal = Removal(self.engine, self.store, (self.cache,))

    def environment(self, identity: str, *, used: float, size_bytes: int = 100) -> EnvironmentRecord:
        """Keep an environment and its image, last used at a time."""
        name = image_name(identity)
        self.image(identity)
        record = replace(RECORD, id=identity, image=name, size_bytes=size_bytes, last_used=used)
        self.store.write_environment_lock(identity, "lock")
        self.store.keep(record)
        os.utime(self.store._record_path(identity), (used, used))
        return record

    def image(self, identity: str) -> None:
        """Add an environment's image."""
        self.engine._add_image(identity, image_name(identity))

    def file(self, key: str, *, used: float, size_bytes: int = 100) -> Path:
        """Keep a cached file, last used at a time."""
        path = self.cache.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size_bytes))
        os.utime(path, (used, used))
        return path

    def images(self) -> set[str]:
        """Return the names of the images that are there, but for the base."""
        return {name for record in self.engine.images() for name in record.names} - {BASE}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_budget_holds_for_environments_and_cached_files_together_the_least_recently_used_go(bench: Bench) -> None:
    oldest, newest = bench.environment(KEY, used=1_000), bench.environment(OTHER, used=4_000)
    old, new = bench.file("0" * 64, used=2_000), bench.file("1" * 64, used=3_000)
    assert bench.removal.prune(PruneLimits(budget_bytes=400)).environments == ()
    chosen = bench.removal.prunable(PruneLimits(budget_bytes=200))
    assert (chosen.environments, [file.path for file in chosen.files]) == ((oldest,), [old])
    assert chosen.files_bytes == 100
    assert old.exists(), "nothing went yet"
    assert bench.removal.prune(PruneLimits(budget_bytes=200)) == chosen
    assert bench.store.records() == [newest]
    assert bench.images() == {newest.image}
    assert (old.exists(), new.exists()) == (False, True)


def test_cached_files_go_by_the_time_of_their_last_use(bench: Bench) -> None:
    now = Path(bench.file("0" * 64, used=0)).parent.stat().st_mtime
    recent = bench.file("1" * 64, used=now)
    assert [file.path.name[0] for file in bench.removal.prune(PruneLimits(unused_s=86_400)).files] == ["0"]
    assert bench.cache.files()[0].path == recent


def test_a_lease_by_the_beginning_of_the_id_keeps_an_environment(bench: Bench) -> None:
    record = bench.environment(KEY, used=1_000)

    async def held() -> None:
        async with bench.store.in_use(KEY[:32]):
            assert bench.removal.prunable(PruneLimits(budget_bytes=0)).environments == ()
            assert not bench.removal.try_remove(record)

    asyncio.run(held())
    assert [gone.id for gone in bench.removal.prune(PruneLimits(budget_bytes=0)).environments] == [KEY]


def test_while_something_is_built_no_cached_file_goes_but_it_counts(bench: Bench) -> None:
    record = bench.environment(KEY, used=2_000)
    path = bench.file("0" * 64, used=1_000)
    limits = PruneLimits(budget_bytes=100)

    async def held() -> None:
        async with bench.store.in_use(CACHED_FILES):
            pruned = bench.removal.prune(limits)
            assert (pruned.environments, pruned.files) == ((record,), ())

    asyncio.run(held())
    assert path.exists()
    # The control: nothing is built any more.
    assert [file.path for file in bench.removal.prune(PruneLimits(budget_bytes=0)).files] == [path]


# ---- builds that were cut short


def cut_short(bench: Bench, identity: str) -> None:
    """Leave what a process leaves that is killed when Podman has the image and the record is not written."""
    bench.store.write_environment_lock(identity, "lock")
    bench.image(identity)


def test_the_image_of_a_build_that_was_cut_short_goes_with_the_next_sweep_and_no_other(bench: Bench) -> None:
    record = bench.environment(OTHER, used=1_000)
    cut_short(bench, KEY)
    bench.engine._add_image("c" * 64, image_name("c" * 64))  # of another store on the same Podman
    bench.removal.sweep()
    assert bench.images() == {record.image, image_name("c" * 64)}
    assert (bench.store.unfinished(), bench.store.records()) == ([], [record])


def test_pruning_sweeps_too(bench: Bench) -> None:
    cut_short(bench, KEY)
    bench.removal.prune(PruneLimits(unused_s=1e9))
    assert (bench.images(), bench.store.unfinished()) == (set(), [])


def test_the_image_of_a_build_that_goes_on_or_that_a_container_uses_is_not_swept(bench: Bench) -> None:
    cut_short(bench, KEY)

    async def held() -> None:
        async with bench.store.in_use(KEY):
            bench.removal.sweep()

    asyncio.run(held())
    container, _ = bench.engine.create({"image": image_name(KEY)})
    bench.removal.sweep()
    assert bench.images() == {image_name(KEY)}
    assert bench.store.unfinished() == [KEY]
    bench.engine.remove(container)
    bench.removal.sweep()
    assert (bench.images(), bench.store.unfinished()) == (set(), [])


def test_an_environment_with_a_damaged_record_is_not_swept(bench: Bench) -> None:
    record = bench.environment(KEY, used=1_000)
    bench.store._record_path(KEY).write_text("{")
    bench.removal.sweep()
    assert bench.images() == {record.image}
