"""What this host can enforce: probed once per boot and set-up, then read back at every run.

`probe()` answers with `HostFacts`; `sandbox.doctor` turns them into the rows that `sandbox doctor` prints.
Nothing here is believed by a run: `sandbox.container.verify` reads the kernel's own account of each sandbox.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import pwd
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandbox.engine import program as podman_program
from sandbox.engine.protocol import EngineInfo
from sandbox.errors import EngineUnavailable, NotEnforceable
from sandbox.host.facts import HostFacts
from sandbox.kernel import process as kernel
from sandbox.places import home, private_directory

SUBIDS_NEEDED = 65_536
SUBORDINATE = Path("/etc/subuid"), Path("/etc/subgid")
FIRST_SUBID = 100_000
CACHE_VERSION = 2
SYSTEMD = Path("/run/systemd/system")  # there while systemd runs the host: sd_booted(3)


def subordinate_range(path: Path, *, user: str, uid: int) -> tuple[int, int]:
    """Return (first id, count) of the user's first range in /etc/subuid or /etc/subgid; (0, 0) if none.

    Source: subuid(5).
    """
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0, 0
    for line in lines:
        name, _, rest = line.strip().partition(":")
        start, _, count = rest.partition(":")
        if name in (user, str(uid)) and start.isdigit() and count.isdigit():
            return int(start), int(count)
    return 0, 0


def free_range(files: Sequence[Path] = SUBORDINATE) -> str:
    """Return a range, as usermod takes it, above every range that somebody has.

    Whoever shared one could reach the other's sandboxes.
    """
    end = FIRST_SUBID
    for path in files:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                _, start, count = (*line.strip().split(":"), "", "")[:3]
                if start.isdigit() and count.isdigit():
                    end = max(end, int(start) + int(count))
    return f"{end}-{end + SUBIDS_NEEDED - 1}"


def user_name() -> str:
    """Return the calling user's name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def require_subordinate_ids() -> tuple[int, int, int, int]:
    """Return the subuid and subgid ranges. Raises `NotEnforceable` with the command that adds them."""
    user, uid = user_name(), os.getuid()
    uids, gids = (subordinate_range(file, user=user, uid=uid) for file in SUBORDINATE)
    for file, (_, count) in zip(SUBORDINATE, (uids, gids), strict=True):
        if count < SUBIDS_NEEDED:
            raise NotEnforceable(
                f"user {user} has {count} subordinate ids in {file}, {SUBIDS_NEEDED} are needed to give each sandbox"
                " a user id of its own",
                hint=(
                    f"as root: usermod --add-subuids {free_range()} --add-subgids {free_range()} {user}; then, as"
                    f" {user}: podman system migrate"
                ),
            )
    if shutil.which("newuidmap", path="/usr/local/bin:/usr/bin:/bin") is None:
        raise NotEnforceable(
            "newuidmap is not installed: user ids can't be mapped", hint="as root: apt-get install uidmap"
        )
    return *uids, *gids


def require_session() -> str:
    """Return how containers get their cgroups.

    Raises `NotEnforceable` where only a systemd of the user's own could make them: without it Podman starts nothing, or
    everything without a limit, by what is left of the last session.
    """
    if not (kernel.CGROUP_ROOT / "cgroup.controllers").exists():
        return "not needed with cgroup v1"
    if not SYSTEMD.is_dir():
        return "systemd does not run this host"
    if kernel.session_group(os.getuid()).is_dir():
        return "systemd runs, and makes a cgroup for each sandbox"
    raise NotEnforceable(
        f"user {user_name()} has no session of systemd, which is what makes the cgroups of sandboxes on this host",
        hint=f"as root: loginctl enable-linger {user_name()} && systemctl start user@{os.getuid()}.service",
    )


