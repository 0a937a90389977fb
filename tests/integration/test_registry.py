"""Images from a registry: a real one on loopback, with TLS of our own making."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.image import REPOSITORY
from tests.command import environment, left_behind, sandbox

pytestmark = pytest.mark.podman


@dataclass(frozen=True)
class Registry:
    address: str
    bundle: Path

    @property
    def environment(self) -> dict[str, str]:
        return environment(SSL_CERT_FILE=str(self.bundle))


def podman(*arguments: str, env: dict[str, str] | None = None) -> None:
    subprocess.run(
        ["podman", *arguments], check=True, capture_output=True, timeout=120, env=env, stdin=subprocess.DEVNULL
    )


def untag(name: str) -> None:
    """Take one name from the base image; without a second name, Podman would take all of them."""
    podman("untag", f"{REPOSITORY}:latest", name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        assert process.poll() is None, "the registry ended at once"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the registry did not open its port")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Start a registry and put the base image into it as `team/python:1`."""
    place = tmp_path_factory.mktemp("registry")
    program = Path(sys.executable).with_name("docker-registry")
    found = str(program) if program.exists() else shutil.which("docker-registry")
    assert found, "docker-registry is missing: scripts/setup --dev fetches it"
    key, certificate = place / "key.pem", place / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    port = free_port()
    configuration = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(place / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "tls": {"certificate": str(certificate), "key": str(key)}},
    }
    (place / "config.yml").write_text(json.dumps(configuration))
    with subprocess.Popen(
        [found, "serve", str(place / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until_open(port, process)
            there = Registry(address=f"127.0.0.1:{port}", bundle=certificate)
            name = f"{there.address}/team/python:1"
            podman("tag", f"{REPOSITORY}:latest", name)
            podman("push", "--quiet", name, env=there.environment)
            untag(name)
            yield there
        finally:
            process.kill()


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
