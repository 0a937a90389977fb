"""`sandbox env` as a person uses it: what it prints, writes, refuses and removes."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import places
from sandbox.environment.lock import Lock
from sandbox.environment.store import Store
from tests.command import environment, sandbox
from tests.integration.package_index import PackageIndex, package_index, wheel
from tests.integration.service import served
from tests.integration.test_environment_sharing import POLICY
from tests.integration.test_service import raw

pytestmark = pytest.mark.podman
WAIT_S = 60.0
BYTES = 3 << 20


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    with package_index() as served:
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", served.url)
        yield served


@pytest.fixture
def library(index: PackageIndex) -> Iterator[str]:
    """Give the name of a library that no other test asks for: the command keeps its locks where the user does."""
    name = f"desk{uuid.uuid4().hex[:8]}"
    index.add(wheel(name, "1.0", {f"{name}.py": "X = 1\n", f"{name}.bin": os.urandom(BYTES)}))
    yield name
    store = Store(places.data_dir())
    for record in store.records():
        if record.requirements == (name,):
            sandbox("env", "rm", record.id)


@pytest.fixture
def asked(library: str, tmp_path: Path) -> list[str]:
    """Give the options that ask for the library."""
    (tmp_path / "policy.toml").write_text(POLICY)
    return ["--with", library, "--policy", str(tmp_path / "policy.toml")]


def succeeded(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    answer = sandbox("env", *arguments, env=env)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def refused(*arguments: str | Path) -> str:
    answer = sandbox("env", *arguments)
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert "what to do: " in answer.stderr
    return answer.stderr


# ---- the index


def test_local_sources_that_are_not_there_keep_nothing_from_being_installed(
    library: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path}/wheels {tmp_path}/wheels/none {tmp_path}/no-wheels")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", (tmp_path / "no-index").as_uri())
    assert f"{library}==1.0" in succeeded("lock", *asked)


# ---- locks


def test_a_lock_is_written_to_a_file_that_builds_exactly_it(library: str, asked: list[str], tmp_path: Path) -> None:
    target = tmp_path / "pylock.toml"
    target.write_text("x" * 100_000)
    assert succeeded("lock", *asked, "--output", target) == ""
    assert [package.name for package in Lock.from_toml(target.read_text()).packages] == [library]
    built = json.loads(succeeded("build", "--lock", target, *asked[2:], "--json"))
    assert succeeded("export", built["id"]) == target.read_text()


def test_a_lock_that_fails_leaves_the_file_as_it_was(asked: list[str], tmp_path: Path) -> None:
    there, absent = tmp_path / "there", tmp_path / "absent"
    there.write_text("before")
    for target in (there, absent):
        assert sandbox("env", "lock", "--with", "nowhere-to-be-found", *asked[2:], "--output", target).returncode == 12
    assert (there.read_text(), absent.exists()) == ("before", False)


def test_a_file_that_can_t_be_written_is_told_before_anything_is_resolved(
    index: PackageIndex, asked: list[str], tmp_path: Path
) -> None:
    assert "the lock can't be written to" in refused("lock", *asked, "--output", tmp_path / "absent/pylock.toml")
    assert not index.hits


def test_an_export_for_pip_has_versions_and_hashes(index: PackageIndex, library: str, asked: list[str]) -> None:
    built = json.loads(succeeded("build", *asked, "--json"))
    [hashed] = index.hashes.values()
    assert succeeded("export", built["id"], "--format", "requirements") == f"{library}==1.0 --hash=sha256:{hashed}\n"


def test_a_lock_and_libraries_at_once_are_refused(asked: list[str], tmp_path: Path) -> None:
    succeeded("lock", *asked, "--output", tmp_path / "pylock.toml")
    assert "--lock names every library already" in refused("build", "--lock", tmp_path / "pylock.toml", *asked)


def test_a_lock_in_the_place_of_requirements_is_told_what_takes_it(asked: list[str], tmp_path: Path) -> None:
    lock, script = tmp_path / "pylock.toml", tmp_path / "script.py"
    script.write_text("result = 1")
    succeeded("lock", *asked, "--output", lock)
    answer = sandbox("run", script, "--requirements", lock)
    assert answer.returncode == 2
    assert "pylock.toml is a lock" in answer.stderr
    assert "sandbox env build --lock" in answer.stderr


# ---- pruning


@pytest.mark.parametrize("size", ["-1", "lots", "0", ""])
def test_a_budget_that_is_no_size_is_refused_in_its_own_words(size: str) -> None:
    assert f"--budget {size!r} is" in refused("prune", "--budget", size)


def test_pruning_says_what_would_go_then_removes_it_with_its_cached_files(
    library: str, asked: list[str], tmp_path: Path
) -> None:
    # A cache of its own, where nothing else is old.
    env = environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    built = json.loads(succeeded("build", *asked, "--json", env=env))
    store = Store(places.data_dir())
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".whl", ".tree")]
    assert sorted(path.suffix for path in cached) == [".tree", ".whl"]
    # Long ago, so that whatever else this user keeps stays.
    for path in (store._record_path(built["id"]), *cached):
        os.utime(path, (1, 1))
    arguments = ("prune", "--unused", "2000w")
    said = f"{built['id'][:12]}  {BYTES >> 20} MiB  {library}\n", "2 cached file(s), 6 MiB\n"
    assert succeeded(*arguments, "--dry-run", env=env) == "".join(f"would remove {line}" for line in said)
    assert store.record(built["id"]) is not None
    assert all(path.exists() for path in cached)
    assert succeeded(*arguments, env=env) == "".join(f"removed {line}" for line in said)
    assert store.record(built["id"]) is None
    assert not any(path.exists() for path in cached)
    assert subprocess.run(["podman", "image", "exists", built["image"]], check=False, timeout=WAIT_S).returncode == 1
    assert succeeded(*arguments, env=env) == "nothing to remove\n"


def test_the_service_prunes_what_it_says_that_it_would(library: str, tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/local.toml").write_text(POLICY)
    with served(tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")) as service:
        status, _, body = raw(service, "POST", "/v1/environments", {"requirements": [library], "policy": "local"})
        built = json.loads(body)
        assert status == 200, built

        def pruned(**limits: object) -> dict[str, object]:
            answered, _, text = raw(service, "POST", "/v1/maintenance/prune", limits)
            assert answered == 200, text
            found: dict[str, object] = json.loads(text)
            assert found.pop("bytes", 0) == (0 if not found["files"] else pytest.approx(2 * BYTES, rel=0.01))
            return found

        everything = {"environments": [built["id"]], "files": 2}
        assert pruned(budget_mib=20) == {"environments": [], "files": 0, "dry_run": False}, "the control: it fits"
        assert pruned(budget_mib=1, dry_run=True) == {**everything, "dry_run": True}
        assert (
            subprocess.run(["podman", "image", "exists", built["image"]], check=False, timeout=WAIT_S).returncode == 0
        )
        assert pruned(budget_mib=1) == {**everything, "dry_run": False}
        assert (
            subprocess.run(["podman", "image", "exists", built["image"]], check=False, timeout=WAIT_S).returncode == 1
        )
