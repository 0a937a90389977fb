"""Source text that attack programs share: raw system calls by name, each answered with the name of its errno.

A refusal proves something only where the kernel itself would have answered differently, so the arguments below are
wrong on purpose: the kernel says EBADF, EINVAL or EFAULT to them, the filter EPERM or ENOSYS.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator

import pytest

# name: (x86_64, aarch64); calls since Linux 5.1 have one number everywhere. Source: the kernel's syscall tables.
NUMBERS = {
    "capset": (126, 91),
    "rt_sigqueueinfo": (129, 138),
    "prctl": (157, 167),
    "socket": (41, 198),
    "clone": (56, 220),
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "setxattr": (188, 5),
    "sched_setaffinity": (203, 122),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "mknodat": (259, 33),
    "unshare": (272, 97),
    "splice": (275, 76),
    "tee": (276, 77),
    "vmsplice": (278, 75),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "seccomp": (317, 277),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "clone3": (435, 435),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
    "statmount": (457, 457),
    "listmount": (458, 458),
}

_COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine())

needs_known_architecture = pytest.mark.skipif(_COLUMN is None, reason="no system call numbers for this processor")
needs_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the 32-bit call gate is x86's")

RAW = f"""
import ctypes, errno, mmap, os, signal, socket, struct, sys
NUMBERS = { {name: pair[_COLUMN or 0] for name, pair in NUMBERS.items()} }
libc = ctypes.CDLL(None, use_errno=True)
BAD = 1  # an address that nothing is mapped at

def raw(number, *arguments):
    ctypes.set_errno(0)
    value = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    return value, ctypes.get_errno()

def name_of(value, code):
    return "ok" if value >= 0 else errno.errorcode.get(code, str(code))

def call(name, *arguments):
    return name_of(*raw(NUMBERS[name], *arguments))

def attempt(function, *arguments):
    try:
        value = function(*arguments)
    except OSError as error:
        return type(error).__name__ if isinstance(error, socket.gaierror) else errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        return type(error).__name__
    if hasattr(value, "close"):
        value.close()
    return "ok"

def in_child(function):
    "Answer what function returns (text) in a process of its own, or the signal that ended it."
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, str(function()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    text = os.read(reading, 1000).decode()
    os.close(reading)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else text
"""


def program(code: str) -> str:
    """Return an attack program with the raw calls at hand."""
    return RAW + code


def system_calls() -> Iterator[tuple[int, str]]:
    """Yield the number and name of every system call that the host's libseccomp knows on this processor."""
    library = ctypes.CDLL("libseccomp.so.2")
    resolve = library.seccomp_syscall_resolve_num_arch
    resolve.restype = ctypes.c_void_p
    native = library.seccomp_arch_native()
    for number in range(600):
        name = resolve(ctypes.c_uint32(native), number)
        if name:
            yield number, str(ctypes.cast(name, ctypes.c_char_p).value, "ascii")  # type: ignore[arg-type]
