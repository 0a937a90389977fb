"""Log lines of the service: for people on a terminal, JSON otherwise. What comes from outside can't break a line.

What is logged with `extra={"facts": {...}}` has these as fields of its own in JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from sandbox.history_row import Row
from sandbox.printable import printable
from sandbox.service.config_model import Log

LOG = logging.getLogger("sandbox.service")
MAX_NAME_CHARS = 80


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }  # fmt: skip
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


def set_up(config: Log, stream: TextIO = sys.stderr) -> None:
    """Send everything that is logged to `stream`."""
    human = config.format == "human" or (config.format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanLines() if human else JsonLines())
    handler.addFilter(no_bytes_of_requests)
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)


def run_ended(row: Row) -> None:
    """Log the end of a run: who, under which policy, what came of it, and how long it took with its wait."""
    spent_ms = round(((row.ended or row.received) - row.received) * 1000, 1)
    facts = {
        "run_id": row.run_id, "caller": row.caller_name, "policy": row.policy[:MAX_NAME_CHARS], "outcome": row.outcome,
        "duration_ms": spent_ms,
    }  # fmt: skip
    LOG.info("run %(run_id)s of %(caller)s under %(policy)s: %(outcome)s after %(duration_ms)g ms", facts, extra={"facts": facts})
