"""What several files of this tier need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.registry import Registry, container_registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Give a registry that has the base image as `team/python:1`."""
    with container_registry(tmp_path_factory.mktemp("registry")) as there:
        yield there
