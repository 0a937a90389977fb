"""Addresses in pages of an index, and the hosts that they name. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

PORTS = {"http": 80, "https": 443}


def hosts_of(urls: Iterable[str]) -> tuple[str, ...]:
    """Return `host:port` of those URLs that have one, each once."""
    found: dict[str, None] = {}
    for url in urls:
        try:
            parts = urlsplit(url)
            if parts.scheme in PORTS and parts.hostname:
                host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
                found[f"{host}:{parts.port or PORTS[parts.scheme]}"] = None
        except ValueError:  # a port that is no number, a bracket that is not closed
            continue
    return tuple(found)


class PageLinks(HTMLParser):
    """Collects the addresses that a page links to (PEP 503)."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self._base = base
        self._based = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of a link, or of what links are relative to."""
        href = dict(attrs).get("href")
        try:
            if tag == "base" and href and not self._based:
                self._base, self._based = urljoin(self._base, href), True
            elif tag == "a" and href:
                self.urls.append(urljoin(self._base, href))
        except ValueError:  # an address that is none
            return
