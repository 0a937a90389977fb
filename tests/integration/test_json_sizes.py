"""A result is checked one way at every size, whoever carries the run out and whoever reads the answer.

Real runs, the command, a service, a client.

tests/unit/test_json_sizes.py looks at many more texts and values.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandbox.channel.canonical import AT_ONCE_BYTES
from tests.command import sandbox
from tests.integration.service import Service, served

SIZES = (1, 100_000, AT_ONCE_BYTES)
WRITES = """
import base64, os
text = b'["' + b"Q" * payload["size"] + b'",' + base64.b64decode(payload["text"]) + b"]"
channel = log.__self__._channel._socket
for start in range(0, len(text), 60_000):
    channel.send(b"V" + text[start : start + 60_000])
channel.send(b"M{}")
os._exit(0)
"""
GIVES = """
def deep(levels):
    return [] if levels == 1 else [deep(levels - 1)]
result = ["Q" * payload["size"], eval(payload["value"])]
"""
NEST, DIGITS = "[" * 98 + "]" * 98, "9" * 4_300
GOOD = f'{{"\\udc00" : ["\\ud800", "\\ud83d\\ude00 \u2028\x85\x7f", {DIGITS}],\n"a": 1.10, "a": -0,\t"deep": {NEST}}}'
FORM = f'{{"\ufffd":["\ufffd","\\ud83d\\ude00 \\u2028\\u0085\\u007f",{DIGITS}],"a":1.10,"a":-0,"deep":{NEST}}}'
CASES: dict[str, tuple[str, bytes | str, str | None]] = {
    "a text that has a form": (WRITES, GOOD.encode(), FORM),
    "a number of too many digits": (WRITES, b"9" * 4_301, None),
    "a number beyond a double": (WRITES, b"1e309", None),
    "a text that is too deep": (WRITES, b"[" * 100 + b"]" * 100, None),
    "no UTF-8": (WRITES, b'"\xff"', None),
    "more than one value": (WRITES, b'1],["', None),
    "a value": (
        GIVES,
        "{'\\ud800': '\\udfff', 'pair': '\\ud83d\\ude00', 'n': [2**60, float('nan'), 10**4_200], 'deep': deep(98)}",
        f'{{"\ufffd":"\ufffd","pair":"😀","n":[{2**60},null,{10**4_200}],"deep":{NEST}}}',
    ),
    "a value that is too deep": (GIVES, "deep(100)", None),
    "an integer of too many digits": (GIVES, "10**5_000", None),
}


class Parts(msgspec.Struct, frozen=True):
    """What is compared of an answer; the result as the bytes that it came as."""

    outcome: str
    explanation: str
    warnings: list[str]
    result: msgspec.Raw


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("sizes")) as opened:
        yield opened


def verdict(answer: bytes, size: int) -> tuple[str, str, list[str], str]:
    """Return outcome, explanation, warnings and the text of the value that stood behind so much."""
    parts = msgspec.json.decode(answer, type=Parts)
    text = bytes(parts.result).decode()
    if parts.outcome == "succeeded":
        before = '["' + "Q" * size + '",'
        assert text.startswith(before)
        text = text[len(before) : -1]
    return parts.outcome, parts.explanation, parts.warnings, text


@pytest.mark.parametrize("name", CASES)
def test_a_result_has_one_verdict_and_one_text_at_every_size(service: Service, tmp_path: Path, name: str) -> None:
    code, what, form = CASES[name]
    (tmp_path / "s.py").write_text(code)
    found, values = [], []
    with service.client() as client:
        for size in SIZES:
            payload: dict[str, Any] = {"size": size}
            payload |= {"text": base64.b64encode(what).decode()} if isinstance(what, bytes) else {"value": what}
            body = json.dumps({"code": code, "payload": payload, "policy": "small"}).encode()
            found.append(verdict(client.raw("POST", "/v1/runs", body), size))
            values.append(client.run(code, payload=payload, policy="small", on_event=lambda _: None).value)
            if size < AT_ONCE_BYTES:
                (tmp_path / "payload.json").write_text(json.dumps(payload))
                command = ["run", str(tmp_path / "s.py"), "--input", f"@{tmp_path}/payload.json", "--json", "--policy"]
                own = sandbox(*command, str(service.policies / "small.toml"))
                found.append(verdict(own.stdout.encode(), size))
    assert found == [found[0]] * len(found)
    outcome, _, warnings, text = found[0]
    if form is None:
        assert (outcome, text, values) == ("failed", "null", [None] * len(SIZES))
        return
    assert (outcome, text) == ("succeeded", form)
    assert any("surrogate" in warning for warning in warnings)
    assert [value[1] for value in values] == [json.loads(form)] * len(SIZES)
