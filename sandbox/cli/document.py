"""A run's result as a person reads it."""

from __future__ import annotations

import json

from sandbox.cli.screen import escaped

INDENTED_BYTES = 1 << 20


def readable(result_json: bytes) -> bytes:
    """Return a result for a person: text as it is, other values as indented JSON, large ones as they came."""
    if len(result_json) > INDENTED_BYTES:
        return escaped(result_json.decode()).encode()
    try:
        value = json.loads(result_json)
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number or a depth that Python doesn't take
        text = result_json.decode(errors="backslashreplace")
    return escaped(text).encode(errors="backslashreplace")
