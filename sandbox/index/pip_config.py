"""Where this host gets Python packages from: pip's own configuration, read as pip reads it.

Nothing here names a host: where nothing is configured, pip itself is asked for its own. Addresses may hold
passwords: `Index.public` is what messages and logs are made of. https://pip.pypa.io/en/stable/topics/configuration/
"""

from __future__ import annotations

import configparser
import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from sandbox.errors import InvalidRequest
from sandbox.index.client_certificate import client_certificate, client_pem
from sandbox.index.links import PageLinks, hosts_of
from sandbox.index.netrc_logins import logins
from sandbox.places import home
from sandbox.proxies import DIRECT, Proxies, read_proxies

__all__ = ["LOGIN_HINT", "Index", "as_pip_environment", "environment_for_handover", "read_index", "read_sources"]

VARIABLES = (
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CERT", "PIP_TRUSTED_HOST",
    "PIP_CONFIG_FILE", "PIP_PROXY", "PIP_CLIENT_CERT", "PIP_CONSTRAINT",
)  # fmt: skip # a table
BUNDLES = ("etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt")
FIRST_PERSON = 1000
LOGIN_HINT = (
    "check user name and password: in the address in pip's configuration (https://USER:PASSWORD@HOST/simple), or in"
    " ~/.netrc (machine HOST login USER password PASSWORD); both of the user who installs, which is the service's own"
    " where one runs"
)
# What else of pip's configuration chooses files. Nobody here follows it, and to pass it over would install others.
CHOOSES = (
    "abi", "ignore-requires-python", "implementation", "no-binary", "no-deps", "platform", "pre", "python-version",
    "require-hashes", "requirement", "uploaded-prior-to",
)  # fmt: skip # a list
NO = frozenset(("0", "n", "no", "f", "false", "off"))
ARCHIVES = (".whl", ".tar.gz", ".zip")
# Of an index on disk, this much is looked at to learn where its files lie.
MAX_LOCAL_PAGES = 200
MAX_LOCAL_PAGE_BYTES = 256 << 10


@dataclass(frozen=True, kw_only=True)
class Index:
    """The package sources of a host: `urls` with the main one first, pages or directories of files, and trust.

    Every local source is a `file://` URL. Without `urls`, only `find_links` are used. `proxies` lead to the remote
    ones, `proxy` being pip's own setting; `client_certificate` is a file with the certificate and the key that this
    host shows to them. `constraints` are the files with versions that a resolution keeps to.
    """

    urls: tuple[str, ...] = field(repr=False)
    find_links: tuple[str, ...] = field(default=(), repr=False)
    certificate: Path | None = None
    trusted_hosts: tuple[str, ...] = ()
    proxy: str = field(default="", repr=False)
    proxies: Proxies = DIRECT
    client_certificate: Path | None = None
    constraints: tuple[Path, ...] = ()

    @property
    def local_paths(self) -> tuple[Path, ...]:
        """Directories that a sandbox needs to see, read-only and under the same paths, to use the local sources.

        An index whose pages lead to files elsewhere is offered from their common parent on. Raises `InvalidRequest`
        rather than offer `/` or a directory that holds a home.
        """
        found: list[Path] = []
        for url in (*self.urls, *self.find_links):
            if (path := _local_path(url)) is not None and _holds_a_home(path):
                raise _too_much(path)  # before anything in it is looked at
            wanted = _directories_of(url)
            if not wanted:
                continue
            common = Path(os.path.commonpath(wanted))
            found += sorted(wanted) if len(common.parts) <= 2 or _holds_a_home(common) else [common]
        for path in found:
            if _holds_a_home(path):
                raise _too_much(path)
        return tuple(path for path in dict.fromkeys(found) if not set(path.parents) & set(found))

    @property
    def remote_hosts(self) -> tuple[str, ...]:
        """`host:port` of every index and page of links that is reached over the network."""
        return hosts_of((*self.urls, *self.find_links))

    def client_bytes(self) -> bytes:
        """Return the certificate and the key that this host shows, as PEM; nothing where it shows none."""
        return client_pem(self.client_certificate) if self.client_certificate else b""

    def public(self) -> Index:
        """Return the same without user names and passwords."""
        return replace(self, urls=tuple(map(_bare, self.urls)), find_links=tuple(map(_bare, self.find_links)))

    def trusts(self, url: str) -> bool:
        """Tell whether `trusted_hosts` has the host of `url`, whose certificate then isn't checked."""
        return bool({urlsplit(url).hostname, *hosts_of([url])} & set(self.trusted_hosts))


