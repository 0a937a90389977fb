"""The one door to mmdebstrap: a tree of the distribution's packages, unpacked by an ordinary user.

The packages come from where the host's own apt gets them. mmdebstrap works in a user namespace, so it needs
subordinate ids and no root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sandbox.errors import BuildFailed
from sandbox.image.base.apt_sources import host_sources, os_release, sources_for, transport_options, with_key_files
from sandbox.places import home

HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
TIMEOUT_S = 900.0
KEPT_LINES = 60
PREFIX = "sandbox-bootstrap-"
LEFTOVER_AGE_S = 3_600.0

_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"subuid|subgid|newuidmap|newgidmap",
        "the user has no range of subordinate user ids",
        "as root: apt-get install uidmap; `sandbox doctor` has the command that adds a range",
    ),
    (
        r"No space left|not enough free space|E: Write error",
        "the disk is full",
        "free some space in the work directory and in /tmp",
    ),
    (
        r"NO_PUBKEY|not signed|signatures couldn't be verified|EXPKEYSIG",
        "the signature of an apt source can't be verified",
        "install the archive's keyring (debian-archive-keyring or ubuntu-keyring), then try again",
    ),
    (
        r"ertificate verification|ertificate is|SSL connection|TLS|system certificates",
        "the certificate of an apt source is not trusted",
        "add the issuer's certificate with update-ca-certificates, then try again",
    ),
    (
        r"does not have a Release file|404 +Not Found|cannot find.*suite",
        "an apt source does not have this suite",
        "name a suite that the host's apt sources carry: sandbox image bootstrap --suite NAME",
    ),
    (
        r"Could not (resolve|connect)|Unable to connect|Failed to fetch|Connection (refused|timed out|failed)",
        "an apt source can't be reached",
        "make `apt-get update` work on this host first, then try again",
    ),
    (
        r"unshare|Operation not permitted|user namespace",
        "the host does not allow user namespaces to ordinary users",
        "as root: sysctl -w user.max_user_namespaces=15000; on Debian also kernel.unprivileged_userns_clone=1",
    ),
    (
        r"Unable to locate package python3\.(?P<name>\d+)",
        "this release of the distribution does not have Python 3.{name}",
        "name a release that has it with --suite, or pull an image: --image docker.io/library/python:3.{name}-slim",
    ),
    (
        r"(Unable to locate package|Package) (?P<name>\S+?)( has no installation candidate)?$",
        "{name} is not in the apt sources of this suite",
        "apt-cache search WORD finds names of packages; another release is named with --suite",
    ),
)


def unpack(
    target: Path,
    *,
    what: str,
    suite: str,
    packages: Sequence[str],
    options: Sequence[str],
    chroots: Path,
    progress: Callable[[str], None],
    mode: str = "unshare",
) -> None:
    """Write a tar file of `packages` of `suite` and all that they need to `target`; root has the `mode` "root".

    `what` is being built, for messages; `options` are mmdebstrap's own (variant, hooks); `chroots` is a directory that
    mapped users can enter. Raises `BuildFailed` with the reason and the fix.
    """
    program = shutil.which("mmdebstrap")
    if program is None:
        raise BuildFailed("mmdebstrap is not installed", hint="run scripts/setup, or: apt-get install mmdebstrap")
    release = os_release()
    sources = sources_for(
        suite,
        host_sources(),
        distribution=release.get("ID", ""),
        codename=release.get("VERSION_CODENAME", ""),
    )
    if not sources:
        raise BuildFailed(
            f"no apt source of this host carries {suite}",
            hint="add the distribution's own archive to /etc/apt/sources.list.d, then try again",
        )
    source_list = chroots / "sources.list"
    source_list.write_text("".join(f"{source.line()}\n" for source in with_key_files(sources, chroots)))
    source_list.chmod(0o644)
    command = [
        program, f"--mode={mode}", "--format=tar", f"--include={','.join(packages)}",
        *(f"--aptopt={option}" for option in apt_options()), *options,
        suite, str(target), str(source_list),
    ]  # fmt: skip # a command line
    status, lines = _run(command, _environment(chroots), progress)
    if status != 0:
        raise _failure(what, lines)


def apt_options() -> list[str]:
    """Return the host's apt settings that say how to reach the archive: proxies, certificates, checks."""
    answer = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, errors="replace", check=False)
    options = transport_options(answer.stdout)
    bundle = Path(os.environ.get("SSL_CERT_FILE") or HOST_CERTIFICATES)
    if bundle.is_file() and not any("cainfo" in option.lower() for option in options):
        options.append(f'Acquire::https::CaInfo "{bundle}";')
    credentials = Path("/etc/apt/auth.conf")
    if os.access(credentials, os.R_OK):
        options.append(f'Dir::Etc::netrc "{credentials}";')
    return options


