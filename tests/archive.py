"""A docker-archive as a dictionary: what tests read and forge."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(archive: Path) -> dict[str, bytes]:
    """Return the content of every member by name."""
    with tarfile.open(archive, "r:") as tar:
        # all are files
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def write(archive: Path, members: Mapping[str, bytes]) -> None:
    """Write an archive of these members in the place of whatever is there."""
    with tarfile.open(archive, "w:") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def manifest(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what the archive says of its only image."""
    [only] = json.loads(members["manifest.json"])
    found: dict[str, Any] = only
    return found


def sha256(content: bytes) -> str:
    """Return a hash in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
