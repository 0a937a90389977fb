"""What a client prefers, in the header `Prefer` (RFC 7240): an answer before the end, or how long to wait. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """What counts of them: whether to be answered before the run has ended, and for how long to wait before that."""

    respond_async: bool = False
    wait_s: int | None = None


def preferences(headers: Iterable[str]) -> Preferences:
    """Return what a client prefers.

    What nobody knows is ignored, and of two with one name the first counts, as the RFC has it.
    """
    found: dict[str, str] = {}
    for header in headers:
        for element in parted(header, ","):
            name, _, value = next(parted(element, ";")).partition("=")
            found.setdefault(name.strip().lower(), unquoted(value.strip()))
    wait = found.get("wait", "")
    return Preferences(
        respond_async=found.get("respond-async") == "", wait_s=int(wait) if NUMBER.fullmatch(wait) else None
    )


def parted(text: str, separator: str) -> Iterator[str]:
    """Give the parts of a text, of which quoted strings may have the separator in them.

    Each character is looked at once.
    """
    begin, quoted, skipped = 0, False, False
    for at, char in enumerate(text):
        if skipped:
            skipped = False
        elif quoted and char == "\\":
            skipped = True
        elif char == '"':
            quoted = not quoted
        elif char == separator and not quoted:
            yield text[begin:at]
            begin = at + 1
    yield text[begin:]


def unquoted(value: str) -> str:
    """Return a value without the quotes that may stand around it."""
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
