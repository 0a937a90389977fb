"""The base image, made on this host from its distribution's own packages, without a container registry.

`mmdebstrap` unpacks the packages as an ordinary user in a user namespace; `sandbox.image.base.layer` makes the
image of them. No maintainer script of a package runs.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from sandbox.engine.protocol import Engine, ImageRecord
from sandbox.errors import InvalidRequest
from sandbox.image.admission import REPOSITORY, oci_architecture
from sandbox.image.base import mmdebstrap
from sandbox.image.base.apt_sources import os_release
from sandbox.image.base.layer import LABEL_PREFIX, PACKAGES_FILE, UNUSED_MODULES, write_archive, write_layer

WHAT = "the base image"
LABEL_RECIPE = f"{LABEL_PREFIX}.recipe"
PACKAGES = ("python3", "coreutils", "dash", "ca-certificates", "libc-bin", "libstdc++6", "tzdata")
NEEDED_MIB = 600
# Says what an image was made by: one of another recipe is built again.
RECIPE = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
_LEFT_OUT_PATHS = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
)

# Runs on the image's own Python. Each file is compiled in a fresh fork of one process: what marshal writes
# depends on the objects that happen to be alive, and this way they are the same whatever came before.
_COMPILE = f"""
import os, py_compile, sys
top = os.path.dirname(os.__file__)
skipped = {set(UNUSED_MODULES)!r}
files = []
for directory, names, found in os.walk(top):
    names[:] = sorted(name for name in names if name not in skipped and name != "__pycache__")
    files += [os.path.join(directory, name) for name in sorted(found) if name.endswith(".py")]
running = 0
def finish():
    if os.wait()[1]:
        sys.exit("a module of the standard library could not be compiled")
for path in files:
    if running >= (os.cpu_count() or 1):
        finish()
        running -= 1
    if os.fork() == 0:
        status = 1
        try:
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(path, doraise=True, invalidation_mode=mode)
            status = 0
        finally:
            os._exit(status)
    running += 1
for _ in range(running):
    finish()
"""


def bootstrap(engine: Engine, *, suite: str | None, work_dir: Path, progress: Callable[[str], None]) -> ImageRecord:
    """Build the base image, load it and return it; `progress` gets one short sentence per step.

    `suite` is a release of the distribution (None: the host's own); `work_dir` holds files during the build.
    Raises `BuildFailed` with the reason and the fix, `InvalidRequest` for a suite that is no name.
    """
    wanted = suite or os_release().get("VERSION_CODENAME", "")
    if not re.fullmatch(r"[a-z][a-z0-9.-]{0,40}", wanted):
        raise InvalidRequest(
            f"{wanted!r} is not the name of a distribution release",
            hint="name one, for example: sandbox image bootstrap --suite bookworm",
        )
    with mmdebstrap.scratch_directories(WHAT, work_dir, needed_mib=NEEDED_MIB) as (scratch, chroots):
        packages = scratch / "packages.tar"
        progress(f"fetching and unpacking the {wanted} packages of Python")
        mmdebstrap.unpack(
            packages, what=WHAT, suite=wanted, packages=PACKAGES, options=_options(), chroots=chroots, progress=progress
        )
        progress("writing the image")
        try:
            layer = write_layer(packages, scratch / "layer.tar")
            packages.unlink()
            archive = scratch / "image.tar"
            names = [f"{REPOSITORY}:latest", f"{REPOSITORY}:{wanted}"]
            labels = {f"{LABEL_PREFIX}.suite": wanted, LABEL_RECIPE: RECIPE}
            write_archive(layer, archive, labels=labels, architecture=oci_architecture(), names=names)
        except OSError as error:
            raise mmdebstrap.write_failure(WHAT, error) from None
        progress("loading it into Podman")
        return engine.load(archive)


def _options() -> list[str]:
    """Return what mmdebstrap is told beyond suite and packages."""
    left_out = [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT_PATHS]
    return ["--variant=extract", *left_out, f"--extract-hook={_hook()}"]


def _hook() -> str:
    """Return the shell commands that run on the unpacked tree (`$1`), as its root user."""
    inside = (
        "env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 "
        f'chroot "$1" /usr/bin/python3 -S -s -c {shlex.quote(_COMPILE)}'
    )
    merge = (
        'for d in bin sbin lib lib64; do if [ ! -e "$1/$d" ] && [ -d "$1/usr/$d" ]; '
        'then ln -s "usr/$d" "$1/$d"; fi; done'
    )
    listing = f'ls "$1/var/cache/apt/archives" | grep "\\.deb$" > "$1/{PACKAGES_FILE}"'
    return f"set -e; {merge}; {listing}; {inside}"
