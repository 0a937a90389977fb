"""What a program finds in its namespace, what it may set, and how its end is told."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sandbox.channel.collector import Collector
from sandbox.inside.harness.failures import MAX_SOURCE_BYTES
from tests.unit.test_harness_driver import LIMITS, Harness, Run, run, started_harness


def test_the_documented_variables_are_there() -> None:
    done = run(
        """
        result = [payload, topic, timestamp, previous_result is payload, execution_id, node_id,
                  original_message, msg == original_message, msg is original_message, __name__]
        """,
        payload={"t": 1},
        message={"_msgid": "m1", "req": [1]},
    )
    message = {"_msgid": "m1", "req": [1], "payload": {"t": 1}, "topic": "t/1"}
    assert done.result == [
        {"t": 1},
        "t/1",
        "2024-05-01T10:00:00+00:00",
        True,
        "r-1",
        "n-1",
        message,
        True,
        False,
        "__main__",
    ]


def test_the_message_can_be_changed_and_returned() -> None:
    done = run("msg['payload'] = 2\nmsg['new'] = topic\nreturn msg", payload=1)
    assert done.result == {"_msgid": "m1", "topic": "t/1", "payload": 2, "new": "t/1"}


def test_node_buffers_arrive_as_bytes_and_leave_as_node_buffers() -> None:
    buffer = {"type": "Buffer", "data": [104, 105]}
    done = run("assert payload == msg['b'] == b'hi'\nresult = payload + b'!'", payload=buffer, message={"b": buffer})
    assert done.result == {"type": "Buffer", "data": [104, 105, 33]}


def test_topic_and_additional_data_travel_with_the_result() -> None:
    done = run("result = 1\noutput_topic = f'out/{topic}'\nadditional_data = {'k': {1}, 'n': float('nan')}")
    assert done.meta.output_topic == "out/t/1"
    assert done.additional_data_json() == b'{"k":[1],"n":null}'
    assert "additional_data['n']" in done.meta.warnings[0]


def test_a_topic_that_is_no_text_becomes_text_with_a_warning() -> None:
    done = run("result = 1\noutput_topic = 5")
    assert done.meta.output_topic == "5"
    assert "output_topic is a int" in done.meta.warnings[0]


@pytest.mark.parametrize("code", ["x = 1", "", "return", "# only a comment", "import sys; sys.exit()"])
def test_a_program_without_a_result_ends_without_one(code: str) -> None:
    done = run(code)
    assert done.result_json() is None
    assert done.error is None
    assert (done.ended, done.quit.exit_code) == ("exited", 0)


def test_none_is_a_result_when_it_was_set() -> None:
    assert run("result = None").result_json() == b"null"


@pytest.mark.parametrize("leave", ["sys.exit()", "sys.exit(0)", "sys.exit(None)", "raise SystemExit", "exit(0)"])
def test_a_clean_exit_keeps_the_result(leave: str) -> None:
    done = run(f"import sys\nresult = 3\n{leave}\nresult = 4")
    assert done.result == 3
    assert done.quit.exit_code == 0


@pytest.mark.parametrize(
    ("leave", "code", "message"),
    [
        ("sys.exit(3)", 3, "3"),
        ("sys.exit('no data')", 1, "no data"),
        ("sys.exit(True)", 1, "True"),
        ("sys.exit(-1)", 255, "-1"),
    ],
)
def test_any_other_exit_is_a_failure_with_its_line(leave: str, code: int, message: str) -> None:
    done = run(f"import sys\nresult = 3\n{leave}")
    assert done.quit.exit_code == code
    assert (done.error.type, done.error.message, done.error.line) == ("SystemExit", message, 3)
    assert done.result_json() is None


def test_an_exception_is_told_with_type_message_line_and_source_lines() -> None:
    done = run("def f(x):\n    return 1 / x\n\nprint('before')\nf(0)\n")
    error = done.error
    assert (error.type, error.message, error.line) == ("ZeroDivisionError", "division by zero", 2)
    assert error.traceback.splitlines()[0] == "Traceback (most recent call last):"
    assert 'File "script.py", line 5, in <module>' in error.traceback
    assert "    return 1 / x" in error.traceback
    assert "harness" not in error.traceback
    assert done.quit.exit_code == 1
    assert done.stdout == b"before\n"
    assert done.stderr == b""


@pytest.mark.parametrize("tail", ["return 1", "import asyncio\nawait asyncio.sleep(0)\n1 / 0"])
def test_a_traceback_has_only_the_users_frames_however_the_program_runs(tail: str) -> None:
    error = run(f"if payload:\n    raise KeyError('k')\n{tail}", payload="await" not in tail).error
    files = [line for line in error.traceback.splitlines() if line.startswith("  File ")]
    assert [line.split(",")[0] for line in files] == ['  File "script.py"']


def test_an_error_raised_by_a_helper_points_at_the_users_line() -> None:
    error = run("x = 1\nsave_file('a', 5)").error
    assert (error.type, error.line) == ("TypeError", 2)
    assert error.message == "save_file: the content must be str or bytes, not int"
    assert "harness" not in error.traceback


def test_an_error_inside_a_library_points_at_the_users_line_and_shows_the_librarys() -> None:
    error = run("import json\n\njson.loads('{')").error
    assert (error.type, error.line) == ("json.decoder.JSONDecodeError", 3)
    assert "decoder.py" in error.traceback


def test_chained_exceptions_are_shown_together() -> None:
    error = run("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('bad') from e").error
    assert "ZeroDivisionError" in error.traceback
    assert "direct cause" in error.traceback
    assert error.line == 4


def test_a_syntax_error_is_told_with_line_and_column() -> None:
    done = run("x = 1\ny = (2 +\n")
    assert done.error.type == "SyntaxError"
    assert done.error.line == 2
    assert done.error.column is not None
    assert "y = (2 +" in done.error.traceback
    assert "harness" not in done.error.traceback


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Odd(BaseException): pass\nraise Odd", "Odd"),
        ("class Evil(Exception):\n    def __str__(self): 1 / 0\nraise Evil", "Evil"),
        ("class Evil(Exception):\n    __cause__ = property(lambda s: 1 / 0)\nraise Evil", "Evil"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise ValueError('x' * 10_000_000)", "ValueError"),
        ("raise ValueError('a\\ud800b\\x00\\x1b[31m')", "ValueError"),
    ],
)
def test_exceptions_of_every_kind_are_told_within_bounds(code: str, kind: str) -> None:
    error = run(code).error
    assert error.type == kind
    assert len(error.message) < 10_000
    assert len(error.traceback.encode()) < 40_000


def test_a_value_without_a_json_form_is_a_failure_that_names_its_place() -> None:
    done = run("result = {'rows': [1, object()]}")
    assert done.error.type == "TypeError"
    assert done.error.message.startswith("result['rows'][1] is a object, which has no JSON form")
    assert done.result_json() is None
    assert done.quit.exit_code == 1


def test_output_is_kept_apart_and_passes_through_byte_for_byte() -> None:
    done = run(r"""
        import os, sys
        print("h\u00e9", "\ud800")
        print("oops", file=sys.stderr)
        sys.stdout.buffer.write(b"\xff\x00\x1b[31m"); sys.stdout.flush()
        os.system("echo from a process")
        print("no newline", end="")
    """)
    assert done.stdout == b"h\xc3\xa9 \\ud800\n\xff\x00\x1b[31mfrom a process\nno newline"
    assert done.stderr == b"oops\n"


def test_output_streams_while_the_program_runs(tmp_path: Path) -> None:
    seen: list[str] = []
    there = tmp_path / "there"
    code = f"""
        import os, time
        print('now')
        for _ in range(3000):
            if os.path.exists({str(there)!r}):
                result = 1
                break
            time.sleep(0.01)
    """
    from tests.unit.test_harness_driver import started_harness

    with started_harness() as process:
        process.send_job(textwrap.dedent(code))
        for kind, _ in process.frames_until_quit():
            seen.append(kind)
            if kind == "O":
                there.touch()
    assert "V" in seen, "it waited for whoever read its output"


def test_logs_carry_level_message_and_time() -> None:
    done = run("log('a')\nlog('b', 'WARNING')\nlog({'c': 1}, 'debug')\nlog('d', level='loud')\nlog('\\ud800')")
    records = [(record.level, record.message) for record in done.logs]
    assert records == [
        ("info", "a"),
        ("warning", "b"),
        ("debug", "{'c': 1}"),
        ("info", "[loud] d"),
        ("info", "\\ud800"),
    ]
    assert all(0 <= record.elapsed_s < 20 for record in done.logs)
    assert done.stdout == b""


def test_a_long_log_message_is_cut_with_a_mark() -> None:
    (record,) = run("log('x' * 1_000_000)").logs
    assert record.message.endswith("[truncated]")
    assert len(record.message) < 65_536


def test_files_are_written_and_handed_over() -> None:
    done = run("""
        import os
        result = [save_file("a.txt", "h\\u00e9"), save_file("b.bin", bytearray(b"\\x00\\xff")),
                  save_file("c.bin", memoryview(b"abcd")[::2]), save_file("big", b"x" * 200_000),
                  save_file("empty", ""), save_file("a.txt", "again"), sorted(os.listdir("."))]
    """)
    *paths, listing = done.result
    assert [path.rsplit("/", 1)[1] for path in paths] == ["a.txt", "b.bin", "c.bin", "big", "empty", "a.txt"]
    assert listing == ["a.txt", "b.bin", "big", "c.bin", "empty", "script.py"]
    files = {file.name: file.content for file in done.files}
    assert files == {"a.txt": b"again", "b.bin": b"\0\xff", "c.bin": b"ac", "big": b"x" * 200_000, "empty": b""}


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/b", "", ".", "..", "a\0b", "a\nb", "\x1b[31m", "\u202e", "\ud800", "x" * 256, 5]
)
def test_a_file_name_that_is_not_flat_is_refused_in_words(name: Any) -> None:
    done = run(f"save_file({name!r}, 'x')")
    assert done.error.type == "ValueError"
    assert done.error.message.startswith("save_file: the name")
    assert done.files == ()


def test_a_symbolic_link_is_not_written_through() -> None:
    done = run("import os\nos.symlink('target', 'link')\nsave_file('link', 'x')")
    assert done.error.type == "OSError"
    assert done.files == ()


def test_save_file_without_content_hands_over_the_file_that_is_there() -> None:
    done = run("""
        with open("model.bin", "wb") as file:
            file.write(bytes(range(256)) * 1000)
        open("none", "w").close()
        result = [save_file("model.bin"), save_file("none")]
    """)
    assert {file.name: file.content for file in done.files} == {"model.bin": bytes(range(256)) * 1000, "none": b""}
    assert [path.rpartition("/")[2] for path in done.result] == ["model.bin", "none"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("save_file('absent')", "FileNotFoundError"),
        ("import os; os.mkdir('d'); save_file('d')", "ValueError"),
        ("import os; os.mkfifo('f'); save_file('f')", "ValueError"),
        ("import os; os.symlink('/etc/passwd', 'l'); save_file('l')", "OSError"),
        ("save_file('../x')", "ValueError"),
    ],
)
def test_save_file_without_content_takes_regular_files_of_the_directory_only(code: str, kind: str) -> None:
    done = run(code)
    assert done.error.type == kind
    assert done.files == ()


def test_input_files_are_found_by_their_names() -> None:
    done = run(
        """
        result = [read_file("data.txt"), read_file("data.bin", binary=True), read_file("absent"),
                  open("data.txt").read(), read_file(save_file("new", "n")), read_file("a/b")]
        """,
        files={"data.txt": "h\u00e9".encode(), "data.bin": b"\0\xff" * 100_000},
    )
    data = [0, 255] * 100_000
    assert done.result == ["h\u00e9", {"type": "Buffer", "data": data}, None, "h\u00e9", "n", None]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("read_file('../x')", "is not below"),
        ("read_file('/etc/passwd')", "is not below"),
        ("save_file('b', b'\\xff'); read_file('b')", "binary=True"),
    ],
)
def test_reading_outside_or_wrongly_is_an_error_in_words(call: str, words: str) -> None:
    error = run(call).error
    assert error.type == "ValueError"
    assert words in error.message


def test_commands_run_and_never_raise() -> None:
    done = run("""
        result = [run_command("echo out; echo err >&2; exit 3"), run_command(["printf", "%s", "a b"]),
                  run_command(["/no/such"]), run_command("printf '\\\\377'"),
                  run_command("sleep 60 & sleep 60", timeout=0.3), run_command("exit 9; $$")]
    """)
    shell, direct, absent, binary, late, code = done.result
    assert shell == {"returncode": 3, "stdout": "out\n", "stderr": "err\n"}
    assert direct == {"returncode": 0, "stdout": "a b", "stderr": ""}
    assert absent["returncode"] == 127
    assert "No such file" in absent["stderr"]
    assert binary["stdout"] == "\\xff"
    assert late["returncode"] == 124
    assert "timed out after 0.3 seconds" in late["stderr"]
    assert code["returncode"] == 9
    assert done.quit.wall_s < 20


def test_environment_variables_reach_the_program_and_its_commands() -> None:
    code = "import os\nresult = [os.environ['TOKEN'], run_command('echo $TOKEN')['stdout']]"
    done = run(code, env={"TOKEN": "s3cret"})
    assert done.result == ["s3cret", "s3cret\n"]


def test_standard_input_is_empty_and_the_session_is_its_own() -> None:
    done = run("import os, sys\nresult = [sys.stdin.read(), os.getsid(0) == os.getpid()]")
    assert done.result == ["", True]


def test_the_programs_own_file_is_known_to_inspection_and_pickling() -> None:
    done = run("""
        import inspect, pickle, traceback, warnings
        class Thing: pass
        def f():
            return 1
        try:
            1 / 0
        except ZeroDivisionError:
            shown = traceback.format_exc()
        result = [inspect.getsource(f), type(pickle.loads(pickle.dumps(Thing()))) is Thing, shown]
    """)
    source, pickled, shown = done.result
    assert source == "def f():\n    return 1\n"
    assert pickled
    assert "    1 / 0" in shown


def test_threads_are_waited_for_and_exit_functions_run() -> None:
    done = run("""
        import atexit, threading, time
        atexit.register(print, "bye")
        def work():
            global result
            time.sleep(0.2)
            result = "from the thread"
        threading.Thread(target=work).start()
    """)
    assert done.result == "from the thread"
    assert done.stdout == b"bye\n"


def test_an_exception_in_a_thread_goes_to_standard_error_only() -> None:
    done = run("import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join()\nresult = 1")
    assert done.result == 1
    assert b"ZeroDivisionError" in done.stderr


def test_a_pool_of_forked_workers_works() -> None:
    done = run("""
        import multiprocessing
        def square(n):
            log(f"working on {n}")
            save_file(f"{n}.txt", "x" * 100_000)
            return n * n
        with multiprocessing.get_context("fork").Pool(2) as pool:
            result = pool.map(square, range(6))
    """)
    assert done.result == [0, 1, 4, 9, 16, 25]
    assert len(done.logs) == 6
    assert {len(file.content) for file in done.files} == {100_000}
    assert len(done.files) == 6


def test_threads_may_log_and_save_at_the_same_time() -> None:
    done = run("""
        from concurrent.futures import ThreadPoolExecutor
        def work(n):
            for i in range(10):
                log("x" * 2000)
            save_file(f"{n}.bin", bytes([n]) * 150_000)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        result = 1
    """)
    assert len(done.logs) == 60
    assert all(file.content == bytes([int(file.name[0])]) * 150_000 for file in done.files)


def test_a_forked_copy_that_falls_off_the_end_gives_no_result_of_its_own() -> None:
    done = run("import os\npid = os.fork()\nif pid:\n    os.waitpid(pid, 0)\nresult = 'parent' if pid else 'copy'")
    assert done.result == "parent"


def test_a_forked_copy_that_fails_says_so_on_standard_error_only() -> None:
    done = run("import os\nif os.fork() == 0:\n    1 / 0\nresult = os.wait()[1] >> 8")
    assert done.result == 1
    assert b"ZeroDivisionError" in done.stderr
    assert done.error is None


def test_a_message_that_is_not_an_object_is_a_failure_in_words() -> None:
    assert "must be a JSON object" in run("result = 1", message=[1]).error.message


def test_a_payload_that_is_not_json_is_a_failure_in_words() -> None:
    assert "the payload is not valid JSON" in run("result = 1", raw_payload=b"{").error.message


def test_a_large_payload_goes_in_and_out() -> None:
    payload = [{"id": n, "text": "\u00e9" * 50} for n in range(20_000)]
    done = run("return payload", payload=payload, limits=dataclasses.replace(LIMITS, result_bytes=1 << 26))
    assert done.result == payload


def test_the_examples_iot_shape_works_with_the_standard_library() -> None:
    code = """
        import json, os
        from datetime import datetime
        from statistics import mean, pstdev
        log("started")
        if isinstance(payload, list):
            values = [row["temperature"] for row in payload]
            stats = {"mean": mean(values), "std": pstdev(values), "at": datetime(2024, 1, 1)}
            result = {"stats": stats, "statut": "analys\u00e9"}
            save_file("analyse_iot.json", json.dumps([stats["mean"]]))
            content = read_file("analyse_iot.json")
            log(f"{len(content)} characters")
        else:
            result = {"erreur": "Format de donn\u00e9es invalide"}
            log("bad", "error")
        output_topic = f"iot/analysis/{topic}"
    """
    done = run(code, payload=[{"temperature": t} for t in (20.0, 22.0)])
    assert done.result == {
        "stats": {"mean": 21.0, "std": 1.0, "at": "2024-01-01T00:00:00"},
        "statut": "analys\u00e9",
    }
    assert done.meta.output_topic == "iot/analysis/t/1"


def test_the_harness_leaves_when_the_runner_says_goodbye() -> None:
    def look(process: Harness) -> None:
        process.connection.close()
        assert process.process.wait(timeout=5) == 0

    assert run("result = 1", look=look).result == 1


# ---- what a program is called, and which lines are shown of it

FILE = "a line of another file\n" * 30
# What could be shown in the program's place is there: files, a directory, a module that Python knows.
OF_FILES = [
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/environ",
    "/dev/stdin",
    os.path.abspath(json.decoder.__file__),
    "<frozen os>",
    ".",
    "app",
    "THE HARNESS",
    "BESIDE IT",
    "PIPE",
    "FILE",
]
NAMES = [
    "<string>",
    "os.py",
    "../script.py",
    "a/b.py",
    "größe 1.py",
    "[x].py",
    "-",
    "\u202e",
    "a\nb",
    "a\0b",
    "x" * 300,
]
FAILS = "def f(number):\n    return 1 / number  # mine\n\nf(0)"
IN_A_THREAD = FAILS.replace(
    "f(0)",
    "import threading\nthread = threading.Thread(target=f, args=(0,))\nthread.start()\nthread.join()\nresult = 1",
)
UNRAISABLE = "class C:\n    def __del__(self):\n        1 / 0  # mine\n\nC()\nresult = 1"
WARNS = "import warnings\n\nwarnings.warn('careful')  # mine\nresult = 1"
LATE = "\n\ndef f(x, x): pass  # mine"


# Names that no file has differ as texts alone: our own way to show a line sees them all, and one of Python's.
SHOWING = [FAILS, WARNS, IN_A_THREAD, UNRAISABLE, LATE, "x = 1 is 1  # mine\nresult = 1", "x = ((  # mine"]


@pytest.mark.parametrize(
    ("code", "name"), [*itertools.product(SHOWING[:2], NAMES), *itertools.product(SHOWING, OF_FILES)]
)
def test_whatever_a_program_is_called_the_lines_that_are_shown_are_its_own(
    code: str, name: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file.py").write_text(FILE)
    collector = Collector(LIMITS)
    with started_harness() as process:
        given = {
            "THE HARNESS": process.app.parent / "lib/harness.py",
            "BESIDE IT": process.app.parent / "lib/none.py",
            "PIPE": tmp_path / "pipe",
            "FILE": tmp_path / "file.py",
        }
        process.send_job(code, filename=str(given.get(name, name)))
        for kind, body in process.frames_until_quit():
            collector.feed(kind, body)
        done = Run(collector, *process.finish(), process.app)
    shown = done.stderr.decode(errors="replace") + (done.error.traceback if done.error else "")
    assert "# mine" in shown
    assert "another file" not in shown
    assert "root:" not in shown
    assert "PATH=" not in shown
    if code in (FAILS, LATE):
        assert done.error.line == 2 + (code == LATE)


def test_files_of_the_program_s_name_are_not_taken_for_the_program() -> None:
    done = run(
        "open('script.py', 'w').write('not\\nthis\\nline\\n' * 9)\n" + IN_A_THREAD, files={"script.py": FILE.encode()}
    )
    assert b"# mine" in done.stderr
    assert b"not" not in done.stderr
    assert b"another file" not in done.stderr


@pytest.mark.parametrize(
    "name", ["/dev/zero", "PIPE", "/proc/self/environ", "/etc/passwd", "<x>", "nowhere.py", "LARGE.py"]
)
def test_code_that_a_program_calls_after_a_file_has_no_line_of_it_shown(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.py").write_bytes(b"# another file\n" * (MAX_SOURCE_BYTES // 15 + 1))
    path = {"PIPE": str(tmp_path / "pipe"), "LARGE.py": str(tmp_path / "large.py")}.get(name, name)
    done = run(f"exec(compile('1 / 0', {path!r}, 'exec'))")
    assert done.error.type == "ZeroDivisionError"
    assert "another file" not in done.error.traceback
    assert "root:" not in done.error.traceback
    assert "PATH=" not in done.error.traceback


def test_lines_of_libraries_are_shown() -> None:
    text = "def fails():\n    return 1 / 0  # the library's\n"
    done = run("import sys\nsys.path.insert(0, '.')\nimport lib\nlib.fails()", files={"lib.py": text.encode()})
    assert "the library's" in done.error.traceback
    assert (done.error.line, "harness" in done.error.traceback) == (4, False)


def test_half_of_a_pair_in_the_topic_is_replaced_and_told_like_one_in_the_result() -> None:
    done = run("result = 'a\\ud83d'\noutput_topic = 't\\ud83d'")
    assert (done.result, done.meta.output_topic) == ("a\ufffd", "t\ufffd")
    assert [warning.partition(" (at ")[2] for warning in done.meta.warnings] == ["result)", "output_topic)"]
