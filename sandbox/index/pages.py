"""Pages of a package index (PEP 503, PEP 691): which addresses they link to.

Bounded in size and time, whatever the server does.
"""

from __future__ import annotations

import json
import queue
import re
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from sandbox.errors import BuildFailed
from sandbox.index.client_certificate import CLIENT_HINT, WANTS_CERTIFICATE
from sandbox.index.links import PageLinks, hosts_of
from sandbox.proxies import proxy_advice, refusal

if TYPE_CHECKING:
    import requests

    from sandbox.index.pip_config import Index
    from sandbox.proxies import ProxyServer

NETWORK_HINT = (
    "check the network, and index-url of pip's configuration (pip config list); where a proxy is the only way out, name"
    " it there (proxy), or in HTTPS_PROXY"
)
MAX_PAGE_BYTES = 32 << 20
MAX_PAGE_WAITS = 6
MAX_REDIRECTS = 5
JSON_PAGE = "application/vnd.pypi.simple.v1+json"
ACCEPT = f"{JSON_PAGE}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


def page_links(index: Index, url: str, timeout_s: float) -> list[str]:
    """Return the addresses on a page together with those that led to it; none when the page isn't there.

    `timeout_s` bounds each wait, and six times as much the whole: a thread of its own reads the page, since a server
    can spread a head over any number of short waits. Raises `BuildFailed`.
    """
    answer: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def read() -> None:
        try:
            answer.put(_page_links(index, url, timeout_s))
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            answer.put(error)

    threading.Thread(target=read, name="index-page", daemon=True).start()
    try:
        found = answer.get(timeout=MAX_PAGE_WAITS * timeout_s)
    except queue.Empty:
        found = too_slow(hosts_of([url])[0], timeout_s)
    if isinstance(found, Exception):
        raise found
    return found


def too_slow(shown: str, timeout_s: float) -> BuildFailed:
    """Return the error of a page without an end."""
    return BuildFailed(
        f"the package index {shown} sends more than {MAX_PAGE_BYTES >> 20} MiB"
        f" or takes more than {MAX_PAGE_WAITS * timeout_s:g} s for one page",
        hint="try again, or configure pip to use another index",
        host=shown,
    )


def _page_links(index: Index, url: str, timeout_s: float) -> list[str]:
    import requests

    shown = hosts_of([url])[0]
    loopback = (urlsplit(url).hostname or "") in {"localhost", "127.0.0.1", "::1"}
    if urlsplit(url).scheme == "http" and not loopback and not index.trusts(url):
        raise BuildFailed(
            f"the package index {shown} is not encrypted, and pip does not trust it",
            hint="use its https address, or name it in trusted-host of pip's configuration",
        )
    verify: bool | str = False if index.trusts(url) else str(index.certificate or "") or True
    with requests.Session() as session, warnings.catch_warnings():
        # Not checking a trusted host's certificate is what pip was told to do.
        warnings.filterwarnings("ignore", message="Unverified HTTPS request")
        session.max_redirects = MAX_REDIRECTS
        session.cert = str(index.client_certificate) if index.client_certificate else None
        for scheme in ("http://", "https://"):
            session.mount(scheme, by_proxy(index))
        session.trust_env = (
            False  # the index has its login already, and ~/.netrc may have others for whom it redirects to
        )
        try:
            with session.get(url, headers={"Accept": ACCEPT}, timeout=timeout_s, verify=verify, stream=True) as answer:
                if answer.status_code == 404:
                    return []
                if answer.status_code == 407 and (server := index.proxies.leading_to_url(answer.url)):
                    raise _proxy_failed(shown, server, refusal(server, 407, "", shown))
                if answer.status_code != 200:
                    raise _refused(shown, answer.status_code)
                body = _body(answer, shown, timeout_s)
                way = [step.url for step in (*answer.history, answer)]
                kind = answer.headers.get("Content-Type", "")
        except requests.exceptions.ProxyError as error:
            raise _not_by_proxy(index, url, error) from None
        except requests.exceptions.SSLError as error:
            if re.search(WANTS_CERTIFICATE, str(error)):
                raise BuildFailed(
                    f"the package index {shown} wants a client certificate, or another one",
                    hint=CLIENT_HINT,
                    host=shown,
                ) from None
            raise BuildFailed(
                f"the certificate of the package index {shown} is not trusted by {index.certificate or 'requests'}",
                hint="name a bundle that has its certificate authority: cert in pip.conf, or PIP_CERT",
                host=shown,
            ) from None
        except (requests.RequestException, OSError, ValueError) as error:
            raise _unreachable(shown, error) from None
    return [*way, *_links_of(body, kind, way[-1], shown)]


