"""Boundary: a refused build leaves and changes nothing; an image that only claims to be an environment is unused."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest

from sandbox.environment import layers as environment_image
from sandbox.environment.identity import LABEL_BASE, LABEL_BUILD, LABEL_ENVIRONMENT, LABEL_LOCK
from sandbox.models import Outcome
from tests.escape.build_bench import Builds, hostile_wheel

pytestmark = pytest.mark.host_only


def test_a_refused_build_does_not_touch_the_previous_environment(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = builds.policy()
    builds.index.add(hostile_wheel("before", {"before.py": "A = 1"}), hostile_wheel("evil", {"sitecustomize.py": "x"}))
    code = "import before\nresult = before.A"
    assert builds.run("before", code=code, policy=policy).outcome is Outcome.SUCCEEDED
    builds.refused("before", "evil", policy=policy)  # also looks that no container, file or image is left
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    assert builds.run("before", code=code, policy=policy).result_json == b"1"


def test_an_image_tells_what_it_is_and_no_more(builds: Builds) -> None:
    policy = builds.policy()
    built = builds.build(
        "inspected", policy=policy, lock=builds.lock_of(hostile_wheel("inspected", {"inspected.py": ""}))
    )
    said = subprocess.run(
        ["podman", "image", "inspect", built.name],
        check=True,
        capture_output=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    [shown] = json.loads(said.stdout)
    engine = builds.bench.engine
    base = engine.image(engine.image("localhost/sandbox-python:latest").id)
    assert shown["Config"]["Env"] == ["PATH=/usr/local/bin:/usr/bin:/bin"]
    assert set(shown["Config"]) == {"Env", "Labels"}
    assert shown["Config"]["Labels"] == {
        LABEL_ENVIRONMENT: built.id,
        LABEL_BASE: base.digest,
        LABEL_LOCK: built.lock.hash,
        LABEL_BUILD: builds.bench.policy(policy).build_hash,
    }
    assert shown["Annotations"] == {}
    assert [step["created_by"] for step in shown["History"]] == ["base image", "COPY libraries /opt/environment"]
    assert tuple(shown["RootFS"]["Layers"][:-1]) == base.layers


def test_an_image_that_took_an_environment_s_name_is_not_used(builds: Builds, tmp_path: Path) -> None:
    archive = hostile_wheel("named", {"named.py": "A = 'honest'"})
    policy, lock = builds.policy(), builds.lock_of(archive)
    built = builds.build("named", policy=policy, lock=lock)
    evil = builds.build("named", policy=policy, lock=builds.lock_of(hostile_wheel("named", {"named.py": "A = 'evil'"})))
    assert evil.id != built.id
    # What `podman load` of a stranger's archive does: any content, under any name, with any labels.
    engine, base = builds.bench.engine, builds.bench.engine.image("localhost/sandbox-python:latest")
    tree = next(path for path in (builds.cache / "trees").rglob("*.tree") if b"'evil'" in path.read_bytes())
    forged = environment_image.write_image(
        tmp_path / "image.tar",
        environment_image.BaseImage(diff_ids=base.layers, architecture=base.architecture),
        [("named", tree)],
        name=built.name,
        labels=engine.image(built.name).labels,
        created=datetime(2020, 1, 1, tzinfo=timezone.utc),
    )
    record = environment_image.add(engine, forged)
    try:
        assert engine.image(built.name).id == record.id, "the name is taken"
        again = builds.build("named", policy=policy, lock=lock)
        assert builds.value_in(again, "import named\nresult = named.A") == "honest"
    finally:
        engine.remove_image(record.id)
