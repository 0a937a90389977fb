"""The base image, really built on this host and really started."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from sandbox import places
from sandbox.cli.image import bootstrap_command
from sandbox.engine.podman import PodmanEngine
from sandbox.engine.protocol import Engine, ImageRecord
from sandbox.errors import BuildFailed
from sandbox.host.probe import probe
from sandbox.image.admission import AdmittedImage, admit, ensure
from sandbox.image.base import bootstrap as base_image
from sandbox.image.base.apt_sources import os_release

pytestmark = pytest.mark.podman

MAX_MIB = 80
MAX_FILES = 3_000  # what a build takes is in proportion to what it unpacks


def unavailable(reason: str) -> None:
    if os.environ.get("SANDBOX_REQUIRE_PODMAN"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    if os.geteuid() == 0:
        unavailable("needs an unprivileged user")
    for program in ("podman", "mmdebstrap"):
        if shutil.which(program) is None:
            unavailable(f"needs {program}")
    runtime_dir = places.runtime_dir()
    engine = PodmanEngine(probe(runtime_dir).engine, runtime_dir=runtime_dir)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def repository() -> str:
    return f"localhost/sandbox-python-test-{os.getpid()}"


@pytest.fixture(scope="module")
def record(engine: Engine, repository: str) -> Iterator[ImageRecord]:
    """Build the image, once: that it is the same each time is shown by one of more packages (test_own_images.py)."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(base_image, "REPOSITORY", repository)
        made = base_image.bootstrap(engine, suite=None, work_dir=Path(directory), progress=lambda sentence: None)
        left = [path.name for path in Path(directory).iterdir()]
    assert left == []
    yield made
    for name in made.names:
        if name.startswith(repository):
            engine.remove_image(name)


@pytest.fixture(scope="module")
def members(
    engine: Engine, record: ImageRecord, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tarfile.TarInfo]:
    path = tmp_path_factory.mktemp("export") / "image.tar"
    with path.open("wb") as target:
        for chunk in engine.export_filesystem(record.id):
            target.write(chunk)
    with tarfile.open(path) as archive:
        return {member.name.removeprefix("./").rstrip("/"): member for member in archive}


@pytest.fixture(scope="module")
def admitted(engine: Engine, record: ImageRecord, tmp_path_factory: pytest.TempPathFactory) -> AdmittedImage:
    return admit(engine, record, cache_dir=tmp_path_factory.mktemp("verdicts"))


def in_image(engine: Engine, record: ImageRecord, *command: str) -> str:
    """Run a command in a plain, read-only, network-less container of the image."""
    answer = subprocess.run(
        ["podman", "--runtime", engine.info().runtime_path, "run", "--rm", "--network", "none", "--read-only",
         "--cap-drop", "all", "--user", "12345:12345", "--env", "LANG=C.UTF-8", record.id, *command],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip # a command line
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_the_image_is_small_and_quick_to_build(record: ImageRecord, members: dict[str, tarfile.TarInfo]) -> None:
    assert record.size_bytes <= MAX_MIB << 20
    assert len(members) <= MAX_FILES


def test_the_image_carries_no_settings_but_a_path_and_labels(record: ImageRecord) -> None:
    assert record.env == ("PATH=/usr/local/bin:/usr/bin:/bin",)
    assert record.annotations == {}
    assert set(record.labels) == {f"podman-sandbox-runner.{name}" for name in ("packages", "recipe", "suite")}


def test_no_file_gives_privilege_and_nothing_can_install_or_interpret_but_python(
    members: dict[str, tarfile.TarInfo],
) -> None:
    assert [name for name, member in members.items() if member.isreg() and member.mode & 0o6000] == []
    programs = {name.rpartition("/")[2] for name in members if "bin/" in name}
    assert programs.isdisjoint(
        {"apt", "apt-get", "dpkg", "perl", "openssl", "mount", "su", "passwd", "chroot", "mknod"}
    )
    assert {"python3", "sh", "ls", "cat", "date"} <= programs
    assert [name for name in members if name.startswith(("usr/share/doc/", "usr/share/man/", "etc/apt/"))] == []


def test_every_standard_library_module_is_compiled(members: dict[str, tarfile.TarInfo]) -> None:
    sources = [name for name, member in members.items() if name.endswith(".py") and member.isreg()]
    compiled = {name.replace("__pycache__/", "").split(".cpython-")[0] for name in members if name.endswith(".pyc")}
    assert len(sources) > 400
    assert [name for name in sources if name.removesuffix(".py") not in compiled] == []


def test_the_image_is_admitted_with_nothing_to_remark(admitted: AdmittedImage) -> None:
    assert admitted.python_path == "/usr/bin/python3"
    assert admitted.python_version is not None
    assert admitted.python_version >= (3, 10)
    assert admitted.findings == ()


def test_python_has_what_users_expect_of_its_standard_library(engine: Engine, record: ImageRecord) -> None:
    program = """
import asyncio, bz2, csv, ctypes, decimal, hashlib, json, locale, lzma, multiprocessing, socket, sqlite3, ssl, uuid, zlib
import datetime, subprocess, zoneinfo, xml.etree.ElementTree
locale.setlocale(locale.LC_ALL, "")
assert len(ssl.create_default_context().get_ca_certs()) > 50
assert datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")).utcoffset().total_seconds() == 7200
assert subprocess.run("ls / | sort | head -n 1", shell=True, capture_output=True, text=True).stdout == "app\\n"
assert asyncio.__cached__.endswith(".pyc")
assert socket.gethostbyname("localhost") == "127.0.0.1"
print("fine")
"""
    assert in_image(engine, record, "/usr/bin/python3", "-c", program) == "fine\n"


def test_no_link_of_the_image_leads_nowhere(engine: Engine, record: ImageRecord) -> None:
    program = """
import os
for top in ("/bin", "/etc", "/lib", "/lib64", "/usr"):
    for directory, names, files in os.walk(top):
        for path in (os.path.join(directory, name) for name in names + files):
            if os.path.islink(path) and not os.path.exists(path):
                print(path)
"""
    broken = in_image(engine, record, "/usr/bin/python3", "-c", program).splitlines()
    assert [path for path in broken if path != "/etc/mtab"] == []


def test_a_cached_verdict_asks_the_engine_nothing(engine: Engine, record: ImageRecord, tmp_path: Path) -> None:
    nobody = cast("Engine", object())
    with pytest.raises(AttributeError):
        admit(nobody, record, cache_dir=tmp_path)
    first = admit(engine, record, cache_dir=tmp_path)
    assert admit(nobody, record, cache_dir=tmp_path) == first


def test_the_image_has_the_names_it_is_asked_for_by(engine: Engine, record: object, repository: str) -> None:
    names = ensure(engine, f"{repository}:latest", policy_pull="never").names
    assert f"{repository}:{os_release()['VERSION_CODENAME']}" in names


def test_an_image_of_another_recipe_is_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def built_again(*_: object, **__: object) -> ImageRecord:
        raise BuildFailed("building")

    here = CliRunner().invoke(bootstrap_command, [])
    assert "is here already" in here.output, here.output
    monkeypatch.setattr("sandbox.cli.image.RECIPE", "another")
    monkeypatch.setattr("sandbox.cli.image.bootstrap", built_again)
    other = CliRunner().invoke(bootstrap_command, [])
    assert isinstance(other.exception, BuildFailed)
    assert "made by another version" in other.output
