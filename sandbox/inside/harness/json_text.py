"""JSON, written and read with the compiled part of `json` alone."""

from __future__ import annotations

from sandbox.inside.harness.limits import CHUNK_BYTES, MAX_RECORD_BYTES
from sandbox.inside.harness.values import Converter, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, NoReturn


BATCH_ITEMS = 512
HALF_REPLACED = "text that is not valid Unicode (a lone surrogate) had characters replaced"


def _texts(value: Any, encode: Callable[[Any], str], level: int = 0) -> Iterator[str]:
    """Yield the JSON text of plain data in pieces, so that a large one never exists twice in memory."""
    from itertools import islice

    if type(value) in (list, tuple) and len(value) > BATCH_ITEMS:
        for start in range(0, len(value), BATCH_ITEMS):
            yield ("," if start else "[") + encode(value[start : start + BATCH_ITEMS])[1:-1]
        yield "]"
    elif type(value) is dict and len(value) > BATCH_ITEMS:
        items = iter(value.items())
        for start in range(0, len(value), BATCH_ITEMS):
            yield ("," if start else "{") + encode(dict(islice(items, BATCH_ITEMS)))[1:-1]
        yield "}"
    elif level < 2 and value and type(value) is dict:
        for index, (key, item) in enumerate(value.items()):
            yield ("," if index else "{") + encode(key) + ":"
            yield from _texts(item, encode, level + 1)
        yield "}"
    elif level < 2 and value and type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield "," if index else "["
            yield from _texts(item, encode, level + 1)
        yield "]"
    else:
        yield encode(value)


def _encoded(texts: Iterable[str], converter: Converter) -> Iterator[bytes]:
    """Yield UTF-8 of a few dozen KiB at a time; lone surrogates become U+FFFD, with a warning."""
    pending: list[str] = []
    size = 0
    for text in texts:
        pending.append(text)
        size += len(text)
        if size >= CHUNK_BYTES // 2:
            yield _utf8_of_json("".join(pending), converter)
            pending, size = [], 0
    yield _utf8_of_json("".join(pending), converter)


def _utf8_of_json(text: str, converter: Converter) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        converter.counts[HALF_REPLACED] = (1, converter.root)
        return whole_text(text).encode("utf-8")


def whole_text(text: str) -> str:
    """Return a text in which U+FFFD stands for each half of a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def json_chunks(value: Any, converter: Converter) -> Iterator[bytes]:
    """Yield the strict JSON (UTF-8) of any convertible value. Raises as `Converter.convert` does."""
    return _encoded(_texts(converter.convert(value), json_encoder()), converter)


def as_json_text(value: Any, *, max_bytes: int = 1 << 30) -> tuple[bytes, list[str]]:
    """Return the JSON (UTF-8) that a result of `value` would travel as, and the warnings about it."""
    converter = Converter("result", max_bytes)
    text = b"".join(json_chunks(value, converter))
    return text, converter.warnings()


def from_json(text: bytes | bytearray) -> Any:
    """Parse JSON in UTF-8, turning Node Buffers (`{"type": "Buffer", "data": [...]}`) into bytes. Raises ValueError."""
    # Node never escapes these letters: a text without the word holds no Buffer and parses at full speed.
    return json_value(text, _unbuffered if b'"Buffer"' in text else None)


def json_encoder() -> Callable[[Any], str]:
    """Return a function from plain data to JSON text.

    This and `json_value` use the compiled part of `json` alone: the package around it imports `re` and `enum`,
    which takes longer than all the rest of the harness.
    """
    try:
        from _json import encode_basestring, make_encoder

        encode = make_encoder(
            None, _no_json, encode_basestring, None, ":", ",", sort_keys=False, skipkeys=False, allow_nan=False
        )
    except (ImportError, TypeError):  # another Python, or one that changed them
        import json

        return json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode
    return lambda value: "".join(encode(value, 0))


def _no_json(value: object) -> NoReturn:
    raise TypeError(f"{type_name(value)} is not plain data")


class _Scanning:
    """What the compiled scanner asks of a decoder."""

    strict = True
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float

    def __init__(self, hook: Callable[[dict[str, Any]], Any] | None) -> None:
        self.object_hook = hook
        self.memo: dict[str, str] = {}


def json_value(text: bytes | bytearray, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse JSON (UTF-8). Raises ValueError as `json.loads` does, and RecursionError."""
    try:
        from _json import make_scanner

        content = text.decode("utf-8")
        start = len(content) - len(content.lstrip(" \t\n\r"))
        value, end = make_scanner(_Scanning(hook))(  # type: ignore[arg-type] # it only reads these attributes
            content, start
        )
        if not content[end:].strip(" \t\n\r"):
            return value
    except (ImportError, TypeError, StopIteration, ValueError, SystemError):
        # Not JSON: the package says what is wrong and where. (Without it the scanner can't make its own
        # exception, hence SystemError.)
        pass
    import json

    return json.loads(text.decode("utf-8"), object_hook=hook)


def _unbuffered(value: dict[str, Any]) -> Any:
    data = value.get("data")
    if len(value) != 2 or value.get("type") != "Buffer" or not isinstance(data, list):
        return value
    try:
        return bytes(data)
    except (TypeError, ValueError):
        return value


def json_record(fields: dict[str, Any], shrinkable: tuple[str, ...]) -> bytes:
    """Encode a JSON record, halving the `shrinkable` texts until it fits one packet."""
    encode = json_encoder()
    while True:
        body = encode(fields).encode("utf-8", "replace")
        if len(body) <= MAX_RECORD_BYTES:
            return body
        for key in shrinkable:
            text = fields[key]
            if len(text) > 200:
                fields[key] = text[: len(text) // 2] + " [truncated]"
