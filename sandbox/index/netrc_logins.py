"""The logins of an index in a netrc file. pip reads them through requests, and so does this module."""

from __future__ import annotations

import netrc
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

__all__ = ["logins"]

NAMES = (".netrc", "_netrc")


def logins(environ: Mapping[str, str], home: Path) -> Callable[[str], str]:
    """Return what gives an address the login of its host, unless it has one: from $NETRC, or else the home's file.

    A file that can't be read, or is none, says nothing, as for pip.
    """
    named = environ.get("NETRC")
    paths = (
        [home / name for name in NAMES]
        if named is None
        else [home / named[2:] if named.startswith("~/") else Path(named)]
    )
    try:
        known = netrc.netrc(str(next(path for path in paths if path.exists())))
    except (StopIteration, netrc.NetrcParseError, OSError, UnicodeDecodeError):
        return lambda url: url

    def with_login(url: str) -> str:
        parts = urlsplit(url)
        found = known.authenticators(parts.hostname) if parts.scheme in ("http", "https") and parts.hostname else None
        if found is None or "@" in parts.netloc:
            return url
        user, account, password = found
        login = f"{quote(user or account or '', safe='')}:{quote(password or '', safe='')}"
        return urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc}"))

    return with_login
