"""Images made on this host from its distribution's own packages, without a container registry.

These are the base image, and images of one's own, which have more packages and locales.
`mmdebstrap` unpacks the packages as an ordinary user in a user namespace; `sandbox.inside.image_tree` makes there what
their scripts would have made, and `sandbox.image.base.layer` makes the image. No maintainer script of a package runs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox.engine.protocol import Engine, ImageRecord
from sandbox.errors import BuildFailed, InvalidRequest
from sandbox.image.admission import REPOSITORY, oci_architecture
from sandbox.image.base import mmdebstrap
from sandbox.image.base.apt_sources import os_release
from sandbox.image.base.layer import (
    BUILD_DIR,
    LABEL_PREFIX,
    PACKAGES_FILE,
    kept,
    kept_of_own,
    write_archive,
    write_layer,
)
from sandbox.image.base.recipe import SUITE, Recipe

WHAT = "the base image"
LABEL_RECIPE = f"{LABEL_PREFIX}.recipe"
LABEL_ASKED = f"{LABEL_PREFIX}.asked"
PACKAGES = (
    "python3", "coreutils", "dash", "ca-certificates", "libc-bin", "libstdc++6", "libgomp1", "tzdata", "netbase",
    "base-files", "bash", "debianutils", "findutils", "grep", "gzip", "hostname", "mawk", "sed", "tar",
)  # fmt: skip # a table
# Packages may use these without naming them as a dependency: dpkg's own rule for what is essential.
ESSENTIAL = ("bsdutils", "diffutils", "ncurses-base", "perl-base", "util-linux")
NEEDED_MIB = 600
OWN_NEEDED_MIB = 2_000
# Says what an image was made by: one of another recipe is built again.
RECIPE = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
TREE_PROGRAMS = Path(__file__).parents[2] / "inside/image_tree"
_LEFT_OUT_PATHS = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
)


@dataclass(frozen=True, kw_only=True)
class _Build:
    """One image to be made: what goes in, what is kept of it, and what it is called."""

    what: str
    suite: str
    packages: tuple[str, ...]
    job: Mapping[str, list[str]]
    keep: Callable[[str], bool]
    names: Iterable[str]
    labels: Mapping[str, str]
    needed_mib: int
    wanted: frozenset[str] = frozenset()


def bootstrap(engine: Engine, *, suite: str | None, work_dir: Path, progress: Callable[[str], None]) -> ImageRecord:
    """Build the base image, load it and return it; `progress` gets one short sentence per step.

    `suite` is a release of the distribution (None: the host's own); `work_dir` holds files during the build.
    Raises `BuildFailed` with the reason and the fix, `InvalidRequest` for a suite that is no name.
    """
    wanted = _suite(suite)
    build = _Build(
        what=WHAT,
        suite=wanted,
        packages=PACKAGES,
        # Each of its files is chosen by us: what else the scripts of its packages would make, it doesn't have.
        job={"accepted": ["*"], "python": [], "locales": [], "checked": []},
        keep=kept,
        names=[f"{REPOSITORY}:latest", f"{REPOSITORY}:{wanted}"],
        labels={f"{LABEL_PREFIX}.suite": wanted, LABEL_RECIPE: RECIPE},
        needed_mib=NEEDED_MIB,
    )
    return _make(engine, build, work_dir, progress)


def build_own(
    engine: Engine, recipe: Recipe, *, name: str, work_dir: Path, progress: Callable[[str], None]
) -> ImageRecord:
    """Build the image that a checked recipe asks for, load it as `name` and return it.

    Raises `BuildFailed` with what a package would need that can't be made here.
    """
    wanted = _suite(recipe.suite)
    python = [] if recipe.python is None else [recipe.python]
    build = _Build(
        what=f"the image {name}",
        suite=wanted,
        packages=(
            *PACKAGES, *ESSENTIAL, *(["locales"] if recipe.locales else []), *(f"python{p}" for p in python),
            *recipe.packages,
        ),
        job={"accepted": list(recipe.accept), "python": python, "locales": list(recipe.locales), "checked": ["all"]},
        keep=kept_of_own,
        names=[name],
        labels={f"{LABEL_PREFIX}.suite": wanted, LABEL_RECIPE: own_recipe(recipe), LABEL_ASKED: recipe.text()},
        needed_mib=OWN_NEEDED_MIB,
        wanted=frozenset((*recipe.packages, *(f"python{p}" for p in python))),
    )  # fmt: skip # a list of packages
    return _make(engine, build, work_dir, progress)


def own_recipe(recipe: Recipe) -> str:
    """Return what an image that was made by this recipe and this program has as its label."""
    return recipe.digest(RECIPE)


def _suite(suite: str | None) -> str:
    wanted = suite or os_release().get("VERSION_CODENAME", "")
    if not SUITE.fullmatch(wanted):
        raise InvalidRequest(
            f"{wanted!r} is not the name of a distribution release",
            hint="name one, for example: sandbox image bootstrap --suite bookworm",
        )
    return wanted


def _make(engine: Engine, build: _Build, work_dir: Path, progress: Callable[[str], None]) -> ImageRecord:
    with mmdebstrap.scratch_directories(build.what, work_dir, needed_mib=build.needed_mib) as (scratch, chroots):
        packages = scratch / "packages.tar"
        _provide(chroots, build.job)
        progress(f"fetching and unpacking the {build.suite} packages")
        mmdebstrap.unpack(
            packages,
            what=build.what,
            suite=build.suite,
            packages=build.packages,
            options=_options(chroots),
            chroots=chroots,
            progress=progress,
        )
        progress("writing the image")
        try:
            layer = write_layer(packages, scratch / "layer.tar", build.keep)
            packages.unlink()
            _refuse(build, layer.refusals, {name.partition("_")[0] for name in layer.packages})
            archive = scratch / "image.tar"
            write_archive(layer, archive, labels=build.labels, architecture=oci_architecture(), names=build.names)
            layer.path.unlink()
        except OSError as error:
            raise mmdebstrap.write_failure(build.what, error) from None
        progress("loading it into Podman")
        return engine.load(archive)


def _refuse(build: _Build, refusals: tuple[str, ...], unpacked: set[str]) -> None:
    """Raise where the tree could not be prepared, or lacks a package that was asked for (a name may be a pattern)."""
    if missing := sorted(build.wanted - unpacked):
        raise BuildFailed(
            f"{build.what} can't be built: {build.suite} has no package {', '.join(missing)} by exactly that name",
            hint="apt-cache search WORD finds names of packages",
        )
    if not refusals:
        return
    scripts = any(refusal.startswith("the package ") for refusal in refusals)
    raise BuildFailed(
        f"{build.what} can't be built: {'; '.join(refusals)}",
        hint="scripts of packages never run; if you can do without what this one makes, name its package with --accept"
        if scripts
        else "choose another package, locale or release (--suite), or pull an image that has it",
        reasons=list(refusals),
    )


def _provide(chroots: Path, job: Mapping[str, list[str]]) -> None:
    """Lay the programs that prepare the tree, and what they are told, where the mapped users can read them."""
    try:
        programs = chroots / BUILD_DIR / "sandbox/inside/image_tree"
        programs.mkdir(parents=True)
        for path in sorted(TREE_PROGRAMS.glob("*.py")):
            shutil.copyfile(path, programs / path.name)
        (chroots / BUILD_DIR / "job.json").write_text(json.dumps(job), encoding="utf-8")
        for path in (chroots / BUILD_DIR, *(chroots / BUILD_DIR).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    except OSError as error:
        raise mmdebstrap.write_failure("the image", error) from None


def _options(chroots: Path) -> list[str]:
    """Return what mmdebstrap is told beyond suite and packages."""
    left_out = [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT_PATHS]
    # Everything below /usr, as on an installed system, whether the packages say so or not.
    merged = 'set -e; for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done'
    return ["--variant=extract", *left_out, f"--setup-hook={merged}", f"--extract-hook={_hook(chroots)}"]


def _hook(chroots: Path) -> str:
    """Return the shell commands that run on the unpacked tree (`$1`), as its root user."""
    inside = (
        "env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 "
        f'PYTHONPATH=/{BUILD_DIR} chroot "$1" /usr/bin/python3 -S -s -m sandbox.inside.image_tree.prepare'
    )
    debs = '"$1"/var/cache/apt/archives'
    # mkdir, since a package could bring a link of that name, which leads out of the tree.
    made = f'mkdir "$1/{BUILD_DIR}"; mkdir "$1/{BUILD_DIR}/control"'
    provided = f'{made}; cp -R {chroots}/{BUILD_DIR}/. "$1/{BUILD_DIR}"'
    listing = f'ls {debs} | grep "\\.deb$" > "$1/{PACKAGES_FILE}"'
    scripts = (
        f'for deb in {debs}/*.deb; do name=${{deb##*/}}; dpkg-deb --control "$deb" '
        f'"$1/{BUILD_DIR}/control/${{name%%_*}}"; done'
    )
    return f"set -e; {provided}; {listing}; {scripts}; {inside}"
