"""Which addresses a webhook may go to, from rules of the configuration. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from sandbox.egress.addresses import address_problem
from sandbox.errors import InvalidRequest

MAX_URL_CHARS = 2_000
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to: scheme, host (a name in lower case, or an address), port, path, and the whole as it is asked for."""

    scheme: str
    host: str
    port: int
    path: str
    url: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Return scheme, host and port."""
        return self.scheme, self.host, self.port


def address_of(url: str) -> Address:
    """Return what a URL asks for.

    Raises `InvalidRequest` for what could be read in two ways, or hides a second address.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong(url, "is no URL") from None
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise wrong(url, "has characters that no URL has, or is too long")
    if parts.scheme not in PORTS or not parts.hostname:
        raise wrong(url, "is no http or https URL")
    if parts.username is not None or parts.password is not None or "#" in url:
        raise wrong(url, "has a user or a fragment")
    host = re.sub(r":[0-9]*$", "", parts.netloc.lower())
    if host not in (parts.hostname, f"[{parts.hostname}]") or port == 0:
        raise wrong(url, "has something beside its host and port, which could mean another one")
    path = parts.path or "/"
    # Some servers take what follows a semicolon off each part of a path.
    steps = [step.partition(";")[0] for step in path[1:].split("/")]
    if "%" in path or "" in steps[:-1] or {".", ".."} & {*steps}:
        raise wrong(url, "has a path with dots, empty parts or escapes, which could mean another one")
    return Address(
        scheme=parts.scheme, host=parts.hostname.lower(), port=port or PORTS[parts.scheme], path=path, url=url
    )


def wrong(url: str, problem: str) -> InvalidRequest:
    """Return why a URL is not taken."""
    return InvalidRequest(f"the webhook {url[:200]!r} {problem}", hint="write for example http://127.0.0.1:1880/ended")


def allows(rule: Address, wanted: Address) -> bool:
    """Tell whether a rule covers an address: same scheme, host and port, and a path at or below its own."""
    below = rule.path if rule.path.endswith("/") else f"{rule.path}/"
    return rule.origin == wanted.origin and (wanted.path == rule.path or wanted.path.startswith(below))


def refused(host: str, address: str, own: Collection[str] = ()) -> str | None:
    """Return why a name may not lead to an address; None where it may. `own` are the addresses of this host."""
    if host == "localhost":
        return None if ip_address(address).is_loopback else f"{address}, which is not this host"
    return address_problem(address, exceptions=(), own=own)
