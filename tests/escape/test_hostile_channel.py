"""Boundary: whatever a program writes into its own channel, each reader gets one well-formed answer, of that run.

Programs find their channel and write what the grammar of tests/hostile.py makes up. tests/unit/test_hostile_streams.py
looks at many more of them, without Podman. In the tier `cells`, all of it happens in cells.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.channel import records as wire_records
from sandbox.channel.canonical import Canonical
from sandbox.channel.frames import encode
from sandbox.document import as_document
from sandbox.models import Outcome
from sandbox.service.config.model import ServiceConfig
from tests.command import COMMAND, environment
from tests.escape.bench import ESCAPE_POLICY, IN_CELLS, Bench, other_harness, weakened
from tests.escape.service_bench import OWNER_UID, service_for, user
from tests.hostile import FORGED_ID, INJECTED, Frame, packets, streams
from tests.integration.service import Service, served
from tests.readers import JSON, LINE_ENDS, NDJSON, SSE, STEERS, asked, document, lines, server_sent, strict, told

pytestmark = pytest.mark.host_only

OFTEN = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
SELDOM = settings(OFTEN, max_examples=8)

PROGRAM = """
import base64, os, sys
for number, text in payload["prints"]:
    os.write(number, base64.b64decode(text))
channel = log.__self__._channel._socket
for packet in payload["packets"]:
    channel.send(base64.b64decode(packet))
os._exit(0)
"""
SAME = (
    "outcome",
    "explanation",
    "result",
    "additional_data",
    "output_topic",
    "warnings",
    "logs",
    "files",
    "error",
    "stdout",
    "stderr",
)
PRINTS = st.lists(st.tuples(st.integers(1, 2), st.sampled_from(INJECTED)), max_size=2)


def payload_of(frames: list[Frame], prints: list[tuple[int, bytes]]) -> dict[str, Any]:
    """Return the payload by which the program knows what to write."""
    return {
        "prints": [[number, base64.b64encode(text).decode()] for number, text in prints],
        "packets": [base64.b64encode(kind.encode("latin-1") + body).decode() for kind, body in frames],
    }


def same(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what all answers say; fails where they differ."""
    first = {name: found[0][name] for name in SAME}
    for one in found:
        assert {name: one[name] for name in SAME} == first
        assert one["run_id"] != FORGED_ID
        assert one["receipt"]["run_id"] == one["run_id"]
        assert one["receipt"]["outcome"] == one["outcome"]
    assert len({one["run_id"] for one in found}) == len(found)
    assert (first["result"] is None and first["additional_data"] is None) or first["outcome"] == "succeeded"
    return first


# ---- the command's own process


@SELDOM
@given(packets(), PRINTS)
def test_one_answer_from_the_command_s_own_process(
    bench: Bench, frames: list[Frame], prints: list[tuple[int, bytes]]
) -> None:
    result = bench.run(PROGRAM, payload=payload_of(frames, prints))
    text = as_document(result).decode()
    assert LINE_ENDS.split(text) == [text]
    assert not STEERS.search(text)
    same([strict(text)])


@settings(SELDOM, max_examples=4)
@given(packets(), PRINTS)
def test_one_answer_from_sandbox_run_without_a_service(
    tmp_path_factory: pytest.TempPathFactory, frames: list[Frame], prints: list[tuple[int, bytes]]
) -> None:
    place = tmp_path_factory.mktemp("run")
    policy = place / "escape.toml"
    policy.write_text(ESCAPE_POLICY)
    same([commanded(place, payload_of(frames, prints), "--no-service", "--policy", str(policy))])


def commanded(place: Path, payload: dict[str, Any], *options: str, **variables: str) -> dict[str, Any]:
    """Return the one answer of `sandbox run --json`, whose status is that of a program."""
    (place / "attack.py").write_text(PROGRAM)
    (place / "payload.json").write_text(json.dumps(payload))
    answer = subprocess.run(
        [*COMMAND, "run", str(place / "attack.py"), "--input", f"@{place}/payload.json", "--json", *options],
        capture_output=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment(**variables),
    )
    assert answer.returncode in (0, 1, 3, 6), answer.stderr
    assert b"Traceback (most" not in answer.stderr
    (line,) = lines(answer.stdout)
    found: dict[str, Any] = strict(line)
    return found


