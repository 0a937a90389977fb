from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any, cast

import pytest

from sandbox.engine.protocol import Engine
from sandbox.errors import BuildFailed, InvalidRequest
from sandbox.image.base import bootstrap as base_image
from sandbox.image.base import mmdebstrap
from sandbox.image.base.apt_sources import (
    AptSource,
    host_sources,
    os_release,
    parse_deb822,
    parse_one_line,
    sources_for,
    transport_options,
    with_key_files,
)
from sandbox.image.base.layer import (
    BUILD_DIR,
    DEFAULT_EPOCH,
    MADE_FILE,
    PACKAGES_FILE,
    kept_of_own,
    write_archive,
    write_layer,
)

ONE_LINE = """
# deb http://archive.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg arch=amd64] http://archive.example/debian bookworm main contrib # x
deb-src http://archive.example/debian bookworm main
deb http://archive.example/debian bookworm-updates main
deb http://security.example/debian-security bookworm-security main
deb [signed-by=/etc/apt/keyrings/vendor.gpg] https://vendor.example/apt bookworm main
deb https://other.example/apt bookworm stable
deb https://third.example/apt cloud-sdk-bookworm main
nonsense
"""
DEB822 = """
Types: deb deb-src
# a comment in the middle
URIs: http://archive.example/debian http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://inline.example/debian
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc=
 -----END PGP PUBLIC KEY BLOCK-----
"""


def chosen(text: str, suite: str = "bookworm") -> list[str]:
    found = sources_for(suite, parse_one_line(text), distribution="debian", codename="bookworm")
    return [f"{source.uri} {source.suite}" for source in found]


def test_only_the_distributions_own_sources_of_the_suite_are_used() -> None:
    assert chosen(ONE_LINE) == [
        "http://archive.example/debian bookworm",
        "http://archive.example/debian bookworm-updates",
        "http://security.example/debian-security bookworm-security",
    ]


def test_a_suite_that_the_host_does_not_list_is_looked_for_where_its_own_comes_from() -> None:
    assert chosen(ONE_LINE, "trixie") == [
        "http://archive.example/debian trixie",
        "http://archive.example/debian trixie-updates",
        "http://security.example/debian-security trixie-security",
    ]


def test_a_mirror_with_a_key_of_its_own_is_used_when_there_is_no_other() -> None:
    text = "deb [signed-by=/etc/apt/keyrings/vendor.gpg] https://mirror.example/debian bookworm main"
    assert chosen(text) == ["https://mirror.example/debian bookworm"]


def test_updates_alone_are_no_source() -> None:
    assert chosen("deb http://archive.example/debian bookworm-updates main") == []


def test_options_of_a_source_are_kept() -> None:
    first, *_ = parse_one_line(ONE_LINE)
    assert (
        first.line() == "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        " http://archive.example/debian bookworm main contrib"
    )


def test_deb822_stanzas_are_read_one_source_for_each_address_and_suite() -> None:
    assert [(source.uri, source.suite) for source in parse_deb822(DEB822)] == [
        ("http://archive.example/debian", "bookworm"),
        ("http://archive.example/debian", "bookworm-updates"),
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://inline.example/debian", "bookworm-security"),
    ]


def test_a_key_within_a_source_goes_to_a_file_that_the_namespace_can_read(tmp_path: Path) -> None:
    source = with_key_files(parse_deb822(DEB822), tmp_path)[-1]
    key = Path(source.signed_by)
    assert key.read_text().splitlines() == [
        "-----BEGIN PGP PUBLIC KEY BLOCK-----",
        "",
        "abc=",
        "-----END PGP PUBLIC KEY BLOCK-----",
    ]
    assert key.stat().st_mode & 0o777 == 0o644
    assert "\n" not in source.line()


def test_files_of_other_kinds_in_the_configuration_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "a.list.disabled").write_text("deb http://off.example/debian bookworm main")
    (tmp_path / "sources.list.d" / "b.sources").write_text(DEB822)
    (tmp_path / "sources.list").write_text("deb http://archive.example/debian bookworm main\n")
    assert len(host_sources(tmp_path)) == 6


