"""Certificates that tests make with openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def certified(place: Path, name: str, *options: str | Path) -> tuple[Path, Path]:
    """Return a new certificate and its key: an authority's, unless the options name who signs it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    configuration, certificate, key = (place / f"{name}.{kind}" for kind in ("cnf", "pem", "key"))
    configuration.write_text("[req]\ndistinguished_name = dn\n[dn]\n")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-config",
            configuration,
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-addext",
            f"basicConstraints=critical,CA:{'FALSE' if options else 'TRUE'}",
            "-keyout",
            key,
            "-out",
            certificate,
            *options,
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return certificate, key
