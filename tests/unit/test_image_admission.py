from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from sandbox.engine.protocol import Engine, ImageRecord
from sandbox.errors import ImageUnavailable
from sandbox.image.admission import admit, ensure, oci_architecture

IMAGE_ID = "c0ffee" * 10 + "abcd"


def record(**changes: Any) -> ImageRecord:
    fields: dict[str, Any] = {
        "id": IMAGE_ID,
        "digest": "sha256:" + "1" * 64,
        "names": ("localhost/x:latest",),
        "size_bytes": 1,
        "env": ("PATH=/usr/bin",),
        "labels": {},
        "annotations": {},
        "architecture": oci_architecture(),
    }
    return ImageRecord(**{**fields, **changes})


class Images:
    """The image half of an engine, over a dictionary; counts how often files were read."""

    def __init__(self, *records: ImageRecord, registry: dict[str, ImageRecord] | None = None) -> None:
        self.here = {name: one for one in records for name in one.names}
        self.registry = registry or {}
        self.exports = 0
        self.members = ["usr/bin/python3"]

    def image(self, name: str) -> ImageRecord:
        if name not in self.here:
            raise ImageUnavailable(f"no {name}")
        return self.here[name]

    def images(self) -> list[ImageRecord]:
        return list(self.here.values())

    def pull(self, reference: str) -> ImageRecord:
        if reference not in self.registry:
            raise ImageUnavailable(f"{reference} can't be pulled: manifest unknown")
        return self.registry[reference]

    def export_filesystem(self, image: str) -> Iterator[bytes]:
        self.exports += 1
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name in self.members:
                info = tarfile.TarInfo(name)
                info.mode = 0o755
                archive.addfile(info)
        yield stream.getvalue()


def engine(images: Images) -> Engine:
    return cast("Engine", images)


def test_an_image_that_is_here_is_not_pulled() -> None:
    assert ensure(engine(Images(record())), "localhost/x", policy_pull="missing") == record()


def test_a_missing_image_is_pulled_under_its_full_name() -> None:
    images = Images(registry={"docker.io/library/python:3": record()})
    assert ensure(engine(images), "python:3", policy_pull="missing") == record()


def test_a_failed_pull_gives_the_registrys_reason_and_what_is_here() -> None:
    with pytest.raises(ImageUnavailable) as caught:
        ensure(engine(Images(record())), "python:nope", policy_pull="missing")
    assert "manifest unknown" in caught.value.message
    assert "localhost/x:latest" in caught.value.hint
    assert caught.value.facts["available"] == ["localhost/x:latest"]


def test_whoever_only_looks_is_told_how_to_fetch_the_image() -> None:
    with pytest.raises(ImageUnavailable, match=r"is not here and is fetched only with --pull"):
        ensure(engine(Images(record())), "python:nope", policy_pull="never", why_not="is fetched only with --pull")


def test_a_policy_that_never_pulls_is_obeyed() -> None:
    images = Images(registry={"docker.io/library/python:3": record()})
    with pytest.raises(ImageUnavailable, match="may not be pulled"):
        ensure(engine(images), "python:3", policy_pull="never")


@pytest.mark.parametrize("pull", ["missing", "never"])
def test_a_missing_base_image_says_how_to_build_it(pull: Any) -> None:
    with pytest.raises(ImageUnavailable) as caught:
        ensure(engine(Images()), "localhost/sandbox-python:latest", policy_pull=pull)
    assert "sandbox image bootstrap" in caught.value.hint


def test_a_local_name_is_never_asked_of_a_registry() -> None:
    images = Images(registry={"localhost/y:latest": record()})
    with pytest.raises(ImageUnavailable, match="name of this host only"):
        ensure(engine(images), "localhost/y", policy_pull="missing")


