"""Whether a text is strict JSON, found out in memory that stays in proportion to it."""

from __future__ import annotations

import codecs
import contextlib

from pydantic_core import from_json

# Parsing turns two bytes into an object of dozens, and nothing else runs meanwhile: larger texts are checked without
# being parsed. SQLite lets other threads run while it looks.
PARSED_BYTES = 64 << 10


def is_json(text: bytes) -> bool:
    """Tell whether `text` is strict JSON (UTF-8), in memory that stays in proportion to its size."""
    if len(text) <= PARSED_BYTES:
        try:
            from_json(text, allow_inf_nan=False, cache_strings="none")
        except (ValueError, RecursionError):
            return False
        return True
    import sqlite3  # its parser keeps some bytes for each value, not a Python object

    if b"\0" in text or not is_utf8(text):  # where SQLite would stop reading, and what it does not look at
        return False
    try:
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            return bool(database.execute("SELECT json_valid(CAST(? AS TEXT))", (text,)).fetchone()[0])
    except sqlite3.Error:
        return False


def is_utf8(text: bytes) -> bool:
    """Tell whether `text` is UTF-8, piece by piece."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(text)
    try:
        for start in range(0, len(view), PARSED_BYTES):
            decoder.decode(view[start : start + PARSED_BYTES], final=start + PARSED_BYTES >= len(view))
    except UnicodeDecodeError:
        return False
    return True
