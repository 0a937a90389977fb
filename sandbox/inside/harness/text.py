"""Text and names, as they may leave the sandbox."""

from __future__ import annotations

MAX_MESSAGE_CHARS = 8_192
MAX_PARTS = 16


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


def path_problem(path: object) -> str | None:
    """Return what keeps `path` from being that of a file below a directory, in words, or None when it is one."""
    if not isinstance(path, str):
        return name_problem(path)
    parts = path.split("/")
    if len(parts) > MAX_PARTS:
        return f"must not have more than {MAX_PARTS} parts"
    problems = (name_problem(part) for part in parts)
    problem = next((problem for problem in problems if problem), None)
    return f"has a part that {problem}" if problem and len(parts) > 1 else problem


def text_of(code: bytes | bytearray) -> str:
    """Return the text of a program, without a byte order mark; what is no UTF-8 stays as lone surrogates."""
    text = bytes(code).decode("utf-8", "surrogateescape")
    return text[1:] if text.startswith("\ufeff") else text
