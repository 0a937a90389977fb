"""Environments for real: libraries from an index on loopback, locked, installed in sandboxes, then used offline."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from sandbox.environment import installation
from sandbox.environment.layers import BaseImage, add, write_image
from sandbox.errors import BuildFailed
from sandbox.image.admission import REPOSITORY
from sandbox.inside import install_program
from sandbox.models import RunRequest
from tests.command import COMMAND, document, environment, sandbox
from tests.integration.desk import Desk, desk, index, shared_images, versions
from tests.integration.package_index import BACKEND, PackageIndex, package_index, sdist, wheel

__all__ = ["desk", "index", "shared_images"]  # fixtures

pytestmark = pytest.mark.podman
WAIT_S = 60.0
IN_A_PROCESS = """
import asyncio, sys
from pathlib import Path
from sandbox.container.standby import Places
from sandbox.host.probe import probe
from sandbox.models import RunRequest
from sandbox.engine.podman import PodmanEngine
from sandbox.policy.directories import policy_directories
from sandbox.runner import Runner
runtime, cache, data, policies, library = sys.argv[1:]
engine = PodmanEngine(probe(Path(runtime)).engine, runtime_dir=Path(runtime))
places = Places(
    runtime_dir=Path(runtime), cache_dir=Path(cache), data_dir=Path(data), policy_dirs=policy_directories([Path(policies)])
)
runner = Runner(lambda: engine, probe(Path(runtime)), places)
request = RunRequest(code="", requirements=(library,), policy="local")
print(asyncio.run(runner.build(request, lambda _: None)).id)
engine.close()
"""


def greeting(version: str = "1.0", **options: object) -> tuple[str, bytes]:
    """Return a wheel with a module, a program and data."""
    files = {
        "greeting/__init__.py": f"VERSION = {version!r}\n",
        "greeting/words.txt": "hello\n",
        f"greeting-{version}.dist-info/entry_points.txt": "[console_scripts]\ngreet = greeting:main\n",
    }
    return wheel("greeting", version, files, **options)  # type: ignore[arg-type]


def test_libraries_and_their_dependencies_are_installed_and_used_with_the_index_gone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import greeting, os, tiny
result = {
    "versions": [greeting.VERSION, tiny.X],
    "words": open(os.path.join(os.path.dirname(greeting.__file__), "words.txt")).read(),
    "program": os.access("/opt/environment/bin/greet", os.X_OK),
    "compiled": os.path.exists(greeting.__cached__),
    "index": [name for name in os.environ if "PIP_INDEX" in name],
}
"""
    expected = {"versions": ["1.0", 1], "words": "hello\n", "program": True, "compiled": True, "index": []}
    with package_index() as gone:
        gone.add(greeting(requires=["tiny"]), wheel("tiny", "1.0", {"tiny.py": "X = 1\n"}))
        monkeypatch.setenv("PIP_INDEX_URL", gone.url)
        assert desk.value(code, "greeting") == expected
        asked = gone.hits.total()
        assert desk.value(code, "greeting") == expected
        assert gone.hits.total() == asked
    assert desk.value(code, "greeting") == expected
    assert desk.failure("another-library").message.endswith("can't be reached: Connection refused")
    assert desk.left() == []


def test_a_request_keeps_its_first_lock_until_it_is_upgraded(desk: Desk, index: PackageIndex) -> None:
    index.add(greeting("1.0"))
    code = "import greeting\nresult = greeting.VERSION"
    assert desk.value(code, "greeting") == "1.0"
    index.add(greeting("2.0"))
    assert desk.value(code, "greeting") == "1.0"
    assert desk.value(code, "greeting>=2") == "2.0"
    assert desk.lock("greeting") == ["greeting==1.0"]
    assert desk.lock("greeting", upgrade=True) == ["greeting==2.0"]
    assert desk.value(code, "greeting") == "2.0"


def test_requests_at_once_for_one_environment_build_it_once(desk: Desk, index: PackageIndex) -> None:
    index.add(greeting(), wheel("alone", "1.0", {"alone.py": ""}))
    desk.build("alone")
    once = {path: hits for path, hits in index.hits.items() if "alone" in path}
    places = desk.places
    arguments = [str(path) for path in (places.runtime_dir, places.cache_dir, places.data_dir, desk.top / "policies")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_PROCESS, *arguments, "greeting"], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=WAIT_S)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(set(answers)) == 1
    hits = {path.replace("greeting", "alone"): hits for path, hits in index.hits.items() if "greeting" in path}
    assert hits == once
    assert len(desk.kept()) == 4  # a tree and a record for each of the two
    assert desk.left() == []


