"""Imports modules in process 1, ahead of the job."""

from __future__ import annotations

import gc
import os
import sys
import time

from sandbox.inside.harness.directory import forget_harness
from sandbox.inside.harness.limits import EXIT_BROKEN
from sandbox.inside.harness.process import LIBRARIES, add_libraries, hide
from sandbox.inside.harness.streams import open_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


LAST_THREAD_S = 0.2


def preload(names: list[str], app_dir: str) -> tuple[list[str], str | None]:
    """Import modules in process 1, so that the program has them; return those that could be imported.

    Also returns the module, or None, whose import left a thread or a process running. Such a sandbox is of no use: in
    the program, a fork, they would be missing. What an import does to this process, and not to modules, is undone.
    """
    own = os.getpid()
    restore_signals = _signals()
    umask = os.umask(0o077)
    os.umask(umask)
    outputs = _silence()
    forget_harness()
    add_libraries(LIBRARIES)
    sys.argv = ["script.py"]
    module = sys.modules["__main__"] = type(sys)("__main__")
    module.__dict__.update(__builtins__=__builtins__, __file__=os.path.join(app_dir, sys.argv[0]))
    loaded, unfit = [], None
    for name in names:
        if _imported(name):
            loaded.append(name)
        if os.getpid() != own:  # an import that forks, and comes back twice
            os._exit(EXIT_BROKEN)
        restore_signals()
        if _left_running():
            unfit = name
            break
    _speak_again(outputs)
    os.umask(umask)
    os.chdir(app_dir)
    hide()
    gc.freeze()
    return loaded, unfit


def _signals() -> Callable[[], None]:
    """Return a function that makes this process answer signals as it does now."""
    import _signal as signal  # type: ignore[import-not-found]

    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def restore() -> None:
        for number, handler in handlers.items():
            try:
                signal.signal(number, handler)
            except (OSError, TypeError):  # SIGKILL and SIGSTOP; one that Python has not set
                continue
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return restore


def _imported(name: str) -> bool:
    """Import a module, whatever that raises. A failure leaves no module behind whose package is missing."""
    known = set(sys.modules)
    try:
        __import__(name)
    except BaseException:
        for module in sorted(set(sys.modules) - known):
            package = module.rpartition(".")[0]
            if package and package not in sys.modules:
                del sys.modules[module]
        return False
    return True


def _left_running() -> bool:
    """Tell whether an import has left a process or a thread of Python running, which a fork would be without.

    Threads that a library's own code has started, such as those of a memory allocator, are the library's business: it
    must expect to be forked once it is imported.
    """
    from _thread import _count as threads

    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
        return True
    except ChildProcessError:
        pass
    deadline = time.monotonic() + LAST_THREAD_S
    while threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    return threads() > 0


def _silence() -> tuple[int, int]:
    """Open the program's streams, lead them nowhere, and return where output went before."""
    outputs = os.dup(1), os.dup(2)
    reading, writing = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (writing, 1), (writing, 2)):
        os.dup2(source, target)
    open_streams()  # on a pipe, as the program's will be: a stream remembers whether it can seek
    for target in (1, 2):
        os.dup2(null, target)
    for descriptor in (reading, writing, null):
        os.close(descriptor)
    return outputs


def _speak_again(outputs: tuple[int, int]) -> None:
    """Drop what imports have written but not flushed, and lead output back: a fork must not inherit it."""
    import ctypes

    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr] # None is caught as well
        except BaseException:  # noqa: S112 - closed or replaced by a library
            continue
    ctypes.CDLL(None).fflush(None)
    for source, target in zip(outputs, (1, 2)):  # noqa: B905 - Python 3.8
        os.dup2(source, target)
        os.close(source)
