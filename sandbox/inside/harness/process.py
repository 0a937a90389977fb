"""What a process of the harness does to itself: limits, libraries, local time, its end."""

from __future__ import annotations

import os
import sys
import time

from sandbox.inside.harness.streams import flush_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


LIBRARIES = "/opt/environment"
ZONES = "/usr/share/zoneinfo"
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4


def address_space(size: int) -> Any:
    """Map memory without touching it: it costs no time and no page, only room under RLIMIT_AS."""
    try:
        import mmap

        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (ImportError, OSError):
        return None


def exit_status(code: object) -> int:
    """Return the exit status that Python would leave with for `SystemExit(code)`."""
    if code is None:
        return 0
    return int(code) & 0xFF if isinstance(code, int) else 1


def wait_for_threads() -> None:
    """Wait for the threads that the program has started, as Python does at its end."""
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()


def leave(status: int) -> NoReturn:
    """End the process as Python would, with exit functions and flushed output, but without teardown."""
    try:
        import atexit

        atexit._run_exitfuncs()
    except BaseException:  # noqa: S110 - Python prints it and goes on, too
        pass
    flush_all()
    os._exit(status)


def set_limits(limits: dict[str, int]) -> None:
    """Apply the resource limits that the job names, soft and hard."""
    import resource

    kinds = {
        "as_bytes": resource.RLIMIT_AS,
        "fsize_bytes": resource.RLIMIT_FSIZE,
        "nofile": resource.RLIMIT_NOFILE,
        "nproc": resource.RLIMIT_NPROC,
    }
    for name, kind in kinds.items():
        if limits.get(name) is not None:
            resource.setrlimit(kind, (limits[name], limits[name]))
    if limits.get("cpu_s") is not None:
        # One second apart: at the soft limit SIGXCPU says why, the hard one is a plain SIGKILL.
        resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def report(text: str, error: BaseException | None) -> None:
    """Write an error to standard error as Python does, after a text."""
    import traceback

    if sys.stderr is not None and error is not None:
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        sys.stderr.write(text + "".join(lines))


def report_uncaught(_kind: object, error: BaseException, _tb: object) -> None:
    """Report an error as `sys.excepthook`."""
    report("", error)


def call_own_hook(error: BaseException) -> None:
    """Call the program's own `sys.excepthook`, if it has set one, for the error that ends it. Raises SystemExit."""
    hook = sys.excepthook
    if hook in (report_uncaught, sys.__excepthook__, None) or isinstance(error, SystemExit):
        return
    try:
        hook(type(error), error, error.__traceback__)
    except SystemExit:
        raise
    except BaseException as failure:
        report("Error in sys.excepthook:\n", failure)


def report_by_traceback() -> None:
    """Have `traceback` report uncaught errors, also of threads and finalizers: Python's own report opens files."""
    import _thread

    def in_thread(found: Any) -> None:
        if found.exc_type is not SystemExit:
            name = found.thread.name if found.thread else _thread.get_ident()
            report(f"Exception in thread {name}:\n", found.exc_value)

    sys.excepthook = report_uncaught
    sys.unraisablehook = lambda found: report(
        f"{found.err_msg or 'Exception ignored in'}: {found.object!r}\n", found.exc_value
    )
    setattr(_thread, "_excepthook", in_thread)  # noqa: B010 - where `threading` takes it from
    if "threading" in sys.modules:
        setattr(sys.modules["threading"], "excepthook", in_thread)  # noqa: B010


class Distutils:
    """Finds an environment's `distutils` before the standard library's, of which some images have a part alone."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:  # noqa: ARG002
        """Answer as a finder of `sys.meta_path`."""
        if name != "distutils":
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [self.directory])


def add_libraries(directory: str) -> None:
    """Let the program import an environment's libraries: behind the standard library, before what the image has.

    A second call changes nothing but what was changed since.
    """
    if not os.path.isdir(directory):
        return
    if directory not in sys.path:
        import site

        own = list(sys.path)
        site.addsitedir(directory)
        added = [entry for entry in sys.path if entry not in own]
        places = (n for n, entry in enumerate(own) if entry.endswith(("site-packages", "dist-packages")))
        behind = next(places, len(own))
        sys.path[:] = [*own[:behind], *added, *own[behind:]]
        if os.path.isdir(f"{directory}/distutils"):
            sys.meta_path.insert(0, Distutils(directory))
    os.environ["PYTHONPATH"] = directory  # for the Python programs that it starts
    if not os.environ["PATH"].startswith(f"{directory}/bin:"):
        os.environ["PATH"] = f"{directory}/bin:{os.environ['PATH']}"


def set_local_time() -> str | None:
    """Make local time that of the variable TZ, which the libc reads once; return a warning if it knows no such zone.

    Like every libc, it then takes UTC without a word.
    """
    name = os.environ.get("TZ")
    if name is None:
        return None
    time.tzset()
    zone = name[1:] if name.startswith(":") else name
    if not zone or _spelt_out(zone) or _is_zone(os.path.join(ZONES, zone)):
        return None
    if os.path.isdir(ZONES):
        return "the variable TZ names no time zone that exists here, such as Europe/Paris: local time is UTC"
    return f"the image has no time zones ({ZONES}, from the package tzdata) for the variable TZ: local time is UTC"


def _is_zone(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"TZif"
    except (OSError, ValueError):
        return False


def _spelt_out(zone: str) -> bool:
    """Tell whether a zone is described rather than named, as in `CET-1CEST`; tzset(3)."""
    import re

    return re.match(r"(<[+\-\w]{3,}>|[A-Za-z]{3,})[+-]?\d", zone) is not None


def reseed() -> None:
    """Give the program random numbers of its own. `random` sees to itself after a fork, NumPy does not."""
    module = sys.modules.get("numpy.random")
    if module is not None:
        module.seed()


def set_dumpable(value: int) -> None:
    """Set whether /proc shows this process to its own user. Raises OSError unless it took effect."""
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    arguments = [ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3]
    if prctl(PR_SET_DUMPABLE, *arguments) != 0 or prctl(PR_GET_DUMPABLE) != value:
        raise OSError(ctypes.get_errno(), f"prctl(PR_SET_DUMPABLE, {value}) failed")


def hide() -> None:
    """Make process 1 opaque to the program and deaf to its signals, and import what is needed later.

    All this happens after "ready" was sent, while the runner checks the sandbox.
    """
    import _signal as signal  # type: ignore[import-not-found]

    set_dumpable(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_at_once(path: str, text: str) -> None:
    """Write to a file of the kernel, in one call."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def close_project_ids() -> None:
    """Where /proc can be written, write the one map of the user namespace that anyone may write, once.

    It is read back.
    """
    try:  # noqa: SIM105 - an import more
        write_at_once("/proc/self/projid_map", "0 0 1")
    except OSError:
        pass  # read-only, or written already
