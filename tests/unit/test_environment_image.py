from __future__ import annotations

import io
import json
import resource
import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from sandbox.engine.protocol import ImageRecord
from sandbox.environment.layers import MAX_LAYERS, BaseImage, WrittenImage, add, check, write_image
from sandbox.environment.tree import Kind, TreeRefused, encode_header
from sandbox.errors import BuildFailed, ImageUnavailable
from sandbox.image.base.layer import DEFAULT_EPOCH
from tests import archive as archives
from tests.fake_engine import BASE, FakeEngine

Entry = tuple[Kind, str, bytes]
NAME = "localhost/environment:1"
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
LABELS = {"podman-sandbox-runner.lock": "sha256:1", "podman-sandbox-runner.policy": "sha256:2"}


def stored(path: Path, *entries: Entry) -> tuple[str, Path]:
    """Store a tree as it comes out of a sandbox; return the package's name and the file."""
    records = [encode_header(kind, name, len(body)) + body for kind, name, body in entries]
    path.write_bytes(b"".join(records) + encode_header(Kind.END, "", 0))
    return path.stem, path


def file(name: str, body: bytes = b"x") -> Entry:
    return (Kind.FILE, name, body)


def image_of(
    trees: list[tuple[str, Path]], archive: Path, base: ImageRecord | None = None, **changes: Any
) -> WrittenImage:
    """Write the image of these trees on the fake engine's base."""
    known = base or FakeEngine().image(BASE)
    asked: dict[str, Any] = {"name": NAME, "labels": LABELS, "created": CREATED, **changes}
    return write_image(archive, BaseImage(diff_ids=known.layers, architecture=known.architecture), trees, **asked)


def layers_of(image: WrittenImage) -> list[bytes]:
    """Return our layers, lowest first, each as a tar."""
    found = archives.read(image.archive)
    return [found[name] for name in archives.manifest(found)["Layers"] if name.startswith("layer-")]


def members(layer: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer), mode="r:") as tar:
        found = tar.getmembers()
    assert len({member.name for member in found}) == len(found)
    return {member.name: member for member in found}


def content(layer: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(layer), mode="r:") as tar:
        body = tar.extractfile(f"opt/environment/{name}")
        assert body is not None
        return body.read()


def configuration(image: WrittenImage) -> Any:
    found = archives.read(image.archive)
    return json.loads(found[archives.manifest(found)["Config"]])


ENTRIES = [
    (Kind.EXECUTABLE, "bin/f2py", b"#!/bin/sh\n"),
    (Kind.LINK, "bin/f2", b"f2py"),
    file("numpy/é" + "ü" * 90 + ".py", b"1"),
    file("numpy/core.so", b"\x7fELF" * 1_000_000),
    file("empty", b""),
    (Kind.DIRECTORY, "numpy/void", b""),
]


def test_the_layer_has_what_the_trees_have_with_owners_modes_and_times_of_our_own(tmp_path: Path) -> None:
    [layer] = layers_of(image_of([stored(tmp_path / "numpy.tree", *ENTRIES)], tmp_path / "image.tar"))
    found = members(layer)
    kinds = {name: (member.type, member.mode, member.linkname) for name, member in found.items() if "ü" not in name}
    assert kinds == {
        "opt": (tarfile.DIRTYPE, 0o755, ""),
        "opt/environment": (tarfile.DIRTYPE, 0o755, ""),
        "opt/environment/bin": (tarfile.DIRTYPE, 0o755, ""),
        "opt/environment/bin/f2": (tarfile.SYMTYPE, 0o777, "f2py"),
        "opt/environment/bin/f2py": (tarfile.REGTYPE, 0o755, ""),
        "opt/environment/empty": (tarfile.REGTYPE, 0o644, ""),
        "opt/environment/numpy": (tarfile.DIRTYPE, 0o755, ""),
        "opt/environment/numpy/core.so": (tarfile.REGTYPE, 0o644, ""),
        "opt/environment/numpy/void": (tarfile.DIRTYPE, 0o755, ""),
    }
    assert {(member.uid, member.gid, member.mtime) for member in found.values()} == {(0, 0, DEFAULT_EPOCH)}
    for kind, name, body in ENTRIES:
        if kind in (Kind.FILE, Kind.EXECUTABLE):
            assert content(layer, name) == body


