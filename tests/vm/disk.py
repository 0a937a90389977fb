"""The machine's disk: Debian 13 with a current Podman, kept until its inputs change.

It is built from the host's own package sources by an ordinary user: mmdebstrap unpacks in a user namespace, `podman
unshare` gives the files their owners.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import BuildFailed
from sandbox.image.base import mmdebstrap
from sandbox.image.base.apt_sources import os_release

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # from 3.11 on it is in the library

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
WHAT = "the virtual machine"
SUITE = "trixie"
PYTHON = "3.13"  # of that suite: the wheels are fetched on the host, for the machine
PIECE = 1 << 20
SIZE = "8G"  # sparse: what is not written takes no space
NEEDED_MIB = 3_500
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "dbus-user-session", "udev", "kmod", "procps", "iproute2", "sudo", "e2fsprogs",
    "podman", "crun", "runc", "uidmap", "passt", "fuse-overlayfs", "netavark", "catatonit", "libseccomp2",
    "mmdebstrap", "python3", "python3-venv", "ca-certificates",
)  # fmt: skip # a table
# The installer's manual pages and the like; half of the unpacking time under emulation is files that nobody reads.
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
KERNELS = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"}


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A built machine: its root file system, kernel and initial file system."""

    directory: Path

    @property
    def image(self) -> Path:
        """Return the ext4 file system, a raw disk without partitions."""
        return self.directory / "disk.img"

    @property
    def kernel(self) -> Path:
        """Return the kernel, loaded by QEMU itself."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Return the initial file system: it has the driver of the disk."""
        return self.directory / "initrd"

    @property
    def contents(self) -> Path:
        """Return what the others contained when they were written, as hashes."""
        return self.directory / "contents.json"


def requirements() -> list[str]:
    """Return what the machine's Python needs: the project's dependencies and those of its tests."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


def overlay() -> Iterator[tuple[str, bytes]]:
    """Yield the files that are laid over the packages, as (name, content)."""
    guest = HERE / "guest"
    for path in sorted(path for path in guest.rglob("*") if path.is_file()):
        yield path.relative_to(guest).as_posix(), path.read_bytes()
    yield "prepare.sh", (HERE / "prepare.sh").read_bytes()


def key() -> str:
    """Return a name for the inputs: another one means another disk."""
    parts = [SUITE, PYTHON, SIZE, *PACKAGES, *LEFT_OUT, platform.machine(), *requirements()]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for name, content in overlay():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def digest(path: Path) -> str:
    """Return a hash of a file's content in time that goes with what was written: a disk is mostly holes."""
    found = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb", buffering=0) as file:
        end = 0
        while True:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # there is no more
                    raise
                return found.hexdigest()
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            # By pieces that begin at multiples of their size, and are not empty: where holes are is up to the file
            # system.
            for place in range(begin - begin % PIECE, end, PIECE):
                piece = os.pread(file.fileno(), PIECE, place)
                if piece.strip(b"\0"):
                    found.update(f"{place}\n".encode() + piece)
            end += -end % PIECE


def content(disk: Disk) -> dict[str, str]:
    """Return the hash of each file of a disk."""
    return {path.name: digest(path) for path in (disk.image, disk.kernel, disk.initrd)}


def cached(cache: Path) -> Disk | None:
    """Return the disk for the present inputs; None when it must be built: it is absent, or not as it was written."""
    disk = Disk(directory=cache / key())
    try:
        return disk if json.loads(disk.contents.read_text()) == content(disk) else None
    except (OSError, ValueError):
        return None


