"""Builds that attacks share: an index on loopback as the host's only one, and directories of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from sandbox.index.pip_config import VARIABLES
from tests.escape.bench import IN_CELLS, Bench
from tests.escape.build_bench import Builds, own_builds
from tests.integration.package_index import package_index

# What these attack is the container, or the service before it.
NOT_IN_CELLS = ("test_build_", "test_hostile_harness", "test_service", "test_verification")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where attacks are made in cells, leave out what is not about cells: controls, and attacks on something else."""
    here = [item for item in items if "escape" in item.path.parts]
    for item in here:
        if IN_CELLS and (item.get_closest_marker("control") or item.path.name.startswith(NOT_IN_CELLS)):
            items.remove(item)


@pytest.fixture(scope="module")
def builds(bench: Bench) -> Iterator[Builds]:
    """Give builds on an empty index; afterwards their images and files are removed."""
    with package_index() as index, pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("PIP_CONFIG_FILE", "/dev/null")
        patch.setenv("PIP_INDEX_URL", index.url)
        builds = own_builds(bench, index)
        try:
            yield builds
        finally:
            environments = builds.bench.runner().environments()
            for record in environments.store.records():
                environments.removal.remove(record)
            shutil.rmtree(builds.top)