def test_a_build_that_is_killed_leaves_nothing_after_the_next_command(
    desk: Desk, index: PackageIndex, tmp_path: Path
) -> None:
    name = f"slow{uuid.uuid4().hex[:8]}"  # the command keeps its records where the user does
    index.add(wheel(name, "1.0", {f"{name}.py": ""}), wheel(f"{name}b", "1.0", {f"{name}b.py": ""}))
    cache = tmp_path / "cache-home"
    env = environment(XDG_CACHE_HOME=str(cache))
    options = ["--policy", str(tmp_path / "policies/local.toml"), "--with"]
    assert sandbox("env", "lock", *options, name, env=env).returncode == 0
    with index.held(f"/files/{name}-1.0-py3-none-any.whl") as asked:
        process = subprocess.Popen([*COMMAND, "env", "build", *options, name], env=env, start_new_session=True)
        assert asked.wait(WAIT_S)
        builds = next(cache.rglob("builds"))
        assert len(list(builds.iterdir())) == 1
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT_S)
    script = tmp_path / "script.py"
    script.write_text("result = 1\n")
    try:
        assert document("run", script, *options, f"{name}b", env=env)["outcome"] == "succeeded"
        assert list(builds.iterdir()) == []
        assert list(cache.rglob(".incoming*")) == []
        assert name not in {record["requirements"][0] for record in json.loads(sandbox("env", "list", "--json").stdout)}
        assert sandbox("env", "build", *options, name, env=env).returncode == 0
    finally:
        for record in json.loads(sandbox("env", "list", "--json").stdout):
            if record["requirements"][0].startswith(name):
                sandbox("env", "rm", record["id"])