def test_the_same_files_in_another_order_give_the_same_image_and_other_files_another(tmp_path: Path) -> None:
    one, two = stored(tmp_path / "a.tree", *ENTRIES), stored(tmp_path / "b.tree", file("b/x"))
    first = image_of([one, two], tmp_path / "1.tar")
    turned = stored(tmp_path / "a.tree", *reversed(ENTRIES))
    assert image_of([two, turned], tmp_path / "2.tar").id == first.id
    assert (tmp_path / "2.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()
    changed = stored(tmp_path / "b.tree", file("b/x", b"y"))
    assert image_of([one, changed], tmp_path / "3.tar").layers != first.layers


def test_of_two_packages_with_the_same_path_the_later_wins(tmp_path: Path) -> None:
    trees = [
        stored(tmp_path / "zope.tree", file("tests/a.py", b"of zope"), file("same.py")),
        stored(tmp_path / "attrs.tree", file("tests/a.py", b"of attrs"), file("same.py")),
    ]
    [layer] = layers_of(image_of(trees, tmp_path / "image.tar"))
    assert content(layer, "tests/a.py") == b"of zope"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((Kind.LINK, "lib", b"real"), file("lib/evil.so")),
        ((Kind.LINK, "lib", b"real"), (Kind.DIRECTORY, "lib", b"")),
        (file("lib"), file("lib/evil.so")),
    ],
)
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_directory_of_one_package_is_never_a_file_or_a_link_of_another(
    tmp_path: Path, first: Entry, second: Entry, names: tuple[str, str]
) -> None:
    trees = [
        stored(tmp_path / f"{names[0]}.tree", file("real/x"), first),
        stored(tmp_path / f"{names[1]}.tree", second),
    ]
    with pytest.raises(TreeRefused, match=r"a and b can't be installed together: 'lib'"):
        image_of(trees, tmp_path / "image.tar")
    assert not (tmp_path / "image.tar").exists()


@pytest.mark.parametrize(
    "damage", [b"", b"\0" * 12, encode_header(Kind.FILE, "../x", 0) + encode_header(Kind.END, "", 0)]
)
def test_a_damaged_stored_tree_is_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.tree"
    path.write_bytes(damage)
    with pytest.raises(TreeRefused):
        image_of([("a", path)], tmp_path / "image.tar")


def test_a_missing_stored_tree_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TreeRefused, match="stored files of numpy"):
        image_of([("numpy", tmp_path / "absent")], tmp_path / "image.tar")


@pytest.fixture
def written(tmp_path: Path) -> WrittenImage:
    return image_of([stored(tmp_path / "numpy.tree", *ENTRIES)], tmp_path / "image.tar")


@pytest.mark.parametrize("share", [0, 0.05, 0.9999], ids=["first member", "layers", "configuration"])
def test_an_image_that_can_not_be_written_is_a_failed_build_with_the_place_and_leaves_no_file(
    tmp_path: Path, written: WrittenImage, share: float
) -> None:
    tree, target = tmp_path / "numpy.tree", tmp_path / "again.tar"
    # The control: it is the limit that stops it.
    assert image_of([("numpy", tree)], target).id == written.id
    limit = int(target.stat().st_size * share)
    target.unlink()
    with (
        file_size_limit(limit),
        pytest.raises(BuildFailed, match=rf"can't be written to {target}: File too large") as caught,
    ):
        image_of([("numpy", tree)], target)
    assert str(tmp_path) in caught.value.hint
    assert not target.exists()
    with pytest.raises(BuildFailed, match="No such file"):
        image_of([("numpy", tree)], tmp_path / "absent/image.tar")


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow past a size, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


LARGE = [
    file("scipy/a.so", b"s" * (11 << 20)),
    file("numpy/core.so", b"n" * (9 << 20)),
    file("six.py", b"small"),
    file("numpy.libs/blas.so", b"b" * (8 << 20)),
    (Kind.EXECUTABLE, "bin/f2py", b"#!"),
]


def test_what_is_large_has_a_layer_of_its_own_largest_first(tmp_path: Path) -> None:
    image = image_of([stored(tmp_path / "all.tree", *LARGE)], tmp_path / "image.tar")
    above = {"opt", "opt/environment"}
    layers = layers_of(image)
    held = [{name.removeprefix("opt/environment/") for name in members(layer)} - above for layer in layers]
    assert held == [
        {"scipy", "scipy/a.so"},
        {"numpy", "numpy/core.so"},
        {"numpy.libs", "numpy.libs/blas.so"},
        {"bin", "bin/f2py", "six.py"},
    ]
    assert image.size_bytes == sum(map(len, layers))


def test_environments_that_differ_in_something_small_share_their_large_layers(tmp_path: Path) -> None:
    one = stored(tmp_path / "one.tree", *LARGE)
    two = stored(tmp_path / "two.tree", file("requests.py", b"more"))
    first, second = image_of([one], tmp_path / "1.tar"), image_of([one, two], tmp_path / "2.tar")
    assert first.layers[-1] != second.layers[-1]
    assert first.layers[:-1] == second.layers[:-1]


def test_the_image_follows_from_the_files_not_from_which_package_brought_them(tmp_path: Path) -> None:
    parts = [stored(tmp_path / f"{number}.tree", entry) for number, entry in enumerate(LARGE)]
    apart = image_of(parts, tmp_path / "1.tar")
    pulled = image_of([stored(tmp_path / "pulled.tree", *LARGE)], tmp_path / "2.tar")
    assert apart.id == pulled.id


