"""What pruning takes and leaves, on an engine in memory."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.environment_identity import image_name
from sandbox.environment_removal import Removal
from sandbox.environment_store import CACHED_FILES, PruneLimits, Record, Store
from sandbox.wheel_cache import FileCache
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

    def environment(self, identity: str, *, used: float, size_bytes: int = 100) -> Record:
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
    assert bench.removal.prune(PruneLimits(budget_bytes=0)).environments == (record,)


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