def test_only_settings_that_say_how_to_reach_the_archive_are_passed_on() -> None:
    dump = "\n".join(
        [
            'Acquire "";',
            'Acquire::http "";',
            'Acquire::http::Proxy "http://proxy.example:3128";',
            'Acquire::https::CaInfo "/etc/ssl/own.pem";',
            'Acquire::http::Proxy::archive.example "DIRECT";',
            'Acquire::Check-Valid-Until "false";',
            'Acquire::Languages "none";',
            'Acquire::IndexTargets::deb::Contents-deb::MetaKey "x";',
            'DPkg::Post-Invoke:: "rm -rf /";',
            'APT::Update::Pre-Invoke:: "evil";',
        ]
    )
    assert [option.split()[0] for option in transport_options(dump)] == [
        "Acquire::http::Proxy",
        "Acquire::https::CaInfo",
        "Acquire::http::Proxy::archive.example",
        "Acquire::Check-Valid-Until",
    ]


def test_os_release_is_read_with_quotes_and_survives_absence(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text('ID=debian\nNAME="Debian GNU/Linux"\n# x\nVERSION_CODENAME=bookworm\n')
    assert os_release(tmp_path / "os-release")["NAME"] == "Debian GNU/Linux"
    assert os_release(tmp_path / "none") == {}


def packages_tar(path: Path, *, reverse: bool = False, mtime: int = 1) -> Path:
    entries: list[tuple[str, bytes, int, str, bytes]] = [
        ("./usr/bin/python3.11", tarfile.REGTYPE, 0o4755, "", b"elf"),
        ("./usr/bin/python3", tarfile.SYMTYPE, 0o777, "python3.11", b""),
        ("./bin/dash", tarfile.REGTYPE, 0o755, "", b"dash"),
        ("./bin/sh", tarfile.SYMTYPE, 0o777, "dash", b""),
        ("./bin/ls", tarfile.REGTYPE, 0o2775, "", b"ls"),
        ("./bin/tar", tarfile.REGTYPE, 0o755, "", b"tar"),
        ("./usr/bin/dpkg", tarfile.REGTYPE, 0o755, "", b"dpkg"),
        ("./usr/bin/perl", tarfile.REGTYPE, 0o755, "", b"perl"),
        ("./usr/bin/openssl", tarfile.REGTYPE, 0o755, "", b"openssl"),
        ("./usr/lib/x86_64-linux-gnu/libz.so.1", tarfile.REGTYPE, 0o644, "", b"z"),
        ("./usr/lib/x86_64-linux-gnu/gconv/EUC-KR.so", tarfile.REGTYPE, 0o644, "", b"k"),
        ("./usr/lib/x86_64-linux-gnu/gconv/UTF-16.so", tarfile.REGTYPE, 0o644, "", b"u"),
        ("./usr/lib/python3.11/os.py", tarfile.REGTYPE, 0o644, "", b"pass"),
        ("./usr/lib/python3.11/__pycache__/os.cpython-311.pyc", tarfile.REGTYPE, 0o644, "", b"pyc"),
        ("./usr/lib/python3.11/__pycache__/gone.cpython-311.pyc", tarfile.REGTYPE, 0o644, "", b"pyc"),
        ("./usr/lib/python3.11/sitecustomize.py", tarfile.SYMTYPE, 0o777, "/etc/python3.11/sitecustomize.py", b""),
        ("./usr/lib/python3.11/idlelib/x.py", tarfile.REGTYPE, 0o644, "", b"pass"),
        ("./usr/lib/python3.11/test/x.py", tarfile.REGTYPE, 0o644, "", b"pass"),
        ("./usr/lib/python3.11/ensurepip/x.py", tarfile.REGTYPE, 0o644, "", b"pass"),
        ("./usr/share/ca-certificates/mozilla/B.crt", tarfile.REGTYPE, 0o644, "", b"second\n\n"),
        ("./usr/share/ca-certificates/mozilla/A.crt", tarfile.REGTYPE, 0o644, "", b"first"),
        ("./usr/share/zoneinfo/Europe/Paris", tarfile.REGTYPE, 0o644, "", b"tz"),
        ("./usr/share/doc/x", tarfile.REGTYPE, 0o644, "", b"doc"),
        ("./usr/share/man/x", tarfile.REGTYPE, 0o644, "", b"man"),
        ("./etc/apt/apt.conf.d/99mmdebstrap", tarfile.REGTYPE, 0o644, "", b"Proxy http://user:secret@proxy"),
        ("./etc/resolv.conf", tarfile.REGTYPE, 0o644, "", b"nameserver 10.0.0.1"),
        ("./etc/hostname", tarfile.REGTYPE, 0o644, "", b"build-host"),
        ("./dev/null", tarfile.CHRTYPE, 0o666, "", b""),
        ("./var/lib/dpkg/status", tarfile.REGTYPE, 0o644, "", b"x"),
        (f"./{PACKAGES_FILE}", tarfile.REGTYPE, 0o644, "", b"b_1.deb\na_1.deb\n"),
    ]
    with tarfile.open(path, "w") as archive:
        for name, kind, mode, target, content in reversed(entries) if reverse else entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname, info.size = kind, mode, target, len(content)
            info.mtime, info.uid, info.gid, info.uname = mtime, 1000, 1000, "builder"
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def layer(tmp_path: Path) -> dict[str, tarfile.TarInfo]:
    write_layer(packages_tar(tmp_path / "packages.tar"), tmp_path / "layer.tar")
    with tarfile.open(tmp_path / "layer.tar") as archive:
        return {member.name: member for member in archive}


def content(tmp_path: Path, name: str) -> bytes:
    with tarfile.open(tmp_path / "layer.tar") as archive:
        found = archive.extractfile(name)
        assert found is not None
        return found.read()


def test_the_layer_holds_python_the_usual_tools_and_nothing_to_install_with(layer: dict[str, tarfile.TarInfo]) -> None:
    programs = {name for name in layer if name.startswith(("bin/", "usr/bin/"))}
    assert programs == {"usr/bin/python3", "usr/bin/python3.11", "bin/dash", "bin/sh", "bin/ls", "bin/tar"}


def test_the_layer_leaves_out_documents_tests_and_the_build_hosts_configuration(
    layer: dict[str, tarfile.TarInfo],
) -> None:
    unwanted = (
        "doc",
        "man",
        "apt",
        "dpkg",
        "resolv",
        "etc/hostname",
        "idlelib",
        "/test",
        "ensurepip",
        "sitecustomize",
        "gone",
        "EUC",
        PACKAGES_FILE,
    )
    assert [name for name in layer if any(part in name for part in unwanted)] == []
    assert {"usr/lib/x86_64-linux-gnu/gconv/UTF-16.so", "usr/share/zoneinfo/Europe/Paris"} <= set(layer)
    assert "usr/lib/python3.11/__pycache__/os.cpython-311.pyc" in layer


def test_where_the_tree_could_not_be_prepared_there_is_no_layer(tmp_path: Path) -> None:
    packages = packages_tar(tmp_path / "packages.tar")
    with tarfile.open(packages, "a") as archive:
        content = json.dumps({"refusals": ["the package x needs its postinst script: it runs y"]}).encode()
        info = tarfile.TarInfo(f"./{MADE_FILE}")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    layer = write_layer(packages, tmp_path / "layer.tar")
    assert layer.refusals == ("the package x needs its postinst script: it runs y",)
    assert layer.sha256 == ""


def test_an_image_of_ones_own_keeps_all_but_what_no_sandbox_uses(tmp_path: Path) -> None:
    write_layer(packages_tar(tmp_path / "packages.tar"), tmp_path / "layer.tar", kept_of_own)
    with tarfile.open(tmp_path / "layer.tar") as archive:
        names = set(archive.getnames())
    assert {"usr/bin/perl", "usr/bin/openssl", "usr/lib/x86_64-linux-gnu/gconv/EUC-KR.so"} <= names
    assert not any(name.startswith(("usr/share/doc", "etc/apt", "var/lib/dpkg", "etc/resolv")) for name in names)


def test_no_file_of_the_layer_has_privilege_or_can_be_written_by_others(layer: dict[str, tarfile.TarInfo]) -> None:
    for name, member in layer.items():
        assert member.type in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE), name
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", ""), name
        assert member.mtime == DEFAULT_EPOCH, name
        assert not member.mode & 0o6000, name
        assert not member.mode & 0o002 or member.issym() or name in {"app", "tmp"}, name