def test_many_large_directories_take_a_bounded_number_of_layers(tmp_path: Path) -> None:
    trees = [
        stored(tmp_path / f"p{number}.tree", file(f"p{number}/x", bytes(8 << 20))) for number in range(MAX_LAYERS + 3)
    ]
    layers = layers_of(image_of(trees, tmp_path / "image.tar"))
    assert len(layers) == MAX_LAYERS
    names = [name for layer in layers for name in members(layer)]
    assert sum(name.endswith("/x") for name in names) == len(trees)


def test_every_layer_of_ours_is_named_by_its_hash_and_the_bases_layers_are_only_named(written: WrittenImage) -> None:
    found = archives.read(written.archive)
    told = archives.manifest(found)
    assert set(found) == {told["Config"], "manifest.json", *told["Layers"]}
    assert archives.sha256(found[told["Config"]]) == written.id
    assert written.layers == (
        *FakeEngine().image(BASE).layers,
        *(f"sha256:{archives.sha256(one)}" for one in layers_of(written)),
    )
    assert not any(found["base-0.tar"])
    assert told["RepoTags"] == [NAME] == [written.name]


def test_the_configuration_says_nothing_but_path_labels_and_where_it_comes_from(written: WrittenImage) -> None:
    assert configuration(written) == {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-02T03:04:05Z",
        "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Labels": LABELS},
        "history": [
            {"created": "2026-01-02T03:04:05Z", "created_by": "base image"},
            {"created": "2026-01-02T03:04:05Z", "created_by": "COPY libraries /opt/environment"},
        ],
        "rootfs": {"type": "layers", "diff_ids": list(written.layers)},
    }


def test_a_base_of_several_layers_keeps_their_order_and_has_one_line_of_history_for_each(
    tmp_path: Path, written: WrittenImage
) -> None:
    base = replace(FakeEngine().image(BASE), layers=(f"sha256:{'b' * 64}", f"sha256:{'a' * 64}"))
    image = image_of([("numpy", tmp_path / "numpy.tree")], tmp_path / "several.tar", base)
    assert image.layers == (*base.layers, written.layers[-1])
    assert archives.manifest(archives.read(image.archive))["Layers"] == ["base-0.tar", "base-1.tar", "layer-0.tar"]
    config = configuration(image)
    assert [step["created_by"] for step in config["history"]][:-1] == ["base image", "base image"]
    assert config["rootfs"]["diff_ids"] == list(image.layers)


def test_the_same_inputs_give_the_same_image_in_any_time_zone_and_others_another(
    tmp_path: Path, written: WrittenImage
) -> None:
    trees = [("numpy", tmp_path / "numpy.tree")]
    eastern = CREATED.astimezone(timezone(timedelta(hours=5)))
    assert image_of(trees, tmp_path / "1.tar", created=eastern).id == written.id
    assert image_of(trees, tmp_path / "2.tar", labels={**LABELS, "x": "y"}).id != written.id


def test_an_added_image_is_the_one_that_was_written(written: WrittenImage) -> None:
    engine = FakeEngine()
    record = add(engine, written)
    assert record.id == written.id
    assert engine.image(NAME) == record


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("id", {"id": "0" * 64}),
    ("layers", {"layers": (f"sha256:{'b' * 64}",)}),
    ("layers", {"layers": (f"sha256:{'c' * 64}", f"sha256:{'d' * 64}")}),
    ("environment variables", {"env": ("PATH=/usr/local/bin:/usr/bin:/bin", "LD_PRELOAD=/x")}),
    ("environment variables", {"env": ()}),
    ("labels", {"labels": {}}),
    ("labels", {"labels": {**LABELS, "run.oci.x": "1"}}),
    ("annotations", {"annotations": {"run.oci.keep_original_groups": "1"}}),
    ("architecture", {"architecture": "s390x"}),
]


@pytest.mark.parametrize(("what", "changes"), CHANGES)
def test_an_image_that_is_not_as_it_was_written_is_named_and_removed(
    written: WrittenImage, what: str, changes: dict[str, Any]
) -> None:
    class Lying(FakeEngine):
        def add_image(self, archive: Path, name: str) -> ImageRecord:
            record = replace(super().add_image(archive, name), **changes)
            self._images = {**{key: known for key, known in self._images.items() if name not in known.names}}
            self._images[record.id] = record
            return record

    engine = Lying()
    with pytest.raises(BuildFailed, match=f"its {what} differ") as caught:
        add(engine, written)
    assert caught.value.facts["differing"] == [what]
    with pytest.raises(ImageUnavailable):
        engine.image(NAME)
    assert engine.image(BASE).names == (BASE,)


def test_every_difference_is_named(written: WrittenImage) -> None:
    honest = FakeEngine().add_image(written.archive, NAME)
    check(honest, written)
    with pytest.raises(BuildFailed, match="its labels, annotations differ"):
        check(replace(honest, labels={}, annotations={"x": "y"}), written)