def choose_runtime(scratch: Path) -> tuple[str, dict[str, str]]:
    """Return the path of the first OCI runtime that really starts a container, and why others did not."""
    canary = shutil.which("catatonit", path="/usr/libexec/podman:/usr/local/bin:/usr/bin:/bin")
    if canary is None:
        raise EngineUnavailable(
            "catatonit is not installed: it is the static program that a runtime is tried with",
            hint="as root: apt-get install catatonit",
        )
    rejected: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=scratch, prefix="canary-") as directory:
        # Rootless overlay needs the mount points to exist; the container itself is read-only.
        for name in ("proc", "sys", "dev", "run", "etc", "tmp", "var/tmp"):
            (Path(directory) / name).mkdir(parents=True)
        shutil.copy(canary, Path(directory) / "canary")
        for name in podman_program.RUNTIMES:
            path = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            if path is None:
                rejected[name] = "not installed"
                continue
            rejected[name] = podman_program.try_runtime(path, Path(directory))
            if not rejected[name]:
                del rejected[name]
                return path, rejected
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    raise EngineUnavailable(
        f"no OCI runtime starts a container here ({reasons})",
        hint="as root: apt-get install --reinstall runc crun uidmap",
    )


def probe(runtime_dir: Path, *, fresh: bool = False) -> HostFacts:
    """Return what this host can do, from the cache of this boot when nothing relevant changed.

    `fresh` probes again. Raises `EngineUnavailable` or `NotEnforceable`, each with the fix.
    """
    ranges = require_subordinate_ids()
    cache = runtime_dir / "host.json"
    key = fingerprint(ranges)
    if not fresh and (known := read_cache(cache, key)) is not None:
        return known
    podman_program.podman_version()
    require_session()
    runtime, rejected = choose_runtime(private_directory(runtime_dir))
    info = podman_program.read_info(runtime)
    facts = HostFacts(
        engine=info,
        uid=os.getuid(),
        controllers=delegated(info),
        subuid_start=ranges[0],
        subuid_count=ranges[1],
        subgid_start=ranges[2],
        subgid_count=ranges[3],
        cpu_ids=tuple(sorted(os.sched_getaffinity(0))),
        kernel=platform.release(),
        architecture=platform.machine(),
        rejected_runtimes=rejected,
    )
    write_cache(cache, key, facts)
    return facts


def delegated(info: EngineInfo) -> frozenset[str]:
    """Return the cgroup v2 controllers that limits can be set with.

    The kernel's own list for the user's systemd: Podman's list is that of the group in which it happens to run, which
    may have fewer, and it claims all of them for a session that is gone.
    """
    if info.cgroup_version != 2:
        return frozenset()
    session = kernel.session_group(os.getuid())
    if session.is_dir() or SYSTEMD.is_dir():
        return kernel.read_controllers(session)
    return frozenset(info.cgroup_controllers)


def fingerprint(ranges: tuple[int, ...]) -> str:
    """Return a key that changes when the programs, the kernel, the id ranges or the storage set-up do."""
    parts: list[Any] = [CACHE_VERSION, ranges, platform.release(), sorted(os.sched_getaffinity(0)), str(home())]
    files = [
        "/usr/bin/podman",
        "/usr/bin/crun",
        "/usr/bin/runc",
        "/usr/local/bin/podman",
        "/etc/containers/storage.conf",
        str(home() / ".config/containers/storage.conf"),
        "/proc/sys/kernel/random/boot_id",
        str(kernel.session_group(os.getuid()) / "cgroup.controllers"),
    ]
    for name in files:
        path = Path(name)
        try:
            status = path.stat()
        except OSError:
            parts.append(None)
            continue
        # Files of /proc and /sys have no useful times: their content is the fact.
        parts.append(path.read_text() if name.startswith(("/proc", "/sys")) else [status.st_mtime_ns, status.st_size])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_cache(path: Path, key: str, facts: HostFacts) -> None:
    """Store `facts` atomically, readable by this user alone."""
    document = dataclasses.asdict(facts) | {"controllers": sorted(facts.controllers), "key": key}
    temporary = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        json.dump(document, stream, default=str)
    temporary.replace(path)


def read_cache(path: Path, key: str) -> HostFacts | None:
    """Return the stored facts if they are this user's own, well formed, and made under the same `key`."""
    try:
        status = path.lstat()
        if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
            return None
        document = json.loads(path.read_text())
        if document.pop("key") != key:
            return None
        engine = document.pop("engine")
        return HostFacts(
            engine=EngineInfo(
                **engine
                | {
                    "version": tuple(engine["version"]),
                    "cgroup_controllers": tuple(engine["cgroup_controllers"]),
                    "graph_root": Path(engine["graph_root"]),
                    "run_root": Path(engine["run_root"]),
                }
            ),
            **document | {"controllers": frozenset(document["controllers"]), "cpu_ids": tuple(document["cpu_ids"])},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
