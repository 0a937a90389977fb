r"""JSON that somebody sends, read alike whoever takes it: the service, the command, a program of its own.

JavaScript's `slice` may leave half of a surrogate pair, which `JSON.stringify` writes as `\ud83d`, and Python's `json`
takes. msgspec alone takes none. U+FFFD stands for it, and whoever gets the result is told.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from sandbox.channel.canonical import HALF, PIECE_BYTES, cuts
from sandbox.inside.harness.json_text import HALF_REPLACED

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["half_replaced", "has_replaced", "read_as_sent", "text_as_sent"]

Value = TypeVar("Value")
# U+FFFD, as nobody else writes it: so it can be told in which part of a text it stands for a half.
_REPLACED = rb"\uFfFd"
_SKIPPED = msgspec.json.Decoder(msgspec.Raw)


def read_as_sent(decode: Callable[[Buffer], Value], text: Buffer) -> tuple[Value, bool]:
    """Return what a decoder of msgspec reads in a text, and whether halves of pairs were replaced. Raises as it does.

    What a decoder skips is UTF-8, too: msgspec alone would not look.
    """
    _check_utf8(text)
    try:
        return decode(text), False
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        whole = _with_whole_pairs(text)
        if whole is None:
            raise
    return decode(whole), True


def text_as_sent(text: bytes) -> tuple[bytes, bool]:
    """Return a JSON text without halves of pairs, and whether any was replaced. Raises what msgspec does."""
    skipped, replaced = read_as_sent(_SKIPPED.decode, text)
    return (bytes(skipped), True) if replaced else (text, False)


def has_replaced(text: Buffer) -> bool:
    """Tell whether halves were replaced in this part of what was read."""
    return _REPLACED in bytes(text)


def half_replaced(name: str) -> str:
    """Return the warning that halves were replaced in what has this name."""
    return f"{HALF_REPLACED} (at {name})"


def _check_utf8(text: Buffer) -> None:
    """Raise `msgspec.DecodeError` for a text that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(text)
    for start in range(0, len(view) + 1, PIECE_BYTES):
        kept = len(decoder.getstate()[0])
        piece = view[start : start + PIECE_BYTES]
        try:
            decoder.decode(piece, final=start + PIECE_BYTES > len(view))
        except UnicodeDecodeError as error:
            raise msgspec.DecodeError(f"it is not UTF-8 (byte {start - kept + error.start})") from None


def _with_whole_pairs(text: Buffer) -> bytearray | None:
    """Return a text whose halves were replaced, place for place; None where there is none."""
    whole = bytearray(text)
    found = 0
    for start, end in cuts(whole):
        piece = bytes(whole[start:end])
        if (b"\\ud" in piece or b"\\uD" in piece) and b"\0" not in piece:  # which JSON can't have
            mended, halves = HALF.subn(rb"\\uFfFd", piece.replace(rb"\\", b"\0\0"))
            if halves:
                whole[start:end] = mended.replace(b"\0\0", rb"\\")
                found += halves
    return whole if found else None
