"""Boundary: the runner survives a harness that user code has taken over, or that never was ours.

Each case starts a container as the product does, with another program in the harness's place.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from sandbox.container.spec import MIB
from sandbox.document import as_document
from sandbox.errors import Internal, NotEnforceable
from sandbox.models import Outcome
from tests.escape.bench import Bench, other_harness, tightening

pytestmark = pytest.mark.host_only

HARNESS = """
import json, os, socket, struct, time

def main(path):
    end = socket.socket(socket.AF_UNIX)
    end.connect(path)

    def put(kind, body=b""):
        end.sendall(kind + len(body).to_bytes(4, "big") + body)

    def quit(**changes):
        fields = {"exit_code": 0, "signal": None, "ended": "exited", "max_rss_kib": 1, "cpu_s": 0.0, "wall_s": 0.0}
        put(b"Q", json.dumps({**fields, **changes}).encode())

    def job():
        taken = b""
        while not taken.endswith(b"G\\0\\0\\0\\0"):
            taken = taken[-8:] + end.recv(65536)

    def ready():
        put(b"R", b'{"protocol":1,"python":[3,11,2],"implementation":"cpython"}')

    def begin():
        ready()
        job()
        put(b"S")

    try:
%s
        time.sleep(60)
    except OSError:
        pass
    os._exit(0)
