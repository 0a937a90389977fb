"""Removing environments for real: what is in use stays, whoever uses it, and goes afterwards."""

from __future__ import annotations

import asyncio

import pytest

from sandbox.environment_identity import Environment
from sandbox.environment_store import PruneLimits, Record, lease_key
from sandbox.errors import ImageUnavailable, InvalidRequest
from sandbox.models import RunRequest, RunResult
from sandbox.progress import Progress
from tests.integration.desk import Desk, desk, index, shared_images
from tests.integration.package_index import PackageIndex, wheel

__all__ = ["desk", "index", "shared_images"]  # fixtures

pytestmark = pytest.mark.podman
EVERYTHING = PruneLimits(budget_bytes=0)


@pytest.fixture
def built(desk: Desk, index: PackageIndex) -> Environment:
    index.add(wheel("stays", "1.0", {"stays.py": "WORD = 'still here'\n"}))
    return desk.build("stays")


def recorded(desk: Desk, built: Environment) -> Record:
    record = desk.runner().environments().store.record(built.id)
    assert record is not None
    return record


def test_an_environment_that_a_run_names_as_its_image_stays_until_the_run_has_ended(desk: Desk, built: Environment) -> None:
    removal, store = desk.runner().environments().removal, desk.runner().environments().store
    record = recorded(desk, built)
    refused = []

    def while_it_runs(_stream: str, _data: bytes) -> None:
        assert lease_key(built.id) in store.used_now()
        with pytest.raises(InvalidRequest, match="is in use"):
            removal.remove(record)
        refused.append(removal.prune(EVERYTHING).environments)

    async def run() -> RunResult:
        code = "import time\nprint('here', flush=True)\ntime.sleep(1)\nimport stays\nresult = stays.WORD\n"
        request = RunRequest(code=code, policy="local", image=built.name)
        return await desk.runner().run(request, on_output=while_it_runs)

    assert asyncio.run(run()).result_json == b'"still here"'
    assert refused[0] == ()
    # The control: with the run, what kept it is gone.
    assert removal.try_remove(record)
    with pytest.raises(ImageUnavailable):
        desk.bench.engine.image(built.name)


def test_an_environment_that_a_container_of_anybody_s_uses_stays_with_its_record(desk: Desk, built: Environment) -> None:
    engine, environments = desk.bench.engine, desk.runner().environments()
    record = recorded(desk, built)
    container, _ = engine.create({"image": built.name, "command": ["/none"], "entrypoint": [], "netns": {"nsmode": "none"}})
    try:
        assert environments.store.used_now() == frozenset()
        assert not environments.removal.try_remove(record)
        assert environments.removal.prune(EVERYTHING).environments == ()
        assert engine.image(built.name).id == record.image_id
        assert engine.inspect(container).id == container
        assert recorded(desk, built) == record
    finally:
        engine.remove(container)
    assert environments.removal.prune(EVERYTHING).environments == (record,)


def test_a_build_keeps_the_cached_files_that_it_has_found(desk: Desk, index: PackageIndex) -> None:
    index.add(wheel("kept", "1.0", {"kept.py": ""}))
    environments = desk.runner().environments()
    pruned = []

    def at_the_last_step(progress: Progress) -> None:
        if progress.step == "storing":
            pruned.append(environments.removal.prune(EVERYTHING).files)

    request = RunRequest(code="", requirements=("kept",), policy="local")
    asyncio.run(desk.runner().build(request, at_the_last_step))
    assert pruned == [()]
    # The control: afterwards they go, the wheel and the tree.
    assert {file.path.suffix for file in environments.removal.prune(EVERYTHING).files} == {".whl", ".tree"}
    assert [*desk.files("wheels"), *desk.files("trees")] == []
