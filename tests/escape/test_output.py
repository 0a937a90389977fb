"""Boundary: output, log and result are bounded while they stream, and their text steers no terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox.container.spec import MIB
from sandbox.models import Outcome
from tests.escape.bench import Bench, tightening

pytestmark = pytest.mark.host_only

FLOODS = {
    "a gigabyte of lines": "for _ in range(1 << 20):\n    print('x' * 1023)\n",
    "a gigabyte without a newline": "import os\nfor _ in range(1 << 10):\n    os.write(1, b'x' * (1 << 20))\n",
    "a gigabyte of errors": "import sys\nfor _ in range(1 << 20):\n    print('x' * 1023, file=sys.stderr)\n",
    "one enormous line": "print('x' * (1 << 25))\n",
    "by a command": "import subprocess\nsubprocess.run(['head', '-c', '1000000000', '/dev/zero'])\n",
    "by both streams at once": "import os\nwhile True:\n    os.write(1, b'o' * 999)\n    os.write(2, b'e' * 999)\n",
    "by large log records": "while True:\n    log('x' * 50_000)\n",
}


@pytest.mark.parametrize("name", FLOODS)
def test_output_ends_at_the_policy_s_limit(bench: Bench, name: str) -> None:
    allowed = bench.policy().limits.output_mib * MIB
    ended = bench.run(FLOODS[name])
    assert ended.outcome is Outcome.OUTPUT_LIMIT, ended.explanation
    assert "limits.output_mib" in ended.explanation
    logged = sum(len(record.message) for record in ended.logs)
    taken = len(ended.stdout) + len(ended.stderr) + logged
    assert allowed * 0.9 <= taken <= allowed


def test_under_a_larger_limit_the_same_output_passes(bench: Bench) -> None:
    text = "print('x' * (3 << 20))\nresult = 1"
    assert bench.run(text).outcome is Outcome.OUTPUT_LIMIT
    passed = bench.run(text, policy=bench.policy_with(limits__output_mib=4))
    assert (passed.outcome, len(passed.stdout)) == (Outcome.SUCCEEDED, (3 << 20) + 1)


def test_log_records_are_counted(bench: Bench) -> None:
    allowed = bench.policy().limits.log_records
    ended = bench.run("for number in range(payload):\n    log(number)\nresult = 1", payload=allowed + 1)
    assert (ended.outcome, len(ended.logs)) == (Outcome.OUTPUT_LIMIT, allowed)
    assert "limits.log_records" in ended.explanation
    assert (
        bench.run("for number in range(payload):\n    log(number)\nresult = 1", payload=allowed).outcome
        is Outcome.SUCCEEDED
    )


@pytest.mark.parametrize(
    "text",
    [
        "import os\nwhile True:\n    os.write(1, b'x')\n",
        "import os\nwhile True:\n    os.write(1, b'x')\n    os.write(2, b'y')\n",
    ],
    ids=["one stream", "two streams"],
)
def test_a_flood_of_tiny_writes_delays_no_deadline(bench: Bench, text: str) -> None:
    began = time.monotonic()
    ended = bench.run(text, limits=tightening(timeout_s=1))
    assert ended.outcome in (Outcome.TIMED_OUT, Outcome.OUTPUT_LIMIT)
    assert time.monotonic() - began < 5


def test_bytes_that_are_no_text_arrive_as_they_are(bench: Bench) -> None:
    ended = bench.run("import os\nos.write(1, bytes(range(256)))\nos.write(2, b'\\xff\\xfe')\nresult = 1")
    assert (ended.stdout, ended.stderr) == (bytes(range(256)), b"\xff\xfe")


# None takes more than half of the memory that the policy allows, so that only one limit can be met.
RESULTS = {
    "half of the memory in one string": "result = 'x' * (1 << 27)",
    "a gigabyte in many": "result = ['x' * 1024] * (1 << 20)",
    "a gigabyte of numbers, by one list": "result = [[12345678] * 1024] * (1 << 17)",
    "a generator without end": "import itertools\nresult = ('x' * 100 for _ in itertools.count())",
    "a gigabyte of additional data": "result = 1\nadditional_data = ['x' * 1024] * (1 << 20)",
    "shared structure that unfolds": "result = ['x' * 1000]\nfor _ in range(40):\n    result = [result, result]",
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_past_the_limit_is_refused(bench: Bench, name: str) -> None:
    ended = bench.run(RESULTS[name])
    assert ended.outcome is Outcome.OUTPUT_LIMIT, ended
    assert ended.result_json is None


def test_the_limit_of_a_result_is_the_policy_s(bench: Bench) -> None:
    allowed = bench.policy().limits.result_mib * MIB
    assert len(bench.value("result = 'x' * payload", payload=allowed - 2)) == allowed - 2
    ended = bench.run("result = 'x' * payload", payload=allowed - 1)
    assert (ended.outcome, ended.result_json) == (Outcome.OUTPUT_LIMIT, None)
    assert "limits.result_mib" in ended.explanation


@pytest.mark.parametrize(
    "text",
    [
        "result = []\nfor _ in range(100_000):\n    result = [result]",
        "result = {}\nfor _ in range(100_000):\n    result = {'a': result}",
        "result = []\nresult.append(result)",
        "result = {}\nresult['me'] = result",
        "a, b = [], []\na.append(b)\nb.append(a)\nresult = a",
        "class Deep:\n    def __iter__(self):\n        return iter([Deep()])\nresult = iter(Deep())",
    ],
    ids=["deep list", "deep object", "cyclic list", "cyclic object", "two in a circle", "deep for ever"],
)
def test_a_result_that_json_can_not_hold_is_a_failure_of_the_program(bench: Bench, text: str) -> None:
    ended = bench.run(text)
    assert ended.outcome is Outcome.FAILED, ended.explanation
    assert ended.error is not None
    assert ended.error.type in ("ValueError", "TypeError", "RecursionError")
    assert ended.result_json is None


# ---------------------------------------------------------------- what reaches a terminal

STEERING = ("\x1b[2J\x1b]0;owned\x07", "\x9b31m", "\u202egnp.exe", "\x08\x08\x08", "\x7f", "\x1bP+q\x1b\\", "\x00")


def on_a_terminal(script: Path, *options: str) -> bytes:
    """Return what `sandbox run` writes to a pseudo-terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", "run", str(script), *options],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"},
    )
    os.close(follower)
    written = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if not select.select([leader], [], [], 1)[0]:
                continue
            try:
                piece = os.read(leader, 65536)
            except OSError:
                break
            if not piece:
                break
            written += piece
    finally:
        os.close(leader)
        process.kill()
        process.wait(10)
    return written


