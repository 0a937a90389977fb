"""Programs that cheat, flood, crash or refuse to die, and runners that go away."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.channel.collector import Collector
from sandbox.channel.frames import CANCEL, encode, job_frames
from sandbox.inside.harness import failures, process
from tests.unit.test_harness_driver import LIMITS, Harness, job, run, separate, started_harness
from tests.waiting import WAIT_S, until

CHANNEL = """
import os, socket, stat
def channel():
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            return socket.socket(fileno=os.dup(int(name)))
raw = channel()
"""


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


# ---- ends


@pytest.mark.parametrize(
    ("code", "exit_code", "signal"),
    [
        ("import os\nresult = 1\nos._exit(0)", 0, None),
        ("import os\nos._exit(7)", 7, None),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", None, "SIGSEGV"),
        ("import os\nos.abort()", None, "SIGABRT"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", None, "SIGKILL"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGRTMIN + 3)", None, "SIG37"),
        ("import ctypes\nctypes.string_at(0)", None, "SIGSEGV"),
    ],
)
def test_a_sudden_end_is_told_as_it_was_and_gives_no_result(
    code: str, exit_code: int | None, signal: str | None
) -> None:
    done = run(code)
    assert (done.quit.exit_code, done.quit.signal, done.ended) == (exit_code, signal, "exited")
    assert done.result_json() is None
    assert done.error is None


def test_closing_every_descriptor_ends_without_a_result_and_without_a_hang() -> None:
    done = run("import os\nprint('out')\nos.closerange(0, 256)\nresult = 1")
    assert done.stdout == b"out\n"
    assert done.result_json() is None
    assert done.quit.exit_code == 1
    assert done.harness_status == 0


def test_a_program_that_closes_its_streams_still_gives_its_result() -> None:
    assert run("import os, sys\nsys.stdout.close()\nos.close(2)\nresult = 1").result == 1


@pytest.mark.parametrize(
    "lost",
    ["del sys.stdout, sys.__stderr__", "sys.stdout = None", "sys.modules['__main__'] = None", "sys.stderr = Odd()"],
)
def test_a_program_without_its_streams_or_its_own_names_still_gives_its_result(lost: str) -> None:
    odd = "class Odd:\n    def flush(self): raise SystemExit(3)\n"
    done = run(f"import sys\n{odd}print('words', end='')\n{lost}\nresult = 1")
    assert (done.result, done.quit.exit_code, done.stdout) == (1, 0, b"words")


def test_a_process_left_behind_in_the_session_dies_with_the_program() -> None:
    done = run("""
        import os, signal, time
        read, write = os.pipe()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(write, b"x")
            time.sleep(30)
        os.read(read, 1)
        result = os.getpid()
    """)
    assert done.quit.wall_s < 5


# The program goes on only when its daemon has left its session: before that, the harness ends both.
DAEMON = """
        import os, signal, time
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        left, leaves = os.pipe()
        result = daemon = os.fork()
        if not daemon:
            os.setsid()
            os.write(leaves, b"x")
        else:
            os.read(left, 1)
