from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from sandbox.base_layer import DEFAULT_EPOCH
from sandbox.engine import ImageRecord
from sandbox.environment_image import (
    MAX_LAYERS,
    BaseImage,
    Conflict,
    Layer,
    WrittenImage,
    add,
    check,
    write_image,
    write_layers,
)
from sandbox.errors import BuildFailed, ImageUnavailable
from sandbox.tree import Kind, TreeRefused, encode_header
from tests.fake_engine import BASE, FakeEngine

Entry = tuple[Kind, str, bytes]
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
LABELS = {"podman-sandbox-runner.lock": "sha256:1", "podman-sandbox-runner.policy": "sha256:2"}


def stored(path: Path, *entries: Entry) -> tuple[str, Path]:
    """Store a tree as it comes out of a sandbox; return the package's name and the file."""
    records = [encode_header(kind, name, len(body)) + body for kind, name, body in entries]
    path.write_bytes(b"".join(records) + encode_header(Kind.END, "", 0))
    return path.stem, path


def file(name: str, body: bytes = b"x") -> Entry:
    return (Kind.FILE, name, body)


def only_layer(trees: list[tuple[str, Path]], directory: Path) -> Layer:
    """Write the layers of small trees, which is one, into a new directory."""
    directory.mkdir()
    (layer,) = write_layers(trees, directory).layers
    return layer


def members(layer: Layer) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(layer.path, "r:") as tar:
        found = tar.getmembers()
    assert len({member.name for member in found}) == len(found)
    return {member.name: member for member in found}


def content(layer: Layer, name: str) -> bytes:
    with tarfile.open(layer.path, "r:") as tar:
        body = tar.extractfile(f"opt/environment/{name}")
        assert body is not None
        return body.read()


ENTRIES = [
    (Kind.EXECUTABLE, "bin/f2py", b"#!/bin/sh\n"), (Kind.LINK, "bin/f2", b"f2py"), file("numpy/é" + "ü" * 90 + ".py", b"1"),
    file("numpy/core.so", b"\x7fELF" * 1_000_000), file("empty", b""), (Kind.DIRECTORY, "numpy/void", b""),
]  # fmt: skip


def test_the_layer_has_what_the_trees_have_with_owners_modes_and_times_of_our_own(tmp_path: Path) -> None:
    layer = only_layer([stored(tmp_path / "numpy.tree", *ENTRIES)], tmp_path / "layers")
    found = members(layer)
    kinds = {
        name: (member.type, member.mode, member.linkname) for name, member in found.items() if "ü" not in name
    }  # fmt: skip
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


def test_hash_and_size_are_those_of_the_file(tmp_path: Path) -> None:
    layer = only_layer([stored(tmp_path / "numpy.tree", *ENTRIES)], tmp_path / "layers")
    whole = layer.path.read_bytes()
    assert (layer.sha256, layer.size_bytes) == (hashlib.sha256(whole).hexdigest(), len(whole))


def test_the_same_files_in_another_order_give_the_same_layer_and_other_files_another(tmp_path: Path) -> None:
    one, two = stored(tmp_path / "a.tree", *ENTRIES), stored(tmp_path / "b.tree", file("b/x"))
    first = only_layer([one, two], tmp_path / "1")
    turned = stored(tmp_path / "a.tree", *reversed(ENTRIES))
    assert only_layer([two, turned], tmp_path / "2").sha256 == first.sha256
    changed = stored(tmp_path / "b.tree", file("b/x", b"y"))
    assert only_layer([one, changed], tmp_path / "3").sha256 != first.sha256


def test_of_two_packages_with_the_same_path_the_later_wins_and_differences_are_told(tmp_path: Path) -> None:
    trees = [
        stored(
            tmp_path / "zope.tree", file("tests/a.py", b"of zope"), file("same.py"), (Kind.EXECUTABLE, "mode.py", b"x")
        ),
        stored(tmp_path / "attrs.tree", file("tests/a.py", b"of attrs"), file("same.py"), file("mode.py")),
    ]
    written = write_layers(trees, tmp_path)
    assert content(written.layers[0], "tests/a.py") == b"of zope"
    assert set(written.conflicts) == {
        Conflict(path="tests/a.py", winner="zope", loser="attrs"),
        Conflict(path="mode.py", winner="zope", loser="attrs"),
    }


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
        write_layers(trees, tmp_path)
    assert not list(tmp_path.glob("*.tar"))