"""


def harness(directory: Path, text: str) -> Path:
    lines = "\n".join("        " + line for line in text.splitlines())
    (directory / "harness.py").write_text(HARNESS % lines)
    directory.chmod(0o755)
    return directory


LIES = {
    "an unknown frame": ('begin(); put(b"?", b"x")', {Outcome.FAILED}),
    "a frame of the runner's": ('begin(); put(b"J", b"{}")', {Outcome.FAILED}),
    "a frame of four gigabytes": ('begin(); end.sendall(b"O\\xff\\xff\\xff\\xff")', {Outcome.FAILED}),
    "a frame that never ends": ('begin(); end.sendall(b"O\\0\\0\\0\\x09half")', {Outcome.TIMED_OUT}),
    "half a frame and the end": (
        'begin(); end.sendall(b"O\\0\\0\\0\\x09half"); os._exit(0)',
        {Outcome.FAILED, Outcome.KILLED},
    ),
    "half a header": ('begin(); end.sendall(b"O\\0"); os._exit(0)', {Outcome.FAILED, Outcome.KILLED}),
    "one byte a second": (
        'begin()\nwhile True:\n    end.sendall(b"O"[:1]); time.sleep(1)',
        {Outcome.FAILED, Outcome.TIMED_OUT},
    ),
    "silence": ("begin()", {Outcome.TIMED_OUT}),
    "the end at once": ("begin(); os._exit(0)", {Outcome.KILLED}),
    "a second start": ('begin(); put(b"S")', {Outcome.FAILED}),
    "a second ready": ("begin(); ready()", {Outcome.FAILED}),
    "output without end": ('begin()\nwhile True:\n    put(b"O", b"x" * 65536)', {Outcome.FAILED}),
    "tiny output without end": (
        'begin()\nblock = b"O\\0\\0\\0\\x01x" * 10000\nwhile True:\n    end.sendall(block)',
        {Outcome.FAILED, Outcome.TIMED_OUT},
    ),
    "empty output without end": (
        'begin()\nblock = b"O\\0\\0\\0\\0" * 10000\nwhile True:\n    end.sendall(block)',
        {Outcome.FAILED},
    ),
    "log records without end": (
        'begin()\nwhile True:\n    put(b"L", b\'{"level":"info","message":"x","elapsed_s":0.0}\')',
        {Outcome.FAILED},
    ),
    "a result without end": ('begin()\nwhile True:\n    put(b"V", b"[" * 65536)', {Outcome.FAILED}),
    "files without end": (
        'begin()\nfor n in range(10**6):\n    put(b"F", json.dumps({"name": str(n), "size": 0}).encode())',
        {Outcome.FAILED},
    ),
    "a file of a terabyte": ('begin(); put(b"F", b\'{"name":"huge","size":1099511627776}\')', {Outcome.FAILED}),
    "a file of less than nothing": ('begin(); put(b"F", b\'{"name":"n","size":-1}\')', {Outcome.FAILED}),
    "a file name with a path": (
        'begin(); put(b"F", b\'{"name":"../x","size":1}\'); put(b"f", b"x"); quit()',
        {Outcome.FAILED},
    ),
    "more after the last frame": ('begin(); quit()\nwhile True:\n    put(b"O", b"x" * 65536)', {Outcome.NO_RESULT}),
    "a result and no end": ('begin(); put(b"V", b"1"); quit()', {Outcome.NO_RESULT}),
    "a result after a failure": (
        'begin(); put(b"X", b\'{"type":"E","message":"m"}\'); put(b"V", b"1"); put(b"M", b"{}"); quit()',
        {Outcome.FAILED},
    ),
    "an end that is no end": ('begin(); put(b"Q", b"{}")', {Outcome.FAILED}),
    "an end of negative numbers": ("begin(); quit(max_rss_kib=-1)", {Outcome.FAILED}),
    "an end at no time": (
        (
            'begin(); put(b"Q",'
            ' b\'{"exit_code":0,"signal":null,"ended":"exited","max_rss_kib":1,"cpu_s":NaN,"wall_s":0.0}\')'
        ),
        {Outcome.FAILED},
    ),
    "an absurd exit status": ("begin(); quit(exit_code=10 ** 3000)", {Outcome.FAILED}),
    "an absurd signal": ('begin(); quit(exit_code=None, signal="SIG\\x1b[2J")', {Outcome.FAILED}),
    "a success that was a kill": (
        'begin(); put(b"V", b"1"); put(b"M", b"{}"); quit(signal="SIGKILL")',
        {Outcome.KILLED},
    ),
    "a success that hit a limit": (
        'begin(); put(b"V", b"1"); put(b"M", b"{}"); quit(ended="output_limit")',
        {Outcome.OUTPUT_LIMIT},
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_after_the_start_is_an_outcome_and_no_success(bench: Bench, tmp_path: Path, name: str) -> None:
    text, outcomes = LIES[name]
    began = time.monotonic()
    weak = bench.run_weakened("result = 1", other_harness(harness(tmp_path, text)), limits=tightening(timeout_s=1))
    assert weak.result.outcome in outcomes, weak.result.explanation
    assert weak.result.result_json is None
    assert len(weak.result.stdout) <= bench.policy().limits.output_mib * MIB
    assert weak.noticed == frozenset(), "the container itself is as specified"
    assert time.monotonic() - began < 6
    as_document(weak.result)


def test_an_end_of_absurd_numbers_is_an_outcome(bench: Bench, tmp_path: Path) -> None:
    weaken = other_harness(harness(tmp_path, "begin(); quit(max_rss_kib=10 ** 400)"))
    assert bench.run_weakened("result = 1", weaken).result.outcome is Outcome.FAILED


# Whichever of these looks first for a process that has ended.
GONE = (
    "ended or hung before its harness reported|limit can't be set on the sandbox: No such process|can't be read back"
    "|the sandbox ended before"
)
EARLY = {
    "garbage": ('end.sendall(b"\\xff" * 100)', "a frame of unknown type"),
    "no greeting but a frame": ('put(b"S")', "a frame 'S' out of order"),
    "another protocol": (
        'put(b"R", b\'{"protocol":2,"python":[3,11,2],"implementation":"cpython"}\')',
        "a malformed Ready record",
    ),
    "a greeting of wrong shape": ('put(b"R", b"[]")', "a malformed Ready record"),
    "the end": ("os._exit(0)", f"the harness did not report that it is ready|{GONE}"),
    "output before the start": ('ready(); job(); put(b"O", b"early")', "a frame 'O' out of order"),
    "a result before the start": (
        'ready(); job(); put(b"V", b"1"); put(b"M", b"{}"); quit()',
        "a frame 'V' out of order",
    ),
}


@pytest.mark.parametrize("name", EARLY)
def test_a_lie_before_the_start_is_an_error_of_the_sandbox_and_no_success(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    text, words = EARLY[name]
    began = time.monotonic()
    with pytest.raises((Internal, NotEnforceable), match=words):
        bench.run_weakened("result = 1", other_harness(harness(tmp_path, text)), limits=tightening(timeout_s=1))
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("text", ["ready(); os._exit(0)", "ready(); job(); os._exit(0)"])
def test_a_harness_that_ends_before_the_start_is_an_error_or_a_kill(bench: Bench, tmp_path: Path, text: str) -> None:
    """It is an error where the end is seen while the sandbox is read back, and a kill from when the job is sent."""
    weaken = other_harness(harness(tmp_path, text))
    try:
        ended = bench.run_weakened("result = 1", weaken, limits=tightening(timeout_s=1)).result.outcome.value
    except (Internal, NotEnforceable) as error:
        ended = str(error)
    assert re.search(f"{GONE}|^killed$", ended) is not None


@pytest.mark.parametrize(
    ("constant", "text", "words"),
    [
        ("sandbox.container.sandbox.READY_TIMEOUT_S", "pass", "did not report that it is ready"),
        ("sandbox.run.execution.START_TIMEOUT_S", "ready()", "did not take the job"),
    ],
    ids=["never ready", "never takes the job"],
)
def test_a_harness_that_does_nothing_is_given_up(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str, text: str, words: str
) -> None:
    monkeypatch.setattr(constant, 1.0)
    began = time.monotonic()
    with pytest.raises(Internal, match=words):
        bench.run_weakened("result = 1", other_harness(harness(tmp_path, text)), payload="x" * (4 << 20))
    assert time.monotonic() - began < 6


def test_the_same_harness_telling_the_truth_succeeds(bench: Bench, tmp_path: Path) -> None:
    text = 'begin(); put(b"V", b"41"); put(b"M", b"{}"); quit()'
    assert bench.run_weakened("result = 1", other_harness(harness(tmp_path, text))).value == 41
