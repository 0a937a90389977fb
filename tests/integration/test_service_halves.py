"""Half of a surrogate pair in what is sent: the same answer with the service and without, in containers and in cells."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.inside.harness.json_text import HALF_REPLACED
from sandbox.service.intake.spool import SMALL_BYTES
from tests.command import COMMAND, TIMEOUT_S, document, environment
from tests.integration.service import Service, served

CODE = "print(payload, end='')\nresult = {'again': payload, 'topic': topic, 'props': original_message.get('props')}"
AT_PAYLOAD = f"{HALF_REPLACED} (at payload)"
CASES = {
    "a text": ("cut \ud83d", "cut \ufffd"),
    "a name": ({"\udc00": ["\ud83d\ude00"]}, {"\ufffd": ["😀"]}),
    "within": ([{"a": {"b": "\ude00\ud83d"}}, 7], [{"a": {"b": "\ufffd\ufffd"}}, 7]),
    "a long text": ("Q" * 20_000 + "\ud83d", "Q" * 20_000 + "\ufffd"),
    "a longer text": ("\udc00" + "Q" * SMALL_BYTES, "\ufffd" + "Q" * SMALL_BYTES),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("halves")) as opened:
        yield opened


def parts(answer: dict[str, Any]) -> tuple[Any, ...]:
    return answer.get("outcome"), answer.get("result"), answer.get("stdout"), answer.get("warnings")


@pytest.mark.parametrize("name", CASES)
def test_a_payload_with_half_of_a_pair_has_one_answer(service: Service, tmp_path: Path, name: str) -> None:
    sent, found = CASES[name]
    (tmp_path / "script.py").write_text(CODE.replace("print(payload, end='')\n", "print(str(payload)[:50], end='')\n"))
    (tmp_path / "payload.json").write_text(json.dumps(sent))
    (tmp_path / "windows.json").write_bytes(json.dumps(sent).encode("utf-16"))
    own = service.policies / "small.toml"
    answers = []
    for file in ("payload.json", "windows.json"):
        asked = ("run", tmp_path / "script.py", "--input", f"@{tmp_path / file}", "--policy")
        answers.append(parts(document(*asked, own)))
        answers.append(parts(document(*asked, "small", env=environment(SANDBOX_SOCKET=service.socket))))
    assert answers == [answers[0]] * 4
    assert answers[0] == (
        "succeeded",
        {"again": found, "topic": "", "props": None},
        str(found)[:50],
        [AT_PAYLOAD],
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_standard_input_may_be_what_powershell_and_node_write(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "script.py").write_text("result = payload")
    answer = subprocess.run(
        [*COMMAND, "run", str(tmp_path / "script.py"), "--input", "-", "--json"],
        input='{"text": "déjà 😀"}'.encode(encoding),
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(),
    )
    assert json.loads(answer.stdout)["result"] == {"text": "déjà 😀"}


@pytest.mark.parametrize("policy", ["small", "cells"])
def test_whatever_part_of_a_message_has_half_of_a_pair_it_is_told(service: Service, policy: str) -> None:
    message = {"props": {"\ud83d": "x\udc00"}, "payload": 1}
    with service.client() as client:
        answer = client.run(CODE, payload="a\ud83d", topic="t\ud83d", message=message, policy=policy)
    assert answer.outcome == "succeeded", answer
    assert answer.value == {"again": "a\ufffd", "topic": "t\ufffd", "props": {"\ufffd": "x\ufffd"}}
    assert answer.document["warnings"] == [f"{HALF_REPLACED} (at {name})" for name in ("topic", "payload", "message")]


def test_a_payload_without_half_of_a_pair_is_not_told_of(service: Service) -> None:
    with service.client() as client:
        answer = client.run(CODE, payload=["\ud83d\ude00", "\\ud83d", "\ud55c", "\\" * 9], policy="small")
    assert answer.value["again"] == ["😀", "\\ud83d", "\ud55c", "\\" * 9]
    assert answer.document["warnings"] == []
