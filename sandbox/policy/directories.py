"""Where policies are: given directories, the user's, the system's, and the package's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sandbox import places
from sandbox.errors import EngineUnavailable, InvalidRequest

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def shipped_directory() -> Path:
    """Return the policies that come with the package: inside it once installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_policies"
    return installed if installed.is_dir() else package.parent / "policies"


def policy_directories(explicit: Sequence[Path] = ()) -> list[Path]:
    """Return where policies are searched, in order: `explicit`, the user's, the system's, shipped.

    Raises `InvalidRequest` for an explicit directory that isn't one.
    """
    for directory in explicit:
        if not directory.is_dir():
            raise InvalidRequest(
                f"the policy directory {directory} does not exist or is not a directory",
                hint="create it, or correct --policy-dir",
            )
    try:
        user = [places.config_dir() / "policies"]
    except EngineUnavailable:  # a user without a home
        user = []
    return [
        *(d.resolve() for d in explicit),
        *user,
        Path("/etc") / places.NAME / "policies",
        shipped_directory(),
    ]
