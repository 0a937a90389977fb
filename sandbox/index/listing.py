"""Which files of a package an index has: only asked to explain a failure, never to decide anything."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.index.files import file_addresses, name_of
from sandbox.index.pip_config import Index

if TYPE_CHECKING:
    from packaging.tags import Tag
    from packaging.version import Version

__all__ = ["ListedFile", "Listing", "listing_of"]


@dataclass(frozen=True)
class ListedFile:
    """One file, as its name tells; a source archive has no tags."""

    version: Version
    tags: frozenset[Tag] = frozenset()


@dataclass(frozen=True)
class Listing:
    """The files of a package, without prereleases; none when the index does not know it, or can't be asked."""

    files: tuple[ListedFile, ...]

    def of(self, specifier: str) -> Listing:
        """Return those whose version satisfies `specifier` (">=1,<2"; any for "", or for what is none)."""
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            wanted = SpecifierSet(specifier)
        except InvalidSpecifier:
            return self
        return Listing(tuple(file for file in self.files if file.version in wanted))

    def usable(self, python: tuple[int, int] | None, *, sdists: bool) -> Listing:
        """Return the wheels for a Python such as (3, 11) on this machine, and with `sdists` the source archives."""
        fitting = None if python is None else _tags(python)
        return Listing(
            tuple(
                file
                for file in self.files
                if (file.tags and (fitting is None or not fitting.isdisjoint(file.tags))) or (sdists and not file.tags)
            )
        )

    def versions(self) -> list[str]:
        """Return the versions, oldest first."""
        return [str(version) for version in sorted({file.version for file in self.files})]

    def pythons(self) -> list[str]:
        """Return the Pythons that have a wheel for this machine, such as "3.9" (or "2" for any of it), oldest first."""
        from packaging.tags import platform_tags

        here = {"any", *platform_tags()}
        named = {
            re.fullmatch(r"(?:cp|py)(\d)(\d*)", tag.interpreter)
            for file in self.files
            for tag in file.tags
            if tag.platform in here
        }
        series = {(int(match[1]), int(match[2] or -1)) for match in named if match}
        return [f"{major}" if minor < 0 else f"{major}.{minor}" for major, minor in sorted(series)]

    def platforms(self) -> list[str]:
        """Return the machines and systems that have a wheel, such as "macosx_11_0_arm64"."""
        return sorted({tag.platform for file in self.files for tag in file.tags})


def listing_of(index: Index, package: str) -> Listing:
    """Return the files of a package."""
    from packaging import utils

    wanted = utils.canonicalize_name(package)
    found: dict[ListedFile, None] = {}
    for name in map(name_of, file_addresses(index, wanted)):
        try:
            if name.endswith(".whl"):
                file_of, version, _, tags = utils.parse_wheel_filename(name)
            else:
                (file_of, version), tags = utils.parse_sdist_filename(name), frozenset()
        except (utils.InvalidWheelFilename, utils.InvalidSdistFilename):
            continue
        if file_of == wanted and not version.is_prerelease:
            found[ListedFile(version, tags)] = None
    return Listing(tuple(found))


def _tags(python: tuple[int, int]) -> frozenset[Tag]:
    from packaging import tags

    platforms = list(tags.platform_tags())
    interpreter = f"cp{python[0]}{python[1]}"
    return frozenset(
        (
            *tags.cpython_tags(python, abis=[interpreter], platforms=platforms),
            *tags.compatible_tags(python, interpreter=interpreter, platforms=platforms),
        )
    )
