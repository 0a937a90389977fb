"""Boundary: however a program ends, and whatever it writes to its descriptors, the outcome is told truly."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.cli.document import readable
from sandbox.document import as_document
from sandbox.models import Outcome
from tests.escape.bench import Bench

pytestmark = pytest.mark.host_only

ENDS = {
    "os._exit(0)": ("import os\nresult = 1\nos._exit(0)", Outcome.NO_RESULT, 0, None),
    "os._exit(5)": ("import os\nresult = 1\nos._exit(5)", Outcome.FAILED, 5, None),
    "sys.exit()": ("import sys\nsys.exit()", Outcome.NO_RESULT, 0, None),
    "sys.exit() with a result": ("import sys\nresult = 1\nsys.exit()", Outcome.SUCCEEDED, 0, None),
    "sys.exit(3) with a result": ("import sys\nresult = 1\nsys.exit(3)", Outcome.FAILED, 3, None),
    "sys.exit with words": ("import sys\nsys.exit('no luck')", Outcome.FAILED, 1, None),
    "a crash": ("import ctypes\nctypes.string_at(0)", Outcome.KILLED, None, "SIGSEGV"),
    "a crash with a result": ("import ctypes\nresult = 1\nctypes.string_at(0)", Outcome.KILLED, None, "SIGSEGV"),
    "an abort": ("import os\nos.abort()", Outcome.KILLED, None, "SIGABRT"),
    "a signal of its own": ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)", Outcome.KILLED, None, "SIGTERM"),
    "a real-time signal": ("import os\nos.kill(os.getpid(), 40)", Outcome.KILLED, None, "SIG40"),
    "another program": ("import os\nresult = 1\nos.execv('/bin/true', ['true'])", Outcome.NO_RESULT, 0, None),
    "no result": ("x = 1", Outcome.NO_RESULT, 0, None),
    "an exit at exit": ("import atexit, os\nresult = 1\natexit.register(os._exit, 9)", Outcome.FAILED, 9, None),
    "a stack without end in C": (
        "import json\nx = []\nfor _ in range(10**5):\n    x = [x]\njson.dumps(x)",
        Outcome.FAILED,
        1,
        None,
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_each_way_to_end_has_its_outcome(bench: Bench, name: str) -> None:
    text, outcome, exit_code, signal_name = ENDS[name]
    ended = bench.run(text)
    assert (ended.outcome, ended.exit_code, ended.signal) == (outcome, exit_code, signal_name), ended.explanation
    assert (ended.result_json is not None) == (outcome is Outcome.SUCCEEDED)


def test_closing_every_descriptor_is_a_failure_and_nothing_more(bench: Bench) -> None:
    ended = bench.run("import os\nos.closerange(0, 1024)\nresult = 1")
    assert (ended.outcome, ended.exit_code) == (Outcome.FAILED, 1), "the result had no way out"
    assert ended.result_json is None


def test_garbage_on_every_descriptor_is_a_failure_and_nothing_more(bench: Bench) -> None:
    text = """
        import os
        for number in os.listdir("/proc/self/fd"):
            for garbage in (b"\\xff" * 100, b"Q" + bytes(50_000), b'Q{"exit_code":0}', b"V1", b"\\0"):
                try:
                    os.write(int(number), garbage)
                except OSError:
                    pass
        result = 1
    """
    ended = bench.run(text)
    assert ended.outcome is Outcome.FAILED
    assert "channel" in ended.explanation
    assert ended.result_json is None


def test_no_descriptor_but_its_own_is_open(bench: Bench) -> None:
    text = """
        import os
        result = sorted(os.readlink(f"/proc/self/fd/{number}").split(":")[0]
                        for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}"))
    """
    assert bench.value(text) == ["/dev/null", "pipe", "pipe", "socket"]


# ---------------------------------------------------------------- forged packets

# How a program gets at the channel: through the functions that were given to it.
FORGE = """
import json, os, socket, struct
channel = log.__self__._channel._socket
def forge(kind, body=b""):
    channel.send(kind + body)
