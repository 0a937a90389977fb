"""How large the numbers and names of a request may be."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

# No run lasts a thousand years: what claims to is not a measurement.
MAX_SECONDS = 3e10
# Whole numbers beyond this are no longer exact everywhere, and no limit of anything.
MAX_COUNT = 2**53 - 1
MAX_FILENAME_CHARS = 255

Seconds = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
Number = Annotated[float, Meta(gt=0, le=MAX_COUNT)]
Count = Annotated[int, Meta(gt=0, le=MAX_COUNT)]
Filename = Annotated[str, Meta(min_length=1, max_length=MAX_FILENAME_CHARS)]
# What else is named: the longest reference of an image has fewer characters, and so have other names by far.
Name = Annotated[str, Meta(min_length=1, max_length=512)]
# A policy of one's own has the path of its file for a name; Linux knows no longer ones (PATH_MAX).
NameOrPath = Annotated[str, Meta(min_length=1, max_length=4_096)]
# A topic of MQTT may have so many bytes.
Topic = Annotated[str, Meta(max_length=65_535)]
# What a run took: nothing, or more.
Elapsed = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
