"""The program that resolves, fetches and installs libraries. It runs as an ordinary script *inside* a sandbox.

The runner sends this file as a run's code, with a payload that names one step. Standard library only, Python 3.8+, and
nothing of ours is imported: what it says is checked outside. Each step answers in `result`; a step that failed for
want of something answers `{"error": last lines}`.

resolve  requirements -> `{"pylock", "python", "libc", "machine", "tool"}`; may use the index, through the egress proxy
fetch    files of a lock -> each handed over with save_file; may use the index, as above
install  wheels in /run/sandbox/wheels -> a tree stream per wheel (`sandbox.environment.tree`), handed over; no network
"""

from __future__ import annotations

import base64
import concurrent.futures.process
import contextlib
import errno
import functools
import http.client
import importlib.util
import json
import marshal
import multiprocessing
import os
import platform
import re
import shutil
import ssl
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Any

    payload: dict[str, Any]

    def save_file(name: str) -> str:
        """Hand over a file of the working directory, as the harness does."""


APP = Path("/app")
WHEELS = Path("/run/sandbox/wheels")
CLIENT = APP / "client.pem"  # what is shown to the index, if anything is
UV = "/run/sandbox/tools/uv"
LIBRARIES = "/opt/environment"
CHUNK_BYTES = 1 << 20
MAX_ERROR_CHARS = 20_000
ATTEMPTS = 3
AGAIN_S = 0.2
CONNECTIONS = 6
TIMEOUT_S = 60
UV_OPTIONS = ("--python", sys.executable, "--no-config", "--no-python-downloads", "--color", "never", "--no-progress")
PIP = (sys.executable, "-m", "pip")
PIP_OPTIONS = ("--no-cache-dir", "--disable-pip-version-check", "--no-input")
UV_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_INSECURE_HOST", "SSL_CLIENT_CERT")
PIP_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_TRUSTED_HOST", "PIP_CLIENT_CERT")
DIRECTORY, FILE, EXECUTABLE, LINK, END = 1, 2, 3, 4, 0
HEADER = struct.Struct(">BIQ")
# In byte code (PEP 552): unchecked, since the files get other times in the image and nobody can change them there.
UNCHECKED = (1).to_bytes(4, "little")
# Tests are seldom imported, and many.
NOT_COMPILED = {"tests", "test"}


class StepError(Exception):
    """A step that can't be done, in the words of the tool that said so."""


def run_tool(*command: str, **variables: str) -> str:
    """Run a tool with more variables and return what it printed. Raises StepError with its last words."""
    scratch = APP / "tmp"
    scratch.mkdir(exist_ok=True)
    try:
        own = {**os.environ, "TMPDIR": str(scratch), **variables}
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=own)
    except OSError as error:
        raise StepError(f"{command[0]} could not start: {error}") from None
    if done.returncode:
        how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else "failed"
        said = (done.stdout + b"\n" + done.stderr).decode(errors="replace").strip()
        raise StepError(said[-MAX_ERROR_CHARS:] or f"{' '.join(command[:4])} {how}")
    return done.stdout.decode()


@functools.lru_cache
def uv_works() -> bool:
    """Tell whether this image can run uv: it needs glibc, and a host that has it."""
    try:
        return not subprocess.run([UV, "--version"], capture_output=True, check=False).returncode
    except OSError:
        return False


def index_variables(index: dict[str, Any], *, pip: bool) -> dict[str, str]:
    """Return the variables that name the index, for uv or for pip: everybody on the host could read a command line."""
    urls = [] if index["no_index"] else index["urls"]
    links, trusted = (" " if pip else ",").join(index["find_links"]), " ".join(index["trusted_hosts"])
    values = ("".join(urls[:1]), " ".join(urls[1:]), links, trusted, str(CLIENT) if CLIENT.exists() else "")
    named = {name: value for name, value in zip(PIP_VARIABLES if pip else UV_VARIABLES, values) if value}  # noqa: B905 - 3.8
    return {"PIP_CONFIG_FILE": os.devnull, "UV_INDEX_STRATEGY": "unsafe-best-match", **named}  # which is pip's own


