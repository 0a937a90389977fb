"""One set of tests for every engine: what the runner relies on."""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from sandbox import places
from sandbox.engine.podman import PodmanEngine
from sandbox.engine.protocol import Engine
from sandbox.environment.layers import BaseImage, WrittenImage, check, write_image
from sandbox.environment.tree import Kind, encode_header
from sandbox.errors import BuildFailed, ImageUnavailable, NotFound
from sandbox.host.probe import probe
from tests import archive as archives
from tests.fake_engine import BASE, FakeEngine

LABEL = "podman-sandbox-runner.contract"


class EngineContract:
    """Subclasses give an `engine` fixture."""

    @pytest.fixture
    def spec(self) -> dict[str, Any]:
        return {
            "image": BASE,
            "entrypoint": [],
            "command": ["/usr/bin/python3", "-c", "import time; time.sleep(60)"],
            "netns": {"nsmode": "none"},
            "log_configuration": {"driver": "none"},
            "labels": {LABEL: uuid.uuid4().hex},
        }

    @pytest.fixture
    def container(self, engine: Engine, spec: dict[str, Any]) -> Iterator[str]:
        container_id, _ = engine.create(spec)
        yield container_id
        engine.remove(container_id)

    def test_a_created_container_does_not_run_until_it_is_started(self, engine: Engine, container: str) -> None:
        assert not engine.inspect(container).running
        engine.start(container)
        started = engine.inspect(container)
        assert started.running
        assert started.pid > 1

    def test_labels_come_back_as_they_were_given(self, engine: Engine, container: str, spec: dict[str, Any]) -> None:
        assert engine.inspect(container).labels[LABEL] == spec["labels"][LABEL]

    def test_containers_are_found_by_label_and_by_label_and_value(
        self, engine: Engine, container: str, spec: dict[str, Any]
    ) -> None:
        value = spec["labels"][LABEL]
        assert container in [found.id for found in engine.containers(LABEL)]
        assert [found.id for found in engine.containers(f"{LABEL}={value}")] == [container]
        assert engine.containers(f"{LABEL}=another") == []

    def test_removing_a_running_container_ends_it_and_removing_it_again_is_no_error(
        self, engine: Engine, container: str
    ) -> None:
        engine.start(container)
        engine.remove(container)
        engine.remove(container)
        with pytest.raises(NotFound):
            engine.inspect(container)

    def test_creating_from_an_absent_image_is_image_unavailable(self, engine: Engine, spec: dict[str, Any]) -> None:
        with pytest.raises(ImageUnavailable):
            engine.create({**spec, "image": "localhost/absent:1"})

    def test_an_absent_image_is_image_unavailable(self, engine: Engine) -> None:
        with pytest.raises(ImageUnavailable):
            engine.image("localhost/absent:1")

    def test_the_base_image_is_listed_by_name_and_found_by_id(self, engine: Engine) -> None:
        record = engine.image(BASE)
        assert BASE in record.names
        assert record.id in [image.id for image in engine.images()]
        assert engine.image(record.id).id == record.id

    def test_a_further_name_leads_to_the_same_image_and_can_be_removed_alone(self, engine: Engine) -> None:
        record = engine.image(BASE)
        tag = uuid.uuid4().hex[:8]
        engine.tag(record.id, "localhost/contract", tag)
        assert engine.image(f"localhost/contract:{tag}").id == record.id
        engine.remove_image(f"localhost/contract:{tag}")
        with pytest.raises(ImageUnavailable):
            engine.image(f"localhost/contract:{tag}")
        assert engine.image(BASE).id == record.id

    def test_removing_an_absent_image_is_no_error(self, engine: Engine) -> None:
        assert engine.remove_image("localhost/absent:1")

    @pytest.mark.parametrize("started", [False, True])
    def test_an_image_that_a_container_uses_stays_with_the_container_unless_both_are_to_go(
        self, engine: Engine, spec: dict[str, Any], written: WrittenImage, started: bool
    ) -> None:
        engine.add_image(written.archive, written.name)
        container, _ = engine.create({**spec, "image": written.name})
        try:
            if started:
                engine.start(container)
            assert not engine.remove_image(written.name)
            assert engine.image(written.name).id == written.id
            assert engine.inspect(container).running is started
        finally:
            assert engine.remove_image(written.name, force=True)
        for gone in (lambda: engine.inspect(container), lambda: engine.image(written.id)):
            with pytest.raises((NotFound, ImageUnavailable)):
                gone()

    def test_an_image_file_system_comes_as_a_tar_and_leaves_no_container(self, engine: Engine) -> None:
        before = {found.id for found in engine.containers(LABEL)}
        data = b"".join(engine.export_filesystem(BASE))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            names = {name.removeprefix("./") for name in tar.getnames()}
        assert any(name.startswith("usr/bin/python3") for name in names)
        assert {found.id for found in engine.containers(LABEL)} == before

    def test_an_unreachable_registry_is_image_unavailable_with_its_reason(self, engine: Engine) -> None:
        with pytest.raises(ImageUnavailable, match=r"127\.0\.0\.1:1/absent:1 can't be pulled: ."):
            engine.pull("127.0.0.1:1/absent:1")

    @pytest.fixture
    def written(self, engine: Engine, tmp_path: Path) -> WrittenImage:
        """Write an image: the base with one file more, which no image had before."""
        content = uuid.uuid4().hex.encode()
        stream = tmp_path / "one.tree"
        stream.write_bytes(encode_header(Kind.FILE, "one.py", len(content)) + content + encode_header(Kind.END, "", 0))
        known = engine.image(BASE)
        directory = tmp_path / "image"
        directory.mkdir()
        return write_image(
            directory / "image.tar",
            BaseImage(diff_ids=known.layers, architecture=known.architecture),
            [("one", stream)],
            name=f"localhost/contract:{uuid.uuid4().hex[:8]}",
            labels={LABEL: "one"},
            created=datetime(2020, 1, 1, tzinfo=timezone.utc),
        )

    def test_an_image_that_names_the_layers_it_stands_on_is_added_as_it_was_written(
        self, engine: Engine, written: WrittenImage
    ) -> None:
        added = engine.add_image(written.archive, written.name)
        try:
            assert added.names == (written.name,)
            assert added == engine.image(written.name)
            check(added, written)
            assert added.layers == (*engine.image(BASE).layers, written.layers[-1])
        finally:
            engine.remove_image(written.name)
        with pytest.raises(ImageUnavailable):
            engine.image(written.id)

    def test_an_image_whose_layer_is_not_what_its_name_says_is_refused_and_leaves_nothing(
        self, engine: Engine, written: WrittenImage
    ) -> None:
        members = archives.read(written.archive)
        *_, layer = archives.manifest(members)["Layers"]
        archives.write(written.archive, {**members, layer: members[layer].replace(b"one.py", b"two.py")})
        self.refused(engine, written)

    def refused(self, engine: Engine, written: WrittenImage) -> None:
        before = {record.id for record in engine.images()}
        with pytest.raises(BuildFailed, match=f"(can't|could not) add {written.name}"):
            engine.add_image(written.archive, written.name)
        for name in (written.name, written.id):
            with pytest.raises(ImageUnavailable):
                engine.image(name)
        assert {record.id for record in engine.images()} == before
        assert list(written.archive.parent.iterdir()) == [written.archive], "temporary files"

    def test_an_image_on_layers_that_are_not_there_is_refused(self, engine: Engine, written: WrittenImage) -> None:
        # Nobody has the layer below; what the archive has in its place is nothing that it could be.
        members = archives.read(written.archive)
        told = archives.manifest(members)
        config = members[told["Config"]].replace(written.layers[0].encode(), b"sha256:" + b"0" * 64)
        archives.write(written.archive, {**members, told["Config"]: config})
        self.refused(engine, written)

    def test_an_unreachable_registry_takes_no_image(self, engine: Engine, tmp_path: Path) -> None:
        with pytest.raises(ImageUnavailable, match=r"push .* to 127\.0\.0\.1:1/absent:1: ."):
            engine.push(BASE, "127.0.0.1:1/absent:1", work_dir=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_closing_twice_is_no_error(self, engine: Engine) -> None:
        engine.close()
        engine.close()


class TestFakeEngine(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return FakeEngine()


@pytest.mark.podman
class TestPodmanEngine(EngineContract):
    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        runtime_dir = places.runtime_dir()
        engine = PodmanEngine(probe(runtime_dir).engine, runtime_dir=runtime_dir)
        yield engine
        engine.close()