def test_every_mount_point_is_a_real_directory(layer: dict[str, tarfile.TarInfo]) -> None:
    for name in ("app", "dev", "etc", "proc", "run", "run/sandbox/job", "run/sandbox/lib", "sys", "tmp"):
        assert layer[name].isdir(), name
    assert layer["tmp"].mode == layer["app"].mode == 0o1777


def test_every_parent_comes_before_its_children(layer: dict[str, tarfile.TarInfo]) -> None:
    seen: set[str] = set()
    for name in layer:
        assert "/" not in name or name.rpartition("/")[0] in seen, name
        seen.add(name)


def test_certificates_are_joined_in_order_and_found_by_openssl(
    layer: dict[str, tarfile.TarInfo], tmp_path: Path
) -> None:
    assert content(tmp_path, "etc/ssl/certs/ca-certificates.crt") == b"first\nsecond\n"
    assert layer["usr/lib/ssl/cert.pem"].linkname == "/etc/ssl/certs/ca-certificates.crt"


def test_a_distribution_with_everything_below_usr_gets_its_links(layer: dict[str, tarfile.TarInfo]) -> None:
    assert layer["bin"].isdir()
    assert (layer["lib"].type, layer["lib"].linkname) == (tarfile.SYMTYPE, "usr/lib")
    assert "sbin" not in layer