def meta():
    forge(b"M", b'{"warnings": []}')
"""

REFUSED = {
    "the last frame": (
        'forge(b"Q", json.dumps({"exit_code": 0, "signal": None, "ended": "exited", "max_rss_kib": 1, "cpu_s": 0.0,'
        ' "wall_s": 0.0}).encode())'
    ),
    "the first frame": 'forge(b"R", b\'{"protocol":1,"python":[3,11,2],"implementation":"cpython"}\')',
    "another start": 'forge(b"S")',
    "output": 'forge(b"O", b"forged")',
    "commands": 'forge(b"C"); forge(b"J", b"{}"); forge(b"G")',
    "no kind at all": 'forge(b"\\x00\\x01\\x02")',
    "more than a packet": 'forge(b"L", b"x" * 70_000)',
    "a result after the result": 'forge(b"V", b"1"); meta(); forge(b"V", b"2")',
    "a second end of the result": 'forge(b"V", b"1"); meta(); meta()',
    "a result that is no JSON": 'forge(b"V", b"{broken"); meta(); os._exit(0)',
    "a result that is not a number": 'forge(b"V", b"NaN"); meta(); os._exit(0)',
    "a result that is no UTF-8": 'forge(b"V", b\'"\\xff\\xfe"\'); meta(); os._exit(0)',
    "a result of brackets": 'forge(b"V", b"[" * 60_000); meta(); os._exit(0)',
    "two results in one": 'forge(b"V", b"1 2"); meta(); os._exit(0)',
    "a log record of a wrong shape": 'forge(b"L", b\'{"level": "loud", "message": 1}\')',
    "a log record with more": 'forge(b"L", b\'{"level": "info", "message": "x", "elapsed_s": 0.1, "run_id": "x"}\')',
    "an error of a wrong shape": 'forge(b"X", b"[]"); os._exit(1)',
    "meta data of a wrong shape": 'forge(b"V", b"1"); forge(b"M", b\'{"output_topic": 5}\'); os._exit(0)',
    "data of no file": 'forge(b"f", b"data")',
    "more data than the file has": 'forge(b"F", struct.pack(">Q", 3) + b"name"); forge(b"f", b"four")',
    "a file inside a file": 'forge(b"F", struct.pack(">Q", 3) + b"one"); forge(b"F", struct.pack(">Q", 3) + b"two")',
    "a file name without a size": 'forge(b"F", b"abc")',
    **{
        f"the file name {name[:20]!r}": f'forge(b"F", struct.pack(">Q", 1) + {name!r}); forge(b"f", b"x")'
        for name in (
            b"../x",
            b"/etc/x",
            b"a\0b",
            b"",
            b".",
            b"..",
            b"a/b",
            b"\xff\xfe",
            b"\x1b[2J",
            "\u202egnp".encode(),
            b"n" * 300,
        )
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_forged_packet_is_the_program_s_failure(bench: Bench, name: str) -> None:
    # The program sleeps after the forgery: what is decided here must not hang on how it ends.
    ended = bench.run(FORGE + REFUSED[name] + "\nimport time\ntime.sleep(0.2)\nresult = 'kept'\n")
    assert ended.outcome is Outcome.FAILED, ended.explanation
    assert "channel" in ended.explanation
    assert (ended.result_json, ended.files) == (None, ())


def test_a_log_record_with_no_finite_time_does_not_spoil_the_document(bench: Bench) -> None:
    for word in ("NaN", "Infinity", "-Infinity", "1e999"):
        ended = bench.run(
            FORGE + f"""forge(b"L", b'{{"level": "info", "message": "x", "elapsed_s": {word}}}')\nresult = 1"""
        )

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        json.loads(as_document(ended), parse_constant=refuse)


def test_an_error_with_absurd_numbers_can_still_be_told(bench: Bench) -> None:
    body = json.dumps({"type": "E", "message": "m", "line": 7, "column": -5, "traceback": "", "cause": None})
    for digits in (30, 400, 4000, 5000):
        absurd = body.replace("7", "9" * digits)
        ended = bench.run(FORGE + f'forge(b"X", {absurd.encode()!r})\nos._exit(1)')
        assert ended.outcome is Outcome.FAILED
        json.loads(as_document(ended))


@pytest.mark.parametrize("digits", [400, 4000, 5000])
def test_a_forged_number_of_many_digits_can_still_be_printed(bench: Bench, digits: int) -> None:
    ended = bench.run(FORGE + f'forge(b"V", b"9" * {digits}); meta(); os._exit(0)')
    if ended.outcome is Outcome.SUCCEEDED:
        assert ended.result_json is not None
        readable(ended.result_json)
        json.loads(as_document(ended))
    else:
        assert ended.outcome is Outcome.FAILED


def test_a_result_counts_only_with_its_end_and_a_clean_exit(bench: Bench) -> None:
    unfinished = bench.run(FORGE + 'forge(b"V", b"1"); os._exit(0)')
    assert (unfinished.outcome, unfinished.result_json) == (Outcome.NO_RESULT, None)
    unclean = bench.run(FORGE + 'forge(b"V", b"1"); meta(); os._exit(4)')
    assert (unclean.outcome, unclean.exit_code, unclean.result_json) == (Outcome.FAILED, 4, None)
    killed = bench.run(FORGE + 'forge(b"V", b"1"); meta(); os.kill(os.getpid(), 9)')
    assert (killed.outcome, killed.result_json) == (Outcome.KILLED, None)
    # The control: a program may speak for itself. What it forges completely is its result.
    whole = bench.run(FORGE + 'forge(b"V", b"1"); meta(); os._exit(0)')
    assert (whole.outcome, whole.result_json) == (Outcome.SUCCEEDED, b"1")


def test_a_copy_of_the_program_can_not_turn_its_failure_into_success(bench: Bench) -> None:
    text = (
        FORGE
        + """
