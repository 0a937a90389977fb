"""Log lines for people: what an error says can neither move the cursor nor look like a line of its own."""

from __future__ import annotations

import logging
import re

from sandbox.service.log import HumanLines


def test_a_traceback_is_as_printable_as_a_message_and_forges_no_line() -> None:
    try:
        raise ValueError("evil\x1b[2J\n12:00:00 all is well")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 0, "failed: %s", ("a\nb",), (ValueError, error, error.__traceback__)
        )
    first, *others = HumanLines().format(record).split("\n")
    assert re.fullmatch(r"[\d:]{8} error: failed: a\\x0ab", first)
    assert others[0] == "  Traceback (most recent call last):"
    assert others[-2:] == ["  ValueError: evil\\x1b[2J", "  12:00:00 all is well"]
    assert all(line.startswith("  ") and line.isprintable() for line in others)