def test_what_is_cached_is_installed_anew_without_the_index(
    desk: Desk, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(greeting(), wheel("absent", "1.0", {"absent.py": ""}))
    first = desk.build("greeting")
    other = desk.policy("other", build__installed_mib=512)
    desk.lock("absent", policy=other)
    asked = index.hits.total()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    again = desk.build("greeting", policy=other)
    # Another [build] section: the wheel is the same, and everything else was made again.
    assert (again.lock, again.id == first.id) == (first.lock, False)
    assert index.hits.total() == asked
    # The control: a wheel that is not cached can't be had.
    assert "can't be reached" in desk.failure("absent", policy=other).message


# ---- source archives


def test_a_source_archive_is_refused_unless_the_policy_allows_it(desk: Desk, index: PackageIndex) -> None:
    index.add(sdist("built", "1.0", module="import sys\nX = sys.version_info[0]\n"))
    error = desk.failure("built")
    assert error.message == "built==1.0 has no wheel, only a source archive, whose build would run its code"
    assert "build.allow_sdists = true" in error.hint
    assert desk.value("import built\nresult = built.X", "built", policy="source") == 3


def test_a_source_archive_is_built_with_what_it_requires(desk: Desk, index: PackageIndex) -> None:
    backend = BACKEND.format(name="needing", version="1.0", code="pass", module="X = 2\n")
    index.add(
        wheel("tinybackend", "3.0", {"tinybackend.py": backend}),
        sdist("needing", "1.0", requires=["tinybackend>=3"], backend="tinybackend"),
    )
    built = desk.build("needing", policy="source")
    assert versions(built.lock) == ["needing==1.0"]
    assert desk.value("import needing\nresult = needing.X", "needing", policy="source") == 2
    code = "import importlib.util\nresult = importlib.util.find_spec('tinybackend') is None"
    assert desk.value(code, "needing", policy="source") is True


# ---- where uv does not run


@pytest.fixture
def image_with_pip(desk: Desk, tmp_path: Path) -> Iterator[str]:
    """Give the base image with this Python's own pip in it."""
    spec = importlib.util.find_spec("pip")
    if spec is None or spec.origin is None:
        pytest.skip("this Python has no pip to put into an image")
    engine = desk.bench.engine
    (tmp_path / "top").mkdir()
    (tmp_path / "top/pip").symlink_to(Path(spec.origin).parent)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-rL", tmp_path / "top", copy], check=True, timeout=WAIT_S)
    install_program.compile_modules(str(copy))
    with (tmp_path / "pip.tree").open("wb") as out:
        install_program.pack(str(copy), out)
    base = engine.image(f"{REPOSITORY}:latest")
    written = write_image(
        tmp_path / "image.tar",
        BaseImage(diff_ids=base.layers, architecture=base.architecture),
        [("pip", tmp_path / "pip.tree")],
        name=f"localhost/environment-test:{uuid.uuid4().hex[:8]}",
        labels={},
        created=datetime(2020, 1, 1, tzinfo=timezone.utc),
    )
    record = add(engine, written)
    yield written.name
    desk.remove_all()
    engine.remove_image(record.id)


def test_the_images_own_pip_does_the_same_where_uv_does_not_run(
    desk: Desk, index: PackageIndex, image_with_pip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(
        greeting(requires=["tiny<2"]),
        wheel("tiny", "1.0", {"tiny.py": "X = 1\n"}),
        wheel("tiny", "2.0", {"tiny.py": "X = 2\n"}),
        wheel("leaving", "1.0", {"../leaving.py": ""}),
    )
    with_uv = desk.build("greeting", image=image_with_pip)
    kept = len(desk.kept())
    monkeypatch.setattr(installation, "tools", lambda: ())
    code = (
        "import greeting, os, tiny\nresult = [greeting.VERSION, tiny.X, os.access('/opt/environment/bin/greet',"
        " os.X_OK)]"
    )
    assert desk.value(code, "greeting>=1", image=image_with_pip) == ["1.0", 1, True]
    with_pip = desk.build("greeting>=1", image=image_with_pip)
    assert versions(with_pip.lock) == versions(with_uv.lock)
    assert len(desk.kept()) > kept
    # What goes wrong is told in the same words.
    leaving = desk.failure("leaving", image=image_with_pip)
    assert leaving.message == "leaving 1.0 is broken or hostile: its file '../leaving.py' leads out of it"
    conflict = desk.failure("greeting", "tiny==2.0", image=image_with_pip)
    assert conflict.message.startswith("these requirements can't be met together: ")
    assert "greeting 1.0 depends on tiny<2" in conflict.message


def test_pip_builds_source_archives_too(
    desk: Desk, index: PackageIndex, image_with_pip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "tools", lambda: ())
    index.add(sdist("built", "1.0", module="X = 5\n"))
    assert desk.value("import built\nresult = built.X", "built", policy="source", image=image_with_pip) == 5


def test_an_image_that_can_run_neither_says_so(
    desk: Desk, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(greeting())
    monkeypatch.setattr(installation, "tools", lambda: ())
    assert desk.failure("greeting").message.startswith("this image can install nothing")


# ---- more than a build may download


def large(name: str = "large") -> tuple[str, bytes]:
    return wheel(name, "1.0", {f"{name}.py": "X = 1\n", f"{name}.bin": os.urandom(3 << 20)})


def too_large(error: BuildFailed, step: str) -> bool:
    assert re.fullmatch(
        rf"{step} large(==1\.0)? takes more than the 1 MiB that a build may download \(build\.download_mib\)",
        error.message,
    )
    assert error.hint == "raise build.download_mib in policy 'narrow', or ask for less"
    return True


def test_a_resolution_that_needs_more_than_may_be_downloaded_names_the_key(desk: Desk, index: PackageIndex) -> None:
    index.add(large())
    # To learn what a package needs, the whole wheel is read where the index does not say it apart.
    error = desk.failure("large", policy=desk.policy("narrow", build__download_mib=1))
    assert too_large(error, "resolving")


def test_pip_s_resolution_that_needs_more_than_may_be_downloaded_names_the_key(
    desk: Desk, index: PackageIndex, image_with_pip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "tools", lambda: ())
    index.add(large())
    error = desk.failure("large", policy=desk.policy("narrow", build__download_mib=1), image=image_with_pip)
    assert too_large(error, "resolving")


def test_a_lock_whose_files_are_more_than_may_be_downloaded_names_the_key(desk: Desk, index: PackageIndex) -> None:
    index.add(large())
    request = RunRequest(code="", requirements=("large",), policy="local")
    lock = asyncio.run(desk.runner().lock(request, lambda _: None))
    desk.policy("narrow", build__download_mib=1)
    with pytest.raises(BuildFailed) as caught:
        desk.build(policy="narrow", lock=lock)
    assert too_large(caught.value, "fetching")
    # The control: a policy that lets more be downloaded takes the same lock.
    assert desk.build(lock=lock).lock == lock


# ---- the constraints of pip's configuration


def constrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "constraints.txt").write_text(text)
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))


def test_a_resolution_keeps_to_the_constraints_of_pips_configuration(
    desk: Desk, index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(*(wheel("tiny", version, {"tiny.py": f"X = {version}\n"}) for version in ("1.0", "2.0")))
    index.add(wheel("needing", "1.0", {"needing.py": ""}, requires=["tiny"]))
    assert desk.lock("needing") == ["needing==1.0", "tiny==2.0"]  # the control
    constrained(tmp_path, monkeypatch, "tiny<2\nnever-asked-for==3\n")
    assert desk.lock("needing", upgrade=True) == ["needing==1.0", "tiny==1.0"]
    error = desk.failure("tiny>=2")
    assert error.message.startswith("these requirements can't be met together: ")
    assert error.hint.endswith(f"the constraints of pip's configuration hold, too: {tmp_path}/constraints.txt")


def test_the_images_own_pip_keeps_to_them_too(
    desk: Desk, index: PackageIndex, image_with_pip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "tools", lambda: ())
    index.add(*(wheel("tiny", version, {"tiny.py": f"X = {version}\n"}) for version in ("1.0", "2.0")))
    constrained(tmp_path, monkeypatch, "tiny<2\n")
    assert desk.value("import tiny\nresult = tiny.X", "tiny", image=image_with_pip) == 1.0