def no_index(index: dict[str, Any]) -> list[str]:
    """Return the option for having no index, if there is none."""
    return ["--no-index"] if index["no_index"] or not index["urls"] else []


# ---------------------------------------------------------------- resolve


def resolve(job: dict[str, Any]) -> dict[str, Any]:
    """Resolve requirements to a lock in the format of PEP 751."""
    for name in ("requirements", "constraints"):
        (APP / f"{name}.txt").write_text("\n".join(job[name]) + "\n")
    options = ["--constraint", f"{APP}/constraints.txt", *([] if job["sdists"] else ["--only-binary", ":all:"])]
    ask = resolve_with_uv if uv_works() else resolve_with_pip
    return {
        "pylock": ask(f"{APP}/requirements.txt", options, job["index"]),
        "python": list(sys.version_info[:3]),
        "libc": list(platform.libc_ver()),
        "machine": platform.machine(),
        "tool": "uv" if uv_works() else "pip",
    }


def resolve_with_uv(requirements: str, options: list[str], index: dict[str, Any]) -> str:
    """Return what uv resolves to."""
    return run_tool(
        UV, "pip", "compile", requirements, "--format", "pylock.toml", "--no-header", "--no-annotate", "--quiet",
        "--cache-dir", f"{APP}/cache", *UV_OPTIONS, *options, *no_index(index), **index_variables(index, pip=False),
    )  # fmt: skip # a command line


def resolve_with_pip(requirements: str, options: list[str], index: dict[str, Any]) -> str:
    """Return the same from the image's own pip."""
    report = APP / "report.json"
    run_tool(
        *PIP, "install", "--dry-run", "--ignore-installed", "--report", str(report), "-r", requirements,
        *PIP_OPTIONS, *options, *no_index(index), **index_variables(index, pip=True),
    )  # fmt: skip # a command line
    lines = ['lock-version = "1.0"', 'created-by = "pip"']
    for entry in json.loads(report.read_text())["install"]:
        file = entry["download_info"]
        url, sha256 = json.dumps(file["url"]), json.dumps(file["archive_info"]["hashes"]["sha256"])
        source = f"{{ url = {url}, hashes = {{ sha256 = {sha256} }} }}"
        name = re.sub(r"[-_.]+", "-", entry["metadata"]["name"]).lower()
        lines += [
            "[[packages]]",
            f"name = {json.dumps(name)}",
            f"version = {json.dumps(entry['metadata']['version'])}",
            f"wheels = [{source}]" if file["url"].endswith(".whl") else f"sdist = {source}",
        ]
    return "\n".join([*lines, ""])


# ---------------------------------------------------------------- fetch


class Opener:
    """Opens addresses by the proxy that the variables name, trusts what they name, and has the index's passwords."""

    def __init__(self, index: dict[str, Any]) -> None:
        lax = ssl.create_default_context()
        lax.check_hostname = False
        lax.verify_mode = ssl.CERT_NONE
        self._strict, self._lax = map(opener_with, (ssl.create_default_context(), lax))
        self._trusted, self._credentials = set(index["trusted_hosts"]), index["credentials"]

    def open(self, url: str) -> IO[bytes]:
        """Return the stream of an address. Raises OSError."""
        parts = urllib.parse.urlsplit(url)
        request = urllib.request.Request(url, headers={"User-Agent": "podman-sandbox-runner"})  # noqa: S310
        if parts.netloc in self._credentials:
            secret = urllib.parse.unquote(self._credentials[parts.netloc])
            # Not to whom the index redirects to.
            request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
        chosen = self._strict if self._trusted.isdisjoint({parts.hostname, parts.netloc}) else self._lax
        stream: IO[bytes] = chosen.open(request, timeout=TIMEOUT_S)
        return stream


def opener_with(context: ssl.SSLContext) -> urllib.request.OpenerDirector:
    """Return what opens addresses with one idea of trust."""
    if CLIENT.exists():
        context.load_cert_chain(CLIENT)
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))


