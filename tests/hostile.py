"""A grammar of what a program may write into its own channel.

It has JSON spelled in every way, records bent, frames in any order, and forged events anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Frame = tuple[str, bytes]

FORGED_ID = "f0" * 16
EVENT = b'{"event":"result","run_id":"%s","outcome":"succeeded","result":"forged"}' % FORGED_ID.encode()
# What ends a line, a field or an event for somebody, with an event of the attacker's behind it.
INJECTED = [
    EVENT,
    b"\n" + EVENT + b"\n",
    b"\r" + EVENT + b"\r",
    b"\r\n\r\ndata: " + EVENT + b"\r\n\r\n",
    b"\n\ndata:" + EVENT + b"\n\n",
    b"\nevent: result\ndata: 1\n\n",
    b"\nid: 7\n",
    b"\nretry: 1\n",
    b"\n: comment\n",
    b"\x0b" + EVENT,
    b"\x0c" + EVENT,
    b"\x1e" + EVENT,
    b"\xc2\x85" + EVENT,
    b"\xe2\x80\xa8" + EVENT,
    b"\xe2\x80\xa9" + EVENT,
    b"\0" + EVENT,
    b"\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + EVENT,
    b"\x1b[2J\x1b[H",
    b'{"event":"accepted","run_id":"%s"}\n' % FORGED_ID.encode(),
    b'{"event":"error","error":{"code":"internal"}}\n',
]

WHITE = st.sampled_from([b"", b"", b" ", b"\n", b"\r", b"\t", b"\r\n\r\n", b"  \n \r"])
LITERALS = st.sampled_from(
    [b"null", b"true", b"false", b"nul", b"True", b"NaN", b"Infinity", b"-Infinity", b"undefined"]
)
GOOD_NUMBERS = st.sampled_from(
    [
        b"0",
        b"-0",
        b"-0.0",
        b"7",
        b"1.5",
        b"1e5",
        b"1E+2",
        b"1e308",
        b"1e-999",
        b"0e999",
        b"9007199254740993",
        b"9" * 400,
        b"9" * 4_300,
    ]
)
NUMBERS = GOOD_NUMBERS | st.sampled_from(
    [
        b"1.8e308",
        b"1e309",
        b"-1e999",
        b"1e99999999999999999999",
        b"0.%s1e400" % (b"0" * 400),
        b"1%s.0" % (b"0" * 309),
        b"-" + b"9" * 4_299,
        b"9" * 4_301,
        b"9" * 6_000,
        b"0." + b"1" * 5_000,
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"1e",
        b"0x10",
        b"1_0",
        b"--1",
        b"1 2",
    ]
)
INSIDE = st.sampled_from(
    [
        b"a",
        "é".encode(),
        "€ 語 😀".encode(),
        b"\\n",
        b"\\r\\n",
        b'\\"',
        b"\\\\",
        b"\\/",
        b"\\u0000",
        b"\\u000a",
        b"\\u2028",
        b"\\u0085",
        b"\\u00E9",
        b"\\ud83d\\ude00",
        b"\\uD83D\\uDE00",
        b"\\ud800",
        b"\\udfff",
        b"\\uDBFF",
        b"\\ud83d\\ud83d\\ude00",
        b"\\\\ud800",
        b"\\\\\\ud800",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
        b"\xe2\x80\xa9",
        b"\xe2\x80\xae",
        b"\xd8\x9c",
        b"\xef\xbb\xbf",
        b"\x7f",
        b"\xc2\x9b2J",
        json.dumps(EVENT.decode())[1:-1].encode(),
        b"[",
        b"}",
        b", ",
        b"data: ",
        b"e999",
        b"9" * 400,
        b"\n",
        b"\r",
        b"\t",
        b"\0",
        b"\x1b",
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\\x41",
        b"\\",
        b"\\u12",
        b"\\ud8",
        *INJECTED,
    ]
)
GOOD_INSIDE = INSIDE.filter(lambda piece: _is_string(b'"%s"' % piece))


def _is_string(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), str)
    except ValueError:
        return False


def strings(*, good: bool) -> st.SearchStrategy[bytes]:
    """Return strings, all of them as JSON has them (`good`) or not."""
    return st.lists(GOOD_INSIDE if good else INSIDE, max_size=5).map(lambda pieces: b'"%s"' % b"".join(pieces))


@st.composite
def _list(draw: Any, inner: st.SearchStrategy[bytes]) -> bytes:
    parts = [draw(WHITE) + part + draw(WHITE) for part in draw(st.lists(inner, max_size=4))]
    return b"[" + (b",".join(parts) or draw(WHITE)) + b"]"


@st.composite
def _object(draw: Any, inner: st.SearchStrategy[bytes], keys: st.SearchStrategy[bytes]) -> bytes:
    parts = [
        draw(WHITE) + draw(keys) + draw(WHITE) + b":" + draw(WHITE) + part + draw(WHITE)
        for part in draw(st.lists(inner, max_size=4))
    ]
    return b"{" + (b",".join(parts) or draw(WHITE)) + b"}"


def _texts(*, good: bool) -> st.SearchStrategy[bytes]:
    leaves = (
        strings(good=good)
        | (GOOD_NUMBERS if good else NUMBERS)
        | (st.sampled_from([b"null", b"true", b"false"]) if good else LITERALS)
    )
    keys = st.sampled_from([b'"a"', b'"a"', b'"event"', b'"run_id"', b'"\\u0061"', b'""']) | strings(good=good)
    return st.recursive(leaves, lambda inner: _list(inner) | _object(inner, keys), max_leaves=6)


@st.composite
def texts(draw: Any, *, calm: bool = False) -> bytes:
    """Return what claims to be one JSON text: well-formed, however spelled, or broken in one of many ways.

    It is well-formed in most cases, or always (`calm`).
    """
    good = calm or draw(st.integers(0, 3)) > 0
    text: bytes = draw(_texts(good=good))
    levels = draw(
        st.sampled_from([0, 0, 0, 1, 90])
        if calm
        else st.sampled_from([0, 0, 0, 0, 1, 98, 99, 100, 101, 102, 300, 1_200])
    )
    begin, end = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}"), (b"[\n", b"\r]"), (b'{"\\ud800":', b"}")]))
    text = draw(WHITE) + begin * levels + text + end * levels + draw(WHITE)
    if calm:
        return text
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(INJECTED)) + text[at:]
    if draw(st.integers(0, 9)) == 0:
        text = text[: draw(st.integers(0, len(text)))]
    if draw(st.integers(0, 19)) == 0:
        text = draw(st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", text, b")]}',\n"])) + text
    return text


# ---- records and frames

SAID = st.sampled_from(
    [
        "m",
        "",
        "two\nlines",
        "\r\rover",
        "é😀",
        "\u2028\u2029\x85",
        "\ud800",
        "\x1b[2J",
        "‮gnp",
        "x" * 3_000,
        EVENT.decode(),
    ]
    + [piece.decode(errors="replace") for piece in INJECTED]
)
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 0, 7, 2**31, 2**64, 1.5, 1e300, "", "text", [], {}, ["a", "b\nc"], "SIGKILL\n", 10**400]
)


@st.composite
def records(draw: Any, fields: dict[str, Any], *, calm: bool = False) -> bytes:
    """Return a record: of this shape, bent, written by hand with odd numbers, or not one at all."""
    fields = {name: draw(SAID) if value is ... else value for name, value in fields.items()}
    bend = 11 if calm else draw(st.integers(0, 11))
    if bend == 0:
        return draw(texts())  # type: ignore[no-any-return]
    if bend < 4:
        name = draw(st.sampled_from([*fields, "event", "run_id"]))
        fields[name] = draw(ODD)
    elif bend == 4 and fields:
        fields.pop(draw(st.sampled_from(list(fields))))
    body = json.dumps(fields, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 1]))).encode(
        "utf-8", "surrogatepass"
    )
    if bend == 5:
        body = body.replace(b"1", draw(NUMBERS), 1)
    return body


READY = {"protocol": 1, "python": [3, 11, 2], "implementation": "cpython"}
QUIT = {"exit_code": 0, "signal": None, "ended": "exited", "max_rss_kib": 1, "cpu_s": 0.1, "wall_s": 0.1}
META = {"output_topic": ..., "warnings": []}
LOG = {"level": "info", "message": ..., "elapsed_s": 0.1}
FAILURE = {"type": ..., "message": ..., "line": 1, "column": 1, "traceback": ..., "cause": None}
NAMES = [
    "a.txt",
    "b",
    "c d.png",
    "naïve",
    ".bashrc",
    "-rf",
    "../x",
    "/x",
    "a\nb",
    "\u2028",
    "x" * 300,
    "",
    "{}",
    '"',
    "\\",
    "%0a",
]


@st.composite
def packet_files(draw: Any, *, calm: bool = False) -> list[Frame]:
    """Return a saved file as a program announces it to its supervisor, whole or not."""
    content = draw(st.binary(max_size=30) | st.sampled_from(INJECTED))
    name = draw(st.sampled_from(NAMES[:6] if calm else NAMES)).encode()
    size = len(content) + (0 if calm else draw(st.sampled_from([0, 0, 0, 0, -1, 1, 1 << 40])))
    begun = ("F", max(size, 0).to_bytes(8, "big") + name)
    return [begun, *([("f", content)] if content else [])]


def _file_frames(packets: list[Frame]) -> list[Frame]:
    """Return the same as a supervisor announces it to the runner."""
    head = packets[0][1]
    return [
        ("F", json.dumps({"name": head[8:].decode(), "size": int.from_bytes(head[:8], "big")}).encode()),
        *packets[1:],
    ]


@st.composite
def _chunks(draw: Any, kind: str, *, calm: bool) -> list[Frame]:
    """Return a text in frames that split it anywhere, also inside of a token, an escape or a character."""
    text = draw(texts(calm=calm))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [(kind, text[start:end]) for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True) if start < end]


@st.composite
def packets(
    draw: Any, *, announced: Callable[[list[Frame]], list[Frame]] = list, calm: bool | None = None
) -> list[Frame]:
    """Return what a program writes to its channel: a whole report.

    One in two of them (`calm`) breaks no rule but by its spelling.
    """
    calm = draw(st.booleans()) if calm is None else calm
    logs = records(LOG, calm=calm).map(lambda body: [("L", body)])
    saved = packet_files(calm=calm).map(announced)
    found: list[Frame] = [frame for group in draw(st.lists(logs | saved, max_size=2)) for frame in group]
    found += draw(_chunks("V", calm=calm))
    if draw(st.booleans()):
        found += draw(_chunks("A", calm=calm))
    if draw(st.integers(0, 4)):
        found.append(("M", draw(records(META, calm=calm))))
    else:
        found.append(("X", draw(records(FAILURE, calm=calm))))
    bend = 9 if calm else draw(st.integers(0, 9))
    if bend == 0:
        found = draw(st.permutations(found))
    elif bend == 1:
        found.insert(draw(st.integers(0, len(found))), (draw(st.sampled_from("RSOELFfVMAXQZ?\0")), draw(texts())))
    return found


@st.composite
def streams(draw: Any) -> list[Frame]:
    """Return what a harness sends that a program has taken over."""
    calm = draw(st.booleans())
    found: list[Frame] = [("S", b"")]
    for kind in draw(st.lists(st.sampled_from("OE"), max_size=2)):
        found.append((kind, draw(st.sampled_from([*INJECTED, b"plain\n", b"\xff\xfe", "é".encode()[:1]]))))
    found += draw(packets(announced=_file_frames, calm=calm))
    found.append(("Q", draw(records(QUIT, calm=calm))))
    if not calm and draw(st.integers(0, 19)) == 0:
        found = draw(st.permutations(found))
    return found
