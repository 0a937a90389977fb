"""Removes an installation: what belongs to it, in which order it is removed, and what stays.

A plan is made first, and can be shown; a second call finds what the first left. Only what carries our mark or lies in a
directory of ours is touched, and nothing of another user's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandbox import places
from sandbox.container.spec import RUN_LABEL
from sandbox.engine.program import podman_command
from sandbox.engine.protocol import EXPORT_LABEL
from sandbox.errors import EngineUnavailable, SandboxError
from sandbox.host.probe import subordinate_range
from sandbox.image.admission import ENVIRONMENTS, REPOSITORY
from sandbox.installed import services as running
from sandbox.service.config.load import load_config

# scripts/setup writes it into what it lays outside of our directories
MARK = "Installed by the set-up of podman-sandbox-runner"
ACCOUNT_COMMENT = "Runs sandboxes"  # of the account that scripts/setup makes
ACCOUNT = "sandbox"
SYSTEM_COMMAND = Path("/usr/local/bin/sandbox")
SYSTEM_SHARE = Path("/usr/local/share")
BESIDE_COMMAND = (
    "bash-completion/completions/sandbox",
    "fish/vendor_completions.d/sandbox.fish",
    "zsh/site-functions/_sandbox",
    "man/man1/sandbox.1",
)
SYSTEM_PREFIX = Path("/opt") / places.NAME
SYSTEM_CONFIG = Path("/etc") / places.NAME
PODMAN_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Step:
    """One thing to do: the sentence for its reader, and the act."""

    sentence: str
    act: Callable[[], object]


@dataclass
class Plan:
    """What goes, in order, and what stays, each with its reason."""

    steps: list[Step] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    failed: bool = False

    def add(self, sentence: str, act: Callable[[], object]) -> None:
        """Add a step."""
        self.steps.append(Step(sentence, act))

    def add_directory(self, path: Path) -> None:
        """Add the removal of a directory, where it is there."""
        if path.is_dir() and not path.is_symlink():
            self.add(f"remove {path}", functools.partial(remove_tree, path))


def plan() -> Plan:
    """Return what this user's installation consists of; root's, for root. Nothing is changed."""
    return plan_of_root() if os.geteuid() == 0 else plan_of_user()


# ---- an ordinary user's --------------------------------------------------------------------------


def plan_of_user() -> Plan:
    """Plan for an ordinary user: what is theirs, and the command that root's directories have for them."""
    result = Plan()
    data = places.below_home("XDG_DATA_HOME", ".local/share")
    own_venv = data / "venv"
    services = [service for service in running.services(own_venv) if service.uid == os.getuid()]
    for service in services:
        result.add(f"stop the service ({service.describe()})", functools.partial(running.stop, service))
    if Path(places.home(), ".local/share/containers").is_dir() and shutil.which("podman"):
        add_podman(result)
    session = places.session_runtime_path()
    for runtime in (*([session / places.NAME] if session else []), places.shared_runtime_path()):
        if places.is_own_directory(runtime):
            result.add_directory(runtime)
    result.add_directory(places.below_home("XDG_CACHE_HOME", ".cache"))
    result.add_directory(places.config_dir())
    for command, share in (
        (SYSTEM_COMMAND, SYSTEM_SHARE),
        (places.home() / ".local/bin/sandbox", places.home() / ".local/share"),
    ):
        add_command(result, command, share, own_venv)
    if data.is_dir():
        result.add(
            f"remove {data}: the program with its libraries, records of environments, the history",
            functools.partial(remove_tree, data),
        )
    if Path(sys.prefix) == SYSTEM_PREFIX:
        result.stays.append(
            f"the program in {SYSTEM_PREFIX}: root installed it for everyone (as root: sandbox uninstall)"
        )
    elif not Path(sys.prefix).is_relative_to(data):
        result.stays.append(
            f"the program in {sys.prefix}: remove it as it came, such as with "
            f"{sys.prefix}/bin/python -m pip uninstall {places.NAME}"
        )
    result.stays += histories_elsewhere(
        [os.environ, *({**os.environ, **service.settings} for service in services)], within=data
    )
    unit = places.home() / ".config/systemd/user/podman-sandbox-runner.service"
    if unit.exists():
        result.stays.append(
            f"{unit}: it was not laid there by the set-up (systemctl --user disable {unit.stem}; rm {unit})"
        )
    result.stays += common_stays()
    return result