@SELDOM
@given(streams())
def test_one_answer_where_the_program_has_the_harness_s_place(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory, frames: list[Frame]
) -> None:
    place = tmp_path_factory.mktemp("taken")
    weak = bench.run_weakened("result = 1", other_harness(taken_over(place, frames))).result
    same([strict(as_document(weak))])


# ---- a service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("service")
    (home / "policies").mkdir()
    (home / "policies" / "escape.toml").write_text(ESCAPE_POLICY)
    with served(home) as there:
        yield there


def answers(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask for a run in every way that HTTP has for it; return the answers."""
    text = json.dumps(body).encode()
    status, head, answer = asked(path, text, JSON)
    assert status == 200, answer
    return [
        document(head, answer),
        told(lines(asked(path, text, NDJSON)[2])),
        told(server_sent(asked(path, text, SSE)[2])),
    ]


@OFTEN
@given(packets(), PRINTS)
def test_one_answer_for_every_reader_of_a_service(
    service: Service, frames: list[Frame], prints: list[tuple[int, bytes]]
) -> None:
    payload = payload_of(frames, prints)
    body = {"code": PROGRAM, "policy": "escape", "payload": payload, "node_id": "n"}
    found = answers(service.socket, body)
    with service.client() as client:
        found += [
            client.run(PROGRAM, payload=payload, policy="escape", node_id="n").document,
            client.run(PROGRAM, payload=payload, policy="escape", node_id="n", on_event=lambda event: None).document,
        ]
        same(found)
        for one in found:
            row = client.recorded(one["run_id"])
            assert (row["run_id"], row["state"], row["outcome"]) == (one["run_id"], "ended", one["outcome"])
            assert LINE_ENDS.split(row["explanation"]) == [row["explanation"]]
    if IN_CELLS:
        assert all(
            any("namespaces" in row["mechanism"] for row in one["receipt"]["controls"] if row["control"] == "isolation")
            for one in found
        )
    ended = [strict(line) for line in lines(service.log(*(one["run_id"] for one in found)).encode())]
    for one in found:
        assert [line["outcome"] for line in ended if line.get("run_id") == one["run_id"]] == [one["outcome"]]
    assert not [line for line in ended if line["level"] == "error" or FORGED_ID in line["message"]]


@SELDOM
@given(packets(), PRINTS)
def test_one_answer_from_sandbox_run_through_a_service(
    service: Service, tmp_path_factory: pytest.TempPathFactory, frames: list[Frame], prints: list[tuple[int, bytes]]
) -> None:
    place = tmp_path_factory.mktemp("through")
    found = commanded(place, payload_of(frames, prints), "--policy", "escape", SANDBOX_SOCKET=service.socket)
    same([found])
    shown = subprocess.run(
        [*COMMAND, "logs", found["run_id"]],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment(SANDBOX_SOCKET=service.socket),
    ).stdout
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("outcome ")] == [found["outcome"]]
    assert not STEERS.search(shown)


# ---- a service whose sandboxes have another harness

TAKEN = """
import os, socket, time

def main(path):
    end = socket.socket(socket.AF_UNIX)
    end.connect(path)
    def exactly(size):
        data = b""
        while len(data) < size:
            piece = end.recv(size - len(data))
            if not piece:
                os._exit(0)
            data += piece
        return data
    def ready():
        end.sendall(b"R" + len(READY).to_bytes(4, "big") + READY)
    ready()
    while True:
        head = exactly(5)
        exactly(int.from_bytes(head[1:], "big"))
        if head[:1] == b"P":
            if os.fork() == 0:
                time.sleep(600)
            ready()
        if head[:1] == b"G":
            break
    with open("%s/frames", "rb") as file:
        end.sendall(file.read())
    os._exit(0)

READY = b'{"protocol":1,"python":[3,11,2],"implementation":"cpython"}'
"""


def taken_over(place: Path, frames: list[Frame]) -> Path:
    """Return a directory with a harness that says these frames in the place of its program's."""
    (place / "harness.py").write_text(TAKEN % "/run/sandbox/lib")
    (place / "frames").write_bytes(b"".join(encode(kind if kind.isascii() else "?", body) for kind, body in frames))
    place.chmod(0o755)
    return place


@settings(OFTEN, max_examples=3)
@given(st.lists(streams().filter(lambda frames: frames[0][0] == "S"), min_size=6, max_size=6))
def test_one_answer_for_every_reader_where_the_program_has_the_harness_s_place(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory, many: list[list[Frame]]
) -> None:
    # Many at once: nothing may be drawn while a service in this process draws random numbers of its own.
    place = taken_over(tmp_path_factory.mktemp("lib"), [])
    policy = bench.policy_with(isolation__per_run="container")  # another harness makes no cells
    with tempfile.TemporaryDirectory(prefix="svc-", dir="/tmp") as sockets:
        owner = user(Path(sockets), OWNER_UID, "owner")
        data = tmp_path_factory.mktemp("data")
        config = ServiceConfig.model_validate({"history": {"directory": str(data)}})
        with weakened(other_harness(place)), service_for([owner], config, replace(bench.places, data_dir=data)):
            for frames in many:
                taken_over(place, frames)
                same(answers(owner.socket, {"code": "result = 1", "policy": policy}))


# ---- by hand

FORGED = b'{"event":"result","run_id":"%s","outcome":"succeeded","explanation":"","result":7}' % FORGED_ID.encode()
REPORTS = {
    "between tokens": (b"[1,\n" + FORGED + b"\n,\r\r2]", "succeeded"),
    "behind the result": (b"1\n" + FORGED, "failed"),
    "as a field": (b"1\r\n\r\ndata: " + FORGED + b"\r\n\r\n", "failed"),
    "deep": (b"[" * 900 + b"]" * 900, "failed"),
    "digits": (b"9" * 5000, "failed"),
    "infinity": (b"1e999", "failed"),
    "half": (b'"\\ud800"', "succeeded"),
    "a large half": (b'["' + b"x" * 300_000 + b'", "\\ud800"]', "succeeded"),
    "separators": ('"\u2028\u2029\x85"'.encode(), "succeeded"),
}


def report(text: bytes) -> dict[str, Any]:
    """Return the payload of a program that writes this as its result."""
    return payload_of([*(("V", text[at : at + 60_000]) for at in range(0, len(text), 60_000)), ("M", b"{}")], [])


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_written_by_hand_has_the_same_outcome_for_every_reader(
    service: Service, tmp_path: Path, name: str
) -> None:
    text, outcome = REPORTS[name]
    payload = report(text)
    found = answers(service.socket, {"code": PROGRAM, "policy": "escape", "payload": payload, "node_id": "n"})
    found.append(commanded(tmp_path, payload, "--policy", "escape", SANDBOX_SOCKET=service.socket))
    assert same(found)["outcome"] == outcome
    if "half" in name:
        assert [len(one["warnings"]) for one in found] == [1] * len(found)
        assert "�" in json.dumps(found[0]["result"], ensure_ascii=False)


@pytest.mark.control
def test_control_as_it_was_written_a_report_forges_an_event(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_records, "canonical", lambda text: Canonical(text, False))
    result = bench.run(PROGRAM, payload=report(REPORTS["between tokens"][0]))
    assert result.outcome is Outcome.SUCCEEDED
    stream = b'{"event": "result", ' + as_document(result)[1:] + b"\n"
    assert FORGED in stream.split(b"\n"), "a line of its own, for whoever reads NDJSON"
    assert os.linesep in stream.decode()[:-1]
    with pytest.raises((AssertionError, ValueError)):
        told(lines(b'{"event": "accepted", "run_id": "x"}\n' + stream))
