"""A package index on loopback with packages made on the spot.

What it serves can be changed, and every request is counted.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import socket
import ssl
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

JSON_PAGE = "application/vnd.pypi.simple.v1+json"
BACKEND = """
import os, zipfile

def get_requires_for_build_wheel(config_settings=None):
    return []

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    {code}
    name = "{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as archive:
        archive.writestr("{name}.py", {module!r})
        archive.writestr("{name}-{version}.dist-info/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        archive.writestr("{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr("{name}-{version}.dist-info/RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = {requires}
build-backend = "{backend}"
{path}
[project]
name = "{name}"
version = "{version}"
"""
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


def wheel(
    name: str,
    version: str,
    files: Mapping[str, str | bytes],
    *,
    requires: Sequence[str] = (),
    tag: str = "py3-none-any",
    deflated: bool = False,
) -> tuple[str, bytes]:
    """Return the file name and the content of a wheel that has `files`, whatever their paths are."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    content = {
        **files,
        f"{info}/METADATA": METADATA.format(name=name, version=version) + needs,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*content, f"{info}/RECORD"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for path, body in content.items():
            archive.writestr(zipfile.ZipInfo(path), body, archive.compression)
    return f"{name}-{version}-{tag}.whl", buffer.getvalue()


def sdist(
    name: str, version: str, *, code: str = "pass", module: str = "", requires: Sequence[str] = (), backend: str = ""
) -> tuple[str, bytes]:
    """Return a source archive; its build runs `code` and gives a wheel with one module.

    It is its own build backend, unless `requires` and `backend` name another.
    """
    text = PYPROJECT.format(
        name=name,
        version=version,
        requires=json.dumps(list(requires)),
        backend=backend or "backend",
        path="" if backend else 'backend-path = ["."]',
    )
    files = {"pyproject.toml": text, "PKG-INFO": METADATA.format(name=name, version=version)}
    if not backend:
        files["backend.py"] = BACKEND.format(name=name, version=version, code=code, module=module)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, body in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(body.encode())
            archive.addfile(member, io.BytesIO(body.encode()))
    return f"{name}-{version}.tar.gz", buffer.getvalue()


class PackageIndex:
    """An index as `pip` knows it: pages by PEP 503 or PEP 691, and the files."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.hashes: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.login: str | None = None  # "user:password", which then every request needs
        self.hits: Counter[str] = Counter()
        self.holds: dict[str, tuple[threading.Event, threading.Event]] = {}
        self.url = ""

    def add(self, *archives: tuple[str, bytes]) -> None:
        """Publish files."""
        for name, content in archives:
            self.files[name] = content
            self.hashes[name] = hashlib.sha256(content).hexdigest()

    @contextmanager
    def held(self, path: str) -> Iterator[threading.Event]:
        """Answer no request for `path` meanwhile; the event is set when there is one."""
        asked, let_go = self.holds[path] = threading.Event(), threading.Event()
        try:
            yield asked
        finally:
            del self.holds[path]
            let_go.set()

    def page(self, package: str, *, as_json: bool) -> bytes | None:
        """Return the page of a package, or None when there is none."""
        names = [name for name in self.files if normal(re.split(r"-\d", name)[0]) == package]
        if not names:
            return None
        if as_json:
            rows = [
                {
                    "filename": name,
                    "url": f"/files/{name}",
                    "hashes": {"sha256": self.hashes[name]},
                    "size": len(self.files[name]),
                }
                for name in names
            ]
            return json.dumps({"meta": {"api-version": "1.0"}, "name": package, "files": rows}).encode()
        links = (
            f'<a href="/files/{html.escape(name)}#sha256={self.hashes[name]}">{html.escape(name)}</a>' for name in names
        )
        return f"<!DOCTYPE html><html><body>{'<br>'.join(links)}</body></html>".encode()


def basic(login: str) -> str:
    """Return the header with which a client logs in."""
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def normal(name: str) -> str:
    """Return a package's name in the one spelling of PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def handler(index: PackageIndex) -> type[BaseHTTPRequestHandler]:
    """Return what answers for an index."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            index.hits[path] += 1
            if path in index.holds:
                asked, let_go = index.holds[path]
                asked.set()
                let_go.wait()
            if index.login is not None and self.headers.get("Authorization") != basic(index.login):
                self.answer(401, b"", **{"WWW-Authenticate": 'Basic realm="index"'})
            elif path in index.redirects:
                self.answer(302, b"", Location=index.redirects[path])
            elif path.startswith("/files/") and (content := index.files.get(path.removeprefix("/files/"))) is not None:
                self.answer(200, content)
            elif path.startswith("/simple/"):
                as_json = JSON_PAGE in self.headers.get("Accept", "")
                page = index.page(normal(path.split("/")[2]), as_json=as_json)
                kind = JSON_PAGE if as_json else "text/html"
                self.answer(404 if page is None else 200, page or b"", **{"Content-Type": kind})
            else:
                self.answer(404, b"")

        def do_HEAD(self) -> None:
            self.answer(405, b"")

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            closing = {"Connection": "close"} if self.close_connection else {}
            for name, value in {**headers, **closing, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    return Handler


class Server(ThreadingHTTPServer):
    """Serves, and says nothing of those who go away."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A reader has seen enough, or does not trust us."""


@contextmanager
def package_index(
    context: ssl.SSLContext | None = None, *, listener: socket.socket | None = None
) -> Iterator[PackageIndex]:
    """Serve an empty index on a free port of 127.0.0.1, or on `listener`, encrypted when there is a context."""
    index = PackageIndex()
    listener = listener or socket.create_server(("127.0.0.1", 0), backlog=Server.request_queue_size)
    server = Server(listener.getsockname(), handler(index), bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    index.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}/simple"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
