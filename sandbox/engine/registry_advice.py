"""What to do about a container registry that refuses, from what Podman said of it. Pure."""

from __future__ import annotations

import re

from sandbox.proxies import proxy_advice

__all__ = ["registry_advice"]

ADVICE = (
    (
        r"x509|certificate|HTTP response to HTTPS client",
        (
            "trust its certificate authority: SSL_CERT_FILE=BUNDLE, or /etc/containers/certs.d/HOST:PORT/ca.crt; a"
            " registry of your own that has no certificate is named, with insecure = true, in"
            " ~/.config/containers/registries.conf.d/NAME.conf: see man containers-registries.conf"
        ),
    ),
    (
        r"unauthorized|authentication required|requested access to the resource is denied|invalid username/password",
        "log in, as the user who runs this: podman login REGISTRY",
    ),
)


def registry_advice(reason: str) -> str:
    """Return what to do, or an empty text for a reason that is none of these."""
    return proxy_advice(reason) or next(
        (advice for pattern, advice in ADVICE if re.search(pattern, reason, re.IGNORECASE)), ""
    )
