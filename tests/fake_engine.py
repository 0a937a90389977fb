"""An engine in memory that obeys the same contract tests as Podman: for tests of what calls an engine."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandbox.engine.protocol import ContainerRecord, EngineInfo, ImageRecord
from sandbox.errors import BuildFailed, EngineUnavailable, ImageUnavailable, NotFound
from tests import archive as archives

BASE = "localhost/sandbox-python:latest"
BASE_LAYER = f"sha256:{'b' * 64}"


def fake_info(**changes: Any) -> EngineInfo:
    """Return what a Podman 5 on a cgroup v2 host says of itself, with changes."""
    known: dict[str, Any] = {
        "version": (5, 4, 2),
        "runtime": "crun",
        "runtime_path": "/usr/bin/crun",
        "runtime_version": "crun version 1.21",
        "cgroup_version": 2,
        "cgroup_controllers": ("cpu", "memory", "pids"),
        "storage_driver": "overlay",
        "graph_root": Path("/nowhere/storage"),
        "run_root": Path("/nowhere/run"),
        "rootless": True,
    }
    return EngineInfo(**{**known, **changes})


class FakeEngine:
    """Containers and images as dictionaries; nothing runs."""

    def __init__(self) -> None:
        self._containers: dict[str, ContainerRecord] = {}
        self._images: dict[str, ImageRecord] = {}
        self._uses: dict[str, str] = {}  # container -> image
        self._closed = False
        self._count = 0
        self._add_image("f" * 64, BASE)

    def _add_image(self, image_id: str, *names: str, **changes: Any) -> ImageRecord:
        known: dict[str, Any] = {
            "digest": f"sha256:{image_id}",
            "size_bytes": 1,
            "env": ("PATH=/usr/bin:/bin",),
            "labels": {},
            "annotations": {},
            "architecture": "amd64",
            "layers": (BASE_LAYER,),
        }
        record = ImageRecord(**{**known, **changes}, id=image_id, names=names)
        self._images[image_id] = record
        return record

    def _alive(self) -> None:
        if self._closed:
            raise EngineUnavailable("the engine is closed")

    def info(self) -> EngineInfo:
        return fake_info()

    def create(self, spec: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        self._alive()
        image = self.image(spec["image"])
        self._count += 1
        container_id = f"{self._count:064x}"
        self._uses[container_id] = image.id
        self._containers[container_id] = ContainerRecord(
            id=container_id, labels=dict(spec.get("labels", {})), running=False, pid=0, oci_config_path=None
        )
        return container_id, ()

    def start(self, container_id: str) -> None:
        known = self.inspect(container_id)
        self._containers[container_id] = ContainerRecord(
            id=known.id, labels=known.labels, running=True, pid=4_000_000 + self._count, oci_config_path=None
        )

    def inspect(self, container_id: str) -> ContainerRecord:
        self._alive()
        if container_id not in self._containers:
            raise NotFound(f"no container {container_id[:12]}")
        return self._containers[container_id]

    def remove(self, container_id: str) -> None:
        self._alive()
        self._containers.pop(container_id, None)
        self._uses.pop(container_id, None)

    def containers(self, label: str) -> list[ContainerRecord]:
        self._alive()
        name, equals, value = label.partition("=")
        return [
            record
            for record in self._containers.values()
            if name in record.labels and (not equals or record.labels[name] == value)
        ]

    def image(self, name: str) -> ImageRecord:
        self._alive()
        for record in self._images.values():
            if name in (record.id, record.id[:12], f"sha256:{record.id}", *record.names):
                return record
        raise ImageUnavailable(f"no image {name}")

    def images(self) -> list[ImageRecord]:
        self._alive()
        return [record for record in self._images.values() if record.names]

    def pull(self, reference: str) -> ImageRecord:
        raise ImageUnavailable(f"{reference} can't be pulled: there is no registry")

    def load(self, archive: Path) -> ImageRecord:
        return self._add_image("e" * 64, f"localhost/{archive.stem}:latest")

    def add_image(self, archive: Path, name: str) -> ImageRecord:
        self._alive()
        members = archives.read(archive)
        manifest = archives.manifest(members)
        config = json.loads(members[manifest["Config"]])
        stored = {layer for record in self._images.values() for layer in record.layers}
        for digest, member in zip(config["rootfs"]["diff_ids"], manifest["Layers"], strict=True):
            if digest not in stored and digest != f"sha256:{archives.sha256(members[member])}":
                raise BuildFailed(f"the fake can't add {name}: no layer {digest}")
        return self._add_image(
            archives.sha256(members[manifest["Config"]]),
            *manifest["RepoTags"],
            env=tuple(config["config"]["Env"]),
            labels=config["config"]["Labels"],
            architecture=config["architecture"],
            layers=tuple(config["rootfs"]["diff_ids"]),
        )

    def push(self, name: str, destination: str, *, work_dir: Path) -> str:
        self.image(name)
        raise ImageUnavailable(f"the fake can't push {name} to {destination}: there is no registry")

    def tag(self, image_id: str, repository: str, tag: str) -> None:
        known = self.image(image_id)
        self._images[known.id] = replace(known, names=(*known.names, f"{repository}:{tag}"))

    def remove_image(self, name: str, *, force: bool = False) -> bool:
        try:
            known = self.image(name)
        except ImageUnavailable:
            return True
        names = tuple(other for other in known.names if other != name)
        if names and name in known.names:
            self._images[known.id] = replace(known, names=names)
            return True
        users = [container for container, image in self._uses.items() if image == known.id]
        if users and not force:
            return False
        for container in users:
            self.remove(container)
        del self._images[known.id]
        return True

    def export_filesystem(self, image: str) -> Iterator[bytes]:
        self.image(image)
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name in ("usr/bin/python3.11", "etc/passwd"):
                tar.addfile(tarfile.TarInfo(name))
        yield stream.getvalue()

    def close(self) -> None:
        self._closed = True
