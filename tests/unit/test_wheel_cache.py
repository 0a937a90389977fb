"""The wheel cache keeps what its check agrees to, and nothing else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sandbox.environment.wheel_cache import FileCache, HashCheck, Incoming, room_for
from sandbox.errors import BuildFailed

CONTENT = b"a wheel, in pieces"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", ".whl")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def incoming(cache: FileCache, work: Path, sha256: str = SHA256) -> Incoming:
    return cache.receive(sha256, HashCheck("six-1.0.whl", sha256), work, name="six-1.0.whl")


def everything(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_a_file_with_the_right_hash_is_kept_and_found(cache: FileCache, work: Path) -> None:
    file = incoming(cache, work)
    file.write(CONTENT[:5])
    file.write(CONTENT[5:])
    assert cache.find(SHA256) is None, "not before it is complete"
    file.close()
    found = cache.find(SHA256)
    assert found is not None
    assert found.read_bytes() == CONTENT
    assert found.stat().st_mode & 0o222 == 0, "nobody writes to it again"


@pytest.mark.parametrize("sent", [b"", CONTENT[:-1], CONTENT + b"!", b"another wheel"])
def test_anything_else_is_refused_by_name_and_leaves_nothing(
    cache: FileCache, work: Path, tmp_path: Path, sent: bytes
) -> None:
    file = incoming(cache, work)
    file.write(sent)
    with pytest.raises(BuildFailed, match=r"six-1\.0\.whl has the hash") as caught:
        file.close()
    assert caught.value.facts["expected"] == SHA256
    assert everything(tmp_path) == []


def test_a_refused_file_does_not_replace_the_good_one(cache: FileCache, work: Path) -> None:
    for content in (CONTENT, b"bad"):
        file = incoming(cache, work)
        file.write(content)
        if content == CONTENT:
            file.close()
        else:
            with pytest.raises(BuildFailed):
                file.close()
    found = cache.find(SHA256)
    assert found is not None
    assert found.read_bytes() == CONTENT


def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(
    cache: FileCache, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = incoming(cache, work)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(BuildFailed, match=r"six-1\.0\.whl can't be kept: .*No space left") as caught:
        file.write(CONTENT)
    monkeypatch.undo()
    assert "sandbox env prune" in caught.value.hint
    assert everything(tmp_path) == []


def test_a_disk_that_is_full_is_told_with_what_it_has_no_room_for(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"pandas can't be kept: .*No space left"), room_for("pandas", tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(PermissionError), room_for("pandas", tmp_path):
        raise PermissionError(13, "Permission denied")


def test_finding_a_file_notes_its_use(cache: FileCache, work: Path) -> None:
    file = incoming(cache, work)
    file.write(CONTENT)
    file.close()
    os.utime(cache.path(SHA256), (1, 1))
    cache.find(SHA256)
    assert cache.path(SHA256).stat().st_mtime > 1_000_000_000


def test_what_is_missing_is_told(cache: FileCache, work: Path) -> None:
    file = incoming(cache, work)
    file.write(CONTENT)
    file.close()
    assert cache.missing([SHA256, "0" * 64]) == {"0" * 64}
