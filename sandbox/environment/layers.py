"""From installed trees to an image: the base image's layers and a few of our own making, nothing else.

It equals `FROM` and some `COPY`, without a builder: no archive from a sandbox is extracted or handed on, the layers are
written here from trees that `sandbox.environment.tree` has checked. Podman is given a docker-archive, the only local
layout whose layers it hashes side by side; of the base's layers it has the names alone. The same trees on the same base
give the same image id.

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
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from sandbox.engine.protocol import Engine, ImageRecord
from sandbox.environment.startup_files import DISTUTILS, LEFT_OUT, what_is_lost
from sandbox.environment.tree import Kind, TreeDecoder, TreeLimits, TreeRefused, starts_code
from sandbox.errors import BuildFailed
from sandbox.image.base.layer import PATH_VARIABLE, epoch

PREFIX = "opt/environment"
BUFFER_BYTES = 1 << 20
# What is smaller shares the last layer. Each layer is a directory that the kernel looks through for every path.
OWN_LAYER_BYTES = 8 << 20
MAX_LAYERS = 12
WRITERS = 2
NOTHING = memoryview(b"")
# Stands for a layer of the base. Podman finds that one in its storage by its diff id and never reads this; if it did,
# the hash would be wrong.
ELSEWHERE = bytes(2 * tarfile.BLOCKSIZE)
# A stored tree was held to its policy's limits when it came; here it only has to be well-formed.
_STORED = TreeLimits(files_count=1 << 24, installed_bytes=1 << 44, allow_pth=True)
Piece = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class BaseImage:
    """What an image is built on: the diff ids of its layers, lowest first, and its architecture."""

    diff_ids: tuple[str, ...]
    architecture: str


@dataclass(frozen=True, kw_only=True)
class WrittenImage:
    """An image in a docker-archive, and what Podman must say of it once it has it.

    `size_bytes` is what our layers take, uncompressed; `files_count` counts files, directories and links below
    `PREFIX`. `left_out` are the start-up files that are in it under another name, each with what is lost so.
    """

    archive: Path
    name: str
    id: str
    layers: tuple[str, ...]
    labels: dict[str, str]
    architecture: str
    size_bytes: int
    files_count: int
    left_out: tuple[str, ...] = ()


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


def write_image(
    archive: Path,
    base: BaseImage,
    trees: Sequence[tuple[str, Path]],
    *,
    name: str,
    labels: Mapping[str, str],
    created: datetime,
    allow_pth: bool = False,
) -> WrittenImage:
    """Write the image `name` (`repository:tag`) to the new file `archive`: `base`, with the `trees` below `PREFIX`.

    A tree is a package's name and its stored stream. Unless `allow_pth`, start-up files that are known are in the image
    under another name. Where two packages have the same path, the alphabetically later
    one's entry is in the image. Raises `TreeRefused` for a stream that is damaged, or when one package has a directory
    where another has a file or a link; `BuildFailed` when the archive can't be written. No file is left then.
    """
    entries = merged(trees)
    if not allow_pth:
        entries = without_startup(entries)
    contents = [list(_pieces(paths, entries)) for paths in divided(entries)]
    try:
        written = _write_archive(
            archive, base, contents, name=name, labels=labels, created=created, files_count=len(entries)
        )
        return replace(written, left_out=tuple(sorted(left_out(entries))))
    except OSError as error:
        archive.unlink(missing_ok=True)
        raise BuildFailed(
            f"the image can't be written to {archive}: {error.strerror}", hint=f"free some space below {archive.parent}"
        ) from None


def merged(trees: Sequence[tuple[str, Path]]) -> dict[str, _Entry]:
    """Return the entries of all trees by path. Raises `TreeRefused`, see `write_image`."""
    entries: dict[str, _Entry] = {}
    for package, path in sorted(trees):
        for name, entry in _listed(package, path).items():
            known = entries.get(name)
            if known is not None and Kind.DIRECTORY in (known.kind, entry.kind) and known.kind is not entry.kind:
                raise TreeRefused(
                    f"{known.package} and {entry.package} can't be installed together: {name!a} is a directory in one"
                    " and none in the other",
                    path=name,
                )
            entries[name] = entry
    return entries


def without_startup(entries: Mapping[str, _Entry]) -> dict[str, _Entry]:
    """Return the entries with start-up files under a name that Python does not look for, and what stands in for them.

    Raises `TreeRefused` for one that is not known.
    """
    kept = dict(entries)
    for path, entry in entries.items():
        if not starts_code(path, entry.body):
            continue
        if what_is_lost(bytes(entry.body)) is None:
            raise TreeRefused(f"{entry.package}: {path!a} has lines that Python executes at every start", path=path)
        other = entries.get(path + LEFT_OUT)
        if other is not None and bytes(other.body) != bytes(entry.body):
            raise TreeRefused(f"{entry.package}: {path + LEFT_OUT!a} is where {path!a} would be kept", path=path)
        kept[path + LEFT_OUT] = kept.pop(path)
        stand_in, content = DISTUTILS
        if path == "distutils-precedence.pth" and "distutils" not in entries:
            kept["distutils"] = _Entry(Kind.DIRECTORY, entry.package, NOTHING)
            kept[stand_in] = _Entry(Kind.FILE, entry.package, memoryview(content))
    return kept


def left_out(entries: Mapping[str, _Entry]) -> Iterator[str]:
    """Yield the start-up files that are there under another name, and what is lost without each."""
    for path, entry in entries.items():
        if "/" not in path and path.endswith(LEFT_OUT) and (lost := what_is_lost(bytes(entry.body))):
            yield f"{path.removesuffix(LEFT_OUT)}, without which is lost: {lost}"


def divided(entries: Mapping[str, _Entry]) -> list[list[str]]:
    """Return the paths of each layer, lowest first.

    Nothing but the tree's content decides: what was pulled is divided again.
    """
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


def _write_archive(
    archive: Path,
    base: BaseImage,
    contents: Sequence[Sequence[Piece]],
    *,
    name: str,
    labels: Mapping[str, str],
    created: datetime,
    files_count: int,
) -> WrittenImage:
    sizes = [sum(map(len, pieces)) for pieces in contents]
    absent = [f"base-{number}.tar" for number in range(len(base.diff_ids))]
    ours = [f"layer-{number}.tar" for number in range(len(contents))]
    with archive.open("xb") as file:
        for member in absent:
            file.write(_member(member, ELSEWHERE))
        places = [file.tell()]
        for member, size in zip(ours, sizes, strict=True):
            places.append(places[-1] + len(_header(member, Kind.FILE, size)) + _padded(size))
        file.truncate(places[-1])
        # Hashing and writing leave Python's lock alone.
        with ThreadPoolExecutor(WRITERS) as pool:
            hashes = list(pool.map(partial(_write_layer, archive), places[:-1], ours, sizes, contents))
        layers = (*base.diff_ids, *(f"sha256:{found}" for found in hashes))
        config = _encoded(
            _config(base, layers, labels, created.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
        )
        image_id = hashlib.sha256(config).hexdigest()
        manifest = [{"Config": f"{image_id}.json", "Layers": [*absent, *ours], "RepoTags": [name]}]
        file.seek(places[-1])
        file.write(_member(f"{image_id}.json", config))
        file.write(_member("manifest.json", _encoded(manifest)))
        file.write(bytes(2 * tarfile.BLOCKSIZE))
    return WrittenImage(
        archive=archive,
        name=name,
        id=image_id,
        layers=layers,
        labels=dict(labels),
        architecture=base.architecture,
        size_bytes=sum(sizes),
        files_count=files_count,
    )


def _write_layer(archive: Path, place: int, member: str, size: int, pieces: Sequence[Piece]) -> str:
    """Write one member of the archive where it belongs; return the SHA-256 of its content."""
    digest = hashlib.sha256()
    with archive.open("r+b", buffering=BUFFER_BYTES) as file:
        file.seek(place)
        file.write(_header(member, Kind.FILE, size))
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()  # what is missing to a whole block is a hole, which reads as zeros


def _member(name: str, content: bytes) -> bytes:
    return _header(name, Kind.FILE, len(content)) + content + bytes(_padded(len(content)) - len(content))


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def add(engine: Engine, image: WrittenImage) -> ImageRecord:
    """Have Podman add the image under its name, look at what arrived, and return it.

    Raises `BuildFailed`; the image is not there then.
    """
    record = engine.add_image(image.archive, image.name)
    try:
        check(record, image)
    except BuildFailed:
        engine.remove_image(image.name)
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


def _pieces(paths: Sequence[str], entries: Mapping[str, _Entry]) -> Iterator[Piece]:
    """Yield the bytes of a layer's tar, in the order of the paths: the same entries give the same bytes."""
    above = Path(PREFIX)
    for directory in (*reversed(above.parents[:-1]), above):
        yield _header(str(directory), Kind.DIRECTORY)
    for path in paths:
        entry = entries[path]
        if entry.kind is Kind.LINK:
            yield _header(f"{PREFIX}/{path}", entry.kind, target=bytes(entry.body).decode())
        else:
            yield _header(f"{PREFIX}/{path}", entry.kind, len(entry.body))
            yield entry.body
            yield bytes(_padded(len(entry.body)) - len(entry.body))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(path: str, kind: Kind, size: int = 0, *, target: str = "") -> bytes:
    info = tarfile.TarInfo(path)
    info.mtime = epoch()
    if kind is Kind.LINK:
        info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, target
    elif kind is Kind.DIRECTORY:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size, info.mode = size, 0o755 if kind is Kind.EXECUTABLE else 0o644
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
