"""`python -m tests.vm`: what `scripts/vm-test` calls as the unprivileged user.

Exit status 0, 1 (tests failed), 2 (no results).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox import places
from sandbox.errors import SandboxError
from tests.vm import disk, emulator, job, results

CACHE = "machine"


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


def the_disk(wheels: Path | None) -> disk.Disk:
    """Return the machine's disk: built anew where there are `wheels` for it."""
    cache = cache_directory()
    if wheels is None:
        built = disk.cached(cache)
        if built is None:
            raise emulator.MachineFailed("the disk is not built; run scripts/vm-test, which builds it")
        return built
    print(
        "building the disk: Debian 13 with Podman, from the distribution's own packages (once, until its inputs change)"
    )
    with alone(cache):
        return disk.build(cache, wheels, lambda sentence: print(f"    {sentence}", flush=True))


def run(options: argparse.Namespace) -> int:
    """Pack, boot, test, bring the results home."""
    ends = time.monotonic() + options.budget_s
    built: disk.Disk | None = None
    with scratch_directory(cache_directory()) as scratch:
        second_disk = scratch / "job.tar"
        wanted = [options.accelerator] if options.accelerator else emulator.accelerators()
        for accelerator in wanted:
            # First of all, as it uses the account's Podman, which other tests may want to have for themselves.
            job.pack(second_disk, options.wheel, scratch, options.arguments, accelerator)
            built = built or the_disk(options.wheels)
            if options.shell:
                print("the machine's console; `poweroff` ends it. The job is a tar file on /dev/vdb.")
                return emulator.shell(built, second_disk, scratch, accelerator=accelerator)
            began = time.monotonic()
            if began > ends:
                raise emulator.MachineFailed(
                    f"building the disk took all of the {options.budget_s:.0f} s; call it again: the disk is kept; or"
                    " give it a larger --budget"
                )
            print(f"booting the machine ({'KVM' if accelerator == 'kvm' else 'emulated: about a minute'})", flush=True)
            try:
                data = emulator.boot(
                    built,
                    second_disk,
                    scratch,
                    accelerator=accelerator,
                    budget_s=ends - time.monotonic(),
                    say=say,
                    hold=sys.stdin.fileno() if options.hold else None,
                )
            except emulator.MachineFailed as failure:
                if accelerator == wanted[-1] or time.monotonic() - began > emulator.KVM_BOOT_S + 5:
                    raise
                print(f"KVM does not boot this machine here, so it is emulated: {str(failure).splitlines()[0]}")
                continue
            status = results.unpack(data, options.results, job.sessions(options.arguments))
            print(f"the machine took {time.monotonic() - began:.0f} s ({accelerator})")
            return status
    return 2


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the script that called us is gone, however it ended.

    That is prctl(2), PR_SET_PDEATHSIG.
    """
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
    boot = commands.add_parser("run", help="boot the machine and run tests in it")
    boot.add_argument("--wheel", type=Path, required=True)
    boot.add_argument("--wheels", type=Path, help="build the disk, with these")
    boot.add_argument("--results", type=Path, required=True)
    boot.add_argument("--budget-s", type=float, default=1200.0)
    boot.add_argument("--accelerator", choices=sorted(job.SLOWER))
    boot.add_argument("--hold", action="store_true", help="get ready, and begin the tests when a line comes")
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
        return run(options)
    except SandboxError as error:
        print(f"error: {error.message}\nfix:   {error.hint}", file=sys.stderr)
    except emulator.MachineFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