@pytest.mark.parametrize(
    "damage", [b"", b"\0" * 12, encode_header(Kind.FILE, "../x", 0) + encode_header(Kind.END, "", 0)]
)
def test_a_damaged_stored_tree_is_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.tree"
    path.write_bytes(damage)
    with pytest.raises(TreeRefused):
        write_layers([("a", path)], tmp_path)


def test_a_missing_stored_tree_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TreeRefused, match="stored files of numpy"):
        write_layers([("numpy", tmp_path / "absent")], tmp_path)


def test_a_layer_that_can_not_be_written_is_a_failed_build_with_the_place_and_leaves_no_file(tmp_path: Path) -> None:
    tree = stored(tmp_path / "a.tree", file("a", b"x" * 5_000_000))
    target = tmp_path / "layer-0.tar"
    target.symlink_to("/dev/full")
    with pytest.raises(BuildFailed, match="No space left on device") as caught:
        write_layers([tree], tmp_path)
    assert str(tmp_path.parent) in caught.value.hint
    assert not target.is_symlink()
    with pytest.raises(BuildFailed, match="No such file"):
        write_layers([tree], tmp_path / "absent")


LARGE = [
    file("scipy/a.so", b"s" * (11 << 20)), file("numpy/core.so", b"n" * (9 << 20)), file("six.py", b"small"),
    file("numpy.libs/blas.so", b"b" * (8 << 20)), (Kind.EXECUTABLE, "bin/f2py", b"#!"),
]  # fmt: skip


def test_what_is_large_has_a_layer_of_its_own_largest_first(tmp_path: Path) -> None:
    written = write_layers([stored(tmp_path / "all.tree", *LARGE)], tmp_path)
    above = {"opt", "opt/environment"}
    held = [{name.removeprefix("opt/environment/") for name in members(layer)} - above for layer in written.layers]
    assert held == [
        {"scipy", "scipy/a.so"},
        {"numpy", "numpy/core.so"},
        {"numpy.libs", "numpy.libs/blas.so"},
        {"bin", "bin/f2py", "six.py"},
    ]
    assert written.size_bytes == sum(layer.path.stat().st_size for layer in written.layers)


def test_environments_that_differ_in_something_small_share_their_large_layers(tmp_path: Path) -> None:
    one = stored(tmp_path / "one.tree", *LARGE)
    two = stored(tmp_path / "two.tree", file("requests.py", b"more"))
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    first, second = write_layers([one], tmp_path / "1"), write_layers([one, two], tmp_path / "2")
    assert first.layers[-1].sha256 != second.layers[-1].sha256
    assert [layer.sha256 for layer in first.layers[:-1]] == [layer.sha256 for layer in second.layers[:-1]]


