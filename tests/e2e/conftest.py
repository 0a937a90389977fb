"""How these tests run what they run: by commands alone, or through a service, in containers or in cells (`--way`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import command
from tests.integration.service import served


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--way") == "embedded":
        return
    out = [item for item in items if item.get_closest_marker("embedded_only") is not None]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session", autouse=True)
def through_a_service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have a service make the runs, where that is asked for."""
    way = request.config.getoption("--way")
    if way == "embedded":
        yield
        return
    with served(tmp_path_factory.mktemp("way")) as service:
        command.through = command.Through(service.socket, service.process.pid, service.policies, cell=way == "cell")
        yield
        command.through = None
