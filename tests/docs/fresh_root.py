"""A fresh machine without a machine: a minimal root of a Debian release.

It is entered by namespaces, with the host's network. Root makes it, for the mounts: user namespaces, which rootless
Podman needs in it, can't be made in a mere chroot. All that tells how to reach packages (apt's sources and keys, pip's
configuration, certificates, proxies) is the host's, copied when a root is used and never kept in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandbox import places
from sandbox.image.base import mmdebstrap
from sandbox.image.base.apt_sources import host_sources, os_release, sources_for, with_key_files
from sandbox.index.pip_config import read_index

HERE = Path(__file__).parent
# What a reader has: a way to root, a way to download.
PACKAGES = ("sudo", "ca-certificates", "curl")
KEPT_S = 7 * 86_400.0  # so that it is not too far from the archive's state
NEEDED_MIB = 2_000
READER = "reader"
HOME = f"home/{READER}"
BUNDLE = "etc/ssl/certs/ca-certificates.crt"
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")


def archive(release: str) -> Path:
    """Return a tar file with the packages of a minimal root, from the cache unless it is too old."""
    cache = places.private_directory(places.cache_dir() / "roots")
    key = hashlib.sha256(json.dumps([release, PACKAGES]).encode()).hexdigest()[:16]
    kept = cache / f"{release}-{key}.tar"
    if not kept.is_file() or time.time() - kept.stat().st_mtime > KEPT_S:
        with mmdebstrap.scratch_directories(f"a root of {release}", cache, needed_mib=NEEDED_MIB) as (scratch, chroots):
            made = scratch / "root.tar"
            mmdebstrap.unpack(
                made,
                what=f"a root of {release}",
                suite=release,
                packages=PACKAGES,
                chroots=chroots,
                mode="root",
                options=["--variant=minbase"],
                progress=lambda _: None,
            )
            for old in cache.glob(f"{release}-*.tar"):
                old.unlink()
            made.rename(kept)
    return kept


class FreshRoot:
    """A root with nothing but its packages and an ordinary user who may use sudo; commands are called in it."""

    def __init__(self, directory: Path, release: str) -> None:
        self.path = directory
        self.release = release
        self._locals = tuple(path for path in read_index(os.environ, places.home()).local_paths if path.is_dir())
        self._init: subprocess.Popen[str] | None = None
        self._pid = 0

    def __enter__(self) -> FreshRoot:
        subprocess.run(["tar", "-C", self.path, "--numeric-owner", "-xpf", archive(self.release)], check=True)
        self.path.chmod(0o755)
        self._connect_to_packages()
        for path in self._locals:
            self._inside(path).mkdir(parents=True, exist_ok=True)
        # As process 1 of its own pid namespace it takes everything along when it ends, which it does with this process.
        self._init = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--propagation=private", "--",
             "bash", HERE / "enter.sh", self.path, *self._locals],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip # a command line
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == "ready\n", "the root could not be entered"
        self._pid = int(Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()[0])
        self.call("useradd", "--create-home", "--shell", "/bin/bash", READER)
        self.write("etc/sudoers.d/reader", f"{READER} ALL=(ALL) NOPASSWD: ALL\n")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._init is not None
        assert self._init.stdin is not None
        self._init.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._init.wait(10)
        self._init.kill()
        self._init.wait()
        assert self._init.stdout is not None
        self._init.stdout.close()

    def call(self, *command: str, timeout_s: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Call a command as root, in the root and with none of this process's variables."""
        return subprocess.run(
            ["nsenter", "--target", str(self._pid), "--mount", "--pid", "--ipc", "--uts", "--root", "--wd", "env", "-i",
             "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=timeout_s, check=check,
        )  # fmt: skip # a command line

    def login(self, command: str, *, timeout_s: float = 600.0, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Call a shell command as the reader, as after `su -`: no session, no runtime directory."""
        return self.call("su", "-", READER, "-c", command, timeout_s=timeout_s, check=check)

    def write(self, name: str, text: str) -> None:
        """Write a file of root's."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def take(self, source: Path, name: str, *, leave_out: Sequence[str] = ()) -> None:
        """Copy a directory of the host into the reader's home."""
        target = self.path / HOME / name
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*leave_out), symlinks=True)
        self.call("chown", "--recursive", f"{READER}:", f"/{HOME}/{name}")

    def _inside(self, path: Path) -> Path:
        return self.path / path.relative_to("/")

    def _connect_to_packages(self) -> None:
        self.write("etc/hosts", "127.0.0.1 localhost fresh\n::1 localhost\n")
        for name in ("etc/resolv.conf",):
            self.write(name, Path("/", name).read_text())
        index = read_index(os.environ, places.home())
        shutil.copyfile(index.certificate or mmdebstrap.HOST_CERTIFICATES, self.path / BUNDLE)
        settings = {
            "index-url": "".join(index.urls[:1]),
            "extra-index-url": " ".join(index.urls[1:]),
            "find-links": " ".join(index.find_links),
            "trusted-host": " ".join(index.trusted_hosts),
            "cert": f"/{BUNDLE}",
        }
        self.write(
            "etc/pip.conf", "[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items() if value)
        )
        self.write("etc/environment", "".join(f"{name}={os.environ[name]}\n" for name in PROXIES if name in os.environ))
        release = os_release()
        sources = sources_for(
            self.release,
            host_sources(),
            distribution=release.get("ID", ""),
            codename=release.get("VERSION_CODENAME", ""),
        )
        keys = self.path / "etc/apt/keyrings"
        keys.mkdir(exist_ok=True)
        lines = [source.line().replace(f"{self.path}/", "/") + "\n" for source in with_key_files(sources, keys)]
        self.write("etc/apt/sources.list.d/0000sources.list", "".join(lines))
        for source in sources:
            key = Path(source.signed_by)
            if key.is_absolute() and key.is_file() and not self._inside(key).exists():
                shutil.copyfile(key, self._inside(key))
        self.write("etc/apt/apt.conf.d/99mmdebstrap", "".join(f"{option}\n" for option in mmdebstrap.apt_options()))


@contextlib.contextmanager
def fresh_root(release: str) -> Iterator[FreshRoot]:
    """Yield a root of a release; all of it is gone afterwards."""
    # On disk, and not where a home would be refused as a place of packages.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix=f"sandbox-docs-{release}-") as outer:
        root = Path(outer, "root")
        root.mkdir()
        with FreshRoot(root, release) as found:
            yield found