def test_an_ordinary_image_is_admitted_with_its_python(tmp_path: Path) -> None:
    admitted = admit(engine(Images()), record(), cache_dir=tmp_path / "cache")
    assert (admitted.id, admitted.name, admitted.python_path) == (IMAGE_ID, "localhost/x:latest", "/usr/bin/python3")
    assert admitted.findings == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": {"run.oci.seccomp_bpf_data": "x"}},
        {"annotations": {"run.oci.keep_original_groups": "1"}},
        {"annotations": {"org.systemd.property.DeviceAllow": "x"}},
        {"annotations": {"io.podman.annotations.checkpoint.runtime.name": "x"}},
        {"annotations": {"IO.Podman.annotations.seccomp": "x"}},
        {"annotations": {"io.containers.trace-syscall": "x"}},
        {"labels": {"io.containers.capabilities": "SYS_ADMIN"}},
        {"labels": {"io.containers.autoupdate": "registry"}},
        {"env": ("*",)},
        {"env": ("AWS*",)},
        {"env": ("SECRET",)},
        {"env": ("A*=x",)},
        {"env": ("=x",)},
        {"architecture": "s390x" if oci_architecture() != "s390x" else "amd64"},
    ],
)
def test_a_description_that_could_steer_the_engine_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    images = Images()
    with pytest.raises(ImageUnavailable) as caught:
        admit(engine(images), record(**changes), cache_dir=tmp_path)
    assert len(caught.value.facts["reasons"]) == 1
    assert images.exports == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": {"org.opencontainers.image.title": "x"}},
        {"labels": {"maintainer": "x", "io.buildah.version": "1.28"}},
        {"env": ("NO_PROXY=*.local", "EMPTY=", "PATH=/bin")},
    ],
)
def test_ordinary_descriptions_are_not_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    assert admit(engine(Images()), record(**changes), cache_dir=tmp_path).python_path


@pytest.mark.parametrize("entry", ["LD_PRELOAD=/x.so", "PYTHONPATH=/x", "PATH=.:/bin", "GLIBC_TUNABLES=x"])
def test_variables_that_steer_programs_are_findings(entry: str, tmp_path: Path) -> None:
    assert len(admit(engine(Images()), record(env=(entry,)), cache_dir=tmp_path).findings) == 1


def test_a_verdict_is_kept_and_the_files_are_read_once(tmp_path: Path) -> None:
    images, cache = Images(), tmp_path / "cache"
    first = admit(engine(images), record(), cache_dir=cache)
    assert admit(engine(images), record(), cache_dir=cache) == first
    assert images.exports == 1
    assert cache.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o077 for path in cache.iterdir()] == [0]


def test_a_refusal_is_kept_too(tmp_path: Path) -> None:
    images = Images()
    images.members = ["usr/bin/perl"]
    for _ in range(2):
        with pytest.raises(ImageUnavailable, match="has no python3"):
            admit(engine(images), record(), cache_dir=tmp_path)
    assert images.exports == 1


def test_a_changed_description_is_judged_again_in_spite_of_the_cache(tmp_path: Path) -> None:
    images = Images()
    admit(engine(images), record(), cache_dir=tmp_path)
    with pytest.raises(ImageUnavailable, match="reserved"):
        admit(engine(images), record(annotations={"run.oci.x": "1"}), cache_dir=tmp_path)


def stored(cache: Path) -> Path:
    (path,) = cache.glob("image-*.json")
    return path


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"\xff\xfe",
        json.dumps({"schema": 0, "id": IMAGE_ID, "verdict": {}}).encode(),
        json.dumps({"schema": 1, "id": "other", "verdict": {}}).encode(),
        json.dumps(
            {
                "schema": 1,
                "id": IMAGE_ID,
                "verdict": {"python_path": "", "python_version": None, "refusals": [], "findings": []},
            }
        ).encode(),
    ],
)
def test_a_damaged_cache_file_is_ignored_and_rewritten(damage: bytes, tmp_path: Path) -> None:
    images = Images()
    first = admit(engine(images), record(), cache_dir=tmp_path)
    good = stored(tmp_path).read_bytes()
    stored(tmp_path).write_bytes(damage)
    assert admit(engine(images), record(), cache_dir=tmp_path) == first
    assert images.exports == 2
    assert stored(tmp_path).read_bytes() == good


def test_a_cache_file_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    images = Images()
    admit(engine(images), record(), cache_dir=tmp_path)
    stored(tmp_path).chmod(0o666)
    admit(engine(images), record(), cache_dir=tmp_path)
    assert images.exports == 2


def test_a_linked_cache_file_is_not_followed(tmp_path: Path) -> None:
    images = Images()
    admit(engine(images), record(), cache_dir=tmp_path)
    aside = stored(tmp_path).rename(tmp_path / "aside")
    (tmp_path / f"image-{IMAGE_ID}.json").symlink_to(aside)
    admit(engine(images), record(), cache_dir=tmp_path)
    assert images.exports == 2


def test_a_cache_directory_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    images, cache = Images(), tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    for _ in range(2):
        admit(engine(images), record(), cache_dir=cache)
    assert images.exports == 2
    assert list(cache.iterdir()) == []


def test_an_image_id_that_is_no_id_never_becomes_a_file_name(tmp_path: Path) -> None:
    admit(engine(Images()), record(id="../../evil"), cache_dir=tmp_path / "cache")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