def download(opener: Opener, file: dict[str, str]) -> dict[str, str]:
    """Fetch one file into the working directory and return it. Raises StepError."""
    problem = ""
    for attempt in range(ATTEMPTS):
        time.sleep(AGAIN_S * attempt)
        try:
            with opener.open(file["url"]) as source, (APP / file["name"]).open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
                if getattr(source, "length", 0):
                    raise ConnectionResetError("the connection ended before the file did")
        except urllib.error.HTTPError as error:
            problem = f"the index answered {error.code} {error.reason}"
            if error.code < http.client.INTERNAL_SERVER_ERROR:
                break
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
            if getattr(error, "errno", None) == errno.ENOSPC:
                break
        else:
            return file
    raise StepError(f"{file['name']}: {problem}")


def fetch(job: dict[str, Any], hand_over: Callable[[str], object]) -> dict[str, Any]:
    """Fetch files and hand each over as soon as it is there; source archives become wheels first."""
    opener = Opener(job["index"])
    built = {}
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        for file in finished([pool.submit(download, opener, file) for file in job["files"]]):
            name = file["name"]
            hand_over(name)
            if file["kind"] == "sdist":
                built[name] = build(name, job["index"])
                hand_over(built[name])
                (APP / built[name]).unlink()
            (APP / name).unlink()
    return {"built": built}


def finished(futures: list[concurrent.futures.Future[Any]]) -> Iterator[Any]:
    """Yield results as they come. When one has none, those that have not begun never do."""
    try:
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def build(name: str, index: dict[str, Any]) -> str:
    """Build a wheel from a source archive, which runs the archive's own code; return the wheel's name."""
    target = APP / "built"
    shutil.rmtree(target, ignore_errors=True)
    source = str(APP / name)
    try:
        if uv_works():
            run_tool(
                UV, "build", "--wheel", "--cache-dir", f"{APP}/cache", *UV_OPTIONS, *no_index(index),
                "--out-dir", str(target), source, **index_variables(index, pip=False),
            )  # fmt: skip # a command line
        else:
            run_tool(
                *PIP, "wheel", "--no-deps", *PIP_OPTIONS, *no_index(index),
                "--wheel-dir", str(target), source, **index_variables(index, pip=True),
            )  # fmt: skip # a command line
    except StepError as error:
        raise StepError(f"{name}: its build failed\n{error}") from None
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise StepError(f"{name}: its build gave {len(wheels)} wheels")
    return wheels[0].replace(APP / wheels[0].name).name


# ---------------------------------------------------------------- install


def install(job: dict[str, Any], hand_over: Callable[[str], object]) -> dict[str, Any]:
    """Install every wheel, several at a time in processes of their own; hand each tree over when it is ready."""
    largest_first = sorted(job["wheels"], key=lambda wheel: -wheel["size_bytes"])
    tool = "uv" if uv_works() else "pip"
    # Forked: this program is no module that another start of Python could import.
    context = multiprocessing.get_context("fork")
    try:
        with concurrent.futures.ProcessPoolExecutor(job["workers"], context) as pool:
            for tree in finished([pool.submit(install_one, wheel) for wheel in largest_first]):
                hand_over(tree)
                (APP / tree).unlink()
    except concurrent.futures.process.BrokenProcessPool:
        raise StepError("a process that installed was killed") from None
    return {"tool": tool}


def install_one(wheel: dict[str, Any]) -> str:
    """Install one wheel into a directory of its own, compile it, and pack it as a tree stream; return its name."""
    top = f"{APP}/t{wheel['n']}"
    tree = f"{wheel['n']}.tree"
    try:
        check_paths(WHEELS / wheel["file"])
        unpack(wheel, top)
        compile_modules(top)
        with (APP / tree).open("wb") as out:
            pack(top, out)
    except (StepError, OSError) as error:
        raise StepError(f"{wheel['name']} {wheel['version']}: {error}") from None
    shutil.rmtree(top)
    return tree


