"""Where the files of one package lie at an index, remote or on this disk. Whoever uses one checks its hash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from sandbox.errors import BuildFailed, SandboxError
from sandbox.index.links import PORTS, hosts_of
from sandbox.index.pages import page_links
from sandbox.index.pip_config import Index

__all__ = ["discover_file_hosts", "file_addresses", "name_of"]

TIMEOUT_S = 10


def file_addresses(index: Index, package: str) -> Iterator[str]:
    """Yield the addresses of a package's files, and perhaps of others, without user names.

    What can't be asked adds none.
    """
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


MAX_HOSTS = 32


def discover_file_hosts(index: Index, package: str, *, timeout_s: float = 10) -> tuple[str, ...]:
    """Return `host:port` of the servers that `package`'s files, and the pages themselves, come from.

    Asks every remote index and page of links; one without the package adds nothing. `timeout_s` bounds each wait,
    and six times as much each page. Raises `BuildFailed` with the host and the reason.
    """
    from packaging.utils import canonicalize_name

    name = canonicalize_name(package)
    pages = [(f"{url}/{name}/", "") for url in index.urls] + [(url, name) for url in index.find_links]
    found: dict[str, None] = {}
    for url, wanted in pages:
        if urlsplit(url).scheme in PORTS:
            links = page_links(index, url, timeout_s)
            files = [
                link for link in links if not wanted or canonicalize_name(link.rpartition("/")[2]).startswith(wanted)
            ]
            # A page links to thousands of files of a few servers: what follows the third slash tells nothing, and takes
            # long.
            found |= dict.fromkeys(hosts_of(dict.fromkeys("/".join(link.split("/", 3)[:3]) for link in files)))
    if len(found) > MAX_HOSTS:
        raise BuildFailed(
            f"the files of {name} are spread over {len(found)} hosts, more than {MAX_HOSTS}",
            hint="configure pip to use one index that serves them",
        )
    return tuple(found)
