"""The podman program: how it is called, what version it is, and which OCI runtime works with it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from sandbox.engine.protocol import EngineInfo
from sandbox.errors import EngineUnavailable
from sandbox.kernel import process as kernel
from sandbox.places import home, user_runtime_dir
from sandbox.proxies import podman_variables

MINIMUM_VERSION = (4, 3, 0)
RUNTIMES = ("crun", "runc")
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def scrubbed_environment() -> dict[str, str]:
    """Return the only variables that Podman gets: nothing of the caller's can leak or steer it.

    The certificate variables are kept so that a pull trusts what the host trusts; Podman itself uses them and no
    container inherits them (`unsetenvall`).
    """
    kept = {name: os.environ[name] for name in CERTIFICATE_VARIABLES if name in os.environ}
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home()),
        "XDG_RUNTIME_DIR": str(user_runtime_dir()),
        "LANG": "C.UTF-8",
        # An administrator's containers.conf can add mounts, hooks, variables and annotations to every container.
        "CONTAINERS_CONF": "/dev/null",
        **kept,
    }


def reaching_environment() -> dict[str, str]:
    """Return the same, with the host's HTTP proxy, for the Podman that reaches registries.

    No container inherits it (`unsetenvall`, `httpproxy` off).
    """
    return scrubbed_environment() | podman_variables(os.environ)


def scope_prefix() -> list[str]:
    """Return what to start Podman with so that it sees every controller that is delegated to this user; often nothing.

    Podman drops the limits that its own group has no controller for. Inside a service of the user's systemd that is any
    controller which no unit beside it uses; a scope of its own, to which systemd delegates, has them all. Outside of
    the user's systemd, Podman makes itself such a scope.
    """
    own, session = kernel.own_group(), kernel.session_group(os.getuid())
    if own is None or session not in own.parents or shutil.which("systemd-run") is None:
        return []
    if kernel.read_controllers(own) >= kernel.read_controllers(session):
        return []
    return ["systemd-run", "--user", "--scope", "--quiet", "--collect", "--property=Delegate=yes", "--"]


def podman_command(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run the podman program once. Raises `EngineUnavailable` when it is absent or doesn't end in time."""
    command = ["podman", "--log-level", "error", *arguments]
    try:
        answer = subprocess.run(
            command,
            env=scrubbed_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            cwd="/",
        )
    except FileNotFoundError:
        raise missing_podman() from None
    except subprocess.TimeoutExpired:
        raise EngineUnavailable(
            f"`{shlex.join(command)}` did not end within {timeout_s:g} s",
            hint="look for a hung podman process, then try again",
        ) from None
    # Its database keeps the runtime directory of its first call, whatever the variable says later.
    if answer.returncode != 0 and (lost := re.search(r"mkdir (/run/user/\d+)[^:]*: permission denied", answer.stderr)):
        raise EngineUnavailable(
            f"Podman of this user keeps its state in {lost[1]}, which is gone",
            hint=f"as root: install -d -m 0700 -o {os.getuid()} -g {os.getgid()} {lost[1]}",
        )
    return answer


def missing_podman() -> EngineUnavailable:
    """Return the error for a host without Podman."""
    return EngineUnavailable(
        "Podman is not installed: no `podman` program on the PATH", hint="run scripts/setup, or: apt-get install podman"
    )


def last_line(text: str) -> str:
    """Return the last line that says something, without Podman's `Error: ` prefix."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else "it gave no reason"


def podman_version() -> tuple[int, int, int]:
    """Return Podman's version. Raises `EngineUnavailable` when it is missing, broken or too old."""
    if shutil.which("podman", path=scrubbed_environment()["PATH"]) is None:
        raise missing_podman()
    answer = podman_command("--version", timeout_s=20)
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", answer.stdout)
    if answer.returncode != 0 or match is None:
        raise EngineUnavailable(
            f"`podman --version` failed: {last_line(answer.stderr)}",
            hint="reinstall Podman: apt-get install --reinstall podman",
        )
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version < MINIMUM_VERSION:
        raise EngineUnavailable(
            f"Podman {'.'.join(map(str, version))} is too old: at least {'.'.join(map(str, MINIMUM_VERSION))} is"
            " needed",
            hint="upgrade Podman (Debian 12 and Ubuntu 24.04 ship a newer one)",
        )
    return version


def read_info(runtime_path: str) -> EngineInfo:
    """Ask Podman what it is and what it has, with a given OCI runtime."""
    answer = podman_command("--runtime", runtime_path, "info", "--format", "json", timeout_s=60)
    if answer.returncode != 0:
        raise EngineUnavailable(f"`podman info` failed: {last_line(answer.stderr)}", hint="run `sandbox doctor`")
    host = json.loads(answer.stdout)["host"]
    store = json.loads(answer.stdout)["store"]
    return EngineInfo(
        version=podman_version(),
        runtime=Path(runtime_path).name,
        runtime_path=runtime_path,
        runtime_version=(host["ociRuntime"].get("version") or "unknown").splitlines()[0],
        cgroup_version=2 if host["cgroupVersion"] == "v2" else 1,
        cgroup_controllers=tuple(host.get("cgroupControllers") or ()),
        storage_driver=store["graphDriverName"],
        graph_root=Path(store["graphRoot"]),
        run_root=Path(store["runRoot"]),
        rootless=bool(host["security"]["rootless"]),
    )


def try_runtime(runtime_path: str, canary_root: Path) -> str:
    """Start one container with this runtime from `canary_root`, a directory with one static program.

    Returns "" when it ran, else the runtime's own reason. Versions prove nothing: crun 1.8.1 answers `--version`
    and refuses every container on a hybrid cgroup host.
    """
    answer = podman_command(
        "--runtime", runtime_path, "run", "--rm", "--network", "none", "--log-driver", "none", "--read-only",
        "--cap-drop", "all", "--security-opt", "no-new-privileges", "--entrypoint", "/canary",
        "--rootfs", str(canary_root), "--version", timeout_s=60,
    )  # fmt: skip # a command line
    return "" if answer.returncode == 0 else last_line(answer.stderr)
