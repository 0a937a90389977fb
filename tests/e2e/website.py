"""A website on loopback that the examples fetch from: an API that wants a key, and a page; with TLS or without."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROWS = [{"sensor": "hall", "value": 20.5}, {"sensor": "store", "value": 4.25}]
PAGE = "<html><body><h2>First news</h2><p>a paragraph</p><h2> Second  piece of news </h2></body></html>"
KEY = "a-key-for-the-tests"


class Website(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1; `asked` has the path and the authorisation of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str | None]] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that doesn't trust the certificate hangs up."""


class _Handler(BaseHTTPRequestHandler):
    server: Website

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization")
        self.server.asked.append((self.path, authorization))
        if self.path == "/measurements" and authorization == f"Bearer {KEY}":
            self._answer(200, "application/json", json.dumps({"data": ROWS}))
        elif self.path == "/measurements":
            self._answer(401, "text/plain", "no key, no data")
        elif self.path == "/news":
            self._answer(200, "text/html", PAGE)
        else:
            self._answer(404, "text/plain", "nothing here")

    def _answer(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 # the name that the base class has
        """Keep the output of the tests clean."""


@contextlib.contextmanager
def website(context: ssl.SSLContext | None = None) -> Iterator[Website]:
    """Serve until the end of the block."""
    with Website() as server:
        if context is not None:
            # The handshake belongs to the thread of its connection: one that hangs must not hold up the others.
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def own_certificate(place: Path) -> tuple[ssl.SSLContext, Path]:
    """Return what a server named localhost uses, and the certificate that a client has to trust."""
    key, certificate = place / "key.pem", place / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip # a command line
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
