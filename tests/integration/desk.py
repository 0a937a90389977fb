"""A desk for tests of environments: a runner with a cache, data, policies and a package index of its own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.container import spec
from sandbox.environment.identity import InstalledEnvironment
from sandbox.environment.lock import Lock
from sandbox.errors import BuildFailed
from sandbox.models import RunRequest, RunResult
from sandbox.policy.directories import policy_directories
from sandbox.run.decision import Run
from sandbox.runner import Places, Runner
from tests.escape.bench import Bench, value_of
from tests.integration.package_index import PackageIndex, package_index

__all__ = ["Desk", "desk", "index", "shared_images"]

LOCAL = {"build.allow_addresses": ["127.0.0.1"]}


@dataclass(kw_only=True)
class Desk:
    """One user: what is asked for is answered as the product does, and everything that is kept lies below `top`."""

    bench: Bench
    places: Places
    top: Path

    def policy(self, name: str, **keys: Any) -> str:
        """Write a policy that extends `default` and may use an index on loopback (`build__allow_sdists=True`)."""
        rows = {**LOCAL, **{key.replace("__", "."): value for key, value in keys.items()}}
        lines = ['extends = "default"', *(f"{key} = {json.dumps(value)}" for key, value in rows.items())]
        (self.top / "policies" / f"{name}.toml").write_text("\n".join(lines) + "\n")
        return name

    def runner(self) -> Runner:
        """Return the runner."""
        return Runner(lambda: self.bench.engine, self.bench.facts, self.places)

    def build(
        self, *requirements: str, policy: str = "local", image: str | None = None, lock: Lock | None = None
    ) -> InstalledEnvironment:
        """Return an environment, built when it isn't there."""
        request = RunRequest(code="", requirements=requirements, policy=policy, image=image)
        return asyncio.run(self.runner().build(request, lambda _: None, lock=lock))

    def lock(self, *requirements: str, upgrade: bool = False, policy: str = "local") -> list[str]:
        """Return the locked packages as `name==version`."""
        request = RunRequest(code="", requirements=requirements, policy=policy)
        return versions(asyncio.run(self.runner().lock(request, lambda _: None, upgrade=upgrade)))

    def run(self, code: str, *requirements: str, policy: str = "local", image: str | None = None) -> RunResult:
        """Run a program with libraries."""
        request = RunRequest(code=code, requirements=requirements, policy=policy, image=image)
        return asyncio.run(self.runner().run(Run(request=request)))

    def value(self, code: str, *requirements: str, **options: Any) -> Any:
        """Run a program that must succeed; return its result."""
        return value_of(self.run(code, *requirements, **options))

    def failure(self, *requirements: str, policy: str = "local", image: str | None = None) -> BuildFailed:
        """Return why an environment can't be built. Fails the test when it can, or when anything is left of it."""
        before = self.kept()
        with pytest.raises(BuildFailed) as caught:
            self.build(*requirements, policy=policy, image=image)
        assert self.left() == []
        assert self.kept() == before
        error = caught.value
        assert error.hint
        assert len(error.message) < 1_000
        assert error.facts.get("output", "said") != ""
        return error

    def kept(self) -> list[str]:
        """Return everything that a build adds when it succeeds: installed packages, records and images."""
        trees = [path.name for path in self.files("trees") if not path.name.startswith(".")]
        records = self.runner().environments().store.records()
        return [*sorted(trees), *sorted(record.id for record in records)]

    def left(self) -> list[str]:
        """Return what only a build that goes on has: its directory, half files, containers and workspaces."""
        builds = self.places.cache_dir / "builds"
        half = [path.name for path in (*self.files("wheels"), *self.files("trees")) if path.name.startswith(".")]
        runs = self.places.runtime_dir / "runs"
        places = [str(path) for path in (*builds.glob("*"), *runs.glob("*")) if path.is_dir()]
        containers = self.bench.engine.containers(spec.RUN_LABEL)
        ours = [found.id for found in containers if found.labels.get(spec.PLACE_LABEL) == spec.runs_id(runs)]
        return [*half, *places, *ours]

    def files(self, cache: str) -> list[Path]:
        """Return the files of a cache: `wheels` or `trees`."""
        return [path for path in (self.places.cache_dir / cache).rglob("*") if path.is_file()]

    def remove_all(self) -> None:
        """Remove every environment."""
        environments = self.runner().environments()
        for record in environments.store.records():
            environments.removal.try_remove(record)


def versions(lock: Lock) -> list[str]:
    """Return the packages of a lock as `name==version`."""
    return [f"{package.name}=={package.version}" for package in lock.packages]


@pytest.fixture(scope="session")
def shared_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where it is kept which images were admitted: that takes seconds, and is nobody's secret."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """Give an empty index, which pip's configuration names."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    with package_index() as served:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", served.url)
        yield served


@pytest.fixture
def desk(bench: Bench, index: PackageIndex, shared_images: Path, tmp_path: Path) -> Iterator[Desk]:
    """Give a desk with the policies `local`, `source` (which allows source archives) and `small` (16 MiB)."""
    cache, policies = tmp_path / "cache", tmp_path / "policies"
    for directory in (cache, policies):
        directory.mkdir(mode=0o700)
    (cache / "images").symlink_to(shared_images)
    places = replace(
        bench.places, cache_dir=cache, data_dir=tmp_path / "data", policy_dirs=policy_directories([policies])
    )
    made = Desk(bench=bench, places=places, top=tmp_path)
    made.policy("local")
    made.policy("source", build__allow_sdists=True)
    made.policy("small", build__installed_mib=16)
    yield made
    made.remove_all()
