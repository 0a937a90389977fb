"""Which files the hashes of a request allow. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sandbox.environment.requirements import HASHED_HINT
from sandbox.errors import BuildFailed

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from sandbox.environment.locked_package import LockedPackage


class AllowedHashes:
    """The hashes that requirements allow. As in pip, one that has some makes them binding for every package."""

    def __init__(self, requirements: Sequence[str]) -> None:
        from packaging.requirements import Requirement

        self._allowed: dict[str, list[tuple[Requirement, set[str]]]] = {}
        for text in requirements:
            bare, *hashes = text.split(" --hash=sha256:")
            if hashes:
                wanted = Requirement(bare)
                self._allowed.setdefault(wanted.name, []).append((wanted, set(hashes)))

    def among(self, packages: Sequence[LockedPackage]) -> list[LockedPackage]:
        """Return those files of one package that may be taken. Raises `BuildFailed` for none."""
        if not self._allowed or not packages:
            return list(packages)
        first = packages[0]
        # One library may be asked for several times, for this Python and for that.
        asked = [
            (one, hashes)
            for one, hashes in self._allowed.get(first.name, ())
            if one.specifier.contains(first.version, prereleases=True)
        ]
        if not asked:
            raise BuildFailed(
                f"the package {first.name} {first.version} is needed and has no hash in the requirements, where others"
                " have one",
                hint=HASHED_HINT,
                package=first.name,
            )
        fitting = [package for package in packages if any(package.file.sha256 in hashes for _, hashes in asked)]
        if not fitting:
            raise BuildFailed(
                f"the file {first.file.name} has none of the hashes that {asked[0][0]} allows: it has"
                f" {first.file.sha256}",
                hint="correct the hashes, or find out who changed the file",
                package=first.name,
            )
        return fitting
