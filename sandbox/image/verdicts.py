"""Verdicts on images' files, kept by image id so that each image is read once.

A file that is damaged, of another version or not ours alone counts as absent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Raise it whenever a rule of `sandbox.image.files` changes: what was admitted before is then judged again.
SCHEMA = 1
MAX_BYTES = 64 << 10


@dataclass
class FilesystemVerdict:
    """What one walk over an image's files found; `refusals` empty means admitted."""

    python_path: str = ""
    python_version: tuple[int, int] | None = None
    refusals: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def load_verdict(cache_dir: Path, image_id: str) -> FilesystemVerdict | None:
    """Return the verdict kept for an image; None where there is none that can be trusted."""
    path = _cache_file(cache_dir, image_id)
    if path is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as content:
        status = os.fstat(content.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return None
        return _decoded(content.read(MAX_BYTES + 1), image_id)


def store_verdict(cache_dir: Path, image_id: str, verdict: FilesystemVerdict) -> None:
    """Keep a verdict; a cache that can't be written only costs time, so that is no error."""
    with contextlib.suppress(OSError):
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = _cache_file(cache_dir, image_id)
        if path is None:
            return
        body = {"schema": SCHEMA, "id": image_id, "verdict": asdict(verdict)}
        descriptor, temporary = tempfile.mkstemp(prefix=".image-", dir=cache_dir)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as content:
                json.dump(body, content)
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)


def _cache_file(cache_dir: Path, image_id: str) -> Path | None:
    """Return the file for an image's verdict, or None where the directory is not ours alone."""
    plain = image_id.removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{12,64}", plain):
        return None
    try:
        status = cache_dir.lstat()
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return None
    return cache_dir / f"image-{plain}.json"


def _decoded(text: bytes, image_id: str) -> FilesystemVerdict | None:
    try:
        body = json.loads(text)
        if body["schema"] != SCHEMA or body["id"] != image_id:
            return None
        verdict = body["verdict"]
        version = verdict["python_version"]
        result = FilesystemVerdict(
            python_path=str(verdict["python_path"]),
            python_version=None if version is None else (int(version[0]), int(version[1])),
            refusals=[str(reason) for reason in verdict["refusals"]],
            findings=[str(finding) for finding in verdict["findings"]],
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return result if result.refusals or result.python_path.startswith("/") else None
