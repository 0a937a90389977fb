"""What clients send, taken apart without parsing what is meant for the sandbox. Pure.

The payload and the message of a run are cut out of the request's body as bytes: their JSON is checked for its form
while it is skipped, and becomes objects in the sandbox only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import msgspec

from sandbox.channel.sent import has_replaced, read_as_sent
from sandbox.errors import InvalidRequest
from sandbox.run.request import check_code_size, reason_of
from sandbox.wire.requests import CheckBody, EnvironmentBody, PruneBody, RunBody

if TYPE_CHECKING:
    from typing_extensions import Buffer

Body = TypeVar("Body", bound=msgspec.Struct)
Value = TypeVar("Value")
Written: TypeAlias = bytes | bytearray | memoryview
# One byte of a text may be written in six, as \u0041.
WRITTEN_BYTES = 6
# In how many bytes a field may be written. What is longer is not even decoded, nor is a list or object of more texts.
MAX_NAME_BYTES = 8 << 10
MAX_FIELD_BYTES = {
    "topic": WRITTEN_BYTES << 16,
    "requirements": 1 << 20,
    "preload": 64 << 10,
    "env": 1 << 20,
    "secrets": 1 << 20,
}
MAX_TEXTS = 2_000
PIECE_CHARS = 64 << 10
# What is skipped, and stays as it came: looked at by who needs it, when its size is known to be right.
UNPARSED = ("code", "payload", "message", "files")

_TEXT = msgspec.json.Decoder(str)
_FILES = msgspec.json.Decoder(dict[str, msgspec.Raw])
_CONTENT = msgspec.json.Decoder(bytes)


def fields_of(kind: type[msgspec.Struct]) -> str:
    """Return which fields a body has, as a hint."""
    names = sorted(kind.__struct_fields__, key=lambda name: name not in UNPARSED)
    return f"its fields are {', '.join(names)}; GET /v1/openapi.json describes them"


class Form(Generic[Body]):
    """Takes bodies of one kind apart, in two steps.

    The first gives fields that nobody has decoded, the second decodes those of a sensible size.
    """

    def __init__(self, kind: type[Body]) -> None:
        self._names = tuple(field.name for field in msgspec.structs.fields(kind))
        outline = msgspec.defstruct(
            "Outline",
            [(name, msgspec.Raw, msgspec.Raw()) for name in self._names],
            forbid_unknown_fields=True,
            frozen=True,
        )
        self._outline = msgspec.json.Decoder(outline)
        self._decoder = msgspec.json.Decoder(kind)
        self._hint = fields_of(kind)

    def decoded(self, body: Written) -> tuple[Body, tuple[str, ...]]:
        """Return what a body says, and which of its fields had half of a surrogate pair: U+FFFD stands for it.

        Raises `InvalidRequest` with the place in the body.
        """
        with _told(self._hint):
            outline, halves = read_as_sent(self._outline.decode, body)
        fields = [(name, memoryview(getattr(outline, name))) for name in self._names]
        replaced = tuple(name for name, written in fields if has_replaced(written)) if halves else ()
        small = []
        for name, written in fields:
            if written and name not in UNPARSED:
                check_written(name, written, MAX_FIELD_BYTES.get(name, MAX_NAME_BYTES))
                small.append(b'"%s":%s' % (name.encode(), written))
        skipped = {name: written for name, written in fields if written and name in UNPARSED}
        if "code" in skipped:  # which no body may lack
            small.append(b'"code":""')
        decoded = _decoded(self._decoder, b"{%s}" % b",".join(small), self._hint)
        return msgspec.structs.replace(decoded, **skipped), replaced


def check_size(what: str, size_bytes: int, most_bytes: int) -> None:
    """Raise `InvalidRequest` where something has more bytes than it may."""
    if size_bytes > most_bytes:
        raise InvalidRequest(
            f"{what} is too long: it has {size_bytes} bytes, of at most {most_bytes}", hint="send less in it"
        )


def check_written(name: str, written: memoryview, most_bytes: int) -> None:
    """Check that a field is short enough to be decoded, and has not too many texts. Raises `InvalidRequest`."""
    check_size(f"`{name}`", len(written), most_bytes)
    pieces = range(0, len(written), PIECE_CHARS)
    if sum(bytes(written[start : start + PIECE_CHARS]).count(b'"') for start in pieces) > 2 * MAX_TEXTS:
        raise InvalidRequest(f"`{name}` has more than {MAX_TEXTS} texts", hint="send fewer")


_RUN = Form(RunBody)
_ENVIRONMENT = Form(EnvironmentBody)
_CHECK = Form(CheckBody)
_PRUNE = Form(PruneBody)


def run_body(body: Written) -> tuple[RunBody, tuple[str, ...]]:
    """Return what a client wants run, and which fields had halves (`Form.decoded`). Raises `InvalidRequest`."""
    return _RUN.decoded(body)


def environment_body(body: Written) -> EnvironmentBody:
    """Return which libraries a client wants. Raises `InvalidRequest`."""
    return _ENVIRONMENT.decoded(body)[0]


def check_body(body: Written) -> CheckBody:
    """Return which code a client wants checked. Raises `InvalidRequest`."""
    return _CHECK.decoded(body)[0]


def prune_body(body: Written) -> PruneBody:
    """Return what a client wants removed. Raises `InvalidRequest`."""
    return _PRUNE.decoded(body or bytearray(b"{}"))[0]


def code_of(body: RunBody | CheckBody, code_kib: int) -> str:
    """Return the program of a body, which may have `code_kib` under its policy; what is longer is not even decoded.

    Raises `PolicyDenied`, `InvalidRequest`.
    """
    check_code_size(len(memoryview(body.code)) // WRITTEN_BYTES, body.policy, code_kib, at_least=True)
    code = _decoded(_TEXT, body.code, "send the program's text", "`code`")
    check_code_size(len(code.encode(errors="surrogatepass")), body.policy, code_kib)
    return code


def files_of(body: RunBody) -> dict[str, bytes]:
    """Return the files of a body by their names. Raises `InvalidRequest`."""
    check_written("files", memoryview(body.files), len(memoryview(body.files)))
    files = _decoded(_FILES, body.files, "send names and contents as base64", "`files`")
    return {name: _content(name, written) for name, written in files.items()}


def _content(name: str, written: msgspec.Raw) -> bytes:
    try:
        return _CONTENT.decode(written)
    except msgspec.DecodeError:
        raise InvalidRequest(
            f"the file {name[:80]!r} is not base64", hint="encode its content as base64, in a text"
        ) from None


def _decoded(decoder: msgspec.json.Decoder[Value], body: Buffer, hint: str, what: str = "the request's body") -> Value:
    with _told(hint, what):
        return decoder.decode(body)


@contextlib.contextmanager
def _told(hint: str, what: str = "the request's body") -> Iterator[None]:
    """Tell in words what can't be read. Raises `InvalidRequest`."""
    try:
        yield
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        reason = reason_of(error) or "nested too deeply"
        raise InvalidRequest(f"{what} can't be read: {reason}", hint=hint) from None
