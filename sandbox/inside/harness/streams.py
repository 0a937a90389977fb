"""The program's standard streams: what is written to them leaves at once, and nothing stays behind at the end."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import TextIOWrapper
    from types import FrameType
    from typing import Any


AT_ONCE = 10_000  # so many writes in this time; a program that writes more has its lines sent, as on a terminal
AT_ONCE_S = 10.0
LAST_WORDS = 64  # the last signal for real-time use; signal(7)
IONBF = 2  # setvbuf(3)
STREAMS = ("stdout", "stderr", "__stdout__", "__stderr__")


def open_streams() -> None:
    """Give the program text streams that send everything at once and never fail on bad text."""
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc] # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, **options)  # type: ignore[misc] # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, **options)  # type: ignore[misc] # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        _send_at_once(stream)
    _unbuffer_c()


def _send_at_once(stream: TextIOWrapper) -> None:
    """Have a stream send also what is no whole line, without a call of Python's for each write of a chatty program."""
    buffer: Any = stream.buffer
    write, flush = buffer.write, buffer.flush
    left, began = AT_ONCE, time.monotonic()

    def write_at_once(data: Any) -> Any:
        nonlocal left, began
        count = write(data)
        flush()
        left -= 1
        if left <= 0:
            now = time.monotonic()
            if now - began < AT_ONCE_S:
                _send_lines(stream, buffer, write_at_once)
            left, began = AT_ONCE, now
        return count

    buffer.write = write_at_once
    stream.reconfigure(write_through=True)


def _send_lines(stream: TextIOWrapper, buffer: Any, write_at_once: Any) -> None:
    """Undo `_send_at_once`: from now on the stream sends each line, and keeps what is none."""
    if buffer.write is write_at_once:  # and not something of the program's
        del buffer.write
    try:
        stream.reconfigure(write_through=False)
    except ValueError:  # detached or closed by the program
        return


def _unbuffer_c() -> None:
    """Have what C prints leave at once: on a pipe, libc would keep it until the process ends by itself."""
    import ctypes

    libc = ctypes.CDLL(None)
    try:
        stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    except ValueError:  # a libc that calls it differently
        return
    libc.setvbuf(stdout, None, IONBF, ctypes.c_size_t(0))


def flush_all() -> None:
    """Send what waits in the program's streams, in the files that its own names hold, and in the buffers of C.

    Python does so at its end, when it takes everything apart.
    """
    streams: list[Any] = [getattr(sys, name, None) for name in STREAMS]  # a program may have deleted them
    try:  # noqa: SIM105 - an import more
        streams += _open_files()
    except BaseException:  # noqa: S110 - or what leads to its own names
        pass
    for stream in streams:
        try:
            stream.flush()  # None is caught as well
        except BaseException:  # noqa: S112 - closed or replaced by the program
            continue
    try:
        import ctypes

        ctypes.CDLL(None).fflush(None)
    except BaseException:  # noqa: S110 - replaced by the program
        pass


def _open_files() -> Iterator[Any]:
    """Yield the files that the names of the main module hold."""
    from _io import _IOBase

    main = sys.modules.get("__main__")
    for value in list(getattr(main, "__dict__", {}).values()):
        if issubclass(type(value), _IOBase):  # asking an object for its class may run its code
            yield value


def say_last_words(_number: int, _frame: FrameType | None) -> None:
    """Answer the supervisor, which is about to kill this process: send what waits, and be gone."""
    flush_all()
    os.kill(os.getpid(), 9)


def hear_of_the_end() -> None:
    """Have this process told of its end, if it is not to end by itself."""
    import _signal as signal  # type: ignore[import-not-found]

    signal.signal(LAST_WORDS, say_last_words)
