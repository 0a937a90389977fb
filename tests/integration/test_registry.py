"""Images from a registry: a real one on loopback, with TLS of our own making."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox.image.admission import REPOSITORY
from tests.command import left_behind, sandbox
from tests.integration.registry import Registry, untag

pytestmark = pytest.mark.podman


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text("result = 'pulled'")
    return path


def test_a_missing_image_is_pulled_and_the_script_runs_in_it(registry: Registry, script: Path) -> None:
    name = f"{registry.address}/team/python:1"
    answer = sandbox("run", script, "--image", name, "--json", env=registry.environment)
    found = json.loads(answer.stdout)
    assert found["result"] == "pulled", answer.stderr
    assert found["receipt"]["image"] == name
    assert found["receipt"]["image_digest"].startswith("sha256:")
    untag(name)


def test_an_unknown_tag_gives_the_registrys_own_reason_and_the_images_at_hand(registry: Registry, script: Path) -> None:
    answer = sandbox("run", script, "--image", f"{registry.address}/team/python:absent", env=registry.environment)
    assert answer.returncode == 11
    assert "manifest unknown" in answer.stderr
    assert f"{REPOSITORY}:latest" in answer.stderr
    assert left_behind() == []


def test_a_registry_with_a_certificate_that_nobody_vouches_for_is_refused(registry: Registry, script: Path) -> None:
    answer = sandbox("run", script, "--image", f"{registry.address}/team/python:2")
    assert answer.returncode == 11
    assert "certificate" in answer.stderr


def test_a_policy_that_never_pulls_does_not_ask_the_registry(registry: Registry, script: Path, tmp_path: Path) -> None:
    policy = tmp_path / "still.toml"
    policy.write_text('extends = "default"\n[images]\npull = "never"\n')
    name = f"{registry.address}/team/python:1"
    answer = sandbox("run", script, "--image", name, "--policy", policy, env=registry.environment)
    assert answer.returncode == 11
    assert "manifest" not in answer.stderr
