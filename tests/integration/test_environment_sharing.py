"""Environments through a registry: what arrives is what was sent, or it is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.image.admission import REPOSITORY
from tests.command import environment, sandbox
from tests.integration.package_index import package_index, wheel
from tests.integration.registry import Registry, insecure, podman, untag

pytestmark = pytest.mark.podman

POLICY = """
extends = "default"
[build]
allow_addresses = ["127.0.0.1"]
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "sharing.toml"
    path.write_text(POLICY)
    return path


@pytest.fixture(scope="module")
def built(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Build an environment from an index on loopback; give its id and a script that uses it."""
    with package_index() as index:
        index.add(wheel("courier", "1.0", {"courier/__init__.py": "word = 'delivered'\n", "courier/data.txt": "x"}))
        sources = environment(
            PIP_INDEX_URL=index.url, PIP_CONFIG_FILE="/dev/null", PIP_FIND_LINKS="", PIP_EXTRA_INDEX_URL=""
        )
        asked = ("--with", "courier", "--policy", policy)
        # An earlier session's lock names the address that its index had.
        locked = sandbox("env", "lock", *asked, "--upgrade", env=sources)
        assert locked.returncode == 0, locked.stderr
        answer = sandbox("env", "build", *asked, "--json", env=sources)
        assert answer.returncode == 0, answer.stderr
    script = tmp_path_factory.mktemp("script") / "script.py"
    script.write_text("import courier\nresult = courier.word\n")
    identity = json.loads(answer.stdout)["id"]
    yield identity, script
    sandbox("env", "rm", identity)


def push(registry: Registry, identity: str, name: str) -> str:
    answer = sandbox("env", "push", identity, f"{registry.address}/{name}", env=registry.environment)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_an_environment_travels_through_a_registry(registry: Registry, built: tuple[str, Path], policy: Path) -> None:
    identity, script = built
    reference = push(registry, identity, "team/courier:1")
    assert reference.startswith(f"{registry.address}/team/courier@sha256:")
    assert sandbox("env", "rm", identity).returncode == 0
    assert identity not in sandbox("env", "list", "--json").stdout
    answer = sandbox("env", "pull", reference, "--policy", policy, env=registry.environment)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(sandbox("env", "show", identity, "--json").stdout)["packages"] == ["courier==1.0"]
    # No index is in reach: the environment and its lock are all that is needed.
    ran = sandbox(
        "run",
        script,
        "--with",
        "courier",
        "--policy",
        policy,
        env=environment(PIP_INDEX_URL="http://127.0.0.1:9/simple"),
    )
    assert ran.stdout.strip() == "delivered", ran.stderr
    images = subprocess.run(["podman", "images"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "team/courier" not in images


def test_a_registry_that_registries_conf_calls_insecure_is_one_for_push_and_pull(
    registry: Registry, built: tuple[str, Path], policy: Path
) -> None:
    """Nobody vouches for its certificate.

    Only what Podman's configuration says makes the difference, for this prefix alone.
    """
    target, other = f"{registry.address}/lax/courier:1", f"{registry.address}/strict/courier:1"
    assert sandbox("env", "push", built[0], target).returncode == 11
    with insecure(f"{registry.address}/lax"):
        pushed = sandbox("env", "push", built[0], target)
        assert pushed.returncode == 0, pushed.stderr
        refused = sandbox("env", "push", built[0], other)
        assert refused.returncode == 11
        assert "certificate" in refused.stderr
        assert "insecure = true" in refused.stderr
        pulled = sandbox("env", "pull", pushed.stdout.strip(), "--policy", policy)
        assert pulled.returncode == 0, pulled.stderr
    assert sandbox("env", "pull", target, "--policy", policy).returncode == 11


def test_a_pull_by_a_wrong_digest_is_refused(registry: Registry, built: tuple[str, Path], policy: Path) -> None:
    push(registry, built[0], "team/courier:2")
    wrong = f"{registry.address}/team/courier@sha256:{'0' * 64}"
    answer = sandbox("env", "pull", wrong, "--policy", policy, env=registry.environment)
    assert answer.returncode == 11, answer.stderr


def test_an_image_with_the_right_labels_and_other_content_is_refused(
    registry: Registry, built: tuple[str, Path], policy: Path, tmp_path: Path
) -> None:
    identity, _ = built
    name = f"{registry.address}/team/courier:forged"
    (tmp_path / "__init__.py").write_text("word = 'stolen'\n")
    (tmp_path / "Containerfile").write_text(
        f"FROM localhost/sandbox-environment:{identity[:32]}\nCOPY __init__.py /opt/environment/courier/__init__.py\n"
    )
    podman("build", "--quiet", "--format", "docker", "--network", "none", "--tag", name, str(tmp_path))
    podman("push", "--quiet", name, env=registry.environment)
    podman("rmi", name)
    answer = sandbox("env", "pull", name, "--policy", policy, env=registry.environment)
    assert answer.returncode == 12, answer.stderr
    assert "not what a build would have composed" in answer.stderr
    assert "Traceback" not in answer.stderr
    images = subprocess.run(["podman", "images"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "forged" not in images


def test_an_environment_of_another_build_policy_is_refused(registry: Registry, built: tuple[str, Path]) -> None:
    reference = push(registry, built[0], "team/courier:3")
    answer = sandbox("env", "pull", reference, "--policy", "default", env=registry.environment)
    assert answer.returncode == 12, answer.stderr
    assert "another base image or under another build policy" in answer.stderr


def test_an_image_that_is_no_environment_is_refused(registry: Registry, policy: Path) -> None:
    answer = sandbox("env", "pull", f"{registry.address}/team/python:1", "--policy", policy, env=registry.environment)
    assert answer.returncode == 12, answer.stderr
    assert "carries no lock" in answer.stderr


def test_an_image_that_was_here_under_that_name_stays(registry: Registry, policy: Path) -> None:
    name = f"{registry.address}/team/python:1"
    podman("tag", f"{REPOSITORY}:latest", name)
    try:
        assert sandbox("env", "pull", name, "--policy", policy, env=registry.environment).returncode == 12
        podman("image", "exists", name)
    finally:
        untag(name)


def test_pulling_an_environment_that_is_here_leaves_it_under_its_own_name_alone(
    registry: Registry, built: tuple[str, Path], policy: Path
) -> None:
    identity, _ = built
    answer = sandbox(
        "env", "pull", push(registry, identity, "team/courier:4"), "--policy", policy, env=registry.environment
    )
    assert answer.returncode == 0, answer.stderr
    own = f"localhost/sandbox-environment:{identity[:32]}"
    shown = subprocess.run(
        ["podman", "image", "inspect", own, "--format", "{{.RepoTags}}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert shown.stdout.strip() == f"[{own}]"


@pytest.mark.parametrize("name", ["plain", "docker.io", "-x/y", "host/name;rm", "https://host/name:1", "HOST/Name"])
def test_a_name_that_is_none_is_bad_input(name: str) -> None:
    assert sandbox("env", "pull", "--", name).returncode == 2