def add_command(result: Plan, command: Path, share: Path, venv: Path) -> None:
    """Add the removal of a command of `venv`, and of what the set-up laid beside it for shells and man."""
    if command.exists() and not is_users(command, venv):
        if os.geteuid() == 0:
            result.stays.append(f"{command}: it is not from root's installation")
        return
    beside = [share / name for name in BESIDE_COMMAND]
    for file in (command, *(path for path in beside if is_marked(path))):
        if file.exists():
            result.add(f"remove {file}", functools.partial(remove_file, file))


def is_marked(file: Path) -> bool:
    """Tell whether the set-up wrote a file."""
    with contextlib.suppress(OSError):
        return MARK in file.read_text(errors="replace")
    return False


def is_users(file: Path, venv: Path) -> bool:
    """Tell whether the set-up wrote a file for the installation in `venv`."""
    return is_marked(file) and f'"{venv}/bin/' in file.read_text(errors="replace")


def histories_elsewhere(environs: Sequence[Mapping[str, str]], *, within: Path) -> list[str]:
    """Return that histories of services stay which have a directory of their own.

    Whoever named that directory may keep more in it.
    """
    found = set()
    for environ in environs:
        with contextlib.suppress(SandboxError, OSError):  # a configuration that can't be read names nothing
            directory = load_config(None, environ).config.history.directory
            if Path(directory).is_dir() and not Path(directory).is_relative_to(within):
                found.add(
                    f"{directory}: the history of a service, in a directory that its configuration names"
                    " (history.directory)"
                )
    return sorted(found)


def common_stays() -> list[str]:
    """Return what no uninstalling takes away."""
    stays = ["the packages, such as podman: apt-get remove them where nothing else needs them"]
    if (storage := places.home() / ".config/containers/storage.conf").exists() and os.geteuid() != 0:
        stays.append(f"{storage}: the storage of this user's Podman was set up with it")
    if os.geteuid() != 0:
        stays.append("the subordinate ids in /etc/subuid and /etc/subgid: other containers of this user need them, too")
    return stays


# ---- Podman --------------------------------------------------------------------------------------


def add_podman(result: Plan) -> None:
    """Add the end of our containers, our images, and Podman's pause process where no other container needs it."""
    try:
        containers = [
            name
            for label in (RUN_LABEL, EXPORT_LABEL)
            for name in podman_lines("ps", "--all", "--quiet", "--filter", f"label={label}")
        ]
        images = [name for name in podman_lines("images", "--format", "{{.Repository}}:{{.Tag}}") if is_our_image(name)]
        others = set(podman_lines("ps", "--quiet")) - set(containers)
    except SandboxError as error:
        result.stays.append(f"images and containers: {error.message} ({error.hint})")
        return
    if containers:
        result.add(
            f"end and remove {len(containers)} container(s) of sandboxes",
            lambda: podman("rm", "--force", "--time", "0", "--ignore", *containers),
        )
    for name in images:
        result.add(f"remove the image {name}", functools.partial(podman, "rmi", "--force", name))
    if others:
        result.stays.append(f"Podman's pause process: {len(others)} other container(s) of this user need it")
    else:
        result.add("end Podman's pause process", lambda: podman("system", "migrate"))
    result.stays.append("other images, also those that a policy had pulled: podman images lists them")


def is_our_image(name: str) -> bool:
    """Tell whether an image was made here."""
    return name.rpartition(":")[0] in (REPOSITORY, ENVIRONMENTS)


def podman_lines(*arguments: str) -> list[str]:
    """Return what Podman prints, line by line. Raises `EngineUnavailable`."""
    return podman(*arguments).split()


def podman(*arguments: str) -> str:
    """Run Podman. Raises `EngineUnavailable` when it fails."""
    answer = podman_command(*arguments, timeout_s=PODMAN_TIMEOUT_S)
    if answer.returncode != 0:
        raise EngineUnavailable(
            f"`podman {' '.join(arguments[:2])}` failed: {answer.stderr.strip()[-300:]}", hint="run `sandbox doctor`"
        )
    return answer.stdout


# ---- root's --------------------------------------------------------------------------------------