"""


def ended_before(daemon: int) -> None:
    """Check that a run ended while its daemon lived on, and end that."""
    assert not gone(daemon), "the run waited for it"
    os.kill(daemon, signal.SIGKILL)


def test_a_daemon_that_keeps_the_pipes_open_does_not_keep_the_run_open() -> None:
    done = run(
        DAEMON
        + """
        if not daemon:
            time.sleep(60)
            os._exit(0)
        """
    )
    ended_before(done.result)


def test_a_daemon_that_floods_the_pipes_does_not_keep_the_run_open() -> None:
    code = """
        if not daemon:
            for _ in range(30_000):
                try:
                    os.write(1, b"x" * 1000)
                except OSError:
                    pass
                time.sleep(0.001)
            os._exit(0)
    """
    done = run(DAEMON + code, limits=replace(LIMITS, output_bytes=1 << 30))
    ended_before(done.result)


# ---- caps


def test_output_up_to_the_cap_passes_and_one_byte_more_ends_the_run() -> None:
    limits = replace(LIMITS, output_bytes=100_000)
    exact = run("import os\nos.write(1, b'x' * 60_000); os.write(2, b'y' * 40_000)\nresult = 1", limits=limits)
    assert (exact.ended, exact.result) == ("exited", 1)
    more = run("import os, time\nos.write(1, b'x' * 100_001)\ntime.sleep(30)", limits=limits)
    assert more.ended == "output_limit"
    assert more.stdout == b"x" * 100_000
    assert more.quit.wall_s < 10


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 100)",
        "import os\nwhile True: os.write(1, b'x' * 65536)",
        "import os\nwhile True: os.system('yes | head -c 10000000 >&2')",
        "import os\nos.fork()\nwhile True: os.write(2, bytes(range(256)))",
        "while True: log('x' * 10_000)",
    ],
)
def test_endless_output_ends_the_run_at_the_cap(code: str) -> None:
    done = run(code)
    assert done.ended == "output_limit"
    assert len(done.stdout) + len(done.stderr) + sum(len(r.message) for r in done.logs) <= LIMITS.output_bytes
    assert done.quit.signal == "SIGKILL"


def test_more_log_records_than_allowed_end_the_run() -> None:
    done = run("while True: log('x')")
    assert done.ended == "log_limit"
    assert len(done.logs) == LIMITS.log_records


@pytest.mark.parametrize(
    "code",
    [
        "for i in range(10_000): save_file(f'{i}.txt', 'x')",
        "save_file('big', b'x' * (1 << 21))",
        "for i in range(10): save_file('same', b'x' * 200_000)",
    ],
)
def test_more_files_than_allowed_end_the_run(code: str) -> None:
    done = run(code + "\nimport time; time.sleep(30)")
    assert done.ended == "files_limit"
    assert len(done.files) <= LIMITS.files_count
    assert sum(len(file.content) for file in done.files) <= LIMITS.files_bytes
    assert done.quit.wall_s < 10


@pytest.mark.parametrize(
    "code",
    [
        "result = ['x' * 1_000_000] * 1000",
        "result = [1.123456789012345] * 200_000",  # only the text itself shows that it is too large
        "result = b'x' * (1 << 20)",
        "result = list(range(10))\nfor _ in range(12): result = [result] * 10",
        "result = 'x' * 600_000\nadditional_data = 'y' * 600_000",
    ],
)
def test_a_result_beyond_the_cap_ends_the_run(code: str) -> None:
    done = run(code)
    assert done.ended == "result_limit"
    assert done.result_json() is None
    assert done.quit.wall_s < 20


def test_a_slow_runner_slows_the_program_and_costs_no_memory() -> None:
    code = "import os\nfor _ in range(400): os.write(1, b'x' * 65536)\nresult = 'y' * 3_000_000"
    limits = replace(LIMITS, output_bytes=1 << 26, result_bytes=1 << 26)
    collector = Collector(limits)
    peaks: list[int] = []
    with started_harness() as process:
        process.send_job(code, limits=limits)
        for kind, body in process.frames_until_quit():
            collector.feed(kind, body)
            time.sleep(0.002)
            status = Path(f"/proc/{process.process.pid}/status").read_text()
            peaks += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    assert len(peaks) > 400, "looked at after nearly every piece, also after the result"
    assert peaks[-1] < 40_000
    assert len(collector.stdout) == 400 * 65536
    assert collector.result_json() == b'"' + b"y" * 3_000_000 + b'"'


# ---- lies on the channel


@pytest.mark.parametrize(
    "lie",
    [
        "raw.send(b'Q{}')",
        "raw.send(b'R{}')",
        "raw.send(b'O' + b'x')",
        "raw.send(b'\\xff' * 100)",
        "raw.send(b'L')",
        "raw.send(b'L' + b'x' * 70_000)",
        "raw.send(b'V')",
        "raw.send(b'F')",
        "raw.send(b'F' + bytes(8))",
        "raw.send(b'F' + bytes(8) + b'../x')",
        "raw.send(b'F' + bytes(8) + b'/etc/x')",
        "raw.send(b'F' + bytes(8) + b'a\\0b')",
        "raw.send(b'F' + bytes(8) + b'\\xff')",
        "raw.send(b'fdata')",
        "raw.send(b'F' + bytes(7) + b'\\x05' + b'a'); raw.send(b'f123456')",
        "raw.send(b'F' + bytes(7) + b'\\x05' + b'a'); raw.send(b'F' + bytes(7) + b'\\x05' + b'b')",
        "raw.send(b'A1'); raw.send(b'V1')",
        "raw.send(b'M{}'); raw.send(b'V1')",
        "raw.send(b'X{}'); raw.send(b'X{}')",
        "raw.send(b'M{}'); raw.send(b'M{}')",
    ],
)
def test_a_packet_against_the_rules_ends_the_run(lie: str) -> None:
    frames: list[tuple[str, bytes]] = []
    with started_harness() as process:
        process.send_job(f"{CHANNEL}\n{lie}\nimport time; time.sleep(30)")
        frames += process.frames_until_quit()
        assert process.finish() == ("", 0)
    assert json.loads(frames[-1][1])["ended"] == "channel"


def test_a_file_larger_than_allowed_is_refused_at_its_announcement() -> None:
    done = run(f"{CHANNEL}\nraw.send(b'F' + b'\\xff' * 8 + b'a')\nimport time; time.sleep(30)")
    assert done.ended == "files_limit"


def test_an_empty_packet_closes_the_channel_and_nothing_else() -> None:
    done = run(f"{CHANNEL}\nraw.send(b'')\nimport time; time.sleep(0.2)\nprint('alive')\nresult = 1")
    assert done.stdout == b"alive\n"
    assert done.result_json() is None
    assert done.quit.exit_code == 1


def test_garbage_on_every_descriptor_does_no_harm_to_the_report() -> None:
    done = run("""
        import os
        for descriptor in range(3, 64):
            try: os.write(descriptor, b"\\x00garbage")
            except OSError: pass
        import time; time.sleep(30)
    """)
    assert done.ended == "channel"


def test_a_forged_result_counts_as_the_programs_own_and_no_more() -> None:
    done = run(f"{CHANNEL}\nraw.send(b'V1'); raw.send(b'M' + b'{{\"warnings\":[]}}')\nos._exit(0)")
    assert done.result == 1


# ---- limits of the process


def test_memory_beyond_the_limit_is_told_as_such() -> None:
    limits = replace(LIMITS, as_bytes=256 << 20)
    for code in ("x = bytearray(1 << 30)", "x = []\nwhile True: x.append(bytes(1000))", "x = 'x' * (1 << 30)"):
        done = run("result = 1\n" + code, limits=limits)
        assert (done.error.type, done.cause) == ("MemoryError", "memory")
        assert done.error.line is not None
        assert done.result_json() is None


def test_a_thread_that_cannot_start_is_told_as_too_many_processes() -> None:
    code = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    done = run(code, limits=replace(LIMITS, as_bytes=512 << 20))
    assert done.cause in ("processes", "memory")
    assert done.error.type in ("RuntimeError", "MemoryError")


@pytest.mark.parametrize(
    "start",
    [
        "os.fork()",
        "subprocess.Popen(['true'])",
        "subprocess.run('true', shell=True)",
        "multiprocessing.get_context('spawn').Process(target=print).start()",
    ],
)
def test_a_process_that_cannot_start_is_told_as_too_many_processes(start: str) -> None:
    code = "import multiprocessing, os, resource, subprocess\nresource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
    done = run(code + start)
    assert (done.error.type, done.cause) == ("BlockingIOError", "processes")


def test_a_refused_fork_is_told_as_too_many_processes() -> None:
    def refused_by_fork() -> None:
        assert callable(os.fork)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    def refused_by_a_socket() -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    causes = []
    for call in (refused_by_fork, refused_by_a_socket):
        with pytest.raises(BlockingIOError) as raised:
            call()
        causes.append(json.loads(failures.error_record(raised.value, __file__))["cause"])
    assert causes == ["processes", None]


def test_processor_time_beyond_the_limit_ends_with_its_signal() -> None:
    done = run("while True: pass", limits=replace(LIMITS, cpu_s=1))
    assert done.quit.signal == "SIGXCPU"
    # The limit counts whole ticks of the kernel's clock, also those that a busy machine shared with others; cpu_s
    # counts what was really used. Source: account_process_tick() in kernel/sched/cputime.c, posix_cpu_timers in
    # kernel/time.
    assert 0.5 <= done.quit.cpu_s < 3


def test_a_limit_that_cannot_be_set_means_that_nothing_of_the_program_runs() -> None:
    done = run("print('ran')", limits=replace(LIMITS, as_bytes=1 << 70))
    assert done.stdout == b""
    assert (done.error.type, done.cause) == ("SandboxSetupError", "channel")
    assert done.quit.exit_code == 70


# ---- the runner's side


def test_cancelling_kills_a_program_that_ignores_signals_and_keeps_its_output() -> None:
    code = """
        import signal, time
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        print("ready")
        time.sleep(60)
    """
    collector = Collector(LIMITS)
    with started_harness() as process:
        process.send_job(code)
        for kind, body in process.frames_until_quit():
            collector.feed(kind, body)
            if kind == "O":
                process.connection.sendall(CANCEL)
        assert process.finish() == ("", 0)
    assert collector.quit is not None
    assert collector.quit.wall_s < 30, "half of what it would sleep"
    assert (collector.quit.ended, collector.quit.signal) == ("cancelled", "SIGKILL")
    assert collector.stdout == b"ready\n"


def test_a_runner_that_goes_away_takes_the_program_with_it() -> None:
    with started_harness() as process:
        process.send_job("import os, time\nprint(os.getpid())\ntime.sleep(60)")
        for kind, body in process.frames():
            if kind == "O":
                pid = int(body)
                break
        else:
            pytest.fail("no output")
        process.connection.shutdown(2)
        process.process.wait(WAIT_S)
        until(lambda: gone(pid))


def test_a_runner_that_goes_away_during_a_flood_takes_the_program_with_it() -> None:
    with started_harness() as process:
        process.send_job("print('x' * 10_000_000)", limits=replace(LIMITS, output_bytes=1 << 30))
        next(body for kind, body in process.frames() if kind == "O")
        process.connection.shutdown(2)
        assert process.process.wait(WAIT_S) == 70


def test_cancelling_before_the_start_means_that_nothing_runs() -> None:
    frames = separate(job_frames(**job("print('ran')")))
    for sent in range(len(frames)):
        with started_harness() as process:
            for frame in frames[:sent]:
                process.connection.sendall(frame)
            process.connection.sendall(CANCEL)
            kinds = [(kind, body) for kind, body in process.frames_until_quit()]
            assert [kind for kind, _ in kinds] == ["R", "Q"]
            assert json.loads(kinds[-1][1])["ended"] == "cancelled"


def test_a_runner_that_goes_away_before_the_start_lets_the_harness_leave() -> None:
    with started_harness() as process:
        process.connection.close()
        assert process.process.wait(WAIT_S) == 70


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([b"Z\0\0\0\0"], "expected a job"),
        ([struct.pack(">cI", b"J", 1 << 30)], "too large"),
        ([encode("J", b"{")], "JSONDecodeError"),
        ([encode("J", b'{"protocol": 2}')], "protocol"),
        ([encode("J", b'{"protocol":1,"parts":[{"kind":"code","size":5}]}'), encode("D")], "expected data"),
        (
            [encode("J", b'{"protocol":1,"parts":[{"kind":"code","size":1}]}'), encode("D", b"ab"), encode("G")],
            "expected the word",
        ),
        ([encode("J", b'{"protocol":1,"parts":[{"kind":"file","name":"../x","size":0}]}')], "input file's name"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(frames: list[bytes], words: str) -> None:
    with started_harness() as process:
        for frame in frames:
            process.connection.sendall(frame)
        for kind, _ in process.frames():
            assert kind == "R"
        stderr, status = process.finish()
    assert words in stderr
    assert status == 70


def test_input_files_that_cannot_be_written_are_told_before_anything_runs() -> None:
    collector = Collector(LIMITS)

    def send(process: Harness, **fields: Any) -> None:
        for frame in job_frames(**job("print('ran')", **fields)):
            process.connection.sendall(frame)

    with started_harness() as process:
        frames = process.frames()
        collector.feed(*next(frames))
        shutil.rmtree(process.app)
        send(process, files={"a": b"1"})
        for kind, body in frames:
            collector.feed(kind, body)
            if kind == "Q":
                break
    assert collector.error is not None
    assert "input file could not be written" in collector.error.message
    assert not collector.started


def test_the_supervisor_is_opaque_and_the_program_is_not() -> None:
    done = run("import ctypes\nresult = ctypes.CDLL(None).prctl(3)")
    assert done.result == 1
    pid = os.fork()
    if pid == 0:
        process.set_dumpable(0)
        import ctypes

        os._exit(ctypes.CDLL(None).prctl(3))
    assert os.waitpid(pid, 0)[1] == 0


# ---- processes that were handed the channel

CHILD = """
import subprocess, sys
look = CODE
subprocess.run([sys.executable, "-c", look], check=False)
result = "the program's own"
"""


@pytest.mark.parametrize(
    ("code", "ended", "kept"),
    [
        (CHANNEL + "raw.send(b'?nonsense')", "channel", False),
        (CHANNEL + "raw.send(b'V' + b'\"forged\"'); raw.send(b'M{}')", "channel", False),
        (CHANNEL + "raw.send(b'L{}')", "exited", False),
        (
            "import sys\nlog = sys.modules['sandbox_program'].helpers.log\nwhile True: log('x' * 1000)",
            "log_limit",
            False,
        ),
        ("import os\nos.closerange(3, 200)", "exited", True),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "exited", True),
    ],
)
def test_a_new_process_can_do_with_the_channel_what_the_program_can_and_no_more(
    code: str, ended: str, kept: bool
) -> None:
    from sandbox.channel.frames import ProtocolViolation

    try:
        done = run(CHILD.replace("CODE", repr(code)))
    except ProtocolViolation:  # the runner ends such a run
        assert not kept
        return
    assert done.ended == ended
    assert (done.result_json() == b'"the program\'s own"') is kept