def test_the_same_packages_give_the_same_bytes_whatever_their_order_and_time(tmp_path: Path) -> None:
    archives = []
    for number, reverse in enumerate((False, True)):
        packages = packages_tar(tmp_path / f"p{number}", reverse=reverse, mtime=1_000 + number)
        layer = write_layer(packages, tmp_path / f"l{number}")
        write_archive(
            layer,
            tmp_path / f"a{number}",
            labels={"podman-sandbox-runner.suite": "bookworm"},
            architecture="amd64",
            names=["x:y"],
        )
        archives.append((tmp_path / f"a{number}").read_bytes())
    assert archives[0] == archives[1]


def test_source_date_epoch_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    write_layer(packages_tar(tmp_path / "packages.tar"), tmp_path / "layer.tar")
    with tarfile.open(tmp_path / "layer.tar") as archive:
        assert {member.mtime for member in archive} == {1_700_000_000}


def test_the_archive_names_the_image_and_its_packages_and_runs_nothing(tmp_path: Path) -> None:
    layer = write_layer(packages_tar(tmp_path / "packages.tar"), tmp_path / "layer.tar")
    write_archive(
        layer,
        tmp_path / "a",
        labels={"podman-sandbox-runner.suite": "bookworm"},
        architecture="amd64",
        names=["localhost/x:latest"],
    )
    with tarfile.open(tmp_path / "a") as archive:
        manifest = json.load(cast("Any", archive.extractfile("manifest.json")))
        config = json.load(cast("Any", archive.extractfile(manifest[0]["Config"])))
        assert manifest[0]["Layers"] == [f"{layer.sha256}.tar"]
    assert manifest[0]["RepoTags"] == ["localhost/x:latest"]
    assert set(config["config"]) == {"Env", "Labels"}
    assert config["config"]["Env"] == ["PATH=/usr/local/bin:/usr/bin:/bin"]
    assert config["config"]["Labels"]["podman-sandbox-runner.suite"] == "bookworm"
    assert config["rootfs"]["diff_ids"] == [f"sha256:{layer.sha256}"]


NO_ENGINE = cast("Engine", None)


def failing_mmdebstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> BuildFailed:
    program = tmp_path / "bin" / "mmdebstrap"
    program.parent.mkdir()
    text = "\n".join(lines)
    program.write_text(f"#!/bin/sh\ncat >&2 <<'EOF'\n{text}\nEOF\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(program))
    monkeypatch.setattr(
        mmdebstrap, "host_sources", lambda: [AptSource(uri="http://x", suite="s", components=("main",))]
    )
    work = tmp_path / "work"
    with pytest.raises(BuildFailed) as caught:
        base_image.bootstrap(NO_ENGINE, suite="s", work_dir=work, progress=lambda sentence: None)
    assert list(work.iterdir()) == []
    return caught.value


@pytest.mark.parametrize(
    ("line", "cause", "hint"),
    [
        ("E: could not find any subuid range in /etc/subuid", "subordinate user ids", "sandbox doctor"),
        ("E: newuidmap failed", "subordinate user ids", "sandbox doctor"),
        ("E: Failed to fetch http://x/InRelease  Could not resolve 'x'", "can't be reached", "apt-get update"),
        ("E: Write error - write (28: No space left on device)", "disk is full", "free some space"),
        ("E: The repository 'http://x s Release' does not have a Release file.", "this suite", "--suite"),
        ("W: GPG error: http://x s InRelease: NO_PUBKEY 0123", "signature", "keyring"),
        ("E: Certificate verification failed: the certificate is NOT trusted", "not trusted", "update-ca-certificates"),
        ("E: unable to pick a user namespace: Operation not permitted", "user namespaces", "max_user_namespaces"),
    ],
)
def test_a_failed_build_gives_the_cause_and_the_fix_and_leaves_nothing(
    line: str, cause: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = failing_mmdebstrap(
        tmp_path, monkeypatch, "I: running apt-get update...", line, "E: mmdebstrap failed to run"
    )
    assert cause in error.message
    assert line in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ("E: Unable to locate package imagemagik", "imagemagik is not in the apt sources", "apt-cache search"),
        ("E: Package awk has no installation candidate", "awk is not in the apt sources", "apt-cache search"),
        ("E: Unable to locate package python3.14", "does not have Python 3.14", "python:3.14-slim"),
    ],
)
def test_a_package_that_is_not_there_is_named_alone(
    line: str, said: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = failing_mmdebstrap(
        tmp_path, monkeypatch, line, "E: Couldn't find any package by regex", "E: mmdebstrap failed"
    )
    assert said in error.message
    assert "E:" not in error.message
    assert hint in error.hint


def test_an_unknown_failure_still_shows_the_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = failing_mmdebstrap(tmp_path, monkeypatch, "something odd", "ca-certificates unshare")
    assert "ca-certificates unshare" in error.message
    assert error.facts["output"][-1] == "ca-certificates unshare"


def test_a_host_without_mmdebstrap_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BuildFailed, match="mmdebstrap is not installed") as caught:
        base_image.bootstrap(NO_ENGINE, suite="bookworm", work_dir=tmp_path / "work", progress=lambda sentence: None)
    assert "apt-get install mmdebstrap" in caught.value.hint
    assert list((tmp_path / "work").iterdir()) == []


