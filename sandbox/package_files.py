"""Where the files of one package lie at an index, remote or on this disk. Whoever uses one checks its hash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from sandbox.errors import SandboxError
from sandbox.index import Index
from sandbox.simple_page import page_links

__all__ = ["file_addresses", "name_of"]

TIMEOUT_S = 10


def file_addresses(index: Index, package: str) -> Iterator[str]:
    """Yield the addresses of a package's files, and perhaps of others, without user names. What can't be asked adds none."""
    from packaging.utils import canonicalize_name

    for place in (*(f"{url}/{canonicalize_name(package)}/" for url in index.urls), *index.find_links):
        try:
            found = _on_disk(place) if place.startswith("file://") else page_links(index, place, TIMEOUT_S)
            yield from map(_bare, found)
        except (SandboxError, OSError, ValueError):
            continue


def name_of(address: str) -> str:
    """Return the name of the file that an address leads to."""
    return unquote(urlsplit(address).path.rpartition("/")[2])


def _on_disk(place: str) -> list[str]:
    """Return the addresses that a local page links to, or of the files in a directory without one."""
    path = Path(unquote(urlsplit(place).path))
    page = path / "index.html" if path.is_dir() else path
    if page.exists():
        links = re.findall(r"href\s*=\s*[\"']([^\"']+)", page.read_text(errors="replace"))
        return [urljoin(page.as_uri(), link) for link in links]
    return [file.as_uri() for file in path.iterdir()] if path.is_dir() else []


def _bare(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
