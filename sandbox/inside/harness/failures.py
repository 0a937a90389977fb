"""Describes what went wrong: an exception of the program, or a sandbox that could not prepare it."""

from __future__ import annotations

import os

from sandbox.inside.harness.directory import is_ours
from sandbox.inside.harness.json_text import json_record
from sandbox.inside.harness.text import clean
from sandbox.inside.harness.values import type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, TracebackType
    from typing import Any


MAX_TRACEBACK_BYTES = 32_768
MAX_SOURCE_BYTES = 8 << 20


def type_and_message(error: BaseException) -> tuple[str, str]:
    """Return the name of an exception's class and its text, whatever making that raises."""
    try:
        message = str(error)
    except Exception:
        message = "[the exception's own text could not be made]"
    return clean(type_name(error), 200), clean(message)


def location_of(error: BaseException, filename: str) -> tuple[int | None, int | None]:
    """Return the 1-based line and column of the innermost frame in the user's own file."""
    found: TracebackType | None = None
    tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code.co_filename == filename:
            found = tb
        tb = tb.tb_next
    if found is None:
        if isinstance(error, SyntaxError) and error.filename == filename:
            return _number(error.lineno), _number(error.offset)
        return None, None
    code = found.tb_frame.f_code
    positions = getattr(code, "co_positions", None)
    if positions is None:
        return found.tb_lineno, None
    from itertools import islice

    span = next(islice(positions(), found.tb_lasti // 2, None), (None, None, None, None))
    return found.tb_lineno, None if span[2] is None or span[0] != found.tb_lineno else span[2] + 1


def _number(value: object) -> int | None:
    """Return a line or a column that a program may have set itself, or None where it is none."""
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def traceback_text(error: BaseException, filename: str) -> str:
    """Return the traceback without frames of ours, bounded in its middle."""
    import traceback

    report = traceback.TracebackException(type(error), error, error.__traceback__, lookup_lines=False)
    _drop_our_frames(report, filename, set())
    lines = []
    size = 0
    for line in report.format():
        lines.append(clean(line, MAX_TRACEBACK_BYTES))
        size += len(line)
        if size > 64 * MAX_TRACEBACK_BYTES:
            break
    text = "".join(lines).encode("utf-8")
    if len(text) > MAX_TRACEBACK_BYTES:
        third = MAX_TRACEBACK_BYTES // 3
        text = text[:third] + b"\n  [truncated]\n" + text[-2 * third :]
    return text.decode("utf-8", "ignore")


def _drop_our_frames(report: Any, filename: str, seen: set[int]) -> None:
    if report is None or id(report) in seen:
        return
    seen.add(id(report))
    frames = [frame for frame in report.stack if frame.filename == filename or not is_ours(frame.filename)]
    users = [index for index, frame in enumerate(frames) if frame.filename == filename]
    # What comes before the user's first frame is the event loop that runs a top-level await.
    report.stack[:] = frames[users[0] :] if users else frames
    for frame in report.stack:
        _read_source_only(frame.filename)
    for other in (report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())):
        _drop_our_frames(other, filename, seen)


def _read_source_only(name: str) -> None:
    """Have the report open only Python sources of a sensible size: a program's code has any file name it likes."""
    import linecache
    import stat

    if len(linecache.cache.get(name, ())) > 1:
        return
    try:
        there = os.stat(name)
        fine = name.endswith(".py") and stat.S_ISREG(there.st_mode) and there.st_size <= MAX_SOURCE_BYTES
    except (OSError, ValueError):
        fine = False
    if not fine:
        linecache.cache[name] = (0, None, [], name)


def cause_of(error: BaseException) -> str | None:
    """Return which cap of the sandbox explains the exception: memory, processes, or None."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "processes"
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    import errno

    if error.errno == errno.ENOMEM:
        return "memory"
    code: CodeType | None = None
    tb = error.__traceback__
    while tb is not None:
        if not is_ours(tb.tb_frame.f_code.co_filename):  # as what hands on to a new process
            code = tb.tb_frame.f_code
        tb = tb.tb_next
    if error.errno != errno.EAGAIN or code is None:
        return None
    starters = {"fork", "forkpty", "fork_exec", "_fork_exec", "posix_spawn", "posix_spawnp"}
    return "processes" if starters.intersection(code.co_names) else None


def error_record(error: BaseException, filename: str) -> bytes:
    """Return the JSON body of an X frame for an exception of the program."""
    kind, message = type_and_message(error)
    cause = cause_of(error)
    try:
        line, column = location_of(error, filename)
        text = traceback_text(error, filename)
    except Exception:  # out of memory once more, or an exception that fights back
        line, column, text = None, None, f"{kind}: {message}\n"
    fields = {"type": kind, "message": message, "line": line, "column": column}
    fields.update(traceback=text, cause=cause)
    return json_record(fields, ("traceback", "message"))


def setup_error(message: str, *, kind: str = "SandboxSetupError", cause: str | None = "channel") -> bytes:
    """Return the JSON body of an X frame for a sandbox that could not begin the program."""
    fields = {"type": kind, "message": clean(message), "line": None, "column": None}
    fields.update(traceback="", cause=cause)
    return json_record(fields, ("message",))
