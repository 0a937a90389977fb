"""Locks: exactly which files an environment is made of, each with its hash.

A resolution happens inside a sandbox, so its `pylock.toml` (PEP 751) is a stranger's text: its size, and what grows
faster than it, is bounded before `packaging.pylock` checks it by the standard, and then `from_pylock` believes nothing
of it but addresses and hashes whose form it has checked. Ours is a `pylock.toml` too, one file per package, so other
tools can read it. No I/O.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

from pydantic import Field, ValidationError, model_validator

from sandbox.environment.allowed_hashes import AllowedHashes
from sandbox.environment.locked_package import MAX_TAGS, Kind, LockedFile, LockedPackage, tags_count
from sandbox.environment.requirements import without_hashes
from sandbox.errors import BuildFailed
from sandbox.printable import printable
from sandbox.toml_mistakes import Strict

if TYPE_CHECKING:
    from packaging.pylock import Package, PackageSdist, PackageWheel, Pylock

__all__ = ["Lock", "LockedFile", "LockedPackage", "from_pylock"]

TOOL = "podman-sandbox-runner"
FILE = "pylock.toml"
MAX_LOCK_BYTES = 2 << 20
MAX_LINE_CHARS = 65_536
# TOML readers take time that grows with the square of a dotted key.
MAX_DOTS = 5
MAX_PACKAGES = 1_000
MAX_WHEELS = 500
MARK_CHARS = 16

Requirement = Annotated[str, Field(max_length=50_000, pattern=r"^[ -~]+$")]  # with hundreds of hashes

_CPYTHON = re.compile(r"\bcp(\d)(\d+)-")
_ANEW = "make the lock anew: sandbox env lock --upgrade"


class Lock(Strict):
    """The files of an environment for one Python series, by package name, and the requirements they fulfil."""

    packages: Annotated[tuple[LockedPackage, ...], Field(max_length=MAX_PACKAGES)]
    python: Annotated[str, Field(pattern=r"^3\.[0-9]{1,2}$")]
    requirements: Annotated[tuple[Requirement, ...], Field(max_length=MAX_PACKAGES)]

    @model_validator(mode="after")
    def _every_package_once(self) -> Lock:
        names = [package.name for package in self.packages]
        for name, following in itertools.pairwise(names):
            if name >= following:
                raise ValueError(
                    f"the package {following} is there twice, or stands behind {name}, out of the order of names"
                )
        return self

    @property
    def hash(self) -> str:
        """`sha256:…` of everything but addresses and sizes: the same files from another mirror are the same lock."""
        content = {
            "python": self.python,
            "requirements": self.requirements,
            "packages": [_locked(package) for package in self.packages],
        }
        return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def as_toml(self) -> str:
        """Return the lock as a `pylock.toml` (PEP 751)."""
        import tomli_w

        ours = {
            "hash": self.hash,
            "python": self.python,
            "requirements": self.requirements,
            "packages": [_mark(package) for package in self.packages],
        }
        return tomli_w.dumps(
            {
                "lock-version": "1.0",
                "created-by": TOOL,
                "requires-python": f"=={self.python}.*",
                "packages": [_written(package) for package in self.packages],
                "tool": {TOOL: ours},
            }
        )

    def as_requirements_txt(self) -> str:
        """Return one `name==version --hash=sha256:…` per line, as `pip install --require-hashes` takes it."""
        return "".join(
            f"{package.name}=={package.version} --hash=sha256:{package.file.sha256}\n" for package in self.packages
        )

    @classmethod
    def from_toml(cls, text: str) -> Lock:
        """Read what `as_toml` wrote. Raises `BuildFailed` for anything else, with the line or the package."""
        data = _parsed(text)
        ours = _table(_table(data, "tool"), TOOL)
        if not ours:
            raise BuildFailed(
                f"{FILE} has no table [tool.{TOOL}]: it was not made by this program",
                hint="make one from the libraries: sandbox env lock",
            )
        packages = []
        for package in _standard(data).packages:
            # A resolution may have one: uv repeats a dependency's marker for the environment that it has resolved for.
            if package.marker is not None:
                raise _bad(package, "depends on the machine: the lock was made for several")
            files = _files(package)
            if len(files) != 1:
                raise _bad(package, f"has {len(files)} files, and a lock names exactly one")
            packages.append(_locked_package(package, *files[0]))
        lock = _lock(packages, ours.get("python"), ours.get("requirements"))
        if lock.hash != ours.get("hash"):
            line = text[: text.rfind(f"[tool.{TOOL}]")].count("\n") + 2
            raise _changed(lock, line, ours.get("packages"))
        return lock


def from_pylock(text: bytes, *, tags: Sequence[str], requirements: Sequence[str], allow_sdists: bool) -> Lock:
    """Choose one file per package from a resolution's `pylock.toml`: the wheel whose tag comes first in `tags`.

    `tags` are those of `wheel_tags.target_tags`. A source archive is taken where no wheel fits and `allow_sdists` says
    so. Raises `BuildFailed` with the package's name, and for text that is not such a file.
    """
    if len(text) > MAX_LOCK_BYTES:
        raise BuildFailed(f"the resolution has more than {MAX_LOCK_BYTES >> 20} MiB", hint="ask for fewer libraries")
    try:
        data = _parsed(text.decode())
    except UnicodeDecodeError:
        raise BuildFailed("the resolution is not UTF-8 text", hint="try again") from None
    order = {tag: position for position, tag in reversed(list(enumerate(tags)))}
    python = re.sub(r"^cp(\d)(\d+)-.*", r"\1.\2", tags[0])
    hashes = AllowedHashes(requirements)
    packages = [_chosen(one, order, python, hashes, allow_sdists=allow_sdists) for one in _standard(data).packages]
    packages.sort(key=lambda package: package.name)
    lock = _lock(packages, python, list(requirements))
    _check_fulfilled(lock)
    return lock


def _parsed(text: str) -> dict[str, Any]:
    """Parse TOML, in time that its size bounds."""
    from sandbox.toml_file import parse

    def invalid(line: int | str, reason: str) -> BuildFailed:
        return BuildFailed(f"{FILE}:{line}: {_package_at(text, int(line))}{reason}", hint=_ANEW)

    if len(text) > MAX_LOCK_BYTES:
        raise invalid(1, f"has more than {MAX_LOCK_BYTES >> 20} MiB")
    for number, line in enumerate(text.split("\n"), 1):
        bare = re.sub(r'"(?:\\.|[^"\\])*"|\'[^\']*\'|#.*', "", line)
        strange = re.search(r"[\"'\\]", bare) or '"""' in line or "'''" in line
        if len(line) > MAX_LINE_CHARS or bare.count(".") > MAX_DOTS or strange:
            raise invalid(number, "is not a line that a lock has")
    try:
        return parse(text)
    except RecursionError:
        raise invalid(1, "is nested too deeply") from None
    except ValueError as problem:
        found = re.search(r" \(at line (\d+), column \d+\)$", str(problem))
        raise invalid(found[1] if found else text.count("\n") + 1, "is not valid TOML") from None