if os.fork() == 0:
    forge(b"V", b'"forged"'); meta()
    os._exit(0)
os.wait()
raise ValueError("the truth")
"""
    )
    ended = bench.run(text)
    assert ended.outcome is Outcome.FAILED
    assert ended.result_json is None


def test_a_forged_cause_explains_a_failure_and_never_a_success(bench: Bench) -> None:
    body = b'{"type": "E", "message": "m", "line": 1, "column": 1, "traceback": "", "cause": "memory"}'
    ended = bench.run(FORGE + f'forge(b"V", b"1"); forge(b"X", {body!r}); os._exit(0)')
    assert ended.outcome is Outcome.OUT_OF_MEMORY, "as it says of itself"
    assert ended.result_json is None


def test_a_flood_of_forged_records_ends_at_the_limit(bench: Bench) -> None:
    allowed = bench.policy().limits.log_records
    ended = bench.run(
        FORGE + """while True:\n    forge(b"L", b'{"level": "info", "message": "x", "elapsed_s": 0.0}')"""
    )
    assert (ended.outcome, len(ended.logs)) == (Outcome.OUTPUT_LIMIT, allowed)


def test_an_enormous_forged_file_is_refused_by_its_header(bench: Bench) -> None:
    ended = bench.run(FORGE + 'forge(b"F", struct.pack(">Q", 1 << 40) + b"huge")\nimport time\ntime.sleep(5)')
    assert (ended.outcome, ended.files) == (Outcome.OUTPUT_LIMIT, ())
    ended = bench.run(FORGE + 'forge(b"F", struct.pack(">Q", (1 << 64) - 1) + b"huge")\nimport time\ntime.sleep(5)')
    assert (ended.outcome, ended.files) == (Outcome.OUTPUT_LIMIT, ())


def test_a_file_that_is_never_finished_is_not_kept(bench: Bench) -> None:
    ended = bench.run(FORGE + 'forge(b"F", struct.pack(">Q", 100) + b"half"); forge(b"f", b"x" * 50)\nresult = 1')
    assert ended.files == ()


def test_descriptors_sent_over_the_channel_go_nowhere(bench: Bench) -> None:
    text = (
        FORGE
        + """
