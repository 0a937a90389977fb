"""What this host can do, row by row, each gap with the command that closes it."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox import places
from sandbox.container import spec
from sandbox.engine import program as podman_program
from sandbox.errors import SandboxError
from sandbox.host import probe as host
from sandbox.host.facts import HostFacts
from sandbox.policy.load import load_policy, policy_names
from sandbox.wire.answers import Capability

ANSWER_S = 3.0
PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The doctor's findings. `policies` maps each policy to why it can't run here ("" = it can)."""

    capabilities: tuple[Capability, ...]
    policies: dict[str, str]

    @property
    def usable(self) -> bool:
        """Tell whether at least one policy can run."""
        blocked = any(row.status == "missing" and row.name in REQUIRED for row in self.capabilities)
        return not blocked and any(not reason for reason in self.policies.values())


REQUIRED = {
    "podman", "user and group ids", "user namespaces", "runtime directory", "user session", "seccomp", "OCI runtime",
}  # fmt: skip # a table


def examine(
    *, policy_dirs: Sequence[Path], facts: Callable[[Path], HostFacts], base_image_present: Callable[[HostFacts], bool]
) -> Report:
    """Look at everything; nothing raises, each failure is a row."""
    rows = [podman_row(), ids_row(), user_namespaces_row(), runtime_directory_row(), session_row(), seccomp_row()]
    found: HostFacts | None = None
    if not any(row.status == "missing" for row in rows):
        try:
            found = facts(places.runtime_dir())
        except SandboxError as error:
            rows.append(Capability(name="OCI runtime", status="missing", detail=error.message, fix=error.hint))
    if found is not None:
        rows += [runtime_row(found), storage_row(found), *cap_rows(found), network_row(), identity_row(found)]
        rows += [builder_row(), libraries_row(), proxy_row()]
        rows.append(image_row(present=base_image_present(found)))
    return Report(capabilities=tuple(rows), policies=policy_reasons(found, policy_dirs))


def guarded(name: str, check: Callable[[], str]) -> Capability:
    """Return a row that is ok with `check`'s detail, or missing with its error."""
    try:
        return Capability(name=name, status="ok", detail=check())
    except SandboxError as error:
        return Capability(name=name, status="missing", detail=error.message, fix=error.hint)


def podman_row() -> Capability:
    """Podman is there, answers, and is new enough."""
    return guarded("podman", lambda: ".".join(map(str, podman_program.podman_version())))


def ids_row() -> Capability:
    """Subordinate ids and the programs that map them."""

    def check() -> str:
        start, count, _, _ = host.require_subordinate_ids()
        return f"{count} from {start}"

    row = guarded("user and group ids", check)
    program = shutil.which("newuidmap", path=PATH)
    if (
        row.status == "ok"
        and program
        and not Path(program).stat().st_mode & stat.S_ISUID
        and not has_file_capability(program)
    ):
        return Capability(
            name=row.name,
            status="missing",
            detail=f"{program} is not setuid: it can't map ids",
            fix="as root: apt-get install --reinstall uidmap",
        )
    return row


def has_file_capability(program: str) -> bool:
    """Tell whether a program carries file capabilities instead of the setuid bit."""
    try:
        return bool(os.getxattr(program, "security.capability"))
    except OSError:
        return False


def number_in(path: str) -> int | None:
    """Return the number in a /proc/sys file; None where there is none."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def user_namespaces_row() -> Capability:
    """The kernel lets this user make user namespaces."""
    closed = {"/proc/sys/kernel/unprivileged_userns_clone": 0, "/proc/sys/user/max_user_namespaces": 0}
    for path, value in closed.items():
        if number_in(path) == value:
            key = path.removeprefix("/proc/sys/").replace("/", ".")
            wanted = 1 if key.startswith("kernel") else 15_000
            return Capability(
                name="user namespaces",
                status="missing",
                detail=f"{key} = {value} forbids them",
                fix=f"as root: sysctl -w {key}={wanted}",
            )
    restricted = number_in("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1
    if restricted and not Path("/etc/apparmor.d/podman").exists():
        return Capability(
            name="user namespaces",
            status="missing",
            detail="AppArmor forbids them, and has no profile that lets Podman",
            fix="as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    detail = "allowed by the kernel" + (", and by AppArmor's profile for Podman" if restricted else "")
    return Capability(name="user namespaces", status="ok", detail=detail)


def runtime_directory_row() -> Capability:
    """A private directory for sockets."""
    return guarded("runtime directory", lambda: str(places.runtime_dir()))


def session_row() -> Capability:
    """On cgroup v2, the user's own systemd makes the groups."""
    return guarded("user session", host.require_session)


def seccomp_row() -> Capability:
    """The kernel filters system calls."""
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    except OSError:
        actions = []
    if "errno" in actions:
        return Capability(name="seccomp", status="ok", detail="the kernel filters system calls")
    return Capability(
        name="seccomp",
        status="missing",
        detail="the kernel has no seccomp filter",
        fix=(
            "as root: apt-get install linux-image-$(dpkg --print-architecture) && reboot (the distribution's kernel"
            " has it)"
        ),
    )


def runtime_row(facts: HostFacts) -> Capability:
    """The OCI runtime that really started a container."""
    others = "; ".join(f"{name}: {reason}" for name, reason in facts.rejected_runtimes.items())
    detail = f"{facts.engine.runtime_version} at {facts.engine.runtime_path}"
    return Capability(name="OCI runtime", status="ok", detail=f"{detail} ({others})" if others else detail)


