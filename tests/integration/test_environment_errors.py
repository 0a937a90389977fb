"""Libraries that can't be installed: one clear sentence with the package's name and what to do, and nothing left."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import ssl
import uuid
from pathlib import Path

import pytest

from sandbox.environment.lock import Lock
from sandbox.errors import BuildFailed, InvalidRequest
from tests.command import environment, sandbox
from tests.integration.certificates import certified
from tests.integration.desk import Desk, desk, index, shared_images
from tests.integration.package_index import PackageIndex, package_index, sdist, wheel

__all__ = ["desk", "index", "shared_images"]  # fixtures

pytestmark = pytest.mark.podman


def tiny(name: str, *versions: str, **options: object) -> list[tuple[str, bytes]]:
    """Return wheels of a package with one small module."""
    return [wheel(name, version, {f"{name}.py": f"VERSION = {version!r}\n"}, **options) for version in versions]  # type: ignore[arg-type]


# ---- what is asked for


def test_an_unknown_package_is_named_with_the_nearest_one_that_the_index_has(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("pandas", "1.0"))
    error = desk.failure("panda")
    assert error.message == "the package index knows no package named panda"
    assert error.hint == "did you mean pandas?"
    assert "panda was not found" in error.facts["output"]
    # The nearest name of all is none that this index has.
    assert "did you mean" not in desk.failure("nunpy").hint


def test_an_unknown_dependency_is_named_with_who_requires_it(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("lost", "1.0", requires=["nowhere-to-be-found"]))
    assert desk.failure("lost").message.endswith("no package named nowhere-to-be-found, which lost requires")


@pytest.mark.parametrize("wanted", ["tiny>=9", "tiny==3.7", "tiny>1,<2"])
def test_a_version_that_is_not_there_is_named_with_those_that_are(desk: Desk, index: PackageIndex, wanted: str) -> None:
    index.add(*tiny("tiny", "1.0", "2.0", "0.5b1"))
    error = desk.failure(wanted)
    assert error.message == f"no version of tiny satisfies {wanted}"
    assert error.hint == "the newest versions are 1.0, 2.0"


def test_a_version_that_a_dependency_needs_is_named_with_who_needs_it(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("tiny", "1.0"), *tiny("wants", "1.0", requires=["tiny>=9"]))
    assert desk.failure("wants").message == "no version of tiny satisfies tiny>=9, which wants requires"


def test_a_wheel_for_another_python_is_named_with_the_versions_that_have_one(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("old", "0.9"), *tiny("old", "1.0", tag="cp36-cp36m-manylinux2014_x86_64"))
    error = desk.failure("old==1.0")
    assert re.fullmatch(
        r"old==1\.0 has no wheel for Python 3\.\d+ on this machine, only for Python 3\.6", error.message
    )
    assert "ask for a version that has one: 0.9" in error.hint
    assert desk.build("old").lock.packages[0].version == "0.9"


def test_wheels_for_other_pythons_are_named_also_beside_a_source_archive(desk: Desk, index: PackageIndex) -> None:
    machine = f"linux_{platform.machine()}"
    index.add(
        *tiny("late", "1.0"),
        sdist("late", "2.0"),
        *tiny("late", "2.0", tag=f"cp398-cp398-{machine}"),
        *tiny("late", "2.0", tag=f"cp399-cp399-{machine}"),
    )
    error = desk.failure("late==2.0")
    assert error.message.startswith("late==2.0 has no wheel for Python 3.")
    assert error.message.endswith("on this machine, only for Python 3.98, 3.99")
    assert desk.failure("late==3").hint.endswith("can use are 1.0")


def test_a_module_s_name_that_has_only_a_source_archive_is_answered_with_the_package_s(
    desk: Desk, index: PackageIndex
) -> None:
    index.add(sdist("sklearn", "0.0"), sdist("sklearn", "0.1"), *tiny("scikit_learn", "1.0"))
    error = desk.failure("sklearn")
    assert error.message == "sklearn has no wheel, only a source archive, whose build would run its code"
    assert error.hint.startswith("did you mean scikit-learn?")


def test_a_wheel_for_another_system_is_named_with_it(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("mac", "1.0", tag="py3-none-macosx_11_0_arm64"))
    assert desk.failure("mac").message.endswith("on this machine, only for macosx_11_0_arm64")


def test_requirements_that_contradict_each_other_are_told_with_the_reason(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("tiny", "1.0", "2.0"), *tiny("needsold", "1.0", requires=["tiny<2"]))
    error = desk.failure("needsold", "tiny==2.0")
    assert error.message.startswith("these requirements can't be met together: ")
    assert "needsold depend on tiny<2" in error.message
    assert error.hint == "loosen one of the versions"


def test_a_lock_for_another_python_than_the_image_s_is_refused_with_both_versions(
    desk: Desk, index: PackageIndex
) -> None:
    index.add(*tiny("tiny", "1.0"))
    built = desk.build("tiny")
    assert desk.build(lock=built.lock).id == built.id, "the control: this Python's"
    with pytest.raises(
        InvalidRequest, match=r"the lock is for Python 3\.2, and the image \S+ has Python 3\.\d+"
    ) as caught:
        desk.build(lock=built.lock.model_copy(update={"python": "3.2"}))
    assert "--image" in caught.value.hint


def test_a_script_or_a_project_for_another_python_than_the_image_s_is_refused_before_anything_is_resolved(
    desk: Desk, index: PackageIndex, tmp_path: Path
) -> None:
    name = f"tiny{uuid.uuid4().hex[:8]}"  # the command keeps its locks where the user does
    index.add(*tiny(name, "1.0"))
    options = ("--policy", tmp_path / "policies/local.toml")
    project, script = tmp_path / "pyproject.toml", tmp_path / "script.py"
    for required, status in ((">=3.99", 2), (">=3.5", 0)):
        project.write_text(f'[project]\nname = "x"\nrequires-python = "{required}"\ndependencies = ["{name}"]\n')
        script.write_text(f'# /// script\n# requires-python = "{required}"\n# ///\nresult = 1\n')
        for arguments in (
            ("run", script, *options),
            ("env", "lock", *options, "--requirements", project),
        ):
            answer = sandbox(*arguments)
            assert answer.returncode == status, answer.stderr
            if status:
                assert re.search(
                    r"Python >=3\.99 is needed \(requires-python\), and the image \S+ has Python 3\.\d+", answer.stderr
                )
                assert "--image" in answer.stderr
        assert bool(index.hits) is (status == 0)


# ---- what the index gives


def test_a_file_that_changed_since_the_lock_is_refused(desk: Desk, index: PackageIndex) -> None:
    [(name, locked)] = tiny("tamper", "1.0")
    index.add((name, locked))
    index.files[name] = wheel("tamper", "1.0", {"tamper.py": "VERSION = 'other'\n"})[1]
    error = desk.failure("tamper")
    assert error.message.startswith(f"{name} has the hash sha256:")
    assert error.message.endswith(f"the lock says sha256:{hashlib.sha256(locked).hexdigest()}")
    assert desk.files("wheels") == []
    index.files[name] = locked
    assert desk.value("import tamper\nresult = tamper.VERSION", "tamper") == "1.0"


def test_a_file_with_another_hash_than_the_one_asked_for_is_refused(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("tiny", "1.0"))
    error = desk.failure(f"tiny==1.0 --hash=sha256:{'0' * 64}")
    assert "tiny-1.0-py3-none-any.whl has none of the hashes" in error.message


def test_a_file_that_is_gone_since_the_lock_is_told(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("gone", "1.0"))
    desk.lock("gone")
    index.redirects["/files/gone-1.0-py3-none-any.whl"] = "/nowhere"
    error = desk.failure("gone")
    assert error.message == "the package index does not give gone-1.0-py3-none-any.whl: 404 Not Found"
    assert "env lock --upgrade" in error.hint


def test_an_index_that_is_down_is_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with package_index() as stopped:
        url = stopped.url
    monkeypatch.setenv("PIP_INDEX_URL", url)
    error = desk.failure("tiny")
    assert error.message == f"the package index {url.split('/')[2]} can't be reached: Connection refused"
    assert "pip config list" in error.hint


def test_an_index_that_sends_files_from_a_host_outside_the_policy_is_told(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("moved", "1.0"))
    index.redirects["/files/moved-1.0-py3-none-any.whl"] = "http://elsewhere.example.com/moved.whl"
    error = desk.failure("moved")
    assert (
        "moved was refused a connection: elsewhere.example.com:80 is not in the policy's build.allow" in error.message
    )
    assert error.facts["refused"] == ["elsewhere.example.com:80 is not in the policy's build.allow"]


def locked_elsewhere(
    desk: Desk, index: PackageIndex, monkeypatch: pytest.MonkeyPatch, *archives: tuple[str, bytes]
) -> str:
    """Lock the package `moved` at another index, which is gone then; return the host that the lock names."""
    with package_index() as former:
        former.add(*archives)
        monkeypatch.setenv("PIP_INDEX_URL", former.url)
        assert desk.lock("moved") == ["moved==1.0"]
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    return former.url.split("/")[2]


def test_a_lock_whose_index_has_moved_is_fetched_from_the_index_of_now(
    desk: Desk, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = tiny("moved", "1.0")
    locked_elsewhere(desk, index, monkeypatch, *archives)
    [(name, content)] = archives
    index.add((name, wheel("moved", "1.0", {"moved.py": "VERSION = 'other'\n"})[1]))
    assert desk.failure("moved").message.startswith(f"{name} has the hash sha256:")
    index.add((name, content))
    assert desk.value("import moved\nresult = moved.VERSION", "moved") == "1.0"
    assert index.hits[f"/files/{name}"] >= 2


def test_a_lock_whose_files_are_at_no_index_of_now_is_told_with_the_fix(
    desk: Desk, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = locked_elsewhere(desk, index, monkeypatch, *tiny("moved", "1.0"))
    index.add(*tiny("moved", "2.0"))
    error = desk.failure("moved")
    assert error.message.endswith(f"was refused a connection: {former} is not in the policy's build.allow")
    assert "sandbox env lock --upgrade" in error.hint
    assert desk.lock("moved", upgrade=True) == ["moved==2.0"]


def test_a_certificate_that_is_not_trusted_is_told_with_the_bundle(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other, _ = certified(tmp_path, "other")
    authority, signing = certified(tmp_path, "authority")
    certificate, key = certified(
        tmp_path, "index", "-CA", authority, "-CAkey", signing, "-addext", "subjectAltName=IP:127.0.0.1"
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with package_index(context) as secure:
        secure.add(*tiny("tiny", "1.0"))
        monkeypatch.setenv("PIP_INDEX_URL", secure.url)
        monkeypatch.setenv("PIP_CERT", str(other))
        error = desk.failure("tiny")
        assert error.message.startswith("the certificate of the package index 127.0.0.1:")
        assert error.message.endswith(f"is not trusted by {other}")
        assert "PIP_CERT" in error.hint
        monkeypatch.setenv("PIP_CERT", str(authority))
        assert desk.build("tiny").lock.packages[0].version == "1.0"


# ---- what is in a package


@pytest.mark.parametrize("path", ["../../../escaped.py", "/app/escaped.py", "tiny/../../escaped.py"])
def test_a_wheel_with_a_path_that_leaves_it_is_refused(desk: Desk, index: PackageIndex, path: str) -> None:
    index.add(wheel("leaving", "1.0", {"leaving.py": "", path: "X = 1\n"}))
    error = desk.failure("leaving")
    assert error.message == f"leaving 1.0 is broken or hostile: its file {path!r} leads out of it"


def test_an_archive_that_swells_is_stopped_at_the_size_that_the_policy_allows(desk: Desk, index: PackageIndex) -> None:
    bomb = wheel("bomb", "1.0", {"bomb.bin": bytes(64 << 20)}, deflated=True)
    assert len(bomb[1]) < 100_000
    index.add(bomb)
    error = desk.failure("bomb", policy="small")
    assert error.message == "bomb 1.0 does not fit into the 16 MiB that a build may fill"
    assert "build.installed_mib" in error.hint
    assert desk.value("import os\nresult = os.path.getsize('/opt/environment/bomb.bin')", "bomb") == 64 << 20


def test_libraries_that_have_too_many_files_only_together_are_refused_before_their_image_is_made(
    desk: Desk, index: PackageIndex
) -> None:
    for name in ("many", "more"):
        index.add(wheel(name, "1.0", {f"{name}/{number}.txt": "x" for number in range(100)}))
    policy = desk.policy("few", build__files_count=150)
    # The control: each of them alone is below the limit.
    for name in ("many", "more"):
        assert desk.build(name, policy=policy).id
    error = desk.failure("many", "more", policy=policy)
    assert re.fullmatch(
        r"the libraries have 2\d\d files and directories together, policy 'few' lets a build install 150", error.message
    )
    assert error.hint == "raise build.files_count in a policy, or ask for less"
    assert desk.build("many", "more").id, "another policy allows them"


def test_a_download_that_fills_the_disk_of_the_build_is_told(desk: Desk, index: PackageIndex) -> None:
    index.add(wheel("big", "1.0", {"big.bin": os.urandom(20 << 20)}))
    error = desk.failure("big", policy="small")
    assert error.message == "big-1.0-py3-none-any.whl does not fit into the 16 MiB that a build may fill"


def test_what_is_no_wheel_is_refused_by_its_name(desk: Desk, index: PackageIndex) -> None:
    [(name, whole)] = tiny("broken", "1.0")
    index.add((name, b"not an archive" * 100))
    assert "broken==1.0 is broken" in desk.failure("broken").message
    # What uv only reads the beginning of while it resolves.
    index.add((name, whole[:-60]))
    assert "broken 1.0 is broken or hostile: its archive is no wheel" in desk.failure("broken").message


def test_a_wheel_of_another_package_is_refused(desk: Desk, index: PackageIndex) -> None:
    index.add(("claimed-1.0-py3-none-any.whl", tiny("tiny", "1.0")[0][1]))
    assert "claimed==1.0 is broken: it has an invalid package format" in desk.failure("claimed").message


def test_a_package_whose_build_calls_another_host_is_stopped_and_told(desk: Desk, index: PackageIndex) -> None:
    call = "import urllib.request; urllib.request.urlopen('http://elsewhere.example.com/')"
    index.add(sdist("calls", "1.0", code=call))
    error = desk.failure("calls", policy="source")
    assert "calls-1.0.tar.gz was refused a connection: elsewhere.example.com:80" in error.message


def test_every_connection_of_a_build_is_recorded_with_the_environment(desk: Desk, index: PackageIndex) -> None:
    call = """import urllib.request
    try:
        urllib.request.urlopen('http://elsewhere.example.com/')
    except OSError:
        pass"""
    index.add(sdist("asks", "1.0", code=call))
    built = desk.build("asks", policy="source")
    here = index.url.split("/")[2]
    rows = desk.runner().environments().store.egress(built.id)
    found = {(row["step"], f"{row['host']}:{row['port']}", row["allowed"]) for row in rows}
    assert {("resolve", here, True), ("fetch", here, True), ("fetch", "elsewhere.example.com:80", False)} <= found
    assert {row["reason"] for row in rows if not row["allowed"]} == {
        "elsewhere.example.com:80 is not in the policy's build.allow"
    }
    assert all(row["connections"] for row in rows)


def test_a_source_archive_that_does_not_build_is_told_with_the_reason(desk: Desk, index: PackageIndex) -> None:
    index.add(sdist("fails", "1.0", code="raise RuntimeError('no compiler here')"))
    error = desk.failure("fails", policy="source")
    assert error.message == "the source archive fails-1.0.tar.gz can't be built: RuntimeError: no compiler here"
    assert "no compiler here" in error.facts["output"]


# ---- what is kept


def test_a_lock_that_was_edited_is_refused(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("tiny", "1.0", "2.0"))
    built = desk.build("tiny==1.0")
    edited = built.lock.as_toml().replace(built.lock.packages[0].file.sha256, "0" * 64)
    with pytest.raises(BuildFailed, match="the lock was changed after it was made"):
        Lock.from_toml(edited)
    [kept] = (desk.places.data_dir / "locks").iterdir()
    kept.write_text(edited)
    with pytest.raises(BuildFailed, match="the lock was changed after it was made") as caught:
        desk.build("tiny==1.0")
    assert str(kept) in caught.value.message
    assert "env lock --upgrade" in caught.value.hint
    assert desk.lock("tiny==1.0", upgrade=True) == ["tiny==1.0"]
    assert desk.build("tiny==1.0").id == built.id


def test_the_environment_that_was_there_outlives_a_build_that_fails(desk: Desk, index: PackageIndex) -> None:
    index.add(*tiny("tiny", "1.0"))
    before = desk.build("tiny")
    index.add(wheel("tiny", "2.0", {"tiny.py": "", "../out.py": ""}))
    assert desk.lock("tiny", upgrade=True) == ["tiny==2.0"]
    assert "tiny 2.0 is broken or hostile" in desk.failure("tiny").message
    assert desk.build("tiny", lock=before.lock).id == before.id
    assert desk.bench.engine.image(before.name).id == before.image.id


# ---- what a person sees


def test_the_command_tells_one_sentence_and_what_to_do(desk: Desk, index: PackageIndex, tmp_path: Path) -> None:
    index.add(*tiny("pandas", "1.0"))
    script = tmp_path / "script.py"
    script.write_text("result = 1\n")
    told = ["run", str(script), "--policy", str(tmp_path / "policies/local.toml"), "--with", "panda"]
    answer = sandbox(*told, env=environment(XDG_CACHE_HOME=str(tmp_path / "cache-home")))
    assert answer.returncode == BuildFailed.exit_status
    assert answer.stdout == ""
    assert (
        "build_failed: the package index knows no package named panda\n  what to do: did you mean pandas?"
        in answer.stderr
    )
    assert "Traceback" not in answer.stderr
    answer = sandbox(*told, "--json", env=environment(XDG_CACHE_HOME=str(tmp_path / "cache-home")))
    error = json.loads(answer.stdout)["error"]
    assert error["code"] == "build_failed"
    assert "panda was not found" in json.dumps(error)