record = b'L{"level": "info", "message": "x", "elapsed_s": 0.0}'
for _ in range(50):
    try:
        socket.send_fds(channel, [record], [0] * 5)
    except OSError:  # more in flight than a process may have open
        channel.send(record)
result = 1
"""
    )
    ended = bench.run(text)
    assert (ended.outcome, len(ended.logs)) == (Outcome.SUCCEEDED, 50)


@pytest.mark.parametrize(
    "text",
    [
        'channel.send(b"")',
        "channel.shutdown(socket.SHUT_RDWR)",
        "channel.shutdown(socket.SHUT_WR)",
        "channel.close()",
        "os.dup2(0, channel.fileno())",
    ],
)
def test_a_closed_channel_loses_the_result_and_nothing_else(bench: Bench, text: str) -> None:
    ended = bench.run(FORGE + text + "\nprint('on')\nresult = 1")
    lost = [(Outcome.FAILED, 1)]  # it can't be written
    if text == 'channel.send(b"")':
        lost.append((Outcome.NO_RESULT, 0))  # or is written before its reader takes the empty record for the end
    assert (ended.outcome, ended.exit_code) in lost
    assert (ended.stdout, ended.result_json) == (b"on\n", None)


def test_a_compact_result_does_not_make_the_runner_grow(tmp_path: Path) -> None:
    # A few bytes of JSON such as `[],` are 64 bytes or more as a Python object: whoever parses 30 MB of them holds 700.
    (tmp_path / "plain.py").write_text("result = 'x' * (30 << 20)")
    (tmp_path / "attack.py").write_text(
        FORGE
        + """
text = b"[" + b"[]," * 10_000_000 + b"[]]"
for start in range(0, len(text), 60_000):
    forge(b"V", text[start : start + 60_000])
meta()
os._exit(0)
"""
    )
    measure = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'sandbox', 'run', sys.argv[1], '--json'], stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )

    def peak_mib(name: str) -> float:
        answer = subprocess.run(
            [sys.executable, "-c", measure, str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env=os.environ,
            stdin=subprocess.DEVNULL,
        )
        return int(answer.stdout) / 1024

    assert peak_mib("attack.py") <= 2 * peak_mib("plain.py")


@pytest.mark.parametrize("size", [0, 2 << 20], ids=["small", "large"])
@pytest.mark.parametrize(
    "content",
    ["9" * 5000, "[" * 900 + "]" * 900, "[" * 1500 + "]" * 1500, '"\\ud800"'],
    ids=["digits", "deep", "deeper", "half"],
)
@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_the_command_survives_what_the_harness_would_never_send(
    tmp_path: Path, size: int, content: str, option: str
) -> None:
    (tmp_path / "attack.py").write_text(
        FORGE
        + f"""
text = {content!r}.encode() + b" " * {size}
for start in range(0, len(text), 60_000):
    forge(b"V", text[start : start + 60_000])
meta()
os._exit(0)
"""
    )
    answer = subprocess.run(
        [sys.executable, "-m", "sandbox", "run", str(tmp_path / "attack.py"), option],
        capture_output=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert answer.returncode in (0, 1), answer.stderr
    assert b"Traceback" not in answer.stderr
    assert b"report this" not in answer.stderr


@pytest.mark.usefixtures("bench")  # which made the attacks, each in its tier's way
def test_the_test_process_itself_has_not_grown() -> None:
    # Last in this file on purpose: everything above ran in this process.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 500 * 1024
