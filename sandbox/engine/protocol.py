"""The engine: the one door to Podman, as a protocol with two implementations.

`sandbox.engine.podman.PodmanEngine` is the real one; the tests carry a fake that obeys the same
contract tests. All methods block; asynchronous callers run them in worker threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Marks the containers that are made only to read an image's files; the value is the process id of the maker.
EXPORT_LABEL = "podman-sandbox-runner.export"


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What the engine says of itself, once per start.

    `runtime` is the OCI runtime in use (its file name), `runtime_path` its path.
    """

    version: tuple[int, int, int]
    runtime: str
    runtime_path: str
    runtime_version: str
    cgroup_version: int
    cgroup_controllers: tuple[str, ...]
    storage_driver: str
    graph_root: Path
    run_root: Path
    rootless: bool


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image in local storage, as the engine describes it. Nothing in here is trusted."""

    id: str
    digest: str
    names: tuple[str, ...]
    size_bytes: int
    env: tuple[str, ...]
    labels: dict[str, str]
    annotations: dict[str, str]
    architecture: str
    layers: tuple[str, ...] = ()  # diff ids, lowest first


@dataclass(frozen=True, kw_only=True)
class ContainerRecord:
    """One container, as the engine describes it."""

    id: str
    labels: dict[str, str]
    running: bool
    pid: int
    oci_config_path: Path | None


class Engine(Protocol):
    """What the runner asks of a container engine.

    Every method raises `EngineUnavailable` when the engine does not answer, and the error named
    below when it refuses.
    """

    def info(self) -> EngineInfo:
        """Return what the engine says of itself (cached after the first call)."""

    def create(self, spec: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Create a container from Podman's own JSON `spec`; return its id and the warnings.

        Raises `ImageUnavailable` (no such image) or `NotEnforceable` (a setting is refused).
        """

    def start(self, container_id: str) -> None:
        """Start it. Raises `NotEnforceable` when the runtime refuses."""

    def inspect(self, container_id: str) -> ContainerRecord:
        """Describe one container. Raises `NotFound`."""

    def remove(self, container_id: str) -> None:
        """Kill and remove it at once; one that is already gone is not an error."""

    def containers(self, label: str) -> list[ContainerRecord]:
        """Return every container, running or not, that carries `label` ("key" or "key=value")."""

    def image(self, name: str) -> ImageRecord:
        """Describe an image in local storage. Raises `ImageUnavailable` when it isn't there."""

    def images(self) -> list[ImageRecord]:
        """Return every named image in local storage."""

    def pull(self, reference: str) -> ImageRecord:
        """Fetch an image. Raises `ImageUnavailable` with the registry's own reason."""

    def load(self, archive: Path) -> ImageRecord:
        """Load a docker-archive that *we* wrote (never one from elsewhere: CVE-2025-11395)."""

    def add_image(self, archive: Path, name: str) -> ImageRecord:
        """Add the image in a docker-archive that *we* wrote, whose only image has the name `name` (`repository:tag`).

        Of layers that are in local storage already, anything may be in the archive. Raises `BuildFailed`; nothing is
        left of the image then. The archive's directory also takes temporary files of the engine.
        """

    def push(self, name: str, destination: str, *, work_dir: Path) -> str:
        """Send an image to a registry, as `destination` (`registry/repository:tag`); return its digest there.

        What registries.conf says of the registry holds, as for a pull. `work_dir` takes temporary files as large as the
        image. Raises `ImageUnavailable` with the registry's reason.
        """

    def tag(self, image_id: str, repository: str, tag: str) -> None:
        """Give an image a further name."""

    def remove_image(self, name: str, *, force: bool = False) -> bool:
        """Remove an image by name or id, only the name where it has others; absent is not an error.

        Returns False, with nothing done, when a container uses it; `force` removes such containers, too.
        """

    def export_filesystem(self, image: str) -> Iterator[bytes]:
        """Stream the image's root file system as a tar, from a container that is never started."""

    def close(self) -> None:
        """Stop whatever this object started."""
