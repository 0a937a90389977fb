"""Where the service's configuration lies, and where it has the service listen: what a client needs to know of it.

Imports little: every `sandbox run` asks. `sandbox.service.config` reads the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sandbox.errors import EngineUnavailable, NotFound
from sandbox.places import NAME, config_dir, user_runtime_path

WHAT = "service configuration"


def find_config(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return `path`, else the file that $SANDBOX_CONFIG names, else the user's, else the system's; None without any.

    Raises `NotFound` where $SANDBOX_CONFIG names none.
    """
    if path is None and (named := environ.get("SANDBOX_CONFIG")):
        path = Path(named)
        from sandbox.policy_file import exists

        if not exists(path):
            raise NotFound(f"the {WHAT} {path.absolute()} does not exist", hint="$SANDBOX_CONFIG names it: correct or unset that")
    if path is not None:
        return path.absolute()
    from sandbox.policy_file import exists

    try:
        user = [config_dir(environ) / "service.toml"]
    except EngineUnavailable:  # a user without a home
        user = []
    return next((file for file in [*user, Path("/etc") / NAME / "service.toml"] if exists(file)), None)


def usual_socket(environ: Mapping[str, str]) -> str:
    """Return where the service of this user listens unless something names another place."""
    return str(user_runtime_path(environ) / NAME / "service.sock")


def named_socket(environ: Mapping[str, str]) -> str | None:
    """Return where the service listens, as this user, or an administrator, has it: None when nobody says.

    $SANDBOX_SOCKET is for clients alone; then `socket.path` of the configuration, from its variable or its file. Raises
    `NotFound`, `InvalidRequest` for a file that can't be read, as the service would.
    """
    if said := environ.get("SANDBOX_SOCKET") or environ.get("SANDBOX_SOCKET__PATH", "").strip("\"'"):
        return said
    file = find_config(None, environ)
    if file is None:
        return None
    from sandbox.policy_file import read_toml

    section = read_toml(file, what=WHAT).data.get("socket")
    path = section.get("path") if isinstance(section, dict) else None
    return path if isinstance(path, str) else None
