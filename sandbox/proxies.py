"""The HTTP proxy that this host's network wants everybody to go through: which one leads to which address.

Three places can name one, and the first that does counts: the service's configuration (as the variables
`SANDBOX_PROXY__*`, which `sandbox serve` sets), pip's `proxy` (for its index alone), and the environment. Logins are in
no `repr`: `ProxyServer.shown` is what messages and logs are made of.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from sandbox.errors import InvalidRequest

__all__ = ["DIRECT", "Proxies", "ProxyServer", "parse_proxy", "podman_variables", "proxy_advice", "read_proxies"]

OWN_URL, OWN_LOGIN_FILE, OWN_BYPASS = (f"SANDBOX_PROXY__{key}" for key in ("URL", "LOGIN_FILE", "BYPASS"))
PIP = "proxy of pip's configuration"
FORM = "only HTTP proxies are spoken to, and named as http://[USER:PASSWORD@]HOST:PORT"
SOCKS = f"{FORM}; for a SOCKS proxy, name a local HTTP proxy that leads to it, such as privoxy"
# What counts where the variable of a scheme names none.
ANY_SCHEME = "all_proxy"
USUAL_PORT = 80


@dataclass(frozen=True, kw_only=True)
class ProxyServer:
    """One proxy; `source` is the setting that names it, `login` is "user:password"."""

    host: str
    port: int
    source: str
    login: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """Its address, without the login."""
        return f"http://{self._authority}"

    @property
    def url(self) -> str:
        """Its address with the login, for a library or Podman; never for a person."""
        user, _, password = self.login.partition(":")
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if self.login else ""
        return f"http://{login}{self._authority}"

    @property
    def authorization(self) -> str:
        """The header line that logs in, or an empty text."""
        if not self.login:
            return ""
        return f"Proxy-Authorization: Basic {base64.b64encode(self.login.encode()).decode()}\r\n"

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Proxies:
    """What leads out of this host, by the scheme of the address; `bypass` are the hosts that are reached directly."""

    http: ProxyServer | None = None
    https: ProxyServer | None = None
    bypass: tuple[str, ...] = ()

    def leading_to(self, host: str, port: int, *, tls: bool) -> ProxyServer | None:
        """Return the proxy that leads to a host, or None for one that is reached directly.

        This host's own loopback is never asked of another machine.
        """
        server = self.https if tls else self.http
        bare = host.strip("[]").lower()
        if server is None or is_loopback(bare) or any(_covers(entry, bare, port) for entry in self.bypass):
            return None
        return server

    def leading_to_url(self, url: str) -> ProxyServer | None:
        """Return the same for a URL."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return self.leading_to(parts.hostname or "", parts.port or (443 if tls else 80), tls=tls)


DIRECT = Proxies()


def read_proxies(environ: Mapping[str, str], *, pip: str = "") -> Proxies:
    """Return the proxies that hold; `pip` is what pip's configuration says, where its index is to be reached.

    Raises `InvalidRequest` for what is no HTTP proxy.
    """
    if own := environ.get(OWN_URL, "").strip():
        login = _login_in(environ.get(OWN_LOGIN_FILE, ""))
        server = parse_proxy(own, "proxy.url of the service's configuration", login=login)
        return Proxies(http=server, https=server, bypass=_entries(environ.get(OWN_BYPASS, "")))
    if pip.strip():  # which then asks no variable, not even NO_PROXY
        server = parse_proxy(pip, PIP)
        return Proxies(http=server, https=server)
    return Proxies(
        http=_variable(environ, "http_proxy"),
        https=_variable(environ, "https_proxy"),
        bypass=_entries(_named(environ, "no_proxy")[1]),
    )


def podman_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which Podman reaches registries: ours, or else the caller's.

    What is no HTTP proxy is for Podman to judge.
    """
    if environ.get(OWN_URL, "").strip():
        found = read_proxies(environ)
        url = found.https.url if found.https else ""
        return {"HTTP_PROXY": url, "HTTPS_PROXY": url, "NO_PROXY": ",".join(found.bypass)}
    # Podman knows no variable for all schemes.
    named = {name.upper(): _as_url(_named(environ, name, ANY_SCHEME)[1]) for name in ("http_proxy", "https_proxy")}
    named["NO_PROXY"] = _named(environ, "no_proxy")[1]
    return {name: value for name, value in named.items() if value}


def _as_url(text: str) -> str:
    """Return a proxy's address as Podman needs it: with a login that is not a URL's, it would go without the proxy."""
    try:
        return parse_proxy(text, "").url if text else ""
    except InvalidRequest:
        return text


def parse_proxy(text: str, source: str, *, login: str = "") -> ProxyServer:
    """Return the proxy that a setting names. Raises `InvalidRequest`, without a word of the text: it may be a login."""
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname or "", parts.port or USUAL_PORT
    except ValueError:
        raise InvalidRequest(f"{source} is not the address of a proxy", hint=FORM) from None
    if parts.scheme != "http" or not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host):
        scheme = f": {parts.scheme}://" if re.fullmatch(r"[a-z0-9+]{1,10}", parts.scheme) else ""
        hint = SOCKS if parts.scheme.startswith("socks") else FORM
        raise InvalidRequest(f"{source} is not the address of an HTTP proxy{scheme}", hint=hint)
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    if user:
        login = f"{unquote(user)}:{unquote(password) if colon else ''}"
    return ProxyServer(host=host, port=port, source=source, login=login)


def is_loopback(bare: str) -> bool:
    """Tell whether a name or an address without brackets is this host's own loopback, as it is written."""
    try:
        return ip_address(bare).is_loopback
    except ValueError:
        return bare == "localhost" or bare.endswith(".localhost")


