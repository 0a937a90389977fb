"""Builds that attacks share: an index on loopback as the host's only one, and directories of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from sandbox.index.pip_config import VARIABLES
from tests.escape.bench import IN_CELLS, Bench
from tests.escape.build_bench import Builds, own_builds
from tests.integration.package_index import package_index

# What these attack is the container, or the service before it; or a cell, also where all others are in containers.
NOT_IN_CELLS = ("test_build_", "test_hostile_harness", "test_service", "test_verification", "test_cells")
# The bench makes the cells. Besides, this file starts a service and commands with the bench's policy.
WITH_ITS_POLICY = ("test_hostile_channel.py",)


def the_same_anywhere(item: pytest.Item) -> bool:
    """Tell whether a test does the same in the tiers `escape` and `cells`.

    Nothing but the bench and its policy reads which tier it is. What calls the command `sandbox run` by itself, such as
    the attacks on the terminal, is under the policy `default`: in a container of its own both times.
    """
    elsewhere = "bench" not in getattr(item, "fixturenames", ()) and item.path.name not in WITH_ITS_POLICY
    return elsewhere or item.path.name.startswith(NOT_IN_CELLS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where attacks are made in cells, leave out what is not about cells: controls, and what `escape` does alike."""
    here = [item for item in items if "escape" in item.path.parts]
    for item in here:
        if IN_CELLS and (item.get_closest_marker("control") or the_same_anywhere(item)):
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