def _package_at(text: str, line: int) -> str:
    """Return "in the package NAME: " for a line that stands in one's table, and nothing for another."""
    above = "\n".join(text[:MAX_LOCK_BYTES].split("\n")[:line])
    headers = re.findall(r"^\[+([a-z-]*)", above, re.MULTILINE)
    block = above[above.rfind("[[packages]]") :] if headers and headers[-1] == "packages" else ""
    name = re.match(r'\[\[packages\]\]\s*\nname = "([a-z0-9-]{1,100})', block)
    return f"in the package {name[1]}: " if name else ""


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _standard(data: dict[str, Any]) -> Pylock:
    """Return the lock as the standard reads it.

    It is of version 1, for one environment, and each package is of an index and there once.
    """
    from packaging.pylock import Pylock, PylockValidationError

    entries = _bounded(data)
    try:
        lock = Pylock.from_dict({"packages": [], **data})
    except PylockValidationError as problem:
        found = re.match(r"packages\[(\d+)\]\.?(.*)", problem.context or "")
        reason = f"{found[2] if found else problem.context or 'it'}: {printable(problem.message, 200)}"
        if found and isinstance(entries[int(found[1])].get("name"), str):
            raise _bad(entries[int(found[1])], f"is not locked as it should be: {reason}") from None
        raise BuildFailed(f"{FILE}: {reason}", hint=_ANEW) from None
    names = set()
    for package in lock.packages:
        if package.name in names:
            raise _bad(package, "is there twice")
        names.add(package.name)
        if package.is_direct:
            raise _bad(package, "does not come from a package index")
    return lock