def storage_row(facts: HostFacts) -> Capability:
    """Overlay storage; vfs copies every image for every container."""
    driver = facts.engine.storage_driver
    if driver == "overlay":
        return Capability(name="storage", status="ok", detail=f"overlay at {facts.engine.graph_root}")
    return Capability(
        name="storage",
        status="fallback",
        detail=f"{driver}: works, but each sandbox costs a copy of its image",
        fix=(
            'write driver = "overlay" under [storage] in ~/.config/containers/storage.conf; then: podman system reset,'
            " which removes all images, containers and volumes of this user; then: sandbox image bootstrap"
        ),
    )


def cap_rows(facts: HostFacts) -> list[Capability]:
    """Memory, CPUs and processes: by cgroup v2, or by a fallback."""
    held = {
        "memory": "RLIMIT_AS and a watchdog on used memory",
        "cpus": "core affinity and RLIMIT_CPU",
        "processes": "RLIMIT_NPROC for a user id of its own",
    }
    rows = []
    for control, fallback in held.items():
        why = spec.why_no_cgroup(facts, control)
        if why:
            rows.append(
                Capability(
                    name=control,
                    status="fallback",
                    detail=f"{fallback}; {why}",
                    fix=spec.cgroup_fix(facts),
                )
            )
        else:
            rows.append(Capability(name=control, status="ok", detail="cgroup v2"))
    return rows


def network_row() -> Capability:
    """No sandbox has a network; nothing needs to be installed for that."""
    return Capability(name="no network", status="ok", detail="a network namespace with the loopback interface alone")


def identity_row(facts: HostFacts) -> Capability:
    """Each live sandbox has a host user id of its own."""
    first, last = (facts.subuid_start + uid - 1 for uid in (spec.UID_FIRST, spec.UID_LAST))
    return Capability(
        name="user id per sandbox", status="ok", detail=f"host ids {first} to {last}, one for each live sandbox"
    )


def builder_row() -> Capability:
    """Check for the program that makes base images."""
    if shutil.which("mmdebstrap", path=PATH):
        return Capability(name="image builder", status="ok", detail="mmdebstrap")
    return Capability(
        name="image builder",
        status="missing",
        detail="mmdebstrap is not installed: no base image can be made",
        fix="as root: apt-get install mmdebstrap",
    )


def libraries_row() -> Capability:
    """What installs libraries, and from where: pip's own configuration decides."""
    from sandbox.environment.installation import tools
    from sandbox.index.pip_config import read_index

    try:
        index = read_index(os.environ, places.home()).public()
    except SandboxError as error:
        return Capability(name="libraries", status="missing", detail=error.message, fix=error.hint)
    sources = ", ".join((*index.urls, *index.find_links)) or "no source at all"
    if tools():
        return Capability(name="libraries", status="ok", detail=f"uv, from {sources}")
    return Capability(
        name="libraries",
        status="fallback",
        detail=f"uv is missing: the image's own pip, from {sources}",
        fix=f"{shlex.quote(sys.executable)} -m pip install uv",
    )


def proxy_row() -> Capability:
    """The HTTP proxy that this host goes through, and whether it answers; its login is not shown."""
    from sandbox.index.pip_config import read_sources
    from sandbox.proxies import proxy_advice, read_proxies

    try:
        usual = read_proxies(os.environ)
        of_pip = read_proxies(os.environ, pip=read_sources(os.environ, places.home()).proxy)
    except SandboxError as error:
        return Capability(name="proxy", status="missing", detail=error.message, fix=error.hint)
    uses = [
        (usual.https, "images and programs that policies let out" if of_pip != usual else "everything"),
        (usual.http if usual.http != usual.https else None, "addresses that begin with http:"),
        (of_pip.https if of_pip != usual else None, "libraries"),
    ]
    shown = [f"{server.shown} ({server.source}) for {use}" for server, use in uses if server]
    if not shown:
        return Capability(name="proxy", status="ok", detail="none: this host connects directly")
    detail = "; ".join(shown) + (f"; not for {', '.join(usual.bypass)}" if usual.bypass else "")
    for server in dict.fromkeys(server for server, _ in uses if server):
        if why := unreachable(server.host, server.port):
            gap = f"the proxy {server.shown} can't be reached: {why}"
            return Capability(name="proxy", status="missing", detail=f"{gap}; {detail}", fix=proxy_advice(gap))
    return Capability(name="proxy", status="ok", detail=detail)


def unreachable(host: str, port: int) -> str:
    """Return why nobody answers there; an empty text where somebody does."""
    try:
        with socket.create_connection((host, port), timeout=ANSWER_S):
            return ""
    except OSError as error:
        return error.strerror or f"no answer within {ANSWER_S:g} s"


def image_row(*, present: bool) -> Capability:
    """The base image is there."""
    if present:
        return Capability(name="base image", status="ok", detail="in local storage")
    return Capability(name="base image", status="missing", detail="not built yet", fix="sandbox image bootstrap")


def policy_reasons(facts: HostFacts | None, policy_dirs: Sequence[Path]) -> dict[str, str]:
    """Return, for each known policy, why it can't run on this host; "" when it can."""
    reasons = {}
    for name in policy_names(policy_dirs):
        if facts is None:
            reasons[name] = "this host can't run any sandbox"
            continue
        try:
            spec.plan_caps(load_policy(name, directories=policy_dirs).policy, facts)
            reasons[name] = ""
        except SandboxError as error:
            reasons[name] = error.message
    return reasons
