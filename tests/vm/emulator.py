"""Boot the machine in QEMU, follow what it says, and end it on every path.

The machine has no network device. The disk is never written to: QEMU keeps changes in a nameless file of its own, which
the kernel drops with the process. One virtual serial port carries what the machine prints, another its results.
"""

from __future__ import annotations

import os
import platform
import re
import select
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.vm.disk import Disk

BOOTED = "machine: booted"
READY = "machine: ready"  # the tests begin when it is told to go on
IMAGES = "images.img"  # the third disk, beside the job, where there is one
# A host whose KVM can boot a stock kernel does so in seconds; one whose KVM can't often says nothing at all.
KVM_BOOT_S = 60.0
HOLD_POLL_S = 0.2
EMULATED_BOOT_S = 400.0
MEMORY_MIB = 4096
# Indirect branches are what emulation is slow at, and the mitigations are made of them. The machine is thrown away.
# Once, an emulated kernel panicked while it rewrote `sched_clock_cpu` for a stable clock: with `tsc=unstable` it doesn't.
# A panic ends the machine at once (`panic=-1`, with -no-reboot), and does not look like a boot that takes its time.
KERNEL_ARGUMENTS = (
    "root=/dev/vda rw quiet mitigations=off nokaslr tsc=unstable panic=-1 systemd.show_status=no"
    " systemd.journald.max_level_console=err"
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How QEMU emulates one processor family. `console` is the kernel's name of the first serial port.

    `cpu` is what is emulated best: wide vector instructions, which libraries use wherever they find them, cost more
    than they save.
    """

    program: str
    machine: str
    console: str
    cpu: str


ARCHITECTURES = {
    "x86_64": Architecture(program="qemu-system-x86_64", machine="q35", console="ttyS0", cpu="Nehalem"),
    "aarch64": Architecture(program="qemu-system-aarch64", machine="virt", console="ttyAMA0", cpu="max"),
}


class MachineFailed(Exception):
    """The machine did not boot, or did not come to an end. Says what was seen last."""


def accelerators() -> list[str]:
    """Return what to try, best first."""
    return ["kvm", "tcg"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else ["tcg"]


def command(disk: Disk, job: Path, results: Path, console: Path, *, accelerator: str, shell: bool) -> list[str]:
    """Return QEMU's command line. `job` is a tar file, read as a disk; `results` gets a tar file.

    Beside `console` lies the socket that tells the machine to go on.
    """
    kind = ARCHITECTURES[platform.machine()]
    images = job.with_name(IMAGES)
    ports = ["-chardev", f"file,id=results,path={results}", "-device", "virtserialport,chardev=results,name=results"]
    if shell:
        serial = ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    else:
        serial = ["-serial", f"file:{console}", "-chardev", "file,id=progress,path=/dev/stdout"]
        ports += ["-device", "virtserialport,chardev=progress,name=progress"]
        ports += ["-chardev", f"socket,id=go,path={go_socket(console)},server=on,wait=off"]
        ports += ["-device", "virtserialport,chardev=go,name=go"]
    return [
        # QEMU must not outlive us, however we end.
        "setpriv",
        "--pdeathsig",
        "KILL",
        "--",
        kind.program,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-nic",
        "none",
        "-machine",
        kind.machine,
        "-m",
        str(MEMORY_MIB),
        "-smp",
        str(min(4, max(2, len(os.sched_getaffinity(0))))),
        *(
            ["-accel", "kvm", "-cpu", "host"]
            if accelerator == "kvm"
            else ["-accel", "tcg,thread=multi", "-cpu", kind.cpu]
        ),
        "-kernel",
        str(disk.kernel),
        "-initrd",
        str(disk.initrd),
        "-append",
        f"{KERNEL_ARGUMENTS} console={kind.console}" + (" systemd.mask=job.service" if shell else ""),
        "-drive",
        f"file={disk.image},format=raw,if=virtio,snapshot=on,cache=unsafe",
        "-drive",
        f"file={job},format=raw,if=virtio,readonly=on",
        *(["-drive", f"file={images},format=raw,if=virtio,snapshot=on,cache=unsafe"] if images.exists() else []),
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial",
        *serial,
        *ports,
    ]


def go_socket(console: Path) -> Path:
    """Return where QEMU listens for the word to go on."""
    return console.with_name("go")


def go_on(process: subprocess.Popen[bytes], told: socket.socket, at: Path, hold: int | None) -> None:
    """Tell the machine to begin its tests, once something can be read from `hold`; at once without it.

    `told` must stay open until it has been read: what a caller says that has gone is lost.
    """
    while hold is not None and not select.select([hold], [], [], HOLD_POLL_S)[0]:
        if process.poll() is not None:
            return
    told.connect(str(at))
    told.sendall(b"go\n")


def lines(process: subprocess.Popen[bytes], deadline: Callable[[], float]) -> Iterator[str]:
    """Yield the lines that a process prints until it ends. Raises `TimeoutError` past the (moving) deadline."""
    assert process.stdout is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left_s = deadline() - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            if not selector.select(min(left_s, 1.0)):
                continue
            data = os.read(process.stdout.fileno(), 65_536)
            if not data:
                if pending:
                    yield pending.decode(errors="replace")
                return
            # A line in the making is shown too, so that dots of tests appear as they come.
            *whole, pending = (pending + data).split(b"\n")
            yield from (line.decode(errors="replace").rstrip("\r") for line in whole)


def end(process: subprocess.Popen[bytes]) -> None:
    """End QEMU for good."""
    process.kill()
    process.wait(timeout=30)
    if process.stdout is not None:
        process.stdout.close()


def boot(
    disk: Disk,
    job: Path,
    scratch: Path,
    *,
    accelerator: str,
    budget_s: float,
    say: Callable[[str], None],
    hold: int | None = None,
) -> bytes:
    """Run the machine to its own end; return its results. Raises `MachineFailed` when it does not get there.

    It begins its tests when something can be read from the descriptor `hold`, and its budget counts anew from then on.
    """
    results, console = scratch / "results.tar", scratch / "console.txt"
    results.unlink(missing_ok=True)
    began = time.monotonic()
    booted = False

    def deadline() -> float:
        if booted:
            return began + budget_s
        return began + min(budget_s, KVM_BOOT_S if accelerator == "kvm" else EMULATED_BOOT_S)

    process = subprocess.Popen(
        command(disk, job, results, console, accelerator=accelerator, shell=False),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": str(scratch)},
    )
    last = ""
    told = socket.socket(socket.AF_UNIX)
    try:
        for line in lines(process, deadline):
            last = line or last
            booted = booted or line.startswith(BOOTED)
            say(line)
            if line.startswith(READY):
                go_on(process, told, go_socket(console), hold)
                began = time.monotonic()
        process.wait(timeout=30)
    except (TimeoutError, subprocess.TimeoutExpired):
        what = f"was not done after {budget_s:.0f} s" if booted else "did not boot in time"
        raise MachineFailed(f"the machine {what}; it said last: {last or '(nothing)'}\n{tail(console)}") from None
    finally:
        end(process)
        told.close()
    if not booted or not results.exists() or not results.stat().st_size:
        raise MachineFailed(f"the machine ended without results; it said last: {last or '(nothing)'}\n{tail(console)}")
    return results.read_bytes()


def shell(disk: Disk, job: Path, scratch: Path, *, accelerator: str) -> int:
    """Give the machine's console, as its root, to the terminal; returns when it is switched off."""
    words = command(disk, job, scratch / "results.tar", scratch / "console.txt", accelerator=accelerator, shell=True)
    saved = subprocess.run(["stty", "-g"], capture_output=True, text=True, check=False)
    try:
        subprocess.run(["stty", "raw", "-echo"], check=False, stderr=subprocess.DEVNULL)
        return subprocess.run(words, check=False, env={**os.environ, "TMPDIR": str(scratch)}).returncode
    finally:
        if saved.returncode == 0:
            subprocess.run(["stty", saved.stdout.strip()], check=False)


def tail(console: Path) -> str:
    """Return the end of the machine's console, without what a terminal would obey."""
    if not console.exists():
        return "its console stayed empty"
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[^\n\x20-\x7e]", "", console.read_text(errors="replace"))
    return "\n".join(["its console ends with:", *text.splitlines()[-25:]])


def missing_program() -> str:
    """Return the name of the emulator where it is not installed, else ""."""
    program = ARCHITECTURES[platform.machine()].program
    return "" if shutil.which(program) else program