def test_a_host_without_a_source_for_the_suite_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/bin/false")
    monkeypatch.setattr(mmdebstrap, "host_sources", list)
    with pytest.raises(BuildFailed, match="no apt source of this host carries bookworm"):
        base_image.bootstrap(NO_ENGINE, suite="bookworm", work_dir=tmp_path, progress=lambda sentence: None)


def test_too_little_space_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_image, "NEEDED_MIB", 1 << 50)
    with pytest.raises(BuildFailed, match="MiB left"):
        base_image.bootstrap(NO_ENGINE, suite="bookworm", work_dir=tmp_path, progress=lambda sentence: None)


@pytest.mark.parametrize("suite", ["", "Bookworm", "../x", "--help", "a b", "x" * 100, "book;rm"])
def test_a_suite_that_is_no_name_is_refused(suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_image, "os_release", dict)
    with pytest.raises(InvalidRequest):
        base_image.bootstrap(NO_ENGINE, suite=suite, work_dir=tmp_path, progress=lambda sentence: None)


def test_leftovers_of_a_killed_build_are_removed_and_young_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, young = tmp_path / f"{mmdebstrap.PREFIX}old", tmp_path / f"{mmdebstrap.PREFIX}young"
    for directory in (old, young):
        directory.mkdir()
        (directory / "packages.tar").write_bytes(b"x")
    os.utime(old, (1, 1))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BuildFailed):
        base_image.bootstrap(NO_ENGINE, suite="s", work_dir=tmp_path, progress=lambda sentence: None)
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


def test_an_interrupted_build_ends_what_it_started_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mmdebstrap"
    program.write_text("#!/bin/sh\nsleep 60 &\necho $! >&2\necho 'I: running something...' >&2\nwait\n")
    program.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(program))
    monkeypatch.setattr(
        mmdebstrap, "host_sources", lambda: [AptSource(uri="http://x", suite="s", components=("main",))]
    )
    work = tmp_path / "work"

    def interrupt(sentence: str) -> None:
        if sentence.startswith("running"):
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        base_image.bootstrap(NO_ENGINE, suite="s", work_dir=work, progress=interrupt)
    assert time.monotonic() - started < 10
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("brought", ["link", "directory", "nothing"])
def test_what_is_laid_into_the_tree_stays_in_it_whatever_a_package_brings(brought: str, tmp_path: Path) -> None:
    tree, outside, chroots = (tmp_path / name for name in ("tree", "outside", "chroots"))
    for directory in (tree, outside, chroots / BUILD_DIR):
        directory.mkdir(parents=True)
    (chroots / BUILD_DIR / "job.json").write_text("{}")
    if brought == "link":
        (tree / BUILD_DIR).symlink_to(outside)
    elif brought == "directory":
        (tree / BUILD_DIR).mkdir()
        (tree / BUILD_DIR / "packages").symlink_to(outside / "packages")
    hook = base_image._hook(chroots)
    answer = subprocess.run(["sh", "-c", hook, "sh", str(tree)], capture_output=True, text=True, check=False)
    assert list(outside.iterdir()) == []
    laid = (tree / BUILD_DIR / "job.json").exists()
    assert laid == (brought == "nothing"), answer.stderr
    assert ("File exists" in answer.stderr) == (brought != "nothing")