def steering_left(written: bytes) -> list[str]:
    """Return what could steer a terminal, after the command's own colours."""
    text = written.decode("utf-8", "replace")
    for own in ("\x1b[0m", "\x1b[2m", "\x1b[31m"):
        text = text.replace(own, "")
    bad = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\r\n"]
    return [repr(mark) for mark in (*bad, "\u202e", "\u2066", "\u200f") if mark in text]


WAYS = {
    "standard output": "import os\nos.write(1, payload_text.encode())\nresult = 1",
    "standard error": "import os\nos.write(2, payload_text.encode())\nresult = 1",
    "standard output, raw bytes": "import os\nos.write(1, b'\\x9b31m\\xc2')\nos.write(1, b'\\x9b31m')\nresult = 1",
    "the log": "log(payload_text)\nresult = 1",
    "the result": "result = payload_text",
    "a key of the result": "result = {payload_text: [payload_text]}",
    "an exception": "raise ValueError(payload_text)",
    "an exception's type": "raise type(payload_text.replace('\\0', ''), (Exception,), {})()",
    "a warning": "result = {payload_text: float('nan')}",
    "the topic": "output_topic = payload_text\nresult = 1",
    "the exit": "raise SystemExit(payload_text)",
    "its own traceback": (
        "import os\nos._exit(3) if 0 else exec(compile('1/0', payload_text.replace('\\0', ''), 'exec'))"
    ),
}


@pytest.mark.parametrize("json_option", [(), ("--json",)], ids=["plain", "json"])
@pytest.mark.parametrize("way", WAYS)
def test_no_text_of_a_program_steers_the_terminal(tmp_path: Path, way: str, json_option: tuple[str, ...]) -> None:
    script = tmp_path / "attack.py"
    script.write_text(f"payload_text = {''.join(STEERING)!r}\n{WAYS[way]}\n")
    written = on_a_terminal(script, *json_option)
    assert written.strip(), "nothing was written at all"
    assert steering_left(written) == []


def test_no_name_of_a_file_steers_the_terminal(tmp_path: Path) -> None:
    script = tmp_path / "attack.py"
    script.write_text("""
import os, struct, socket
for name in ("\\u202egnp.exe", "\\x1b[2J"):
    try:
        save_file(name, "x")
    except ValueError:
        pass
save_file("plain", "x")
result = 1
""")
    assert steering_left(on_a_terminal(script)) == []


def test_into_a_file_the_same_bytes_arrive_unchanged(tmp_path: Path) -> None:
    # The control: only a terminal is protected, pipes and files get what the program wrote.
    script = tmp_path / "attack.py"
    script.write_text("import os\nos.write(1, b'\\x1b[2J')\nresult = 1\n")
    answer = subprocess.run(
        [sys.executable, "-m", "sandbox", "run", str(script)],
        capture_output=True,
        timeout=60,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert answer.stdout.startswith(b"\x1b[2J")


HARD_TO_PRINT = {
    "a number of many digits": "import sys\nsys.set_int_max_str_digits(0)\nresult = 10 ** 6000",
    "half a character": "result = '\\ud800'",
    "not a number": "result = [float('nan'), float('inf')]",
    "deep, but not too deep": "result = 1\nfor _ in range(95):\n    result = [result]",
    "keys of every kind": "result = {1: 2, None: 3, True: 4, 1.5: 5, ('a', 1): 6, b'x': 7}",
}


@pytest.mark.parametrize("name", HARD_TO_PRINT)
@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_the_command_prints_or_explains_every_result(tmp_path: Path, name: str, option: str) -> None:
    script = tmp_path / "attack.py"
    script.write_text(HARD_TO_PRINT[name] + "\n")
    answer = subprocess.run(
        [sys.executable, "-m", "sandbox", "run", str(script), option],
        capture_output=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert answer.returncode in (0, 1), answer.stderr
    assert b"sandbox/cli" not in answer.stderr
    if option == "--json":
        json.loads(answer.stdout)
