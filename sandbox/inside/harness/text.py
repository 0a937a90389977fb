"""Text and names, as they may leave the sandbox."""

from __future__ import annotations

MAX_MESSAGE_CHARS = 8_192


def clean(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """Return `text` without lone surrogates and cut to `limit` characters, marked where it was cut."""
    if len(text) > limit:
        text = text[:limit] + " [truncated]"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def name_problem(name: object) -> str | None:
    """Return what keeps `name` from being a flat file name, in words, or None when it is one."""
    if not isinstance(name, str):
        return f"must be text, not {type(name).__name__}"
    if name in ("", ".", ".."):
        return "must not be empty, '.' or '..'"
    if "/" in name:
        return "must not contain '/': files live directly in the working directory"
    if not name.isprintable():  # control characters, NUL, lone surrogates, direction overrides
        return "must not contain control or invisible characters"
    if len(name.encode("utf-8")) > 255:
        return "must not be longer than 255 bytes"
    return None