def check_paths(wheel: Path) -> None:
    """Raise StepError for a wheel that is no archive or has a path that leaves it, which uv leaves out silently."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise StepError(f"its archive is no wheel: {error}") from None
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise StepError(f"its file {name[:200]!a} leads out of it")


def unpack(wheel: dict[str, Any], top: str) -> None:
    """Have uv or pip put a wheel's files where they belong below `top`."""
    cache, known = APP / f"c{wheel['n']}", APP / "interpreters"
    lock = APP / f"r{wheel['n']}.txt"
    lock.write_text(f"{wheel['name']}=={wheel['version']} --hash=sha256:{wheel['sha256']}\n")
    what = ("--target", top, "--no-deps", "--no-index", "--find-links", str(WHEELS), "--require-hashes",
            "-r", str(lock))  # fmt: skip # a command line
    if uv_works():
        # What uv finds out about this Python is kept from its first cache: finding out takes longer than a small wheel.
        known.mkdir(exist_ok=True)
        shutil.copytree(known, cache)
        run_tool(UV, "pip", "install", "--quiet", *what, "--offline", "--link-mode", "hardlink",
                 "--cache-dir", str(cache), *UV_OPTIONS)  # fmt: skip # a command line
        for found in cache.glob("interpreter-*"):
            with contextlib.suppress(OSError):  # another was faster
                found.rename(known / found.name)
    else:
        run_tool(*PIP, "install", *what, "--no-compile", *PIP_OPTIONS, PIP_CONFIG_FILE=os.devnull)
    shutil.rmtree(cache, ignore_errors=True)
    Path(top, ".lock").unlink(missing_ok=True)  # uv's own


def below(top: str) -> Iterator[os.DirEntry[str]]:
    """Yield every entry of a tree in a fixed order, a directory before what it holds. No link is followed."""
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from below(entry.path)


def compile_modules(top: str) -> None:
    """Compile what a program may import, so that no run has to; as `py_compile`, but for its second names."""
    for entry in below(top):
        path = entry.path
        if path.endswith(".py") and entry.is_file(follow_symlinks=False) and NOT_COMPILED.isdisjoint(path.split("/")):
            source = Path(path).read_bytes()
            try:
                code = compile(source, LIBRARIES + path[len(top) :], "exec", dont_inherit=True)
                body = marshal.dumps(code)
            except Exception:  # noqa: BLE001, S112 - made for another Python, or meant to be broken: each in a way of its own
                continue
            target = Path(importlib.util.cache_from_source(path))
            target.parent.mkdir(exist_ok=True)
            target.unlink(missing_ok=True)
            with target.open("xb") as out:  # not through a link that the wheel brought
                out.write(importlib.util.MAGIC_NUMBER + UNCHECKED + importlib.util.source_hash(source) + body)


def pack(top: str, out: IO[bytes]) -> None:
    """Write a tree as a stream of records; what is neither file, directory nor link raises StepError."""
    buffer = memoryview(bytearray(CHUNK_BYTES))  # one for all: fresh memory costs more than the copying
    for entry in below(top):
        name = os.fsencode(entry.path[len(top) + 1 :])
        if entry.is_symlink():
            body = os.fsencode(os.readlink(entry.path))  # noqa: PTH115 - as it is
            out.write(HEADER.pack(LINK, len(name), len(body)) + name + body)
        elif entry.is_dir():
            out.write(HEADER.pack(DIRECTORY, len(name), 0) + name)
        elif entry.is_file():
            status = entry.stat()
            out.write(HEADER.pack(EXECUTABLE if status.st_mode & 0o100 else FILE, len(name), status.st_size) + name)
            with open(entry.path, "rb", buffering=0) as source:  # noqa: PTH123 - thousands: a Path for each costs time
                left = status.st_size
                while left and (count := source.readinto(buffer)):
                    out.write(buffer[:count])
                    left -= count
        else:
            raise StepError(f"{os.fsdecode(name)} is neither a file nor a directory")
    out.write(HEADER.pack(END, 0, 0))


def main(job: dict[str, Any], hand_over: Callable[[str], object]) -> dict[str, Any]:
    """Carry out the step that the job names."""
    try:
        if job["step"] == "resolve":
            return resolve(job)
        return {"fetch": fetch, "install": install}[job["step"]](job, hand_over)
    except StepError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    result = main(payload, save_file)  # noqa: F821 - both come from the harness
