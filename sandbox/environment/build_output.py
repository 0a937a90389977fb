"""What a build takes from its sandboxes: only what was asked for, and each file only when its check agrees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandbox.environment.locked_package import LockedPackage
from sandbox.environment.tree import TreeDecoder, TreeLimits, TreeRefused
from sandbox.environment.wheel_cache import FileCache, HashCheck, Incoming
from sandbox.errors import BuildFailed


class Fetched:
    """Takes fetched files: what the lock names, each checked against its hash, and a wheel of every source archive.

    `built` is the name of each such wheel by package; it lies in `wheels`. `work` is for files that are not complete.
    """

    def __init__(self, cache: FileCache, packages: Sequence[LockedPackage], *, wheels: Path, work: Path) -> None:
        self._cache = cache
        self._wheels = wheels
        self._work = work
        self._packages = tuple(packages)
        self._expected = {package.file.name: package for package in packages}
        self._sources = {package.name: package for package in packages if package.file.kind == "sdist"}
        self.built: dict[str, str] = {}

    def open(self, name: str, _size: int) -> Incoming:
        """Return where a file goes. Raises `BuildFailed` for one that nobody asked for."""
        package = self._expected.pop(name, None)
        if package is not None:
            return self._cache.receive(package.file.sha256, HashCheck(name, package.file.sha256), self._work, name=name)
        source = next((one for one in self._sources.values() if one.name not in self.built and is_of(name, one)), None)
        if source is not None:
            self.built[source.name] = name
            return Incoming(self._wheels / name, _Anything(), self._work, name=name)
        raise BuildFailed(f"the sandbox handed over a file {name!r} that was not requested", hint="report this")

    def check_complete(self) -> None:
        """Raise `BuildFailed` unless every file came whole, and one wheel of every source archive."""
        for package in self._packages:
            built = self.built.get(package.name, "") if package.name in self._sources else None
            if self._cache.find(package.file.sha256) is None or (
                built is not None and not (self._wheels / built).is_file()
            ):
                what = package.file.name if built is None else f"a wheel of {package.file.name}"
                raise BuildFailed(f"{what} was not handed over", hint="try again; report this if it repeats")


def is_of(wheel: str, package: LockedPackage) -> bool:
    """Tell whether a file's name is that of a wheel of this package and version."""
    from packaging.utils import canonicalize_name, parse_wheel_filename
    from packaging.version import Version

    try:
        name, version, _, _ = parse_wheel_filename(wheel)
    except ValueError:
        return False
    return canonicalize_name(name) == package.name and version == Version(package.version)


class PackageTree:
    """Accepts a tree that may become part of an environment; the error names the package."""

    def __init__(self, limits: TreeLimits, package: LockedPackage) -> None:
        self._decoder = TreeDecoder(limits)
        self._package = package

    def feed(self, data: bytes, /) -> None:
        """Check the next piece."""
        with self._named():
            self._decoder.feed(data)

    def finish(self) -> None:
        """Check that it is complete."""
        with self._named():
            self._decoder.finish()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except TreeRefused as error:
            package = f"{self._package.name} {self._package.version}"
            raise TreeRefused(f"{package}: {error.message}", hint=error.hint, **error.facts) from None


class _Anything:
    """Accepts a wheel that was built just now: no lock can know its hash."""

    def feed(self, data: bytes, /) -> None:
        """Look at nothing."""

    def finish(self) -> None:
        """Accept."""
