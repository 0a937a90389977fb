"""What belongs to one service: other services and runs of the same user may come and go meanwhile."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from sandbox.container.spec import OWNER_LABEL, RUN_LABEL
from tests.integration.service import Service


def command_line(pid: int | str) -> list[str]:
    """Return the words of a process's command; nothing for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def owner_of(pid: str) -> int | None:
    """Return whose a process is; None for one that has ended."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def own_workspaces(service: Service) -> set[str]:
    """Return the names of the workspaces that a running service holds: by the locks that it has open."""
    found = set()
    for fd in os.listdir(f"/proc/{service.process.pid}/fd"):
        try:
            place = os.readlink(f"/proc/{service.process.pid}/fd/{fd}")
        except OSError:
            continue
        if held := re.search(r"/runs/(\d+)/lock$", place):
            found.add(held[1])
    return found


def containers() -> dict[str, str]:
    """Return every container of a run of this user: its whole id, and the workspace that it belongs to."""
    listed = subprocess.run(
        [
            "podman",
            "ps",
            "--all",
            "--no-trunc",
            "--filter",
            f"label={RUN_LABEL}",
            "--format",
            f'{{{{.ID}}}} {{{{index .Labels "{OWNER_LABEL}"}}}}',
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    return dict(line.split(maxsplit=1) for line in listed.stdout.splitlines())


def own_containers(service: Service) -> set[str]:
    """Return the whole ids of a running service's containers."""
    own = own_workspaces(service)
    return {container_id for container_id, owner in containers().items() if owner in own}


def monitors() -> dict[int, str]:
    """Return Podman's monitors of this user, by process id, with the id of the container that each is for."""
    found = {}
    for entry in os.listdir("/proc"):
        words = command_line(entry) if entry.isdigit() and owner_of(entry) == os.getuid() else []
        if words and words[0].endswith("/conmon") and "-c" in words:  # Podman also asks for its version
            found[int(entry)] = words[words.index("-c") + 1]
    return found


def orphans() -> set[int]:
    """Return the monitors whose containers are gone."""
    seen = monitors()
    known = containers()
    return {pid for pid, container_id in seen.items() if container_id not in known}
