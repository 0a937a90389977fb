"""Removing environments for real: what is in use stays, whoever uses it, and goes afterwards."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from sandbox.environment.identity import InstalledEnvironment, image_name
from sandbox.environment.store import EnvironmentRecord, PruneLimits, Store, lease_key
from sandbox.errors import BuildFailed, ImageUnavailable, InvalidRequest
from sandbox.models import RunRequest, RunResult
from sandbox.progress import Progress
from sandbox.run.decision import Follow, Run
from tests.integration.desk import Desk, desk, index, shared_images
from tests.integration.package_index import PackageIndex, wheel
from tests.integration.test_environment import IN_A_PROCESS

__all__ = ["desk", "index", "shared_images"]  # fixtures

pytestmark = pytest.mark.podman
EVERYTHING = PruneLimits(budget_bytes=0)
WAIT_S = 60.0
KILLED_BEFORE_THE_RECORD = """
import os
from sandbox.environment.store import Store
def keep(self, record):
    print(record.id, flush=True)
    os.kill(os.getpid(), 9)
Store.keep = keep
"""


@pytest.fixture
def built(desk: Desk, index: PackageIndex) -> InstalledEnvironment:
    index.add(wheel("stays", "1.0", {"stays.py": "WORD = 'still here'\n"}))
    return desk.build("stays")


def recorded(desk: Desk, built: InstalledEnvironment) -> EnvironmentRecord:
    record = desk.runner().environments().store.record(built.id)
    assert record is not None
    return record


def test_an_environment_that_a_run_names_as_its_image_stays_until_the_run_has_ended(
    desk: Desk, built: InstalledEnvironment
) -> None:
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
        return await desk.runner().run(Run(request=request, follow=Follow(output=while_it_runs)))

    assert asyncio.run(run()).result_json == b'"still here"'
    assert refused[0] == ()
    # The control: with the run, what kept it is gone.
    assert removal.try_remove(record)
    with pytest.raises(ImageUnavailable):
        desk.bench.engine.image(built.name)


def test_an_environment_that_a_container_of_anybody_s_uses_stays_with_its_record(
    desk: Desk, built: InstalledEnvironment
) -> None:
    engine, environments = desk.bench.engine, desk.runner().environments()
    record = recorded(desk, built)
    container, _ = engine.create(
        {"image": built.name, "command": ["/none"], "entrypoint": [], "netns": {"nsmode": "none"}}
    )
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


# ---- builds that end between Podman's taking the image and our record of it


def test_an_environment_that_can_t_be_recorded_leaves_no_image(
    desk: Desk, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(wheel("unkept", "1.0", {"unkept.py": "X = 1\n"}))
    made = []

    def full(_store: Store, record: EnvironmentRecord) -> None:
        made.append(desk.bench.engine.image(record.image).id)
        made.append(record.id)
        raise BuildFailed("no space left", hint="free some")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "keep", full)
        with pytest.raises(BuildFailed, match="no space left"):
            desk.build("unkept")
    image_id, identity = made
    for name in (image_id, image_name(identity)):
        with pytest.raises(ImageUnavailable):
            desk.bench.engine.image(name)
    assert desk.runner().environments().store.unfinished() == []
    assert desk.left() == []
    assert desk.value("import unkept\nresult = unkept.X", "unkept") == 1


def test_the_image_of_a_build_that_was_killed_before_its_record_goes_with_the_next_build(
    desk: Desk, index: PackageIndex
) -> None:
    index.add(wheel("killed", "1.0", {"killed.py": ""}), wheel("after", "1.0", {"after.py": ""}))
    places = desk.places
    arguments = [str(path) for path in (places.runtime_dir, places.cache_dir, places.data_dir, desk.top / "policies")]
    process = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_THE_RECORD + IN_A_PROCESS, *arguments, "killed"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    name = image_name(process.stdout.strip())
    # The control: it is there, and no record tells of it.
    assert desk.bench.engine.image(name).names == (name,)
    assert desk.runner().environments().store.records() == []
    desk.build("after")
    with pytest.raises(ImageUnavailable):
        desk.bench.engine.image(name)
    assert desk.runner().environments().store.unfinished() == []
