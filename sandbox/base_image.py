"""The base image, made on this host from its distribution's own packages, without a container registry.

`mmdebstrap` unpacks the packages as an ordinary user in a user namespace; `sandbox.base_layer` makes the
image of them. No maintainer script of a package runs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sandbox.apt_sources import host_sources, os_release, sources_for, transport_options, with_key_files
from sandbox.base_layer import PACKAGES_FILE, UNUSED_MODULES, write_archive, write_layer
from sandbox.engine import Engine, ImageRecord
from sandbox.errors import BuildFailed, InvalidRequest
from sandbox.image import REPOSITORY, oci_architecture

PACKAGES = ("python3", "coreutils", "dash", "ca-certificates", "libc-bin", "tzdata")
HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
TIMEOUT_S = 900.0
NEEDED_MIB = 600
KEPT_LINES = 60
PREFIX = "sandbox-bootstrap-"
LEFTOVER_AGE_S = 3_600.0
_LEFT_OUT_PATHS = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
    "/usr/share/lintian/*",
)  # fmt: skip

# Runs on the image's own Python. Each file is compiled in a fresh fork of one process: what marshal writes
# depends on the objects that happen to be alive, and this way they are the same whatever came before.
_COMPILE = f"""
import os, py_compile, sys
top = os.path.dirname(os.__file__)
skipped = {set(UNUSED_MODULES)!r}
files = []
for directory, names, found in os.walk(top):
    names[:] = sorted(name for name in names if name not in skipped and name != "__pycache__")
    files += [os.path.join(directory, name) for name in sorted(found) if name.endswith(".py")]
running = 0
def finish():
    if os.wait()[1]:
        sys.exit("a module of the standard library could not be compiled")
for path in files:
    if running >= (os.cpu_count() or 1):
        finish()
        running -= 1
    if os.fork() == 0:
        status = 1
        try:
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(path, doraise=True, invalidation_mode=mode)
            status = 0
        finally:
            os._exit(status)
    running += 1
for _ in range(running):
    finish()
