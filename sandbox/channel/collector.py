"""Collects what a sandbox sends during one run: output, log records, files, the result.

The harness enforces the caps while it streams. All of them are enforced here again, because user code may have taken
the harness over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from sandbox.channel.frames import FROM_HARNESS, MAX_BODY_BYTES, RECORD_BYTES, RunCaps
from sandbox.channel.records import (
    Cause,
    FileHeader,
    Meta,
    ProgramFailure,
    ProtocolViolation,
    Quit,
    Ready,
    in_form,
    shaped,
)
from sandbox.channel.sent import half_replaced
from sandbox.inside.harness.text import name_problem
from sandbox.models import LogRecord, ProgramError, SavedFile


class FileSink(Protocol):
    """Takes the content of one saved file, piece by piece, and its end. It may raise to end the run."""

    def write(self, data: bytes, /) -> object:
        """Take the next piece."""

    def close(self) -> None:
        """Take note that it is complete."""


class FileInMemory(bytearray):
    """A saved file in memory."""

    write = bytearray.extend

    def close(self) -> None:
        """Do nothing: the content is the object itself."""


class Collector:
    """Takes the frames of one run, in order, and holds what they amount to; no I/O.

    `on_output` is called with "stdout" or "stderr" and the bytes, `on_log` with each record, as they come. `open_file`
    (name, size) gives where a saved file goes as it comes; without it, files are kept in `files`. Read the results
    after `quit` is set. Every method raises ProtocolViolation for what must not happen.
    """

    def __init__(
        self,
        limits: RunCaps,
        *,
        on_output: Callable[[Literal["stdout", "stderr"], bytes], None] | None = None,
        on_log: Callable[[LogRecord], None] | None = None,
        open_file: Callable[[str, int], FileSink] | None = None,
    ) -> None:
        self.limits = limits
        self.ready: Ready | None = None
        self.started = False
        self.logs: list[LogRecord] = []
        self.meta = Meta()
        self.error: ProgramError | None = None
        self.cause: Cause | None = None
        self.quit: Quit | None = None
        self._on_output = on_output
        self._on_log = on_log
        self._open_file = open_file or (lambda *_: FileInMemory())
        self._output = {"O": bytearray(), "E": bytearray()}
        self._json = {"V": bytearray(), "A": bytearray()}
        self._output_bytes = 0
        self._files: dict[str, FileInMemory] = {}
        self._files_seen = 0
        self._files_bytes = 0
        self._file: FileSink | None = None
        self._file_name = ""
        self._file_missing = 0
        self._mended: dict[str, str] = {}  # warnings, by what they are about
        self._stage = ""  # the last of V, A, M, X that came

    @property
    def size_bytes(self) -> int:
        """How much it has taken, of everything."""
        return self._output_bytes + self._files_bytes + self.json_bytes

    @property
    def json_bytes(self) -> int:
        """How much of it is the result and the additional data."""
        return sum(map(len, self._json.values()))

    @property
    def stdout(self) -> bytes:
        """What the program wrote to its standard output."""
        return bytes(self._output["O"])

    @property
    def stderr(self) -> bytes:
        """What the program wrote to its standard error."""
        return bytes(self._output["E"])

    @property
    def files(self) -> tuple[SavedFile, ...]:
        """Complete files; of two with the same name the later."""
        return tuple(SavedFile(name=name, content=bytes(content)) for name, content in self._files.items())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the program is warned of, by the harness and by what was mended here."""
        return (*self.meta.warnings, *self._mended.values())

    def result_json(self) -> bytes | None:
        """Return the result in its one form (`sandbox.channel.canonical`), or None when the program gave none."""
        return self._committed("V")

    def additional_data_json(self) -> bytes | None:
        """Return the additional data likewise."""
        return self._committed("A")

    def feed(self, kind: str, body: bytes) -> None:
        """Take one frame. Raises ProtocolViolation."""
        self._check_order(kind, len(body))
        if kind in ("O", "E"):
            self._take_output(kind, body)
        elif kind == "L":
            self._take_log(body)
        elif kind == "F":
            self._take_file(body)
        elif kind == "f":
            self._take_file_data(body)
        elif kind in ("V", "A"):
            self._take_json(kind, body)
        elif kind == "M":
            self._advance(kind)
            self.meta = shaped(Meta, body)
        elif kind == "X":
            self._advance(kind)
            failure = shaped(ProgramFailure, body)
            self.cause = failure.cause
            self.error = ProgramError(
                type=failure.type,
                message=failure.message,
                line=failure.line,
                column=failure.column,
                traceback=failure.traceback,
            )
        elif kind == "S":
            self.started = True
        elif kind == "R":
            self.ready = shaped(Ready, body)
        else:
            self.quit = shaped(Quit, body)

    def _check_order(self, kind: str, size: int) -> None:
        if len(kind) != 1 or kind not in FROM_HARNESS:
            raise ProtocolViolation(f"the sandbox sent a frame of unknown type {kind!r}")
        if size > RECORD_BYTES.get(kind, MAX_BODY_BYTES) or (not size and kind != "S"):
            raise ProtocolViolation(f"the sandbox sent a frame {kind!r} of {size} bytes")
        too_early = kind not in "RSXQ" and not self.started
        again = (kind == "R") != (self.ready is None) or (kind == "S" and self.started)
        if too_early or again or self.quit is not None:
            raise ProtocolViolation(f"the sandbox sent a frame {kind!r} out of order")

    def _take_output(self, kind: str, body: bytes) -> None:
        self._count_output(len(body))
        self._output[kind] += body
        if self._on_output:
            self._on_output("stdout" if kind == "O" else "stderr", body)

    def _take_log(self, body: bytes) -> None:
        self._count_output(len(body))
        if len(self.logs) >= self.limits.log_records:
            raise ProtocolViolation("the sandbox sent more log records than allowed")
        record = shaped(LogRecord, body)
        self.logs.append(record)
        if self._on_log:
            self._on_log(record)

    def _take_file(self, body: bytes) -> None:
        header = shaped(FileHeader, body)
        self._files_seen, self._files_bytes = self._files_seen + 1, self._files_bytes + header.size
        if self._file is not None:
            raise ProtocolViolation("the sandbox began a file inside another")
        if self._files_seen > self.limits.files_count or self._files_bytes > self.limits.files_bytes:
            raise ProtocolViolation("the sandbox sent more files than allowed")
        if problem := name_problem(header.name):
            raise ProtocolViolation(f"the sandbox sent a file whose name {problem}")
        self._file = self._open_file(header.name, header.size)
        self._file_name, self._file_missing = header.name, header.size
        self._finish_file()

    def _take_file_data(self, body: bytes) -> None:
        if self._file is None or len(body) > self._file_missing:
            raise ProtocolViolation("the sandbox sent more data than its file has")
        self._file.write(body)
        self._file_missing -= len(body)
        self._finish_file()

    def _finish_file(self) -> None:
        if self._file is not None and not self._file_missing:
            self._file.close()
            if isinstance(self._file, FileInMemory):
                self._files[self._file_name] = self._file
            self._file = None

    def _count_output(self, size: int) -> None:
        self._output_bytes += size
        if self._output_bytes > self.limits.output_bytes:
            raise ProtocolViolation("the sandbox sent more output than allowed")

    def _advance(self, stage: str) -> None:
        allowed = {"V": "V", "A": "VA", "M": "VA", "X": "VA"}[stage]
        if self._stage and self._stage not in allowed:
            raise ProtocolViolation(f"the sandbox sent a frame {stage!r} after {self._stage!r}")
        self._stage = stage

    def _take_json(self, kind: str, body: bytes) -> None:
        self._advance(kind)
        self._json[kind] += body
        if self.json_bytes > self.limits.result_bytes:
            raise ProtocolViolation("the sandbox sent a larger result than allowed")

    def _committed(self, kind: str) -> bytes | None:
        if self._stage != "M" or not self._json[kind]:
            return None
        name = {"V": "result", "A": "additional_data"}[kind]
        text, replaced = in_form(bytes(self._json[kind]), {"V": "a result", "A": "additional data"}[kind])
        if replaced:
            self._mended[name] = half_replaced(name)
        return text
