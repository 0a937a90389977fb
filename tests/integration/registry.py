"""A container registry on loopback, with TLS of our own making."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox.image.admission import REPOSITORY
from tests.command import environment
from tests.waiting import until


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
    def connected() -> int:
        assert process.poll() is None, "the registry ended at once"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port))

    until(connected, 0)


@contextmanager
def insecure(prefix: str) -> Iterator[None]:
    """Have this user's registries.conf(5) say meanwhile that what begins with `prefix` is insecure."""
    directory = Path.home() / ".config/containers/registries.conf.d"
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"sandbox-tests-{uuid.uuid4().hex}.conf"
    file.write_text(
        "\n".join(["[[registry]]", f'prefix = "{prefix}"', f'location = "{prefix}"', "insecure = true", ""])
    )
    try:
        yield
    finally:
        file.unlink()


@contextmanager
def container_registry(place: Path) -> Iterator[Registry]:
    """Start a registry in the directory `place` and put the base image into it as `team/python:1`."""
    program = Path(sys.executable).with_name("docker-registry")
    found = str(program) if program.exists() else shutil.which("docker-registry")
    assert found, "docker-registry is missing: scripts/setup --dev fetches it"
    key, certificate = place / "key.pem", place / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip # a command line
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
