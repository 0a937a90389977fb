"""What is long in a body that is not parsed yet, found in small steps between which other threads run.

A JSON parser takes a large body in one go, and nobody is answered meanwhile. So a text that is far longer than any policy
takes is refused before that, and long values are cut out: what is left is short. Pure.
"""

from __future__ import annotations

import re

import msgspec

from sandbox.service.in_pieces import Written, check_json, end_of

__all__ = ["SMALL_BYTES", "Written", "cut_out", "program_bytes", "text_bytes"]

# A body of less is parsed in a millisecond or two.
SMALL_BYTES = 4 << 20
WINDOW_BYTES = 128 << 10
# A member that is longer is cut out: of as many as there may be, none is left that makes a large body.
LONG_BYTES = 2 << 10
MAX_MEMBERS = 2_000
UNUSUAL = "it is large, and has too much white space, too many members, or is no JSON"
_MEMBER = re.compile(rb'[ \t\r\n]{0,64}[{,][ \t\r\n]{0,64}"([^"\\]{0,64})"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}')
_NAMED = re.compile(rb'[ \t\r\n]{0,64}[{,][ \t\r\n]{0,64}("(?:[^"\\]|\\.){0,1600}")[ \t\r\n]{0,64}:[ \t\r\n]{0,64}')
_SHORT = re.compile(rb'[^"\\\[\]{},]{1,64}|\[\]|\{\}')
_NAME = msgspec.json.Decoder(str)


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


def cut_out(body: Written) -> tuple[bytes, dict[str, memoryview]]:
    """Return an object with an empty text in the place of each long member, and the members, by their names, which are JSON.

    Raises `msgspec.DecodeError`, `RecursionError`, also where what would be left is long.
    """
    left: list[bytes] = []
    long: list[memoryview] = []
    members: dict[str, memoryview] = {}
    view = memoryview(body)
    place = done = left_bytes = 0
    for _ in range(MAX_MEMBERS):
        if (named := _NAMED.match(body, place)) is None or (end := _end(body, named.end())) is None:
            break
        start, place = named.end(), end
        name = _NAME.decode(named[1])
        members.pop(name, None)  # the last one counts
        if end - start > LONG_BYTES:
            left.append(b'%s""' % view[done:start])
            members[name] = view[start:end]
            long.append(view[start:end])
            left_bytes += start - done
            done = end
    if left_bytes + len(body) - done > SMALL_BYTES:
        raise msgspec.DecodeError(UNUSUAL)
    for value in long:
        check_json(value)
    return b"".join((*left, view[done:])), members


def _end(body: Written, start: int) -> int | None:
    """Return where a value ends, if it is of a kind that can be told."""
    first = bytes(body[start : start + 1])
    if first == b'"':
        return start + text_bytes(body, start, most_bytes=len(body))
    if first in (b"[", b"{"):
        return end_of(body, start)
    short = _SHORT.match(body, start)
    return short.end() if short else None


def text_bytes(body: Written, start: int, *, most_bytes: int) -> int:
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
