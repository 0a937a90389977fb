"""`python -m tests.vm`: what `scripts/vm-test` calls as the unprivileged user. Exit status 0, 1 (tests failed), 2 (no results)."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox import image, places
from sandbox.errors import SandboxError
from tests.e2e.libraries import EVERYTHING
from tests.vm import disk, emulator

CACHE = "machine"
RESULT_FILES = ("junit.xml", "status", "journal.txt")
MAX_RESULT_BYTES = 64 << 20
# Under emulation everything takes this many times as long; time limits of tests grow with it.
SLOWER = {"kvm": 1, "tcg": 5}
LEFT_OUT = {".git", "build", "dist", "node_modules", "__pycache__", ".venv", ".hypothesis"}


def cache_directory() -> Path:
    """Return where disks are kept."""
    directory = places.cache_dir() / CACHE
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def alone(cache: Path) -> Iterator[None]:
    """Keep other calls of this user out of the cache meanwhile."""
    handle = os.open(cache, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def scratch_directory(cache: Path) -> Iterator[Path]:
    """Yield a directory of this process; also remove those of processes that were killed (their lock is gone)."""
    with alone(cache):
        for old in cache.glob("run-*"):
            handle = os.open(old, os.O_RDONLY)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            os.close(handle)
        directory = Path(tempfile.mkdtemp(prefix="run-", dir=cache))
        lock = os.open(directory, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def save(name: str, target: Path, layout: str) -> None:
    """Save an image of this host in one of Podman's layouts."""
    command = ["podman", "save", "--quiet", "--format", layout, "--output", str(target), name]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd="/", stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise emulator.MachineFailed(
            f"the image {name} can't be saved: {done.stderr.strip()[-300:]}; run: sandbox image bootstrap"
        )


def libraries(scratch: Path) -> list[tuple[Path, str]]:
    """Build, on this host, the environment that the examples need, and return its image and its lock: the machine has no index."""
    command = [sys.executable, "-m", "sandbox", "env", "build", "--json"]
    command += [word for name in EVERYTHING for word in ("--with", name)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL)
    if built.returncode != 0:
        raise emulator.MachineFailed(f"the libraries of the examples can't be installed: {built.stderr.strip()[-500:]}")
    target, name = scratch / "libraries", scratch / "libraries-name"
    if not target.exists():
        # In this layout Podman leaves out the layers that it has, which are those of the base image.
        save(json.loads(built.stdout)["image"], target, "docker-dir")
    name.write_text(json.loads(built.stdout)["image"])
    data = places.data_dir()
    return [(target, target.name), (name, name.name), *((data / name, f"data/{name}") for name in ("locks", "environments"))]


def pack_job(target: Path, wheel: Path, scratch: Path, arguments: list[str], accelerator: str) -> None:
    """Write the second disk: a tar file with the wheel, the base image, the tests and what pytest is told."""
    saved = scratch / "base-image.tar"
    if not saved.exists():
        save(f"{image.REPOSITORY}:latest", saved, "docker-archive")

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(entry.name).name in LEFT_OUT or entry.name.endswith("_cache") else entry

    with tarfile.open(target, "w") as archive:
        for name in ("tests", "pyproject.toml", "policies"):
            archive.add(disk.CHECKOUT / name, arcname=name, filter=kept)
        archive.add(wheel, arcname=wheel.name)
        archive.add(saved, arcname=saved.name)
        if any("tests/e2e" in argument for argument in arguments):
            for path, name in libraries(scratch):
                archive.add(path, arcname=name)
        texts = {
            "pytest-arguments": "\n".join(arguments), "slower": str(SLOWER[accelerator]), "ci": os.environ.get("CI", ""),
        }  # fmt: skip
        for name, text in texts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    # A disk is whole sectors.
    os.truncate(target, -(-target.stat().st_size // 4096) * 4096)


def unpack_results(data: bytes, directory: Path) -> int:
    """Write the known files of the results, and return pytest's exit status. The machine is not trusted with names."""
    directory.mkdir(parents=True, exist_ok=True)
    status = 2
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for name in RESULT_FILES:
            try:
                member = archive.getmember(name)
            except KeyError:
                continue
            stream = archive.extractfile(member) if member.isfile() and member.size <= MAX_RESULT_BYTES else None
            if stream is None:
                continue
            content = stream.read()
            if name == "status":
                status = int(content.strip() or b"2")
            else:
                (directory / name.replace("junit", "kernel")).write_bytes(content)
    return status


def run(options: argparse.Namespace) -> int:
    """Boot, test, bring the results home."""
    built = disk.cached(cache_directory())
    if built is None:
        raise emulator.MachineFailed("the disk is not built; run scripts/vm-test, which builds it")
    ends = time.monotonic() + options.budget_s
    with scratch_directory(cache_directory()) as scratch:
        job = scratch / "job.tar"
        wanted = [options.accelerator] if options.accelerator else emulator.accelerators()
        for accelerator in wanted:
            pack_job(job, options.wheel, scratch, options.arguments, accelerator)
            if options.shell:
                print("the machine's console; `poweroff` ends it. The job is a tar file on /dev/vdb.")
                return emulator.shell(built, job, scratch, accelerator=accelerator)
            began = time.monotonic()
            print(f"booting the machine ({'KVM' if accelerator == 'kvm' else 'emulated: about a minute'})", flush=True)
            try:
                data = emulator.boot(
                    built, job, scratch, accelerator=accelerator, budget_s=ends - time.monotonic(), say=say
                )
            except emulator.MachineFailed as failure:
                if accelerator == wanted[-1] or time.monotonic() - began > emulator.KVM_BOOT_S + 5:
                    raise
                print(f"KVM does not boot this machine here, so it is emulated: {str(failure).splitlines()[0]}")
                continue
            status = unpack_results(data, options.results)
            print(f"the machine took {time.monotonic() - began:.0f} s ({accelerator})")
            return status
    return 2


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the script that called us is gone, however it ended: prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def say(line: str) -> None:
    """Print what the machine says, without what a terminal would obey."""
    print("".join(c if c.isprintable() else "?" for c in line), flush=True)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("requirements", help="print what the machine's Python needs")
    commands.add_parser("cached", help="exit status 0 when the disk is built")
    build = commands.add_parser("build", help="build the disk")
    build.add_argument("--wheels", type=Path, required=True)
    boot = commands.add_parser("run", help="boot the machine and run tests in it")
    boot.add_argument("--wheel", type=Path, required=True)
    boot.add_argument("--results", type=Path, required=True)
    boot.add_argument("--budget-s", type=float, default=1200.0)
    boot.add_argument("--accelerator", choices=sorted(SLOWER))
    boot.add_argument("--shell", action="store_true")
    boot.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    end_with_parent()
    try:
        if options.command == "requirements":
            print(f"{disk.PYTHON}\n" + "\n".join(disk.requirements()))
            return 0
        if options.command == "cached":
            return 0 if disk.cached(cache_directory()) else 1
        if missing := emulator.missing_program():
            raise emulator.MachineFailed(f"{missing} is not installed; run scripts/setup --vm")
        if options.command == "build":
            with alone(cache_directory()):
                disk.build(cache_directory(), options.wheels, lambda sentence: print(f"    {sentence}", flush=True))
            return 0
        return run(options)
    except SandboxError as error:
        print(f"error: {error.message}\nfix:   {error.hint}", file=sys.stderr)
    except emulator.MachineFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