def by_proxy(index: Index) -> requests.adapters.HTTPAdapter:
    """Return what sends each request, also one that a page redirected, by the proxy that leads to its address."""
    from requests.adapters import HTTPAdapter

    class ByProxy(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
            url = request.url or ""
            server = index.proxies.leading_to_url(url)
            options["proxies"] = {urlsplit(url).scheme: server.url} if server else {}
            return super().send(request, *args, **options)

    return ByProxy()


def _not_by_proxy(index: Index, url: str, error: Exception) -> BuildFailed:
    """Explain by what the proxy or the system said; the library's own words may hold the login."""
    asked = getattr(getattr(error, "request", None), "url", None) or url
    shown = hosts_of([asked])[0]
    server = index.proxies.leading_to_url(asked)
    answered = re.search(r"Tunnel connection failed: (\d{3}) ?([A-Za-z0-9 ,.-]{0,60})", str(error))
    if server is None:
        return _unreachable(shown, error)
    if answered:
        return _proxy_failed(shown, server, refusal(server, int(answered[1]), answered[2], shown))
    return _proxy_failed(shown, server, f"can't be reached: {_system_words(error)}")


def _proxy_failed(shown: str, server: ProxyServer, what: str) -> BuildFailed:
    said = f"the proxy {server.shown} ({server.source}) {what}"
    return BuildFailed(
        f"the package index {shown} can't be reached: {said}", hint=proxy_advice(said), host=shown, proxy=server.shown
    )


def _body(answer: requests.Response, shown: str, timeout_s: float) -> bytes:
    deadline = time.monotonic() + MAX_PAGE_WAITS * timeout_s
    body = bytearray()
    for chunk in answer.iter_content(64 << 10):
        body += chunk
        if len(body) > MAX_PAGE_BYTES or time.monotonic() > deadline:
            raise too_slow(shown, timeout_s)
    return bytes(body)


def _links_of(body: bytes, kind: str, url: str, shown: str) -> list[str]:
    if kind.partition(";")[0].strip().lower() != JSON_PAGE:
        page = PageLinks(url)
        page.feed(body.decode("utf-8", "replace"))
        return page.urls
    try:
        files: list[Any] = json.loads(body)["files"]
        return [urljoin(url, file["url"]) for file in files]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BuildFailed(
            f"the package index {shown} answers with what is not a list of files (PEP 691)",
            hint="check the address of the index in pip's configuration",
            host=shown,
        ) from None


def _refused(shown: str, status: int) -> BuildFailed:
    from sandbox.index.pip_config import LOGIN_HINT

    if status in (401, 403):
        return BuildFailed(
            f"the package index {shown} refuses access: it answers with HTTP status {status}",
            hint=LOGIN_HINT,
            host=shown,
        )
    return BuildFailed(f"the package index {shown} answers with HTTP status {status}", hint="try again", host=shown)


def _unreachable(shown: str, error: Exception) -> BuildFailed:
    return BuildFailed(
        f"the package index {shown} can't be reached: {_system_words(error)}", hint=NETWORK_HINT, host=shown
    )


def _system_words(error: Exception) -> str:
    """Return why; the error's own text may hold an address, and that a password: only the system's words are taken."""
    system = re.search(r"\[Errno -?\d+\] ([A-Za-z ]{1,80})", str(error))
    return system[1] if system else type(error).__name__
