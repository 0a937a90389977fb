"""How long a program is in a body that is not parsed yet, found in small steps between which other threads run.

A JSON parser takes a large body in one go, and nobody is answered meanwhile. So a text that is far longer than any policy
takes is refused before that. Pure.
"""

from __future__ import annotations

import re

# A body of less is parsed in a millisecond or two.
SMALL_BYTES = 4 << 20
WINDOW_BYTES = 128 << 10
_MEMBER = re.compile(rb'[ \t\r\n]{0,64}[{,][ \t\r\n]{0,64}"([^"\\]{0,64})"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}')
_SHORT = re.compile(rb'[^"\\\[\]{},]{1,64}|\[\]|\{\}')


def program_bytes(body: bytearray, *, enough_bytes: int) -> int:
    """Return in how many bytes the member `code` of an object is written, or more than `enough_bytes` as soon as that is clear.

    0 where it is not found: behind lists and objects nothing is looked for. Whether the body is JSON is for others to tell.
    """
    if len(body) <= SMALL_BYTES:
        return 0
    place = 0
    while member := _MEMBER.match(body, place):
        place = member.end()
        if body[place : place + 1] == b'"':
            most_bytes = enough_bytes if member[1] == b"code" else len(body)
            size_bytes = text_bytes(body, place, most_bytes=most_bytes)
            if member[1] == b"code":
                return size_bytes
            place += size_bytes
        elif short := _SHORT.match(body, place):
            place = short.end()
        else:
            break
    return 0


def text_bytes(body: bytearray, start: int, *, most_bytes: int) -> int:
    """Return in how many bytes the text is written that begins at `start`, quotes included; it ends after `most_bytes`, maybe."""
    place = start + 1
    while place < len(body) and place - start <= most_bytes:
        window = bytes(body[place : place + WINDOW_BYTES])
        if (len(window) - len(window.rstrip(b"\\"))) % 2 and len(window) > 1:
            window = window[:-1]  # what it escapes is in the next one
        end = window.replace(rb"\\", b"  ").replace(rb"\"", b"  ").find(b'"')
        if end >= 0:
            return place + end + 1 - start
        place += len(window)
    return place - start