def read_index(environ: Mapping[str, str], home: Path, root: Path = Path("/")) -> Index:
    """Return the same as `read_sources`, with what leads there.

    Raises `InvalidRequest` also for what is no proxy, and for a setting that chooses files and is not followed.
    """
    _check_followed(_settings(environ, home, root))
    index = read_sources(environ, home, root)
    return replace(index, proxies=read_proxies(environ, pip=index.proxy))


def read_sources(environ: Mapping[str, str], home: Path, root: Path = Path("/")) -> Index:
    """Return what pip would use for a user with this environment and home. `root` stands before system files.

    Raises `InvalidRequest` for a file that can't be read: going on without it could ask another index.
    """
    settings = _settings(environ, home, root)
    # What is neither yes nor no, and an error in pip, asks no index either.
    no_index = settings.get("no-index", "no").strip().lower() not in NO
    urls = (
        [] if no_index else [settings.get("index-url") or default_url(), *settings.get("extra-index-url", "").split()]
    )
    with_login = logins(environ, home)
    return Index(
        urls=tuple(dict.fromkeys(with_login(_as_url(url, home).rstrip("/")) for url in urls)),
        find_links=tuple(
            dict.fromkeys(with_login(_as_url(url, home)) for url in settings.get("find-links", "").split())
        ),
        certificate=_certificate(settings.get("cert", ""), environ, home, root),
        trusted_hosts=tuple(dict.fromkeys(settings.get("trusted-host", "").split())),
        proxy=settings.get("proxy", "").strip(),
        client_certificate=client_certificate(settings.get("client-cert", ""), home),
        constraints=tuple(_constraint(name, home) for name in settings.get("constraint", "").split()),
    )


def default_url() -> str:
    """Return the index that pip itself uses where nothing is configured.

    Raises `InvalidRequest` where pip can't say.
    """
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        raise InvalidRequest(
            "no package index is configured, and pip is not there to tell its own",
            hint="set index-url in pip.conf, or PIP_INDEX_URL",
        ) from None
    return str(PyPI.simple_url)


def host_certificates() -> Path | None:
    """Return the host's bundle of certificate authorities, as pip is told of it, for programs in sandboxes."""
    return read_sources(os.environ, home()).certificate


def as_pip_environment(index: Index) -> dict[str, str]:
    """Return the variables with which pip uses `index`, credentials included, and no configuration file."""
    values = (
        "".join(index.urls[:1]),
        " ".join(index.urls[1:]),
        "" if index.urls else "1",
        " ".join(index.find_links),
        str(index.certificate or ""),
        " ".join(index.trusted_hosts),
        os.devnull,
        index.proxy,
        str(index.client_certificate or ""),
        " ".join(map(str, index.constraints)),
    )
    return {name: value for name, value in zip(VARIABLES, values, strict=True) if value}


def environment_for_handover(environ: Mapping[str, str], home: Path, root: Path = Path("/")) -> dict[str, str]:
    """Return `environ` with the whole configuration in `PIP_*` variables, for a process of another user.

    That user can neither read this one's files nor should its own count. Raises `InvalidRequest`.
    """
    _check_followed(_settings(environ, home, root))
    others = {name: value for name, value in environ.items() if name not in VARIABLES}
    return others | as_pip_environment(read_sources(environ, home, root))


def _settings(environ: Mapping[str, str], home: Path, root: Path) -> dict[str, str]:
    """Merge files, sections and variables as pip does: [global], then [install], then PIP_*, no empty values."""
    sections: dict[str, dict[str, str]] = {}
    for path in _files(environ, home, root):
        for section, items in _read(path).items():
            sections.setdefault(section, {}).update(items)
    variables = {_key(name[4:]): value for name, value in environ.items() if name.startswith("PIP_")}
    settings: dict[str, str] = {}
    for items in (sections.get("global", {}), sections.get("install", {}), variables):
        settings |= {key: value for key, value in items.items() if value.strip()}
    return settings


def _files(environ: Mapping[str, str], home: Path, root: Path) -> Iterator[Path]:
    chosen = environ.get("PIP_CONFIG_FILE", "")
    if chosen == os.devnull:
        return
    system = environ.get("XDG_CONFIG_DIRS", "").strip()
    for directory in system.split(os.pathsep) if system else [str(root / "etc/xdg")]:
        yield Path(directory) / "pip/pip.conf"
    yield root / "etc/pip.conf"
    if not (chosen and Path(chosen).exists()):
        yield home / ".pip/pip.conf"
        yield Path(environ.get("XDG_CONFIG_HOME", "").strip() or home / ".config") / "pip/pip.conf"
    if chosen:
        yield Path(chosen)