"""

_CAUSES: tuple[tuple[str, str, str], ...] = (
    (r"subuid|subgid|newuidmap|newgidmap",
     "the user has no range of subordinate user ids",
     "as root: apt-get install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"),
    (r"No space left|not enough free space|E: Write error", "the disk is full",
     f"free {NEEDED_MIB} MiB in the work directory and in /tmp"),
    (r"NO_PUBKEY|not signed|signatures couldn't be verified|EXPKEYSIG",
     "the signature of an apt source can't be verified",
     "install the archive's keyring (debian-archive-keyring or ubuntu-keyring), then try again"),
    (r"ertificate verification|ertificate is|SSL connection|TLS|system certificates",
     "the certificate of an apt source is not trusted",
     "add the issuer's certificate with update-ca-certificates, then try again"),
    (r"does not have a Release file|404 +Not Found|cannot find.*suite",
     "an apt source does not have this suite",
     "name a suite that the host's apt sources carry: sandbox image bootstrap --suite NAME"),
    (r"Could not (resolve|connect)|Unable to connect|Failed to fetch|Connection (refused|timed out|failed)",
     "an apt source can't be reached", "make `apt-get update` work on this host first, then try again"),
    (r"unshare|Operation not permitted|user namespace",
     "the host does not allow user namespaces to ordinary users",
     "as root: sysctl -w user.max_user_namespaces=15000; on Debian also kernel.unprivileged_userns_clone=1"),
    (r"Unable to locate package", "a package is not in the apt sources of this suite",
     "name another suite: sandbox image bootstrap --suite NAME"),
)  # fmt: skip


def bootstrap(engine: Engine, *, suite: str | None, work_dir: Path, progress: Callable[[str], None]) -> ImageRecord:
    """Build the base image, load it and return it; `progress` gets one short sentence per step.

    `suite` is a release of the distribution (None: the host's own); `work_dir` holds files during the build.
    Raises `BuildFailed` with the reason and the fix, `InvalidRequest` for a suite that is no name.
    """
    release = os_release()
    wanted = suite or release.get("VERSION_CODENAME", "")
    if not re.fullmatch(r"[a-z][a-z0-9.-]{0,40}", wanted):
        raise InvalidRequest(
            f"{wanted!r} is not the name of a distribution release",
            hint="name one, for example: sandbox image bootstrap --suite bookworm",
        )
    with _scratch_directories(work_dir) as (scratch, chroots):
        packages = scratch / "packages.tar"
        progress(f"fetching and unpacking the {wanted} packages of Python")
        _unpack(packages, suite=wanted, release=release, chroots=chroots, progress=progress)
        progress("writing the image")
        try:
            layer = write_layer(packages, scratch / "layer.tar")
            packages.unlink()
            archive = scratch / "image.tar"
            names = [f"{REPOSITORY}:latest", f"{REPOSITORY}:{wanted}"]
            write_archive(layer, archive, suite=wanted, architecture=oci_architecture(), names=names)
        except OSError as error:
            raise _os_failure(error) from None
        progress("loading it into Podman")
        return engine.load(archive)


def _unpack(
    target: Path, *, suite: str, release: dict[str, str], chroots: Path, progress: Callable[[str], None]
) -> None:
    program = shutil.which("mmdebstrap")
    if program is None:
        raise BuildFailed("mmdebstrap is not installed", hint="run scripts/setup, or: apt-get install mmdebstrap")
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
        program, "--mode=unshare", "--variant=extract", "--format=tar", f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT_PATHS),
        *(f"--aptopt={option}" for option in _apt_options()),
        f"--extract-hook={_hook()}",
        suite, str(target), str(source_list),
    ]  # fmt: skip
    status, lines = _run(command, _environment(chroots), progress)
    if status != 0:
        raise _failure(lines)


def _hook() -> str:
    """Return the shell commands that run on the unpacked tree (`$1`), as its root user."""
    inside = (
        "env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 "
        f'chroot "$1" /usr/bin/python3 -S -s -c {shlex.quote(_COMPILE)}'
    )
    merge = (
        'for d in bin sbin lib lib64; do if [ ! -e "$1/$d" ] && [ -d "$1/usr/$d" ]; '
        'then ln -s "usr/$d" "$1/$d"; fi; done'
    )
    listing = f'ls "$1/var/cache/apt/archives" | grep "\\.deb$" > "$1/{PACKAGES_FILE}"'
    return f"set -e; {merge}; {listing}; {inside}"


def _apt_options() -> list[str]:
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
        "HOME": str(Path.home()),
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(chroots),
        **kept,
    }


def _run(command: Sequence[str], environment: dict[str, str], progress: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run mmdebstrap; return its status and the last lines it wrote."""
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, errors="replace", cwd="/", start_new_session=True,
    ) as process:  # fmt: skip
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


def _failure(lines: Sequence[str]) -> BuildFailed:
    told = [line for line in lines if re.match(r"(E|Err|W|error)[: ]|\S+: (E|error):|.*(failed|denied|cannot)", line)]
    told = [line for line in told if "see the man page" not in line] or list(lines)
    detail = "; ".join(told[-4:]) or "it gave no reason"
    text = "\n".join(told)
    for pattern, cause, hint in _CAUSES:
        if re.search(pattern, text):
            return BuildFailed(f"the base image can't be built: {cause}: {detail}", hint=hint, output=list(lines[-20:]))
    return BuildFailed(
        f"the base image can't be built: mmdebstrap failed: {detail}",
        hint="make `apt-get update` work on this host first, then try again",
        output=list(lines[-20:]),
    )


def _os_failure(error: OSError) -> BuildFailed:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return BuildFailed(
        f"the base image can't be written: {error.strerror or error}",
        hint=f"free {NEEDED_MIB} MiB in the work directory" if full else "check the owner of the work directory",
    )


@contextlib.contextmanager
def _scratch_directories(work_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a private directory and one that the mapped users of a namespace can enter; both are removed."""
    try:
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent = work_dir if _open_to_others(work_dir) else Path(tempfile.gettempdir())
        for place in {work_dir, parent}:
            free_mib = shutil.disk_usage(place).free // (1 << 20)
            if free_mib < NEEDED_MIB:
                raise BuildFailed(
                    f"the base image can't be built: {place} has {free_mib} MiB left",
                    hint=f"free some space there: {NEEDED_MIB} MiB are needed for the build",
                )
        for place in {work_dir, parent}:
            _remove_leftovers(place)
        scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=work_dir))
    except OSError as error:
        raise _os_failure(error) from None
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
            )  # fmt: skip
        shutil.rmtree(directory, ignore_errors=True)
