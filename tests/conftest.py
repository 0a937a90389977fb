"""Which tests need Podman, the bench that they share, and the check that nothing of any run is left."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import places
from sandbox.container import spec, workspace
from sandbox.engine.podman import PodmanEngine
from sandbox.errors import SandboxError
from sandbox.host.facts import HostFacts
from sandbox.host.probe import probe
from sandbox.policy.directories import policy_directories
from sandbox.runner import Places
from tests.escape.bench import ESCAPE_POLICY, Bench

REQUIRED = os.environ.get("SANDBOX_REQUIRE_PODMAN", "") not in ("", "0")
SETTLE_S = 10.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quiet-tests",
        choices=("none", "only"),
        help="leave out the tests that need a quiet machine, or take them alone",
    )
    parser.addoption(
        "--way",
        choices=("embedded", "warm", "cell"),
        default="embedded",
        help="how tests/e2e makes runs: by the command itself, or through a service, in containers or in cells",
    )
    parser.addoption(
        "--libraries",
        choices=("quick", "all"),
        default="quick",
        help="the few libraries of every day, or the whole table of docs/will-it-run.md",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wanted := config.getoption("--quiet-tests"):
        out = [item for item in items if (item.get_closest_marker("quiet") is not None) is (wanted == "none")]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    for item in items:
        tier = item.path.relative_to(Path(__file__).parent).parts[0]
        if tier in ("integration", "escape", "e2e", "libraries", "kernel") or (
            tier == "contract" and "podman" in item.name.lower()
        ):
            item.add_marker(pytest.mark.podman)


@functools.cache
def why_no_podman() -> str:
    """Return why Podman can't be used by this process, or ""."""
    if os.geteuid() == 0:
        return "root never runs a container: run the tests as an unprivileged user (scripts/test does)"
    if shutil.which("podman") is None:
        return "Podman is not installed"
    try:
        probe(places.runtime_dir())
    except SandboxError as error:
        return str(error)
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("podman") is not None and (reason := why_no_podman()):
        if REQUIRED:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def leftovers(bench: Bench) -> list[str]:
    """Return the containers and workspaces that nobody owns any more, in our own runtime directory and the user's."""
    owned: set[str] = set()
    found: list[str] = [str(path) for path in (bench.places.runtime_dir / "runs").iterdir() if path.is_dir()]
    for runs in (bench.places.runtime_dir / "runs", places.runtime_dir() / "runs"):
        if runs.is_dir():
            abandoned = {path for path in runs.iterdir() if path.is_dir() and workspace.is_abandoned(path)}
            found += [str(path) for path in abandoned]
            owned |= {path.name for path in runs.iterdir() if path.is_dir() and path not in abandoned}
    for container in bench.engine.containers(spec.RUN_LABEL):
        if container.labels.get(spec.OWNER_LABEL) not in owned:
            found.append(f"container {container.id[:12]} of run {container.labels[spec.RUN_LABEL]}")
    return sorted(set(found))


@pytest.fixture(scope="session")
def host_facts() -> HostFacts:
    """Return what this host can do."""
    return probe(places.runtime_dir())


@pytest.fixture(scope="session")
def bench(host_facts: HostFacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Give the bench; at the end of the session nothing may be left of any run."""
    policies = tmp_path_factory.mktemp("policies")
    (policies / "escape.toml").write_text(ESCAPE_POLICY)
    runtime_dir = places.private_directory(places.runtime_dir() / f"tests-{os.getpid()}")
    workspace.runs_dir(runtime_dir)
    engine = PodmanEngine(host_facts.engine, runtime_dir=runtime_dir)
    bench = Bench(
        engine=engine,
        facts=host_facts,
        policies=policies,
        places=Places(
            runtime_dir=runtime_dir,
            cache_dir=places.cache_dir(),
            data_dir=places.data_dir(),
            policy_dirs=policy_directories([policies]),
        ),
    )
    before = set(leftovers(bench))
    try:
        yield bench
        bench.close()
        deadline = time.monotonic() + SETTLE_S  # Podman's own clean-up of a killed container takes a moment
        while (left := set(leftovers(bench)) - before) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left, f"left behind: {', '.join(sorted(left))}"
    finally:
        engine.close()
        shutil.rmtree(runtime_dir, ignore_errors=True)
