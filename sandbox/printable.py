"""Text from elsewhere within a line of ours: it can neither end the line nor steer a terminal."""

from __future__ import annotations


def printable(text: str, limit: int | None = None) -> str:
    """Return at most `limit` characters of a text on one line, with codes in place of those that can't be seen."""
    shown = text if limit is None or len(text) <= limit else f"{text[:limit]}…"
    return (
        shown
        if shown.isprintable()
        else "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in shown)
    )
