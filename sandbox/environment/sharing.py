"""Environments between machines, through any OCI registry.

What is pulled is only a parcel: its libraries are read from it as a stream, checked like those of a build, and composed
again here. The image is kept if that gives, bit for bit, the layer and the configuration that the registry's image
claims to be.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from sandbox.engine.protocol import Engine, ImageRecord
from sandbox.environment.layers import PREFIX
from sandbox.environment.lock import Lock
from sandbox.environment.tree import Kind, TreeDecoder, TreeLimits, encode_header
from sandbox.errors import BuildFailed, InvalidRequest
from sandbox.image.files import TarStream

LOCK_FILE = "pylock.toml"
MAX_LOCK_BYTES = 4 << 20
CHUNK_BYTES = 1 << 20
_REFERENCE = re.compile(
    r"[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?/[a-z0-9][a-z0-9._/-]*(:[A-Za-z0-9._-]{1,128})?(@sha256:[0-9a-f]{64})?"
)


def lock_tree(lock: Lock) -> bytes:
    """Return the tree that carries an environment's lock inside its image."""
    text = lock.as_toml().encode()
    return encode_header(Kind.FILE, LOCK_FILE, len(text)) + text + encode_header(Kind.END, "", 0)


def registry_reference(text: str, *, with_digest: bool) -> str:
    """Return the name of an image in a registry. Raises `InvalidRequest`."""
    if not _REFERENCE.fullmatch(text) or (not with_digest and "@" in text):
        shape = "REGISTRY[:PORT]/NAME[:TAG]" + ("[@sha256:DIGEST]" if with_digest else "")
        raise InvalidRequest(f"{text[:200]!r} is not a name in a registry", hint=f"write it like {shape}")
    return text


def unpack(engine: Engine, record: ImageRecord, target: Path, limits: TreeLimits) -> Lock:
    """Write the libraries of a pulled image to `target` as a checked tree, and return the lock that came along.

    Raises `BuildFailed` for anything that a build would not have made.
    """
    decoder = TreeDecoder(limits)
    lock = b""
    chunks = engine.export_filesystem(record.id)
    stream = TarStream(chunks)
    try:
        with target.open("wb") as out, tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else every header is kept in memory
                path = member.name.removeprefix("./").rstrip("/")
                if not path.startswith(f"{PREFIX}/"):
                    continue
                shown = path.removeprefix(f"{PREFIX}/")
                for piece in pieces(archive, member, shown):
                    decoder.feed(piece)
                    out.write(piece)
                    if shown == LOCK_FILE and len(lock) <= MAX_LOCK_BYTES:
                        lock += piece
            end = encode_header(Kind.END, "", 0)
            decoder.feed(end)
            out.write(end)
            stream.check_end(archive.offset)
        decoder.finish()
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise BuildFailed(f"the files of the image can't be read: {error}", hint="pull it again") from None
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    if not lock:
        raise BuildFailed("the image carries no lock: it is not an environment of this program", hint="check its name")
    return Lock.from_toml(lock[len(encode_header(Kind.FILE, LOCK_FILE, 0)) :].decode())


def pieces(archive: tarfile.TarFile, member: tarfile.TarInfo, shown: str) -> Iterator[bytes]:
    """Yield one file of the image as a record of a tree. Raises `BuildFailed` for a kind that no tree has."""
    if member.isdir():
        yield encode_header(Kind.DIRECTORY, shown, 0)
    elif member.issym():
        body = member.linkname.encode()
        yield encode_header(Kind.LINK, shown, len(body)) + body
    elif member.isreg():
        kind = Kind.EXECUTABLE if member.mode & 0o100 else Kind.FILE
        yield encode_header(kind, shown, member.size)
        content = archive.extractfile(member)
        while content is not None and (block := content.read(CHUNK_BYTES)):
            yield block
    else:
        raise BuildFailed(
            f"the image has {shown[:200]!a}, which is neither file, directory nor link", hint="don't use it"
        )
