"""The constraints of pip's configuration: versions that a resolution keeps to, whoever asks for the libraries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sandbox.environment.requirements import MAX_TEXT_CHARS, parse_requirements_txt, without_hashes
from sandbox.errors import InvalidRequest

__all__ = ["read_constraints"]


def read_constraints(paths: Iterable[Path]) -> tuple[str, ...]:
    """Return what the files say, in the form of requirements. Raises `InvalidRequest` with file and line."""
    found: list[str] = []
    for path in paths:
        try:
            with path.open(encoding="utf-8-sig") as file:
                text = file.read(MAX_TEXT_CHARS + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(
                f"the constraints {path} of pip's configuration can't be read:"
                f" {getattr(error, 'strerror', None) or 'they are not UTF-8 text'}",
                hint="correct constraint in pip.conf, or PIP_CONSTRAINT, or let the user who installs read the file",
            ) from None
        found += parse_requirements_txt(text, name=str(path))
    if hashed := next((one for one in found if without_hashes(one) != one), None):
        raise InvalidRequest(
            f"the constraints of pip's configuration have hashes, for {without_hashes(hashed)}",
            hint="write hashes into a requirements file, and keep names and versions in the constraints",
        )
    return tuple(found)
