"""Whether a text is strict JSON, found out in memory that stays in proportion to it."""

from __future__ import annotations

import contextlib

from pydantic_core import from_json

# Parsing turns two bytes into an object of dozens: larger texts are checked without being parsed.
PARSED_BYTES = 1 << 20


def is_json(text: bytes) -> bool:
    """Tell whether `text` is strict JSON (UTF-8), in memory that stays in proportion to its size."""
    if len(text) <= PARSED_BYTES:
        try:
            from_json(text, allow_inf_nan=False, cache_strings="none")
        except (ValueError, RecursionError):
            return False
        return True
    import sqlite3  # its parser keeps some bytes for each value, not a Python object

    if b"\0" in text:  # where SQLite would stop reading
        return False
    try:
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            return bool(database.execute("SELECT json_valid(?)", (text.decode("utf-8"),)).fetchone()[0])
    except (UnicodeDecodeError, sqlite3.Error):
        return False
