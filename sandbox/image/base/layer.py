"""From unpacked distribution packages to one small, reproducible image layer.

What the base image keeps is listed here, everything else is left out: Python with its standard library, `sh`, the
programs of coreutils and those that work on text and archives, the shared libraries they need, time zones and
certificates. An image of one's own keeps all but documentation and what serves to install and to run a machine.
The same packages give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.inside.image_tree.compiling import UNUSED_MODULES

# 2020-01-01: zip files can't hold dates before 1980, so zero would break programs that archive files.
DEFAULT_EPOCH = 1_577_836_800
BUILD_DIR = "sandbox-build"
PACKAGES_FILE = f"{BUILD_DIR}/packages"
MADE_FILE = f"{BUILD_DIR}/made.json"
PATH_VARIABLE = "PATH=/usr/local/bin:/usr/bin:/bin"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
LABEL_PREFIX = "podman-sandbox-runner"

_COREUTILS = """
    [ arch b2sum base32 base64 basename basenc cat chgrp chmod chown cksum comm cp csplit cut date dd df
    dir dircolors dirname du echo env expand expr factor false fmt fold groups head hostid id install
    join link ln logname ls md5sum mkdir mkfifo mktemp mv nice nl nohup nproc numfmt od paste pathchk
    pinky pr printenv printf ptx pwd readlink realpath rm rmdir seq sha1sum sha224sum sha256sum
    sha384sum sha512sum shred shuf sleep sort split stat stdbuf stty sum sync tac tail tee test timeout
    touch tr true truncate tsort tty uname unexpand uniq unlink users vdir wc who whoami yes
"""
# What programs start by name: text, archives, and the linker's cache, by which ctypes finds libraries.
_TOOLS = """
    awk bash egrep fgrep find grep gunzip gzip hostname ldconfig ldconfig.real mawk sed tar which which.debianutils
    xargs zcat
"""
_PROGRAMS = frozenset((_COREUTILS + _TOOLS).split())
_PROGRAM = re.compile(r"(?:usr/)?s?bin/(?P<name>[^/]+)")
_PYTHON = re.compile(r"(python|python3|python3\.\d+|sh|dash)")
_KEPT = re.compile(
    r"(usr/)?lib(64|32|x32)?/[^/]*\.so[^/]*"
    r"|(usr/)?lib/[^/]+-linux-[^/]+/.*"
    r"|usr/lib/python3(\.\d+)?/.*"
    r"|usr/lib/locale/C\.(utf8|UTF-8)/.*"
    r"|usr/lib/ssl/.*|etc/ssl/openssl\.cnf|etc/mime\.types"
    r"|etc/(protocols|services|rpc|ethertypes|os-release|debian_version|ld\.so\.(cache|conf|conf\.d/.*))|usr/lib/os-release"
    r"|etc/alternatives/awk"
    r"|usr/libexec/coreutils/.*|usr/share/zoneinfo/.*"
)
_LEFT_OUT = re.compile(
    rf"usr/share/zoneinfo/localtime|usr/lib/python3[^/]*/({'|'.join(UNUSED_MODULES)})/.*"
    r"|usr/lib/python3[^/]*/sitecustomize\.py|usr/lib/python3[^/]*/(__pycache__/)?sitecustomize\..*"
    r"|usr/share/zoneinfo/(posix|right)/.*"
    r"|.*/gconv/(?!(gconv-modules|ISO8859-1|ISO8859-15|CP1252|UTF-16|UTF-32|UTF-7)(\.so)?$).*"
    r"|usr/lib/ssl/(private|misc)(/.*)?"
)
# Of an image of one's own, what has no use in a sandbox: documents, sources, records of packages, services, and what
# the build host has put there.
_NEVER = re.compile(
    rf"{BUILD_DIR}(/.*)?|usr/share/(doc|man|info|locale|lintian|i18n|doc-base|bug|menu|bash-completion|zsh|fish)/.*"
    r"|(boot|dev|home|media|mnt|proc|root|run|srv|sys|tmp)(/.*)?|usr/src/.*|usr/share/zoneinfo/localtime"
    r"|etc/(apt|cron[^/]*|default|dpkg|init\.d|kernel|logrotate\.d|pam\.d|rc.\.d|skel|systemd|sysctl\.d|udev)(/.*)?"
    r"|etc/(hostname|resolv\.conf|mtab|machine-id|fstab|g?shadow-?|passwd-?|group-?|subuid-?|subgid-?|\.pwd\.lock)"
    r"|(usr/)?lib/(systemd|udev|init|modules|firmware)(/.*)?|usr/lib/python3[^/]*/(test|ensurepip)/.*"
    r"|var/(?!lib/).*|var/lib/(apt|dpkg|systemd|pam|ucf)(/.*)?"
)
# Every place that a sandbox mounts something on, as a real directory.
_DIRECTORIES = {
    "app": 0o1777, "dev": 0o755, "etc": 0o755, "proc": 0o555, "run": 0o755, "run/sandbox": 0o755,
    "run/sandbox/job": 0o755, "run/sandbox/lib": 0o755, "sys": 0o555, "tmp": 0o1777, "usr/local/bin": 0o755,
}  # fmt: skip # a table
_FILES = {
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": (
        "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\nnetworks: files\n"
    ),
    "etc/timezone": "Etc/UTC\n",
}
_LINKS = {"etc/localtime": "/usr/share/zoneinfo/Etc/UTC", "etc/mtab": "/proc/self/mounts"}
_MERGED = ("bin", "sbin", "lib", "lib64")


@dataclass
class LayerPlan:
    """What goes into the layer, by path without a leading slash; later entries win."""

    files: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    directories: dict[str, int] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    def names(self) -> set[str]:
        """Return every path of the layer."""
        return {*self.files, *self.content, *self.links, *self.directories}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer on disk; `sha256` is of the uncompressed tar (its diff id)."""

    path: Path
    sha256: str
    size_bytes: int
    packages: tuple[str, ...]
    refusals: tuple[str, ...] = ()

    @property
    def packages_sha256(self) -> str:
        """Return a digest of which versions of which packages went in."""
        return hashlib.sha256("\n".join(self.packages).encode()).hexdigest()


def epoch() -> int:
    """Return the time that every file of the image carries: `SOURCE_DATE_EPOCH`, or a fixed one."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isdigit() else DEFAULT_EPOCH


def kept(path: str) -> bool:
    """Say whether a file or link of the packages belongs in the image."""
    program = _PROGRAM.fullmatch(path)
    if program is not None:
        return program["name"] in _PROGRAMS or _PYTHON.fullmatch(program["name"]) is not None
    return _KEPT.fullmatch(path) is not None and _LEFT_OUT.fullmatch(path) is None


def kept_of_own(path: str) -> bool:
    """Say whether a file or link of the packages belongs in an image of one's own."""
    return _NEVER.fullmatch(path) is None


def plan_layer(packages: tarfile.TarFile, keep: Callable[[str], bool] = kept) -> LayerPlan:
    """Choose from the unpacked packages and add what every image has."""
    plan = LayerPlan()
    certificates: dict[str, bytes] = {}
    for member in packages:
        path = member.name.removeprefix("./").strip("/")
        if path.startswith("usr/share/ca-certificates/") and path.endswith(".crt"):
            certificates[path] = _read(packages, member)
        elif path == PACKAGES_FILE:
            plan.packages = tuple(sorted(_read(packages, member).decode().split()))
        elif path == MADE_FILE:
            plan.refusals = tuple(json.loads(_read(packages, member))["refusals"])
        elif path in _MERGED:
            continue
        elif member.issym() and keep(path):
            plan.links[path] = member.linkname
        elif (member.isreg() or member.islnk()) and keep(path):
            plan.files[path] = member
    plan.links.update(_LINKS)
    plan.content.update((path, text.encode()) for path, text in _FILES.items())
    for path in plan.content:
        plan.links.pop(path, None)
    _drop_orphaned_bytecode(plan)
    plan.content[CERTIFICATES] = b"".join(certificates[path].strip() + b"\n" for path in sorted(certificates))
    # OpenSSL looks here by itself; the hashed directory that it would also take needs a maintainer script.
    plan.links["usr/lib/ssl/cert.pem"] = f"/{CERTIFICATES}"
    for name in _MERGED:
        prefix = f"{name}/"
        if not any(path.startswith(prefix) for path in plan.names()) and any(
            path.startswith(f"usr/{prefix}") for path in plan.names()
        ):
            plan.links[name] = f"usr/{name}"
    for path in plan.names() | set(_DIRECTORIES):
        plan.directories.update((parent, 0o755) for parent in _parents(path))
    plan.directories.update(_DIRECTORIES)
    return plan


def write_layer(packages: Path, target: Path, keep: Callable[[str], bool] = kept) -> Layer:
    """Write the layer made from the tar of unpacked packages `packages` to `target`.

    Where the preparation of the tree refused, nothing is written, and the layer has the `refusals`.
    """
    with (
        tarfile.open(packages, "r:") as source,
        tarfile.open(target, "w:", format=tarfile.PAX_FORMAT) as layer,
    ):
        plan = plan_layer(source, keep)
        if plan.refusals:
            return Layer(path=target, sha256="", size_bytes=0, packages=plan.packages, refusals=plan.refusals)
        for path in sorted(plan.names()):
            info = tarfile.TarInfo(path)
            info.mtime = epoch()
            if path in plan.links:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, plan.links[path], 0o777
                layer.addfile(info)
            elif path in plan.directories:
                info.type, info.mode = tarfile.DIRTYPE, plan.directories[path]
                layer.addfile(info)
            else:
                member = plan.files.get(path)
                content = plan.content[path] if member is None else _read(source, member)
                info.mode = 0o755 if member is not None and member.mode & 0o100 else 0o644
                info.size = len(content)
                layer.addfile(info, io.BytesIO(content))
    return Layer(
        path=target,
        sha256=sha256_of(target),
        size_bytes=target.stat().st_size,
        packages=plan.packages,
    )


def write_archive(
    layer: Layer, target: Path, *, labels: Mapping[str, str], architecture: str, names: Iterable[str]
) -> None:
    """Write a docker-archive with this one layer to `target`; `names` are `repository:tag`."""
    created = _timestamp(epoch())
    config = {
        "architecture": architecture,
        "config": {
            "Env": [PATH_VARIABLE],
            "Labels": {f"{LABEL_PREFIX}.packages": f"sha256:{layer.packages_sha256}", **labels},
        },
        "created": created,
        "history": [{"created": created, "created_by": f"{LABEL_PREFIX} image bootstrap"}],
        "os": "linux",
        "rootfs": {"diff_ids": [f"sha256:{layer.sha256}"], "type": "layers"},
    }
    config_json = json.dumps(config, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(config_json).hexdigest()}.json"
    manifest = [{"Config": config_name, "Layers": [f"{layer.sha256}.tar"], "RepoTags": list(names)}]
    with tarfile.open(target, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            (config_name, config_json),
            ("manifest.json", json.dumps(manifest, sort_keys=True).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), epoch()
            archive.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo(f"{layer.sha256}.tar")
        info.size, info.mtime = layer.size_bytes, epoch()
        with layer.path.open("rb") as content_file:
            archive.addfile(info, content_file)


def _drop_orphaned_bytecode(plan: LayerPlan) -> None:
    for path in [path for path in plan.files if path.endswith(".pyc")]:
        directory, _, name = path.rpartition("/__pycache__/")
        if f"{directory}/{name.split('.')[0]}.py" not in plan.files:
            del plan.files[path]


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    return content.read() if content is not None else b""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _timestamp(seconds: int) -> str:
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