# ---- reading the settings


def _variable(environ: Mapping[str, str], name: str) -> ProxyServer | None:
    name, value = _named(environ, name, ANY_SCHEME)
    return parse_proxy(value, name) if value else None


def _named(environ: Mapping[str, str], *names: str) -> tuple[str, str]:
    """Return the variable that counts, and its value: the lower-case spelling of each wins, as for curl and pip."""
    spellings = [spelling for name in names for spelling in (name, name.upper())]
    return next(((one, environ[one].strip()) for one in spellings if environ.get(one, "").strip()), (names[0], ""))


def _entries(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"[,\s]+", text.strip().lower())) if text.strip() else ()


def _login_in(path: str) -> str:
    if not path:
        return ""
    try:
        login = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidRequest(
            f"proxy.login_file {path} can't be read: {why}", hint="correct the path, or let this user read the file"
        ) from None
    if ":" not in login or "\n" in login:
        raise InvalidRequest(f"proxy.login_file {path} has no login", hint="write one line into it: USER:PASSWORD")
    return login


def _covers(entry: str, bare: str, port: int) -> bool:
    """Tell whether an entry of NO_PROXY means a host: its name, one that ends with it, a network, or all."""
    if entry == "*":
        return True
    # A port comes after a name, an IPv4 address or a bracket.
    if match := re.fullmatch(r"(\[[^\[\]]+\]|[^:]+):([0-9]{1,5})", entry):
        if int(match[2]) != port:
            return False
        entry = match[1]
    try:
        return ip_address(bare) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        name = entry.removeprefix("*").removeprefix(".")
        return bool(name) and (bare == name or bare.endswith(f".{name}"))


# ---- what to do when it does not let through

_ADVICE = (
    (
        r'wants a login|refuses the login|Proxy Authentication Required|Get "[^"]+": Unauthorized',
        (
            "give the proxy its login: http://USER:PASSWORD@HOST:PORT in HTTPS_PROXY or in pip's proxy, or"
            " proxy.login_file of the service's configuration; a proxy that wants another login than user name and"
            " password (Basic) is reached by a local one that logs in for you, such as cntlm"
        ),
    ),
    (
        r"proxy \S*\s?(?:\([^)]*\) )?(?:can't be reached|does not answer|is no HTTP proxy)|proxyconnect",
        (
            "check the address of the proxy and whether it runs; `sandbox doctor` shows which one is used and which"
            " setting names it"
        ),
    ),
    (
        r"refuses to connect to (?:\d+\.\d+\.\d+\.\d+|\[)",
        (
            "the proxy was asked for an address that was checked here; one that goes by names needs a policy with"
            ' network.resolver = "proxy", for builds build.resolver = "proxy"'
        ),
    ),
    (
        # Podman's client quotes the proxy's own words behind the address; words of its own begin with a small letter.
        r'refuses to connect to |Get "[^"]+": [A-Z]',
        (
            "ask who runs the proxy to let this through; a host that is reached without it belongs into NO_PROXY, or"
            " into proxy.bypass of the service's configuration"
        ),
    ),
    (
        r"has no address here",
        (
            "names are looked up on this host, to check their addresses; where only the proxy knows them, use a policy"
            ' with network.resolver = "proxy", for builds build.resolver = "proxy"'
        ),
    ),
)


def proxy_advice(text: str) -> str:
    """Return what to do about a proxy that does not let through, or an empty text where it is not that."""
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, text)), "")


def refusal(server: ProxyServer, status: int, phrase: str, target: str) -> str:
    """Return what an answer of the proxy means, to follow the name of the proxy."""
    if status == 407 or (status == 401 and server.login):  # which some answer to a wrong one
        return f"{'refuses the login that it was given' if server.login else 'wants a login'} (HTTP {status})"
    said = re.sub(r"[^ -~]|[\"'\\]", "?", phrase)[:60].strip()
    return f"refuses to connect to {target} (HTTP {status}{f' {said}' if said else ''})"