def _environment(chroots: Path) -> dict[str, str]:
    """Return the little that mmdebstrap and apt need, with the caller's proxies: they are needed to fetch."""
    proxies = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
    kept = {name: os.environ[name] for name in proxies if name in os.environ}
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home()),
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(chroots),
        **kept,
    }


def _run(command: Sequence[str], environment: dict[str, str], progress: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run mmdebstrap; return its status and the last lines it wrote."""
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd="/",
        start_new_session=True,
    ) as process:
        timer = threading.Timer(TIMEOUT_S, _end, [process])
        timer.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line.strip())
                if re.match(r"I: (running|downloading|extracting|creating) .*\.\.\.$", line):
                    progress(line[3:].strip().rstrip("."))
        except BaseException:
            _end(process)
            raise
        finally:
            timer.cancel()
    return process.returncode, list(lines)


def _end(process: subprocess.Popen[str]) -> None:
    """End mmdebstrap with all that it started; it removes its own tree when it is asked to end."""
    for number, patience_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience_s)
            return


def _failure(what: str, lines: Sequence[str]) -> BuildFailed:
    told = [line for line in lines if re.match(r"(E|Err|W|error)[: ]|\S+: (E|error):|.*(failed|denied|cannot)", line)]
    told = [line for line in told if "see the man page" not in line] or list(lines)
    detail = "; ".join(told[-4:]) or "it gave no reason"
    text = "\n".join(told)
    for pattern, cause, hint in _CAUSES:
        if found := re.search(pattern, text, re.MULTILINE):
            if named := found.groupdict():
                # The package is all there is to say.
                return BuildFailed(f"{what} can't be built: {cause.format_map(named)}", hint=hint.format_map(named))
            return BuildFailed(f"{what} can't be built: {cause}: {detail}", hint=hint, output=list(lines[-20:]))
    return BuildFailed(
        f"{what} can't be built: mmdebstrap failed: {detail}",
        hint="make `apt-get update` work on this host first, then try again",
        output=list(lines[-20:]),
    )


def write_failure(what: str, error: OSError) -> BuildFailed:
    """Return the error for a file of the build that can't be written."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return BuildFailed(
        f"{what} can't be written: {error.strerror or error}",
        hint="free some space in the work directory" if full else "check the owner of the work directory",
    )


@contextlib.contextmanager
def scratch_directories(what: str, work_dir: Path, *, needed_mib: int) -> Iterator[tuple[Path, Path]]:
    """Yield a private directory and one that the mapped users of a namespace can enter; both are removed.

    Raises `BuildFailed` where less than `needed_mib` are free.
    """
    try:
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent = work_dir if _open_to_others(work_dir) else Path(tempfile.gettempdir())
        for place in {work_dir, parent}:
            free_mib = shutil.disk_usage(place).free // (1 << 20)
            if free_mib < needed_mib:
                raise BuildFailed(
                    f"{what} can't be built: {place} has {free_mib} MiB left",
                    hint=f"free some space there: {needed_mib} MiB are needed for the build",
                )
        for place in {work_dir, parent}:
            _remove_leftovers(place)
        scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=work_dir))
    except OSError as error:
        raise write_failure(what, error) from None
    chroots = None
    try:
        chroots = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        chroots.chmod(0o711)
        yield scratch, chroots
    finally:
        for directory in filter(None, (scratch, chroots)):
            _remove(directory)


def _remove_leftovers(parent: Path) -> None:
    """Remove what a build that was killed outright has left; a living one is never that old."""
    for directory in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            status = directory.lstat()
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > LEFTOVER_AGE_S:
                _remove(directory)


def _open_to_others(directory: Path) -> bool:
    return all(place.stat().st_mode & 0o001 for place in (directory.resolve(), *directory.resolve().parents))


def _remove(directory: Path) -> None:
    """Remove a directory, also where mmdebstrap was killed and left files of its mapped users in it."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        for name in directory.iterdir():
            subprocess.run(
                ["mmdebstrap", "--unshare-helper", "rm", "-rf", "--", str(name)],
                capture_output=True, check=False, cwd="/",
            )  # fmt: skip # a command line
        shutil.rmtree(directory, ignore_errors=True)
