"""Log lines of the service: for people on a terminal, JSON otherwise. What comes from outside can't break a line.

What is logged with `extra={"facts": {...}}` has these as fields of its own in JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from sandbox.printable import printable
from sandbox.service.config.model import Log
from sandbox.service.history.row import RunRow

LOG = logging.getLogger("sandbox.service")
MAX_NAME_CHARS = 80
# So many lines wait for whoever reads the log; what comes on top is lost, and said to be.
WAITING_LINES = 10_000
# When the service ends, the last lines get so long.
LAST_S = 2.0


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class HumanLines(logging.Formatter):
    """The time, the level where it matters, and the message, printable."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = f"{self.formatTime(record, '%H:%M:%S')} {level}{printable(record.getMessage())}"
        trace = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return "\n".join((line, *(f"  {printable(said)}" for said in trace)))


def no_bytes_of_requests(record: logging.LogRecord) -> bool:
    """Keep what a client sent out of the log: an error of HTTP quotes it, and it may be a secret."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (HttpProcessingError, RequestPayloadError)):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args, record.exc_info = "a client sent what is no HTTP: %s", (type(error).__name__,), None
    return True


class Beside(logging.Handler):
    """Has a thread write the lines: a pipe or terminal that nobody reads keeps nobody waiting but that thread."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING_LINES)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written, or count it as lost."""
        try:
            if self._lost:
                self._lines.put_nowait(self.format(lost(self._lost)))
                self._lost = 0
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write what waits, if that is possible soon."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=LAST_S)
            self._thread.join(LAST_S)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody is there to read it
                self._stream.write(f"{line}\n")
                self._stream.flush()


def lost(count: int) -> logging.LogRecord:
    """Return what stands in the place of lines that are lost."""
    return LOG.makeRecord(
        LOG.name,
        logging.WARNING,
        "",
        0,
        "%d lines of the log are lost: they came faster than they were read",
        (count,),
        None,
    )


@contextlib.contextmanager
def set_up(config: Log, stream: TextIO = sys.stderr) -> Iterator[None]:
    """Send everything that is logged to `stream`, until the block ends."""
    human = config.format == "human" or (config.format == "auto" and stream.isatty())
    handler = Beside(stream)
    handler.setFormatter(HumanLines() if human else JsonLines())
    handler.addFilter(no_bytes_of_requests)
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def run_ended(row: RunRow) -> None:
    """Log the end of a run: who, under which policy, what came of it, and how long it took with its wait."""
    spent_ms = round(((row.ended or row.received) - row.received) * 1000, 1)
    facts = {
        "run_id": row.run_id,
        "caller": row.caller_name,
        "policy": row.policy[:MAX_NAME_CHARS],
        "outcome": row.outcome,
        "duration_ms": spent_ms,
    }
    LOG.info(
        "run %(run_id)s of %(caller)s under %(policy)s: %(outcome)s after %(duration_ms)g ms",
        facts,
        extra={"facts": facts},
    )