def test_layers_follow_from_the_files_not_from_which_package_brought_them(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    parts = [stored(tmp_path / f"{number}.tree", entry) for number, entry in enumerate(LARGE)]
    apart = write_layers(parts, tmp_path / "1")
    pulled = write_layers([stored(tmp_path / "pulled.tree", *LARGE)], tmp_path / "2")
    assert [layer.sha256 for layer in apart.layers] == [layer.sha256 for layer in pulled.layers]


def test_many_large_directories_take_a_bounded_number_of_layers(tmp_path: Path) -> None:
    trees = [stored(tmp_path / f"p{number}.tree", file(f"p{number}/x", bytes(8 << 20))) for number in range(MAX_LAYERS + 3)]
    written = write_layers(trees, tmp_path)
    assert len(written.layers) == MAX_LAYERS
    names = [name for layer in written.layers for name in members(layer)]
    assert sum(name.endswith("/x") for name in names) == len(trees)


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    return only_layer([stored(tmp_path / "numpy.tree", *ENTRIES)], tmp_path / "layers")


@pytest.fixture
def written(tmp_path: Path, layer: Layer) -> WrittenImage:
    return image_of(tmp_path / "image", layer)


def image_of(directory: Path, layer: Layer, base: ImageRecord | None = None, **changes: Any) -> WrittenImage:
    known = base or FakeEngine().image(BASE)
    directory.mkdir()
    asked: dict[str, Any] = {"labels": LABELS, "created": CREATED, **changes}
    return write_image(directory, BaseImage(diff_ids=known.layers, architecture=known.architecture), [layer], **asked)


def test_every_blob_of_the_image_is_named_by_its_hash_and_the_bases_layers_are_only_named(
    written: WrittenImage,
) -> None:
    names = {path.name for path in written.directory.iterdir()} - {"manifest.json", "version"}
    assert names == {written.id, written.layers[-1].removeprefix("sha256:")}
    for name in names:
        assert hashlib.sha256((written.directory / name).read_bytes()).hexdigest() == name
    manifest = json.loads((written.directory / "manifest.json").read_text())
    assert [layer["digest"] for layer in manifest["layers"]] == list(written.layers)
    assert manifest["layers"][-1]["size"] == (written.directory / written.layers[-1][7:]).stat().st_size
    assert manifest["config"]["digest"] == f"sha256:{written.id}"
    assert "annotations" not in manifest


def test_the_configuration_says_nothing_but_path_labels_and_where_it_comes_from(written: WrittenImage) -> None:
    config = json.loads((written.directory / written.id).read_text())
    assert config == {
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
    tmp_path: Path, layer: Layer
) -> None:
    base = replace(FakeEngine().image(BASE), layers=(f"sha256:{'b' * 64}", f"sha256:{'a' * 64}"))
    written = image_of(tmp_path / "image", layer, base)
    assert written.layers == (*base.layers, f"sha256:{layer.sha256}")
    config = json.loads((written.directory / written.id).read_text())
    assert [step["created_by"] for step in config["history"]][:-1] == ["base image", "base image"]
    assert config["rootfs"]["diff_ids"] == list(written.layers)


def test_the_same_inputs_give_the_same_image_in_any_time_zone_and_others_another(tmp_path: Path) -> None:
    tree = stored(tmp_path / "a.tree", *ENTRIES)

    def written(number: int, **changes: Any) -> str:
        return image_of(tmp_path / f"i{number}", only_layer([tree], tmp_path / f"l{number}"), **changes).id

    assert written(1) == written(2, created=CREATED.astimezone(timezone(timedelta(hours=5))))
    assert written(3, labels={**LABELS, "x": "y"}) != written(4)


def test_a_place_that_can_not_be_written_is_a_failed_build(tmp_path: Path, layer: Layer) -> None:
    with pytest.raises(BuildFailed, match="No such file"):
        write_image(
            tmp_path / "absent", BaseImage(diff_ids=(), architecture="amd64"), [layer], labels={}, created=CREATED
        )  # fmt: skip


def test_an_added_image_is_the_one_that_was_written(written: WrittenImage) -> None:
    engine = FakeEngine()
    record = add(engine, written, "localhost/environment:1")
    assert record.id == written.id
    assert engine.image("localhost/environment:1") == record


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
        def add_image(self, directory: Path, name: str) -> ImageRecord:
            record = replace(super().add_image(directory, name), **changes)
            self._images = {**{key: known for key, known in self._images.items() if name not in known.names}}
            self._images[record.id] = record
            return record

    engine = Lying()
    with pytest.raises(BuildFailed, match=f"its {what} differ") as caught:
        add(engine, written, "localhost/environment:1")
    assert caught.value.facts["differing"] == [what]
    with pytest.raises(ImageUnavailable):
        engine.image("localhost/environment:1")
    assert engine.image(BASE).names == (BASE,)


def test_every_difference_is_named(written: WrittenImage) -> None:
    honest = FakeEngine().add_image(written.directory, "localhost/environment:1")
    check(honest, written)
    with pytest.raises(BuildFailed, match="its labels, annotations differ"):
        check(replace(honest, labels={}, annotations={"x": "y"}), written)
