"""Amounts as people write them: sizes and durations."""

from __future__ import annotations

import re

from sandbox.errors import InvalidRequest

MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)


def parse_memory(text: str) -> int:
    """Return MiB for `512m`, `1g`, `2048` (MiB). Raises `InvalidRequest`."""
    return parse_size(text, option="--memory")


def parse_size(text: str, *, option: str) -> int:
    """Return MiB for what an option says: `512m`, `1g`, `2048` (MiB). Raises `InvalidRequest`."""
    match = MEMORY.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"{option} {text!r} is not a size", hint="write for example 256m or 1g")
    mib = float(match[1]) * {"k": 1 / 1024, "m": 1, "": 1, "g": 1024, "t": 1 << 20}[match[2].lower()]
    if mib > MAX_COUNT:
        raise InvalidRequest(
            f"{option} {text[:20]!r}… is more than any machine has", hint="write for example 256m or 1g"
        )
    if mib < 1:
        raise InvalidRequest(f"{option} {text!r} is less than 1 MiB", hint="write for example 256m")
    return int(mib)


def parse_duration(text: str) -> float:
    """Return seconds for `30`, `2.5s`, `500ms`, `2m`. Raises `InvalidRequest`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", text.strip())
    seconds = float(match[1]) * {"ms": 0.001, "s": 1, None: 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= MAX_COUNT:
        raise InvalidRequest(
            f"--timeout {text[:40]!r} is not a duration above zero that anybody could wait for",
            hint="write for example 30s, 500ms or 2m",
        )
    return seconds


MAX_COUNT = 2**53 - 1  # as in sandbox.models, which takes long to import
