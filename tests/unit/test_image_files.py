from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest

from sandbox.errors import ImageUnavailable
from sandbox.image import files as image_files
from sandbox.image.files import inspect_filesystem
from sandbox.image.verdicts import FilesystemVerdict

DIRECTORY, LINK, HARD, CHARACTER, FIFO = (
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
)
Entry = tuple[str, bytes, int, str]


def file(name: str, mode: int = 0o644) -> Entry:
    return (name, tarfile.REGTYPE, mode, "")


def other(name: str, kind: bytes, target: str = "", mode: int = 0o755) -> Entry:
    return (name, kind, mode, target)


PYTHON = [file("usr/bin/python3.11", 0o755), other("usr/bin/python3", LINK, "python3.11")]


def tar(entries: list[Entry]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind, mode, target in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname = kind, mode, target
            archive.addfile(info)
    return stream.getvalue()


def chunked(data: bytes, size: int = 700) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def judge(entries: list[Entry], path: str = "/usr/local/bin:/usr/bin") -> FilesystemVerdict:
    return inspect_filesystem(chunked(tar(entries)), path_variable=path)


def test_python_is_found_through_links_and_its_version_read_from_its_name() -> None:
    verdict = judge(PYTHON)
    assert verdict.refusals == []
    assert (verdict.python_path, verdict.python_version) == ("/usr/bin/python3", (3, 11))


def test_python_is_found_through_a_linked_directory_and_absolute_links() -> None:
    entries = [
        file("usr/bin/python3.12", 0o755),
        other("bin", LINK, "usr/bin"),
        other("usr/local/bin/python3", LINK, "/bin/../bin/python3.12"),
    ]
    verdict = judge(entries)
    assert (verdict.python_path, verdict.python_version) == ("/usr/local/bin/python3", (3, 12))


def test_the_images_own_path_comes_first_and_relative_entries_are_ignored() -> None:
    entries = [*PYTHON, file("opt/py/bin/python3", 0o755), other("opt/py/lib/python3.10", DIRECTORY)]
    verdict = judge(entries, path="evil:/opt/py/bin:/usr/bin")
    assert (verdict.python_path, verdict.python_version) == ("/opt/py/bin/python3", (3, 10))


def test_conda_is_searched_without_being_on_the_path() -> None:
    entries = [file("opt/conda/bin/python3.12", 0o755), other("opt/conda/bin/python3", LINK, "python3.12")]
    assert judge(entries, path="").python_path == "/opt/conda/bin/python3"


def test_a_hard_linked_python_counts_and_takes_its_version_from_the_target() -> None:
    entries = [file("usr/bin/python3.11", 0o755), other("usr/bin/python3", HARD, "usr/bin/python3.11")]
    assert judge(entries).python_version == (3, 11)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [file("usr/bin/python3")],  # not executable
        [other("usr/bin/python3", LINK, "python3.11")],  # dangling
        [other("usr/bin/python3", LINK, "python3")],  # loop
        [other("usr/bin/python3", DIRECTORY)],
        [file("usr/bin/python2", 0o755)],
    ],
)
def test_an_image_without_a_usable_python_is_refused(entries: list[Entry]) -> None:
    assert judge(entries).refusals == ["it has no python3"]


def test_a_link_that_climbs_out_stays_inside_the_listing() -> None:
    entries = [file("usr/bin/python3.11", 0o755), other("usr/bin/python3", LINK, "../" * 50 + "usr/bin/python3.11")]
    assert judge(entries).python_path == "/usr/bin/python3"


def test_python_older_than_the_harness_needs_is_refused() -> None:
    assert judge([file("usr/bin/python3", 0o755), other("usr/lib/python3.7", DIRECTORY)]).refusals == [
        "its Python 3.7 is older than 3.8"
    ]


@pytest.mark.parametrize(
    "path", ["dev", "dev/shm", "proc", "sys", "etc", "etc/passwd", "etc/group", "app", "tmp", "run", "run/sandbox"]
)
@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_symbolic_link_where_the_sandbox_mounts_is_refused(path: str, prefix: str) -> None:
    assert judge([*PYTHON, other(prefix + path, LINK, "/host")]).refusals == [f"/{path} is a symbolic link"]


@pytest.mark.parametrize(("path", "kind"), [("etc/passwd", FIFO), ("tmp", tarfile.REGTYPE), ("etc/group", DIRECTORY)])
def test_a_wrong_kind_of_file_where_the_sandbox_mounts_is_refused(path: str, kind: bytes) -> None:
    assert judge([*PYTHON, other(path, kind)]).refusals == [f"/{path} is not what it should be"]


def test_real_directories_in_those_places_are_admitted() -> None:
    places = [other(name, DIRECTORY) for name in ("dev", "proc", "sys", "etc", "app", "tmp", "run")]
    assert judge([*places, file("etc/passwd"), other("var/run", LINK, "/run"), *PYTHON]).refusals == []


def test_a_device_is_refused_wherever_it_is() -> None:
    assert judge([*PYTHON, other("opt/x", CHARACTER)]).refusals == ["/opt/x is a device"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x"])
def test_an_impossible_name_is_refused(name: str) -> None:
    refusals = judge([*PYTHON, file(name)]).refusals
    assert len(refusals) == 1
    assert "impossible name" in refusals[0]


def test_setuid_and_world_writable_files_are_findings_not_refusals() -> None:
    entries = [*PYTHON, file("usr/bin/su", 0o4755), file("usr/bin/wall", 0o2755), file("srv/x", 0o666)]
    verdict = judge([*entries, other("tmp", DIRECTORY, mode=0o1777)])
    assert verdict.refusals == []
    assert [finding.split()[0] for finding in verdict.findings] == ["2", "1"]


def test_the_number_of_reasons_is_bounded() -> None:
    verdict = judge([*PYTHON, *(other(f"dev{number}", CHARACTER) for number in range(500))])
    assert len(verdict.refusals) == image_files.MAX_REASONS


COMPLETE = tar([*PYTHON, file("x")])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a tar" * 200,
        COMPLETE[:512],
        COMPLETE[:700],
        COMPLETE[:1024],
        COMPLETE[:1536],
        COMPLETE[:2048],
        COMPLETE[:1024] + b"damaged!" * 64 + COMPLETE[1536:],
    ],
)
def test_a_stream_that_is_no_complete_tar_is_an_error_and_no_admission(data: bytes) -> None:
    with pytest.raises(ImageUnavailable, match="can't be read"):
        inspect_filesystem(chunked(data), path_variable="")


def test_too_many_files_end_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_MEMBERS", 10)
    with pytest.raises(ImageUnavailable, match="more than 10 files"):
        judge([file(f"x{number}") for number in range(12)])


def test_too_many_bytes_end_the_walk_and_close_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_BYTES", 5_000)
    closed = []

    def endless() -> Iterator[bytes]:
        try:
            yield tar([file("x")])[:512]
            while True:
                yield tar([file("x")])[:512]
        finally:
            closed.append(True)

    with pytest.raises(ImageUnavailable, match="can't be read"):
        inspect_filesystem(endless(), path_variable="")
    assert closed == [True]
