"""The head of one HTTP/1.1 request to the proxy, read strictly; pure.

Two forms are taken: `CONNECT host:port` for TLS, and the absolute form `METHOD http://host/path` for plain http. What
two servers could read in two ways is refused: folded lines, bare line feeds, two lengths, a Host that differs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandbox.egress.rules import parse_port
from sandbox.proxies import ProxyServer

__all__ = ["HeadRefused", "RequestHead", "parse_head"]

END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(r"([A-Z][A-Z-]{0,19}) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(r"[0-9]{1,15}")
# About one connection only, or written anew by `forwarded`.
_NOT_FORWARDED = {
    "connection", "content-length", "host", "http2-settings", "keep-alive", "te", "trailer", "transfer-encoding",
}  # fmt: skip # a table


class HeadRefused(ValueError):
    """The head is malformed, ambiguous or of a form that is not served; `status` is the answer to it."""

    def __init__(self, reason: str, *, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class RequestHead:
    """What one request asks for.

    `host` is as the program wrote it: `Allowlist.decide` makes it canonical or refuses it. `path` and `fields` are
    empty for a tunnel. `body_bytes` is the length of the body, None for a chunked one.
    """

    method: str
    host: str
    port: int
    path: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    body_bytes: int | None = 0

    @property
    def tunnel(self) -> bool:
        """Whether TLS is to follow."""
        return self.method == "CONNECT"

    def forwarded(self, host: str, *, by: ProxyServer | None = None) -> bytes:
        """Return the head for the server: origin form, the canonical `host`, one request on this connection.

        For a proxy that is to relay it, in absolute form and with the proxy's login.
        """
        authority = host + (f":{self.port}" if self.port != 80 else "")
        target = f"http://{authority}{self.path}" if by else self.path
        lines = [f"{self.method} {target} HTTP/1.1", f"Host: {authority}"]
        if by and by.authorization:
            lines.append(by.authorization.rstrip())
        lines += [f"{name}: {value}" for name, value in self.fields]
        if self.body_bytes is None:
            lines.append("Transfer-Encoding: chunked")
        elif self.body_bytes or self.method in {"POST", "PUT", "PATCH"}:
            lines.append(f"Content-Length: {self.body_bytes}")
        lines.append("Connection: close")
        return "\r\n".join(lines).encode("latin-1") + END


def parse_head(data: bytes) -> RequestHead:
    """Read a head that ends with its empty line. Raises HeadRefused, and nothing else."""
    if not data.endswith(END):
        raise HeadRefused("the head of the request is not complete")
    first, *lines = data[: -len(END)].decode("latin-1").split("\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise HeadRefused("the request line is not METHOD TARGET HTTP/1.1")
    method, target, version = match.groups()
    # Python's own http.client before 3.12 opens tunnels with HTTP/1.0.
    if version != "1.1" and not (version == "1.0" and method == "CONNECT"):
        raise HeadRefused(f"HTTP/{version} is not spoken here: use HTTP/1.1", status=505)
    fields = [_field(line) for line in lines]
    named: dict[str, list[str]] = {}
    for name, value in fields:
        named.setdefault(name.lower(), []).append(value)
    body_bytes = _body_bytes(named)
    if method == "CONNECT":
        return _tunnel(target, named, body_bytes)
    return _plain(method, target, fields, named, body_bytes)


def _tunnel(target: str, named: dict[str, list[str]], body_bytes: int | None) -> RequestHead:
    host, port = _authority(target, default_port=None)
    if body_bytes != 0:
        raise HeadRefused("a CONNECT request has no body")
    for text in _hosts(named):
        if text.lower() != host.lower() and _authority(text.lower(), default_port=443) != (host.lower(), port):
            raise HeadRefused("the Host header differs from the CONNECT target")
    return RequestHead(method="CONNECT", host=host, port=port)


def _plain(
    method: str, target: str, fields: list[tuple[str, str]], named: dict[str, list[str]], body_bytes: int | None
) -> RequestHead:
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() != "http":
        raise HeadRefused("only CONNECT host:port and absolute http:// addresses are served by this proxy")
    if method == "TRACE":
        raise HeadRefused("the method TRACE is not forwarded", status=405)
    if "upgrade" in named:
        raise HeadRefused("Upgrade is not forwarded in plain http: use https or wss")
    if "#" in rest:
        raise HeadRefused("the address of a request has no fragment")
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    path = rest[len(authority) :]
    host, port = _authority(authority, default_port=80)
    hosts = _hosts(named)
    if not hosts or _authority(hosts[0].lower(), default_port=80) != (host.lower(), port):
        raise HeadRefused("the Host header differs from the address of the request")
    private = _NOT_FORWARDED | {
        token.strip().lower() for value in named.get("connection", []) for token in value.split(",")
    }
    kept = [(n, v) for n, v in fields if n.lower() not in private and not n.lower().startswith("proxy-")]
    return RequestHead(
        method=method,
        host=host,
        port=port,
        path=path if path.startswith("/") else f"/{path}",
        fields=tuple(kept),
        body_bytes=body_bytes,
    )


def _field(line: str) -> tuple[str, str]:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise HeadRefused("a header line is not NAME: VALUE")
    return match[1], match[2].rstrip(" \t")


def _hosts(named: dict[str, list[str]]) -> list[str]:
    """Return the Host header in a list, or an empty list."""
    hosts = named.get("host", [])
    if len(hosts) > 1:
        raise HeadRefused("the request has two Host headers")
    return hosts


def _body_bytes(named: dict[str, list[str]]) -> int | None:
    lengths, codings = named.get("content-length", []), named.get("transfer-encoding", [])
    if len(lengths) + len(codings) > 1:
        raise HeadRefused("the request says more than once how long its body is")
    if codings:
        if codings[0].lower() != "chunked":
            raise HeadRefused("the only transfer encoding that is forwarded is chunked")
        return None
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise HeadRefused("the Content-Length is not a number")
    return int(lengths[0]) if lengths else 0


def _authority(text: str, *, default_port: int | None) -> tuple[str, int]:
    """Split `host:port`. The host is not judged here, but a user name in front of it is refused."""
    if "@" in text:
        raise HeadRefused("an address with a user name in it is not served")
    bracket = text.find("]") + 1 if text.startswith("[") else 0
    host, colon, port = text[bracket:].partition(":")
    host = text[:bracket] + host
    if not host:
        raise HeadRefused("the request names no host")
    if not colon:
        if default_port is None:
            raise HeadRefused("the CONNECT target has no port")
        return host, default_port
    try:
        return host, parse_port(port)
    except ValueError as error:
        raise HeadRefused(str(error)) from None
