"""From installed trees to an image: the base image's layers and a few of our own making, nothing else.

It equals `FROM` and some `COPY`, without a builder: no archive from a sandbox is extracted or handed on, the layers are
written here from trees that `sandbox.tree` has checked, and Podman is given a `dir:` layout that names the base's
layers by their diff ids instead of holding them. The same trees on the same base give the same image id.

Large directories have layers of their own, largest first: environments that differ in something small share them, on
the disk and in the time that Podman takes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from sandbox.base_layer import PATH_VARIABLE, epoch
from sandbox.engine import Engine, ImageRecord
from sandbox.errors import BuildFailed
from sandbox.tree import Kind, TreeDecoder, TreeLimits, TreeRefused

PREFIX = "opt/environment"
BUFFER_BYTES = 1 << 20
# What is smaller shares the last layer. Each layer is a directory that the kernel looks through for every path.
OWN_LAYER_BYTES = 8 << 20
MAX_LAYERS = 12
WRITERS = 2
NOTHING = memoryview(b"")
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"
# A stored tree was held to its policy's limits when it came; here it only has to be well-formed.
_STORED = TreeLimits(files_count=1 << 24, installed_bytes=1 << 44, allow_pth=True)


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """A path that two packages have with different content; `winner` is the package whose content is in the image."""

    path: str
    winner: str
    loser: str


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer on disk, an uncompressed tar; `sha256` is its diff id without the prefix."""

    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of one environment, lowest first."""

    layers: tuple[Layer, ...]
    conflicts: tuple[Conflict, ...]

    @property
    def size_bytes(self) -> int:
        """Return what all of them take on disk."""
        return sum(layer.size_bytes for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class BaseImage:
    """What an image is built on: the diff ids of its layers, lowest first, and its architecture."""

    diff_ids: tuple[str, ...]
    architecture: str


@dataclass(frozen=True, kw_only=True)
class WrittenImage:
    """An image in a `dir:` layout, and what Podman must say of it once it has it."""

    directory: Path
    id: str
    layers: tuple[str, ...]
    labels: dict[str, str]
    architecture: str


@dataclass(frozen=True)
class _Entry:
    kind: Kind
    package: str
    body: memoryview


class _Listing:
    """The entries of one stored tree by path. Fed in one piece, so that each body is one view of the mapped file."""

    def __init__(self, package: str) -> None:
        self.entries: dict[str, _Entry] = {}
        self._package = package
        self._path = ""

    def entry(self, kind: Kind, path: str, size_bytes: int) -> None:  # noqa: ARG002 - the view knows its size
        self._path = path
        self.entries[path] = _Entry(kind, self._package, NOTHING)
        while (path := path.rpartition("/")[0]) and path not in self.entries:
            self.entries[path] = _Entry(Kind.DIRECTORY, self._package, NOTHING)

    def data(self, chunk: memoryview) -> None:
        self.entries[self._path] = _Entry(self.entries[self._path].kind, self._package, chunk)


def write_layers(trees: Sequence[tuple[str, Path]], directory: Path, *, prefix: str = PREFIX) -> Layers:
    """Write the layers that have the `trees`, each a package's name and its stored stream, below `prefix` to `directory`.

    Where two packages have the same path with different content, the alphabetically later one is in the layers.
    Raises `TreeRefused` for a stream that is damaged, or when one package has a directory where another has a file
    or a link; `BuildFailed` when they can't be written. No file is left then.
    """
    entries: dict[str, _Entry] = {}
    conflicts: list[Conflict] = []
    for package, path in sorted(trees):
        conflicts += _merge(entries, _listed(package, path))
    # Hashing and writing leave Python's lock alone.
    with ThreadPoolExecutor(WRITERS) as pool:
        written = [
            pool.submit(_write_layer, paths, entries, directory / f"layer-{number}.tar", prefix)
            for number, paths in enumerate(divided(entries))
        ]
    try:
        return Layers(layers=tuple(one.result() for one in written), conflicts=tuple(conflicts))
    except OSError as error:
        for number in range(len(written)):
            (directory / f"layer-{number}.tar").unlink(missing_ok=True)
        raise BuildFailed(
            f"the image's layers can't be written to {directory}: {error.strerror}",
            hint=f"free some space below {directory.parent}",
        ) from None


def divided(entries: Mapping[str, _Entry]) -> list[list[str]]:
    """Return the paths of each layer, lowest first, by nothing but what is in the tree: what was pulled is divided again."""
    sizes: dict[str, int] = {}
    for path, entry in entries.items():
        top = path.partition("/")[0]
        sizes[top] = sizes.get(top, 0) + len(entry.body)
    large = sorted((-size, top) for top, size in sizes.items() if size >= OWN_LAYER_BYTES)[: MAX_LAYERS - 1]
    number = {top: place for place, (_, top) in enumerate(large)}
    layers: list[list[str]] = [[] for _ in range(len(large) + 1)]
    for path in sorted(entries):
        layers[number.get(path.partition("/")[0], -1)].append(path)
    return layers


def _write_layer(paths: Sequence[str], entries: Mapping[str, _Entry], target: Path, prefix: str) -> Layer:
    above = Path(prefix)
    directories = [str(path) for path in (*reversed(above.parents[:-1]), above)]
    digest = hashlib.sha256()
    with target.open("wb", buffering=BUFFER_BYTES) as file:
        for piece in _pieces(directories, prefix, paths, entries):
            digest.update(piece)
            file.write(piece)
    return Layer(path=target, sha256=digest.hexdigest(), size_bytes=target.stat().st_size)


def write_image(
    directory: Path, base: BaseImage, ours: Sequence[Layer], *, labels: Mapping[str, str], created: datetime
) -> WrittenImage:
    """Write a `dir:` layout of the image that is `base` with `ours` on top to `directory`, which must exist.

    The layers' files move there (same file system). The base's layers are named, not included: Podman finds them in its
    storage by their diff ids, which stand where digests of blobs usually do. It looks at no size before.
    Raises `BuildFailed` when it can't be written.
    """
    layers = (*base.diff_ids, *(f"sha256:{layer.sha256}" for layer in ours))
    config = _encoded(_config(base, layers, labels, created.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")))
    config_sha256 = hashlib.sha256(config).hexdigest()
    sizes = [*(0 for _ in base.diff_ids), *(layer.size_bytes for layer in ours)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "size": len(config), "digest": f"sha256:{config_sha256}"},
        "layers": [
            {"mediaType": LAYER_TYPE, "size": size, "digest": digest}
            for digest, size in zip(layers, sizes, strict=True)
        ],
    }
    try:
        for layer in ours:
            layer.path.replace(directory / layer.sha256)
        (directory / config_sha256).write_bytes(config)
        (directory / "manifest.json").write_bytes(_encoded(manifest))
        (directory / "version").write_text("Directory Transport Version: 1.1\n")
    except OSError as error:
        raise BuildFailed(
            f"the image can't be written to {directory}: {error.strerror}", hint=f"free some space below {directory}"
        ) from None
    return WrittenImage(
        directory=directory, id=config_sha256, layers=layers, labels=dict(labels), architecture=base.architecture
    )


def add(engine: Engine, image: WrittenImage, name: str) -> ImageRecord:
    """Have Podman add the image under `name` (`repository:tag`), look at what arrived, and return it.

    Raises `BuildFailed`; the image is not there then.
    """
    record = engine.add_image(image.directory, name)
    try:
        check(record, image)
    except BuildFailed:
        engine.remove_image(record.id)
        raise
    return record


def check(record: ImageRecord, image: WrittenImage) -> None:
    """Compare what Podman says of an image with what was written. Raises `BuildFailed` with every difference.

    The id is the hash of the configuration, so nothing can be in there that was not written.
    """
    expected: dict[str, tuple[object, object]] = {
        "id": (record.id.removeprefix("sha256:"), image.id),
        "layers": (record.layers, image.layers),
        "environment variables": (record.env, (PATH_VARIABLE,)),
        "labels": (record.labels, image.labels),
        "annotations": (record.annotations, {}),
        "architecture": (record.architecture, image.architecture),
    }
    differing = [what for what, (found, wanted) in expected.items() if found != wanted]
    if differing:
        raise BuildFailed(
            f"Podman did not keep the image as it was written: its {', '.join(differing)} differ",
            hint="run `sandbox doctor`",
            differing=differing,
        )


def _listed(package: str, path: Path) -> dict[str, _Entry]:
    listing = _Listing(package)
    decoder = TreeDecoder(_STORED, listing)
    try:
        with path.open("rb") as file:
            # It lives as long as the views of it.
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: the file is empty
        raise TreeRefused(f"the stored files of {package} can't be read: {error}") from None
    decoder.feed(memoryview(whole))
    decoder.finish()
    return listing.entries


def _merge(entries: dict[str, _Entry], later: dict[str, _Entry]) -> list[Conflict]:
    """Put one package's entries over those of the packages before it; return where they differed."""
    conflicts = []
    for path, entry in later.items():
        known = entries.get(path)
        if known is not None and Kind.DIRECTORY in (known.kind, entry.kind) and known.kind is not entry.kind:
            raise TreeRefused(
                f"{known.package} and {entry.package} can't be installed together: {path!a} is a directory in one"
                " and none in the other",
                path=path,
            )
        if known is not None and (known.kind is not entry.kind or not _equal(known.body, entry.body)):
            conflicts.append(Conflict(path=path, winner=entry.package, loser=known.package))
        entries[path] = entry
    return conflicts


