"""Texts that take Python's compiler long, or much memory, are compiled under the run's own limits.

That holds in cells and in sandboxes that stood ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.client import Client
from tests.integration.service import Service, served
from tests.integration.test_service import client
from tests.waiting import until

__all__ = ["client"]  # a fixture

TIMEOUT_S, MEMORY_MIB = 2, 128
SMALL = (
    "filesystem.app_mib = 16\nfilesystem.tmp_mib = 16\nfilesystem.shm_mib = 16\nlimits.timeout_s ="
    f" {TIMEOUT_S}\nlimits.memory_mib = {MEMORY_MIB}\n"
)
LARGE = "limits.timeout_s = 30\nlimits.memory_mib = 512\n"
HARD = {
    "takes long": ("x = 1\nf'" + "{x}" * 160_000 + "'", "timed_out"),  # Python takes a quarter of a minute for it
    "takes much memory": ("a;" * 200_000, "out_of_memory"),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("compiles")
    (home / "policies").mkdir()
    for base in ("cells", "default"):
        for name, limits in (("small", SMALL), ("large", LARGE)):
            (home / f"policies/{name}-{base}.toml").write_text(f'extends = "{base}"\n{limits}')
    with served(home, SANDBOX_POOL__WARM_SEEN="0") as running:
        yield running


def warm(client: Client, node: dict[str, Any], text: str) -> str:
    """Run a text in a sandbox that stood ready; return how it ended."""
    client.stop_all()  # what stands ready for other policies, too
    assert client.run("result = payload", payload=1, **node).value == 1
    if node["policy"].endswith("default"):
        until(lambda: client.health()["pool"]["ready"])
    ended = client.run(text, **node)
    assert ended.document["durations"]["warm"]
    return ended.outcome


@pytest.mark.parametrize("base", ["cells", "default"])
@pytest.mark.parametrize(("text", "outcome"), HARD.values(), ids=HARD)
def test_compiling_is_under_the_runs_limits_and_the_nodes_next_message_is_carried_out(
    client: Client, base: str, text: str, outcome: str
) -> None:
    node: dict[str, Any] = {"policy": f"small-{base}", "node_id": f"hard {outcome}"}
    assert warm(client, node, text) == outcome
    for number in range(3):
        assert client.run("result = payload", payload=number, **node).value == number


@pytest.mark.parametrize("base", ["cells", "default"])
def test_it_is_the_limit_that_ends_them(client: Client, base: str) -> None:
    node: dict[str, Any] = {"policy": f"large-{base}", "node_id": "control"}
    assert warm(client, node, "a = 1\n" + HARD["takes much memory"][0]) == "no_result"
    assert warm(client, node, "x = 1\nf'" + "{x}" * 1_000 + "'") == "no_result"