def build(cache: Path, wheels: Path, progress: Callable[[str], None]) -> Disk:
    """Build the disk, and drop those of other inputs. `wheels` has all that `requirements()` need.

    Raises `BuildFailed` with the reason and the fix.
    """
    if platform.machine() not in KERNELS:
        raise BuildFailed(f"there is no virtual machine for {platform.machine()}", hint="use amd64 or arm64")
    if os_release().get("ID") != "debian":
        raise BuildFailed(
            "the virtual machine is built from Debian's packages, and this host has other sources",
            hint="run the tests without it: scripts/test --no-vm",
        )
    with mmdebstrap.scratch_directories(WHAT, cache, needed_mib=NEEDED_MIB) as (scratch, chroots):
        inputs, packages, made = scratch / "inputs.tar", scratch / "packages.tar", scratch / "made"
        made.mkdir()
        pack(inputs, wheels)
        progress(f"fetching and unpacking Debian {SUITE}, with Podman and systemd")
        mmdebstrap.unpack(
            packages,
            what=WHAT,
            suite=SUITE,
            packages=(KERNELS[platform.machine()], *PACKAGES),
            chroots=chroots,
            progress=progress,
            options=[
                "--variant=minbase",
                *(f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT),
                # The namespace's root is another user here, so files come in through mmdebstrap itself.
                f"--customize-hook=tar-in {inputs} /",
                '--customize-hook=env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 chroot "$1" sh /prepare.sh',
            ],
        )
        take_kernel(packages, made)
        progress("writing the disk")
        write_ext4(packages, scratch / "root", made / "disk.img")
        packages.unlink()
        made_disk = Disk(directory=made)
        made_disk.contents.write_text(json.dumps(content(made_disk)))
        for old in cache.iterdir():
            if old.is_dir() and len(old.name) == len(key()):
                shutil.rmtree(old, ignore_errors=True)
        made.rename(cache / key())
    return Disk(directory=cache / key())


def pack(target: Path, wheels: Path) -> None:
    """Write the overlay and the wheels as one tar file that belongs to root."""
    with tarfile.open(target, "w") as archive:
        listing = "".join(f"{line}\n" for line in requirements()).encode()
        files = [*overlay(), ("wheels/requirements.txt", listing)]
        files += [(f"wheels/{path.name}", path.read_bytes()) for path in sorted(wheels.glob("*.whl"))]
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))


def take_kernel(packages: Path, target: Path) -> None:
    """Copy the kernel and its initial file system out of the packages: QEMU starts them itself."""
    wanted = {"vmlinuz-": "vmlinuz", "initrd.img-": "initrd"}
    with tarfile.open(packages) as archive:
        for member in archive:
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            for start, short in wanted.items():
                if folder == "boot" and name.startswith(start) and member.isfile():
                    stream = archive.extractfile(member)
                    assert stream is not None
                    with (target / short).open("wb") as out:
                        shutil.copyfileobj(stream, out)
    missing = sorted(short for short in wanted.values() if not (target / short).exists())
    if missing:
        raise BuildFailed(f"the kernel package has no {' and no '.join(missing)}", hint="report this")


def write_ext4(packages: Path, root: Path, image: Path) -> None:
    """Make a file system of the packages, with their owners: in the user's own range of ids, as Podman does."""
    # Device nodes can't be made here; the kernel mounts a /dev of its own.
    script = (
        'set -e; mkdir "$2"; tar -C "$2" --exclude=\'./dev/*\' --numeric-owner -xf "$1";'
        f' /sbin/mke2fs -q -t ext4 -E root_owner=0:0 -d "$2" "$3" {SIZE}; rm -rf "$2"'
    )
    command = ["podman", "unshare", "sh", "-c", script, "sh", str(packages), str(root), str(image)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        start_new_session=True,
    ) as process:
        try:
            _, complaints = process.communicate(timeout=600)
        except BaseException as error:
            # All of them: what works in the namespace does not end with the program that made it.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise BuildFailed("the disk was not written within 600 s", hint="try again on a quieter host") from None
            raise
    if process.returncode != 0:
        raise BuildFailed(
            f"the disk can't be written: {complaints.strip()[-500:]}",
            hint="as root: apt-get install e2fsprogs; free 3 GiB",
        )