def _equal(one: memoryview, other: memoryview) -> bool:
    # Views compare item by item; their hashes are faster and need no copy.
    return len(one) == len(other) and hashlib.sha256(one).digest() == hashlib.sha256(other).digest()


def _pieces(
    directories: Sequence[str], prefix: str, paths: Sequence[str], entries: Mapping[str, _Entry]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a layer's tar, in the order of the paths: the same entries give the same bytes."""
    for path in directories:
        yield _header(path, Kind.DIRECTORY, NOTHING)
    for path in paths:
        entry = entries[path]
        yield _header(f"{prefix}/{path}", entry.kind, entry.body)
        if entry.kind in (Kind.FILE, Kind.EXECUTABLE):
            yield entry.body
            yield bytes(-len(entry.body) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(path: str, kind: Kind, body: memoryview) -> bytes:
    info = tarfile.TarInfo(path)
    info.mtime = epoch()
    if kind is Kind.LINK:
        info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, bytes(body).decode()
    elif kind is Kind.DIRECTORY:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size, info.mode = len(body), 0o755 if kind is Kind.EXECUTABLE else 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _config(base: BaseImage, layers: Sequence[str], labels: Mapping[str, str], created: str) -> dict[str, object]:
    ours = len(layers) - len(base.diff_ids)
    steps = ["base image"] * len(base.diff_ids) + [f"COPY libraries /{PREFIX}"] * ours
    return {
        "architecture": base.architecture,
        "config": {"Env": [PATH_VARIABLE], "Labels": dict(labels)},
        "created": created,
        "history": [{"created": created, "created_by": step} for step in steps],
        "os": "linux",
        "rootfs": {"diff_ids": list(layers), "type": "layers"},
    }


def _encoded(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
