"""Sizes that more than one module must keep to."""

from __future__ import annotations

PROTOCOL = 1
CHUNK_BYTES = 65_536
MAX_BODY_BYTES = 1_048_576
MAX_PART_BYTES = 4 << 30
MAX_RECORD_BYTES = 60_000  # a JSON record of ours (log, error, meta), so that it fits one packet
MAX_TOPIC_CHARS = 2_048
MAX_WARNINGS = 20
MAX_WARNING_CHARS = 300
EXIT_BROKEN = 70