def _read(path: Path) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InvalidRequest(
            f"pip's configuration {path} can't be read: {error.strerror}",
            hint="make it readable to this user, or set PIP_CONFIG_FILE=/dev/null and the PIP_* variables",
        ) from None
    except (configparser.Error, UnicodeDecodeError) as error:
        # What the parser says quotes the line, and that may be an address with a password.
        lines = [getattr(error, "lineno", None), *(line for line, _ in getattr(error, "errors", ()))]
        line = next((f":{line}" for line in lines if line), "")
        raise InvalidRequest(
            f"pip's configuration {path}{line} is not as pip reads it",
            hint="correct it, and check it with: pip config list",
        ) from None
    return {section: {_key(name): value for name, value in parser.items(section)} for section in parser.sections()}


def _key(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("--")


def _as_url(source: str, home: Path) -> str:
    """Return a source of packages as a URL: pip takes paths, too."""
    if source.startswith(("http:", "https:", "file:")):
        if not source.startswith("file:") and not hosts_of([source]):
            raise InvalidRequest("an address in pip's configuration is malformed", hint="look at: pip config list")
        return source
    path = home / source.removeprefix("~").lstrip("/") if source.startswith("~/") else Path(source)
    return Path(os.path.normpath(path.absolute())).as_uri()


def _constraint(name: str, home: Path) -> Path:
    if "://" in name:
        raise InvalidRequest(
            "a constraint of pip's configuration is an address, and only files are read",
            hint="save it on this host, and name the file: constraint in pip.conf, or PIP_CONSTRAINT",
        )
    return home / name[2:] if name.startswith("~/") else Path(name).absolute()


def _check_followed(settings: Mapping[str, str]) -> None:
    for name in CHOOSES:
        if settings.get(name, "no").strip().lower() not in NO:
            raise InvalidRequest(
                f"{name} of pip's configuration is not followed here, and without it other files would be installed",
                hint=f"write what you want into the requirements, and switch it off here: {_variable(name)}=no",
            )


def _variable(name: str) -> str:
    return f"PIP_{name.upper().replace('-', '_')}"


def _certificate(configured: str, environ: Mapping[str, str], home: Path, root: Path) -> Path | None:
    if configured:
        path = home / configured[2:] if configured.startswith("~/") else Path(configured).absolute()
        if not path.exists():
            raise InvalidRequest(
                f"the certificate bundle {path} of pip's configuration does not exist",
                hint="correct cert in pip.conf, or PIP_CERT",
            )
        return path
    named = [Path(environ[name]) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if environ.get(name)]
    return next((path for path in (*named, *(root / bundle for bundle in BUNDLES)) if path.is_file()), None)


def _bare(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _local_path(url: str) -> Path | None:
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        return None
    return Path(os.path.normpath(unquote(parts.path)))


def _too_much(path: Path) -> InvalidRequest:
    return InvalidRequest(
        f"the package source {path} can't be offered to a sandbox: it would show more than packages",
        hint="move the packages to a directory of their own and point pip's configuration to it",
    )


def _directories_of(url: str) -> set[Path]:
    """Return where a source lies and where its files do; none for one that is remote or isn't there."""
    path = _local_path(url)
    try:
        if path is None or not path.exists():
            return set()
        return {path if path.is_dir() else path.parent, *(file.parent for file in _linked_files(path))}
    except OSError as error:
        raise InvalidRequest(
            f"the package source {path} of pip's configuration can't be read: {error.strerror}",
            hint="make it readable to this user, or take it out of pip's configuration",
        ) from None


def _holds_a_home(path: Path) -> bool:
    people = (Path(entry.pw_dir) for entry in pwd.getpwall() if entry.pw_uid >= FIRST_PERSON)
    homes = {Path("/root"), home(), *people}
    return bool({path, path.resolve()} & {Path("/"), *homes, *(up for one in homes for up in one.parents)})


def _linked_files(path: Path) -> set[Path]:
    """Return the local files that the pages of a source link to, as far as its first pages tell."""
    pages = [one / "index.html" for one in (path, *sorted(path.iterdir()))] if path.is_dir() else [path]
    found: set[Path] = set()
    for page in islice((page for page in pages if page.is_file()), MAX_LOCAL_PAGES):
        with page.open("rb") as stream:
            links = PageLinks(page.as_uri())
            links.feed(stream.read(MAX_LOCAL_PAGE_BYTES).decode("utf-8", "replace"))
        local = filter(None, map(_local_path, links.urls))
        found.update(file for file in local if file.name.endswith(ARCHIVES) and file.is_file())
    return found
