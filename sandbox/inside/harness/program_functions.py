"""The functions that a program finds in its namespace."""

from __future__ import annotations

import os
import time

from sandbox.inside.harness.handing_on import MODULE
from sandbox.inside.harness.json_text import json_record
from sandbox.inside.harness.limits import MAX_RECORD_BYTES
from sandbox.inside.harness.text import clean, name_problem
from sandbox.inside.harness.values import type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sandbox.inside.harness.channel import Channel


LEVELS = ("debug", "info", "warning", "error")


class Helpers:
    """The functions that a program finds in its namespace.

    They are pickled by their names in the module `MODULE`, which every process of the program has.
    """

    __module__ = MODULE

    def __init__(self, channel: Channel, app_dir: str, started: float) -> None:
        self._channel = channel
        self._app_dir = app_dir
        self._started = started
        self.saved: set[str] = set()

    def __reduce__(self) -> str:
        return "helpers"

    def by_name(self) -> dict[str, Callable[..., Any]]:
        """Return the functions as the program finds them."""
        return {function.__name__: getattr(self, function.__name__) for function in FUNCTIONS}

    def log(self, message: object, level: str = "info") -> None:
        """Add a record to the run's log; levels are debug, info, warning and error."""
        text = str(message)
        known = str(level).lower()
        known = "warning" if known == "warn" else known
        if known not in LEVELS:
            known, text = "info", f"[{level}] {text}"
        elapsed = round(time.monotonic() - self._started, 6)
        record = {"level": known, "message": clean(text, MAX_RECORD_BYTES), "elapsed_s": elapsed}
        self._channel.send(b"L", json_record(record, ("message",)))

    def save_file(self, name: str, content: str | bytes | bytearray | memoryview | None = None) -> str:
        """Write a file and hand it to the caller of the run; return its path.

        Without content, the file of that name in the working directory is handed over as it is.
        """
        problem = name_problem(name)
        if problem:
            raise ValueError(f"save_file: the name {clean(repr(name), 80)} {problem}")
        self.saved.add(name)
        path = os.path.join(self._app_dir, name)
        if content is None:
            self.send_existing(name, path)
            return path
        if isinstance(content, str):
            view = memoryview(content.encode("utf-8", "backslashreplace"))
        elif isinstance(content, (bytes, bytearray, memoryview)):
            view = memoryview(bytes(content))
        else:
            kind = type_name(content)
            raise TypeError(f"save_file: the content must be str or bytes, not {kind}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
        try:
            written = 0
            while written < len(view):
                written += os.write(descriptor, view[written : written + (1 << 20)])
        finally:
            os.close(descriptor)
        sent = 0

        def read(size: int) -> memoryview:
            nonlocal sent
            sent += size
            return view[sent - size : sent]

        self._channel.send_file(name, len(view), read)
        return path

    def send_existing(self, name: str, path: str) -> None:
        """Hand over a file under a name. Raises OSError, ValueError."""
        import stat

        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"save_file: {name!r} is not a regular file")
            self._channel.send_file(name, status.st_size, lambda size: os.read(descriptor, size))
        finally:
            os.close(descriptor)

    def read_file(self, name: str, binary: bool = False) -> str | bytes | None:  # noqa: FBT001, FBT002
        """Return a file of the working directory as text, or as bytes; None when there is none."""
        path = os.path.normpath(os.path.join(self._app_dir, name))
        if "\0" in name or not path.startswith(self._app_dir.rstrip("/") + "/"):
            raise ValueError(f"read_file: {clean(repr(name), 80)} is not below {self._app_dir}")
        try:
            if binary:
                with open(path, "rb") as file:
                    return file.read()
            with open(path, encoding="utf-8") as text:
                return text.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError:
            raise ValueError(
                f"read_file: {name!r} is not UTF-8 text; read_file({name!r}, binary=True) gives its bytes"
            ) from None

    def run_command(self, cmd: str | list[str], timeout: float | None = None) -> dict[str, Any]:
        """Run a command (text through /bin/sh, a list directly); never raises for one that fails.

        Returns `{"returncode", "stdout", "stderr"}`; 127 when it could not start, 124 when it timed out.
        """
        import signal
        import subprocess

        if not isinstance(cmd, (str, list, tuple)):
            raise TypeError(f"run_command: the command must be text or a list, not {type_name(cmd)}")
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                cmd,
                shell=isinstance(cmd, str),
                stdin=null,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return {"returncode": 127, "stdout": "", "stderr": f"could not start: {error}"}
        with process:
            try:
                out, err = process.communicate(timeout=timeout)
                status, reason = process.returncode, ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                status, reason = 124, f"timed out after {timeout} seconds"
        shown = [part.decode("utf-8", "backslashreplace") for part in (out, err)]
        return {"returncode": status, "stdout": shown[0], "stderr": shown[1] + reason}


FUNCTIONS = (Helpers.log, Helpers.save_file, Helpers.read_file, Helpers.run_command)
for _function in FUNCTIONS:
    _function.__module__ = MODULE
