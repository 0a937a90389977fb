"""Readers of the service's answers, as strict and as credulous as any.

What one of them takes for a line or an event is one. They share no code with the service nor with its clients.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
from typing import Any

JSON, NDJSON, SSE = "application/json", "application/x-ndjson", "text/event-stream"
# Python's str.splitlines, Unicode's UAX 14, JavaScript, and terminals.
LINE_ENDS = re.compile("\r\n|[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def strict(text: str | bytes) -> Any:
    """Return a JSON value as the strictest reader does; fails for what some reader can't take."""
    decoded = text.decode() if isinstance(text, bytes) else text

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    def number(word: str) -> float:
        value = float(word)
        assert abs(value) != float("inf"), "a number that becomes infinity"
        return value

    assert "\0" not in decoded
    value = json.loads(decoded, parse_constant=refuse, parse_float=number)
    json.dumps(value, ensure_ascii=False).encode()  # no half of a character
    return value


def asked(path: str, body: bytes, accept: str) -> tuple[int, dict[str, str], bytes]:
    """Ask for a run over HTTP; return status, head and body."""
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(60)
    connection.sock.connect(path)
    try:
        connection.request("POST", "/v1/runs", body, {"Accept": accept, "Content-Type": JSON})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def lines(body: bytes) -> list[str]:
    """Return the lines of a text; fails where readers do not agree on them."""
    text = body.decode()
    found = text.split("\n")
    assert found.pop() == "", "the last line has an end, too"
    assert LINE_ENDS.split(text)[:-1] == found == text.splitlines()
    assert not any(STEERS.search(line) for line in found)
    return found


def server_sent(body: bytes) -> list[str]:
    """Return the data of each event as the HTML standard has it.

    Fails for any field but `data`, and for an event that is cut off.
    """
    found: list[str] = []
    data: list[str] = []
    text = body.decode().removeprefix("\ufeff")
    assert re.search(r"(\n\n|\r\r|\r\n\r\n)\Z", text), "the last event is whole"
    for line in re.split("\r\n|\r|\n", text)[:-1]:
        if not line:
            if data:
                found.append("\n".join(data))
            data = []
            continue
        field, _, value = line.partition(":")
        assert field == "data", f"a field {field[:40]!r}"
        data.append(value.removeprefix(" "))
    assert all(len(LINE_ENDS.split(one)) == 1 and not STEERS.search(one) for one in found)
    return found


def told(events: list[str]) -> dict[str, Any]:
    """Return the one result among the events of one run.

    The first event names the run, the last ends it, and none is of another.
    """
    parsed = [strict(event) for event in events]
    kinds = [event["event"] for event in parsed]
    assert kinds[0] == "accepted", kinds
    assert kinds.count("accepted") == 1
    assert kinds[-1] == "result", kinds
    assert kinds.count("result") == 1
    assert set(kinds) <= {"accepted", "progress", "stdout", "stderr", "log", "file", "result"}
    result: dict[str, Any] = parsed[-1]
    assert parsed[0]["run_id"] == result["run_id"]
    return {name: value for name, value in result.items() if name != "event"} | carried(parsed, result)


def carried(events: list[dict[str, Any]], result: dict[str, Any]) -> dict[str, Any]:
    """Return what the events before the last have carried of the answer.

    Fails if the last has any of it once more."""
    assert not {"stdout", "stderr", "logs"} & set(result)
    assert all(set(file) == {"name", "size_bytes"} for file in result["files"])
    output = {
        kind: (
            b"".join(
                base64.b64decode(one["base64"]) if "base64" in one else one["text"].encode()
                for one in events
                if one["event"] == kind
            ).decode("utf-8", "backslashreplace")
        )
        for kind in ("stdout", "stderr")
    }
    logs = [
        {"level": one["level"], "message": one["text"], "elapsed_s": one["elapsed_s"]}
        for one in events
        if one["event"] == "log"
    ]
    files = {one["name"]: one for one in events if one["event"] == "file"}
    whole = [
        {name: value for name, value in files[file["name"]].items() if name != "event"} for file in result["files"]
    ]
    assert [
        {"name": file["name"], "size_bytes": len(base64.b64decode(file["content_base64"]))} for file in whole
    ] == result["files"]
    return {**output, "logs": logs, "files": whole}


def document(head: dict[str, str], body: bytes) -> dict[str, Any]:
    """Return the one document of a run that an answer is."""
    assert int(head["Content-Length"]) == len(body)
    text = body.decode()
    assert LINE_ENDS.split(text) == [text]
    assert not STEERS.search(text)
    found: dict[str, Any] = strict(text)
    assert found["run_id"] == head["X-Run-Id"]
    return found