def _bounded(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of the packages once nothing in them can take longer to check than it is long."""
    entries = data.get("packages", [])
    if data.get("lock-version") != "1.0" or not isinstance(entries, list) or len(entries) > MAX_PACKAGES:
        raise BuildFailed(f"{FILE} is not a lock of version 1.0 with at most {MAX_PACKAGES} packages", hint=_ANEW)
    for entry in entries:
        if not isinstance(entry, dict):
            raise BuildFailed(f"{FILE} has a package that is not described by a table", hint=_ANEW)
        wheels = entry.get("wheels", [])
        if not isinstance(wheels, list) or len(wheels) > MAX_WHEELS:
            raise _bad(entry, f"has no list of at most {MAX_WHEELS} wheels")
        if not wheels and not {"sdist", "vcs", "directory", "archive"} & entry.keys():
            raise _no_file([], entry, "")
        for wheel in wheels:
            names = [wheel.get(key) for key in ("name", "path", "url")] if isinstance(wheel, dict) else []
            if any(isinstance(name, str) and tags_count(unquote(name)) > MAX_TAGS for name in names):
                raise _bad(entry, f"has a wheel with more than {MAX_TAGS} tags")
    return entries


def _files(package: Package) -> list[tuple[Kind, PackageWheel | PackageSdist]]:
    wheels: list[tuple[Kind, PackageWheel | PackageSdist]] = [("wheel", wheel) for wheel in package.wheels or ()]
    return [*wheels, ("sdist", package.sdist)] if package.sdist else wheels


def _locked_package(package: Package, kind: Kind, file: PackageWheel | PackageSdist) -> LockedPackage:
    content = {
        "name": file.filename,
        "url": file.url,
        "sha256": file.hashes.get("sha256"),
        "size_bytes": file.size,
        "kind": kind,
    }
    version = package.version and str(package.version)
    try:
        return LockedPackage.model_validate({"name": package.name, "version": version, "file": content})
    except ValidationError as problem:
        raise _bad(package, f"is not locked as it should be: {_reason(problem)}") from None


def _lock(packages: list[LockedPackage], python: object, requirements: object) -> Lock:
    asked = tuple(requirements) if isinstance(requirements, list) else requirements
    try:
        return Lock.model_validate({"packages": tuple(packages), "python": python, "requirements": asked})
    except ValidationError as problem:
        raise BuildFailed(f"{FILE}: {_reason(problem)}", hint=_ANEW) from None


def _chosen(
    entry: Package, order: dict[str, int], python: str, hashes: AllowedHashes, *, allow_sdists: bool
) -> LockedPackage:
    """Return the package with its best file among those whose hashes are allowed.

    The best has the earliest tag, then the highest build number.
    """
    from packaging.utils import parse_wheel_filename

    packages = hashes.among([_locked_package(entry, kind, file) for kind, file in _files(entry)])
    ranked = []
    for package in (package for package in packages if package.file.kind == "wheel"):
        _, _, build, tags = parse_wheel_filename(package.file.name)
        if positions := [order[str(tag)] for tag in tags if str(tag) in order]:
            ranked.append(((min(positions), -(build[0] if build else 0), package.file.name), package))
    if ranked:
        return min(ranked, key=lambda one: one[0])[1]
    sources = [package for package in packages if package.file.kind == "sdist"]
    if sources and allow_sdists:
        return sources[0]
    raise _no_file(packages, entry, python)


def _no_file(packages: list[LockedPackage], entry: Package | Mapping[str, Any], python: str) -> BuildFailed:
    wheels = [package.file.name for package in packages if package.file.kind == "wheel"]
    if not wheels:
        what = "has only a source archive" if packages else "has no file at all"
        return _bad(
            entry,
            what,
            hint="ask for a version that has a wheel, or use a policy with build.allow_sdists = true",
        )
    series = {(int(major), int(minor)) for name in wheels for major, minor in _CPYTHON.findall(name)}
    pythons = [f"{major}.{minor}" for major, minor in sorted(series)]
    if pythons and python not in pythons:
        return _bad(
            entry,
            f"has no wheel for Python {python}, only for Python {', '.join(pythons)}",
            hint="ask for another version of it, or use an image with such a Python",
            pythons=pythons,
        )
    platforms = sorted({name.removesuffix(".whl").rpartition("-")[2] for name in wheels})
    return _bad(
        entry,
        f"has no wheel for this machine, only for {', '.join(platforms[:10])}",
        hint="ask for another version of it, or use an image with another system library",
        platforms=platforms,
    )


def _check_fulfilled(lock: Lock) -> None:
    """A resolution must give what was asked for; requirements that depend on the machine may be left out."""
    from packaging.requirements import Requirement

    found = {package.name: package for package in lock.packages}
    for text in lock.requirements:
        wanted = Requirement(without_hashes(text))
        package = found.get(wanted.name)
        if wanted.marker:
            continue
        if package is None or not wanted.specifier.contains(package.version, prereleases=True):
            what = f"{package.name} {package.version}" if package else "nothing"
            raise BuildFailed(f"the resolution has {what} for {wanted}", hint="try again; the resolution is not kept")


def _locked(package: LockedPackage) -> tuple[str, ...]:
    """Return what of a package the lock's hash is of."""
    return package.name, package.version, package.file.kind, package.file.name, package.file.sha256


def _mark(package: LockedPackage) -> str:
    """Return a package's name with a short hash, by which one that was edited is told from the others."""
    return f"{package.name} {hashlib.sha256(json.dumps(_locked(package)).encode()).hexdigest()[:MARK_CHARS]}"


def _changed(lock: Lock, line: int, marks: object) -> BuildFailed:
    """Return the error of a lock that is not what its hash says, with the first package that differs."""
    made = marks if isinstance(marks, list) else []
    edited = [package for package in lock.packages if _mark(package) not in made] if made else []
    gone = {str(mark).partition(" ")[0] for mark in made} - {package.name for package in lock.packages}
    what = f"its content has the hash {lock.hash}"
    if edited:
        what = f"the package {edited[0].name} {edited[0].version} is not the one that was locked"
    elif gone:
        what = f"the package {min(gone)[:100]!a} was taken out"
    name = edited[0].name if edited else min(gone)[:100] if gone else None
    return BuildFailed(f"{FILE}:{line}: the lock was changed after it was made: {what}", hint=_ANEW, package=name)


def _bad(entry: Package | Mapping[str, Any], what: str, *, hint: str = "", **facts: Any) -> BuildFailed:
    raw = entry if isinstance(entry, Mapping) else {"name": entry.name, "version": entry.version and str(entry.version)}
    name, version = printable(str(raw.get("name", "without a name")), 100), raw.get("version")
    shown = f"{name} {version}" if isinstance(version, str) and re.fullmatch(r"[\w.!+-]{1,100}", version) else name
    return BuildFailed(f"the package {shown} {what}", hint=hint or _ANEW, package=name, **facts)


def _reason(problem: ValidationError) -> str:
    first = problem.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return (f"{where}: " if where else "") + first["msg"].removeprefix("Value error, ")


def _written(package: LockedPackage) -> dict[str, Any]:
    """Return a package's table of the file."""
    file = package.file
    size = {} if file.size_bytes is None else {"size": file.size_bytes}
    table = {"name": file.name, "url": file.url, **size, "hashes": {"sha256": file.sha256}}
    files = {"wheels": [table]} if file.kind == "wheel" else {"sdist": table}
    return {"name": package.name, "version": package.version, **files}