def plan_of_root() -> Plan:
    """Plan for root: the services, the user `sandbox` with all it has, and root's own directories."""
    result = Plan()
    try:
        account = pwd.getpwnam(ACCOUNT)
    except KeyError:
        account = None
    uid = None if account is None else account.pw_uid
    services = list(running.services(SYSTEM_PREFIX))
    for service in services:
        if service.uid == uid:
            result.add(f"stop the service ({service.describe()})", functools.partial(running.stop, service))
        else:
            result.stays.append(
                f"process {service.pid} of user id {service.uid}: a service that runs from {SYSTEM_PREFIX}, of another"
                " user"
            )
    if account is not None:
        add_account(result, account)
        started = [{}, *(service.settings for service in services if service.uid == uid)]
        result.stays += histories_elsewhere(
            [{"HOME": account.pw_dir, **settings} for settings in started], within=Path(account.pw_dir)
        )
    result.add_directory(SYSTEM_CONFIG)
    add_command(result, SYSTEM_COMMAND, SYSTEM_SHARE, SYSTEM_PREFIX)
    result.add_directory(SYSTEM_PREFIX)
    result.stays += common_stays()
    return result


def add_account(result: Plan, account: pwd.struct_passwd) -> None:
    """Add the user `sandbox`: as a whole where the set-up made it, else what it has of ours."""
    if account.pw_gecos.split(",")[0] != ACCOUNT_COMMENT or account.pw_uid == 0:
        result.stays.append(
            f"the user {account.pw_name}, with its images and caches: the set-up did not make it"
            f" (as that user: {sys.prefix}/bin/python -I -m sandbox uninstall)"
        )
        return
    uids = range_of_account(account)
    result.add(
        f"end every process of the user {account.pw_name}, Podman's pause process and its containers among them",
        functools.partial(end_processes, uids),
    )
    if Path("/var/lib/systemd/linger", account.pw_name).exists() and running.SYSTEMD.is_dir():
        result.add(
            f"end the lingering session of {account.pw_name}",
            lambda: running.as_root(["loginctl", "disable-linger", account.pw_name]),
        )
    result.add(
        f"remove the user {account.pw_name}, with its home {account.pw_dir} (images, environments, cache) and its"
        " subordinate ids",
        functools.partial(remove_account, account.pw_name),
    )
    runtime = places.RUN_USER / str(account.pw_uid)
    if not running.SYSTEMD.is_dir():
        result.add_directory(runtime)


def range_of_account(account: pwd.struct_passwd) -> tuple[range, ...]:
    """Return the user ids under which processes of an account run: its own, and those of its containers."""
    start, count = subordinate_range(Path("/etc/subuid"), user=account.pw_name, uid=account.pw_uid)
    return (range(account.pw_uid, account.pw_uid + 1), range(start, start + count))


def end_processes(uids: tuple[range, ...]) -> None:
    """End every process under these user ids: asked first, then killed."""
    for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        running.end(processes_of(uids), number, patience_s)


def processes_of(uids: tuple[range, ...], *, proc: Path = running.PROC) -> list[int]:
    """Return the processes that run under one of these user ids."""
    found = []
    for entry in proc.iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and any(entry.stat().st_uid in ids for ids in uids)
                and running.is_alive(int(entry.name), proc=proc)
            ):
                found.append(int(entry.name))
    return found


def remove_account(name: str) -> None:
    """Remove a user with its home; where systemd still ends its session, that is waited for.

    Raises `EngineUnavailable`.
    """
    # 12 says that the home or the spool could not be removed; a spool there never was.
    done = subprocess.run(
        ["userdel", "--remove", name], capture_output=True, text=True, errors="replace", check=False, cwd="/"
    )
    if done.returncode not in (0, 12):
        raise EngineUnavailable(
            f"the user {name} can't be removed: {done.stderr.strip()}", hint=f"as root: userdel --remove {name}"
        )


# ---- files ---------------------------------------------------------------------------------------


def remove_file(path: Path) -> None:
    """Remove a file; with sudo where its directory is root's. Raises `EngineUnavailable`."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        running.as_root(["rm", "-f", "--", str(path)])
    except OSError as error:
        raise EngineUnavailable(f"{path} can't be removed: {error.strerror}", hint=f"as root: rm -f {path}") from None


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it. Raises `EngineUnavailable` with what could not be removed."""
    failed: list[str] = []
    shutil.rmtree(path, onerror=lambda _, name, __: failed.append(str(name)))
    if path.exists():
        raise EngineUnavailable(
            f"{path} can't be removed as a whole: {failed[0] if failed else path}", hint=f"as root: rm -rf {path}"
        )
