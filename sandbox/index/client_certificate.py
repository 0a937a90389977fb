"""The certificate that this host shows to an index (pip's `client-cert`): one PEM file, with its key."""

from __future__ import annotations

from pathlib import Path

from sandbox.errors import InvalidRequest

__all__ = ["CLIENT_HINT", "WANTS_CERTIFICATE", "client_certificate", "client_pem"]

CLIENT_HINT = "correct client-cert in pip.conf, or PIP_CLIENT_CERT: one PEM file with the certificate and its key"
# What a server's alert is called by OpenSSL and by rustls (RFC 8446, 6.2).
WANTS_CERTIFICATE = r"(?i)alert:? certificate ?required|alert:? (?:handshake ?failure|bad ?certificate|unknown ?ca)\b"
MAX_BYTES = 1 << 20


def client_certificate(configured: str, home: Path) -> Path | None:
    """Return the file that pip's configuration names. Raises `InvalidRequest` for one that can't be used."""
    if not configured:
        return None
    path = home / configured[2:] if configured.startswith("~/") else Path(configured).absolute()
    client_pem(path)
    return path


def client_pem(path: Path) -> bytes:
    """Return what is in the file. Raises `InvalidRequest`: a library would ask the terminal for a passphrase."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES)
    except OSError as error:
        raise InvalidRequest(
            f"the client certificate {path} can't be read: {error.strerror}", hint=CLIENT_HINT
        ) from None
    if b"ENCRYPTED" in text:
        raise InvalidRequest(
            f"the key in the client certificate {path} has a passphrase, and nobody is there to type it",
            hint=(
                "make a copy without one that only this user can read: openssl pkey -in OLD -out NEW; then add the"
                " certificate to it"
            ),
        )
    for kind in (b"CERTIFICATE", b"PRIVATE KEY"):
        if kind + b"-----" not in text:
            raise InvalidRequest(f"the client certificate {path} has no {kind.decode().lower()}", hint=CLIENT_HINT)
    return text
