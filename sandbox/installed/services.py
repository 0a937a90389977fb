"""The services that run from this installation: found among the processes, with the systemd unit that keeps them.

Not by their sockets: a service may listen anywhere, and where systemd opened the socket, systemd is who answers for it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sandbox.errors import EngineUnavailable

PROC = Path("/proc")
SYSTEMD = Path("/run/systemd/system")
SETTING = re.compile(r"SANDBOX_CONFIG|SANDBOX_[A-Z]+__[A-Z_]+")
STOP_WAITS_S = 40.0  # stop.drain_s is 20 s unless configured, and answers take up to 10 s more


@dataclass(frozen=True, kw_only=True)
class Running:
    """A service: its process, whose it is, and the unit that would start it again; "" where it was started by hand.

    `settings` are the variables that it was started with and that set something up for it.
    """

    pid: int
    uid: int
    arguments: tuple[str, ...]
    unit: str = ""
    manager: Literal["system", "user"] = "system"
    settings: Mapping[str, str] = field(default_factory=dict)

    def systemctl(self, verb: str) -> list[str]:
        """Return the command that has systemd do something with the unit."""
        return ["systemctl", *(["--user"] if self.manager == "user" else []), verb, self.unit]

    def describe(self) -> str:
        """Return what it is, in words."""
        return f"the unit {self.unit}" if self.unit else f"process {self.pid}"

    def by_hand(self) -> str:
        """Return the commands that a person restarts it with."""
        setting = "".join(f"{name}={shlex.quote(value)} " for name, value in sorted(self.settings.items()))
        return (
            f"kill {self.pid}; tail --pid={self.pid} -f /dev/null;"
            f" {setting}{shlex.join(['sandbox', *self.arguments])} &"
        )


def services(prefix: Path | str = sys.prefix, *, proc: Path = PROC) -> Iterator[Running]:
    """Yield every `sandbox serve` whose Python is that of the virtual environment `prefix`, of whatever user."""
    programs = f"{prefix}/bin/"
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if (found := serve_arguments(words, programs)) is None:
                continue
            unit, manager = unit_of((entry / "cgroup").read_text()) if SYSTEMD.is_dir() else ("", "system")
            yield Running(
                pid=int(entry.name),
                uid=entry.stat().st_uid,
                arguments=found,
                unit=unit,
                manager=manager,
                settings=settings_of(entry),
            )


def settings_of(entry: Path) -> dict[str, str]:
    """Return the variables that a service has its settings from, as it was started; none of somebody else's."""
    try:
        pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return {
        name: value for name, mark, value in (pair.partition("=") for pair in pairs) if mark and SETTING.fullmatch(name)
    }


def serve_arguments(words: Sequence[str], programs: str) -> tuple[str, ...] | None:
    """Return the arguments of a `sandbox … serve …` that is started from `programs`; None for any other command."""
    if not words or not words[0].startswith(programs):
        return None
    for start in (["-m", "sandbox"], [f"{programs}sandbox"]):
        for place in range(len(words) - len(start)):
            if list(words[place : place + len(start)]) == start:
                arguments = tuple(words[place + len(start) :])
                return arguments if "serve" in arguments and "--restart" not in arguments else None
    return None


def unit_of(cgroups: str) -> tuple[str, Literal["system", "user"]]:
    """Return the unit that a process belongs to, by its /proc/PID/cgroup, and whose systemd has it.

    The unit is "" for a session.
    """
    for line in cgroups.splitlines():
        number, controllers, path = line.split(":", 2)
        if controllers not in ("", "name=systemd") or not (number == "0" or controllers):
            continue
        parts = path.split("/")
        own = [part for part in parts if part.endswith(".service") and not part.startswith("user@")]
        if own:
            return own[-1], "user" if any(part.startswith("user@") for part in parts) else "system"
    return "", "system"


def as_root(command: Sequence[str]) -> None:
    """Run a command with root's rights, by sudo where need be. Raises `EngineUnavailable` with what to call."""
    carry_out(command if os.geteuid() == 0 else ["sudo", *command])


def carry_out(command: Sequence[str]) -> None:
    """Run a command to its end. Raises `EngineUnavailable` when it fails."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
            cwd="/",
        )
        reason = done.stderr.strip().splitlines()[-1:] if done.returncode else None
    except OSError as error:
        reason = [f"{command[0]}: {error.strerror}"]
    if reason is not None:
        raise EngineUnavailable(
            f"`{shlex.join(command)}` failed: {''.join(reason) or 'it gave no reason'}",
            hint=f"call it yourself: {shlex.join(command)}",
        )


def with_systemd(service: Running, verb: str) -> None:
    """Have systemd stop or restart the unit of a service. Raises `EngineUnavailable` when it refuses."""
    command = service.systemctl(verb)
    if service.manager == "system":
        as_root(command)
    elif service.uid == os.geteuid():
        carry_out(command)
    else:
        as_root(["systemctl", f"--machine={pwd.getpwuid(service.uid).pw_name}@.host", *command[1:]])


def stop(service: Running) -> None:
    """End a service: its unit, else its process, which gets the time to finish its runs. Raises `EngineUnavailable`."""
    if service.unit:
        with_systemd(service, "stop")
        return
    for number, patience_s in ((signal.SIGTERM, STOP_WAITS_S), (signal.SIGKILL, 5.0)):
        end([service.pid], number, patience_s)


def end(pids: Sequence[int], number: int, patience_s: float) -> None:
    """Send a signal to processes, and wait until they are gone or the time is over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + patience_s
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)


def is_alive(pid: int, *, proc: Path = PROC) -> bool:
    """Tell whether a process runs: one that nobody has waited for yet does not."""
    try:
        return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False
