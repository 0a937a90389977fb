"""Which versions of a package an index has: only asked to explain a failure, never to decide anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sandbox.errors import SandboxError
from sandbox.index import Index
from sandbox.simple_page import page_links

if TYPE_CHECKING:
    from packaging.version import Version

__all__ = ["published_versions"]

TIMEOUT_S = 10


def published_versions(index: Index, package: str, *, python: tuple[int, int] | None = None) -> list[str]:
    """Return the versions of a package, oldest first; with `python`, only those with a wheel for it on this machine.

    Prereleases are left out. Empty when the index does not know the package, or can't be asked.
    """
    from packaging import utils

    wanted = utils.canonicalize_name(package)
    fitting = _tags(python) if python else None
    found: set[Version] = set()
    for file in _file_names(index, wanted):
        try:
            if not file.endswith(".whl"):
                name, version = utils.parse_sdist_filename(file)
                fits = fitting is None
            else:
                name, version, _, tags = utils.parse_wheel_filename(file)
                fits = fitting is None or not fitting.isdisjoint(map(str, tags))
        except (utils.InvalidWheelFilename, utils.InvalidSdistFilename):
            continue
        if fits and name == wanted and not version.is_prerelease:
            found.add(version)
    return [str(version) for version in sorted(found)]


def _file_names(index: Index, package: str) -> Iterator[str]:
    """Yield the names of the files of a package, and perhaps of others."""
    for place in (*(f"{url}/{package}/" for url in index.urls), *index.find_links):
        try:
            if not place.startswith("file://"):
                yield from (_last_part(link) for link in page_links(index, place, TIMEOUT_S))
                continue
            path = Path(unquote(urlsplit(place).path))
            page = path / "index.html" if path.is_dir() else path
            if page.exists():
                links = re.findall(r"href\s*=\s*[\"']([^\"']+)", page.read_text(errors="replace"))
                yield from map(_last_part, links)
            elif path.is_dir():
                yield from (file.name for file in path.iterdir())
        except (SandboxError, OSError):
            continue


def _last_part(link: str) -> str:
    return unquote(urlsplit(link).path.rpartition("/")[2])


def _tags(python: tuple[int, int]) -> frozenset[str]:
    from packaging import tags

    platforms = list(tags.platform_tags())
    interpreter = f"cp{python[0]}{python[1]}"
    return frozenset(
        map(
            str,
            (
                *tags.cpython_tags(python, abis=[interpreter], platforms=platforms),
                *tags.compatible_tags(python, interpreter=interpreter, platforms=platforms),
            ),
        )
    )
