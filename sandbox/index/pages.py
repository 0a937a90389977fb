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
from sandbox.index.links import PageLinks, hosts_of

if TYPE_CHECKING:
    import requests

    from sandbox.index.pip_config import Index

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
        session.trust_env = (
            False  # the index has its login already, and ~/.netrc may have others for whom it redirects to
        )
        try:
            with session.get(url, headers={"Accept": ACCEPT}, timeout=timeout_s, verify=verify, stream=True) as answer:
                if answer.status_code == 404:
                    return []
                if answer.status_code != 200:
                    raise _refused(shown, answer.status_code)
                body = _body(answer, shown, timeout_s)
                way = [step.url for step in (*answer.history, answer)]
                kind = answer.headers.get("Content-Type", "")
        except requests.exceptions.SSLError:
            raise BuildFailed(
                f"the certificate of the package index {shown} is not trusted by {index.certificate or 'requests'}",
                hint="name a bundle that has its certificate authority: cert in pip.conf, or PIP_CERT",
                host=shown,
            ) from None
        except (requests.RequestException, OSError, ValueError) as error:
            raise _unreachable(shown, error) from None
    return [*way, *_links_of(body, kind, way[-1], shown)]


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
    # The error's own text may hold the address, and that a password: only the system's words are taken.
    system = re.search(r"\[Errno -?\d+\] ([A-Za-z ]{1,80})", str(error))
    return BuildFailed(
        f"the package index {shown} can't be reached: {system[1] if system else type(error).__name__}",
        hint=(
            "check the network, and index-url of pip's configuration (pip config list); a proxy named there is not used"
        ),
        host=shown,
    )
