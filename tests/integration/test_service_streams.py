"""A stream tells everything once.

Whoever reads it through a client or the command gets what a request without a stream gives."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.client import AsyncClient
from sandbox.errors import EngineUnavailable
from tests.command import environment, sandbox
from tests.integration.service import POLICY, Service, served
from tests.readers import JSON, NDJSON, SSE, asked, document, lines, server_sent, told

MIB = 1 << 20
# What a run tells: a large file, output of both kinds and half of a character in it, a log record, one name twice.
SAVES = """
import os, sys
save_file("large.bin", bytes(range(256)) * 4096)
save_file("twice.txt", "first")
os.write(1, b"out: " + b"o" * 200_000 + b"\\xff\\xe2\\x82")
os.write(1, b"\\xac\\n")
os.write(2, "err: \\u20ac\\u2028\\n".encode())
log("logged", "warning")
save_file("twice.txt", "second")
result = {"n": payload}
"""
# A program that goes past a limit may end before it is killed: one that goes on is always killed.
GOES_ON = "\nwhile True: pass"
# Runs that end otherwise, and what was told before they did.
ENDS = {
    "raises": (SAVES + "raise KeyError('why')", {}),
    "exits": (SAVES + "import os; os._exit(3)", {}),
    "too much of files": (SAVES + "for n in range(9): save_file(f'{n}.bin', b'x' * (1 << 19))" + GOES_ON, {}),
    "too many files": (SAVES + "for n in range(50): save_file(str(n), b'')" + GOES_ON, {}),
    "too much output": (SAVES + "print('x' * (4 << 20))" + GOES_ON, {}),
    "too long": (SAVES + "while True: pass", {"timeout_s": 1}),
    "half a file": (
        SAVES
        + "import os; log.__self__._channel._socket.send(b'F' + (100).to_bytes(8, 'big') + b'half.txt'); os._exit(0)",
        {},
    ),
}
SAME = (
    "outcome",
    "explanation",
    "output_topic",
    "stdout",
    "stderr",
    "files",
    "warnings",
    "error",
    "exit_code",
    "result",
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("streams")
    (home / "policies").mkdir()
    (home / "policies" / "few.toml").write_text(POLICY + "limits.files_mib = 2\nlimits.files_count = 20\n")
    with served(home) as opened:
        yield opened


def same(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what two runs of one program have in common."""
    logs = [(record["level"], record["message"]) for record in answer["logs"]]
    return {**{name: answer[name] for name in SAME}, "logs": logs, "names": list(answer)}


def body_of(code: str, limits: dict[str, Any]) -> bytes:
    return json.dumps({"code": code, "payload": 7, "policy": "few", "limits": limits}).encode()


def whole(service: Service, code: str, limits: dict[str, Any]) -> dict[str, Any]:
    """Return the answer without a stream."""
    status, head, text = asked(service.socket, body_of(code, limits), JSON)
    assert status == 200
    return document(head, text)


@pytest.mark.parametrize("accept", [NDJSON, SSE])
def test_a_stream_carries_files_and_output_once(service: Service, accept: str) -> None:
    _, _, text = asked(service.socket, body_of(SAVES, {}), accept)
    events = [json.loads(one) for one in (lines(text) if accept == NDJSON else server_sent(text))]
    files, output = MIB * 4 / 3, 200_000 * 7 / 3  # what is no text is there as such, too
    assert files + 200_000 < len(text) < files + output + 20_000
    assert [text.count(word) for word in (b"out: ", b"err: ", b"logged")] == [1, 1, 1]
    assert events[-1]["files"] == [{"name": "large.bin", "size_bytes": MIB}, {"name": "twice.txt", "size_bytes": 6}]
    assert [one["name"] for one in events if one["event"] == "file"] == ["large.bin", "twice.txt", "twice.txt"]
    assert (
        base64.b64decode(next(one["content_base64"] for one in events if one["event"] == "file"))
        == bytes(range(256)) * 4096
    )


def test_whoever_reads_a_stream_has_what_a_request_without_one_gives(service: Service, tmp_path: Path) -> None:
    expected = same(whole(service, SAVES, {}))
    assert [file["name"] for file in expected["files"]] == ["large.bin", "twice.txt"]
    options: dict[str, Any] = {"payload": 7, "policy": "few"}
    with service.client() as client:
        found = [client.run(SAVES, **options), client.run(SAVES, on_event=lambda _: None, **options)]
        assert list(client.stream(SAVES, **options))[-1]["files"] == expected["files"]
        later = client.result(client.start(SAVES, **options), wait_s=30)
        assert later is not None
        found.append(later)

    async def awaited() -> None:
        async with AsyncClient(service.socket) as other:
            found.append(await other.run(SAVES, on_event=lambda _: None, **options))

    asyncio.run(awaited())
    for one in found:
        assert same(one.document) == expected
        assert one.files == {"large.bin": bytes(range(256)) * 4096, "twice.txt": b"second"}
        assert (one.stdout, one.stderr) == (expected["stdout"], expected["stderr"])
    (tmp_path / "s.py").write_text(SAVES)
    command: list[str | Path] = ["run", tmp_path / "s.py", "--input", "7", "--policy"]
    through = environment(SANDBOX_SOCKET=service.socket)
    shown = [
        sandbox(*command, "few", "--json", "--save-files", tmp_path / "remote", env=through),
        sandbox(*command, service.policies / "few.toml", "--json", "--save-files", tmp_path / "own"),
    ]
    assert [one.returncode for one in shown] == [0, 0]
    assert [same(json.loads(one.stdout)) for one in shown] == [expected, expected]
    for place in ("remote", "own"):
        assert {path.name: path.read_bytes() for path in (tmp_path / place).iterdir()} == found[0].files


@pytest.mark.parametrize("name", ENDS)
def test_a_run_that_ends_otherwise_has_told_just_what_its_answer_names(service: Service, name: str) -> None:
    code, limits = ENDS[name]
    found = [told(lines(asked(service.socket, body_of(code, limits), NDJSON)[2]))]
    assert found[0]["outcome"] != "succeeded"
    assert [file["name"] for file in found[0]["files"][:2]] == ["large.bin", "twice.txt"]
    with service.client() as client:
        found.append(client.run(code, payload=7, policy="few", limits=limits, on_event=lambda _: None).document)
    found.append(whole(service, code, limits))
    assert set(found[0]) == set(found[1]) == set(found[2])
    # How much of the output and of the files was there when a limit ended the run is the moment's.
    ends = [(one["outcome"], one["explanation"], one["exit_code"], one["files"][:2], one["result"]) for one in found]
    print([[str(x)[:300] for x in e] for e in ends])
    assert ends[0] == ends[1] == ends[2]


def test_a_stream_that_its_reader_leaves_has_no_answer_and_the_next_has_all(service: Service) -> None:
    with service.client() as client:

        def leave() -> None:
            for event in client.stream(SAVES + "import time; time.sleep(60)", payload=7, policy="few"):
                if event["event"] == "file":
                    client.break_off()

        with pytest.raises(EngineUnavailable, match=r"broken off|went away"):
            leave()
        assert client.run(SAVES, payload=7, policy="few", on_event=lambda _: None).files["twice.txt"] == b"second"
