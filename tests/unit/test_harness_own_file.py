"""A program is a file, as on any disk: its processes, its libraries and it itself find it, with its names."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_harness_driver import Run, run, started_harness
from tests.unit.test_harness_preload import run_preloaded

PAYLOAD = {"factor": 3}
SPAWN = """
import multiprocessing

def scaled(n):
    log(f"working on {n}")
    return n * payload["factor"]

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        result = pool.map(scaled, range(4))
"""
FORKSERVER = SPAWN.replace('"spawn"', '"forkserver"')
EXECUTOR = """
import concurrent.futures, multiprocessing

def scaled(n):
    log(f"working on {n}")
    return n * msg["payload"]["factor"]

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        result = list(pool.map(scaled, range(4)))
"""
RETURNS = SPAWN.replace("result =", "return")
AWAITS = "import asyncio\nawait asyncio.sleep(0)\n" + SPAWN
PROCESS = """
import multiprocessing

def work(say, queue):
    for n in range(4):
        say(f"working on {n}")
    save_file("from-a-worker.txt", topic)
    queue.put([n * payload["factor"] for n in range(4)])

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    process = spawn.Process(target=work, args=(log, queue))
    process.start()
    result = queue.get()
    process.join()
"""
PARALLEL = {
    "spawn": SPAWN,
    "forkserver": FORKSERVER,
    "executor": EXECUTOR,
    "top-level return": RETURNS,
    "top-level await": AWAITS,
    "one process": PROCESS,
}


@pytest.mark.parametrize("code", PARALLEL.values(), ids=PARALLEL)
def test_a_new_interpreter_that_imports_the_program_finds_its_variables_and_functions(code: str) -> None:
    done = run(code, payload=PAYLOAD)
    assert done.result == [0, 3, 6, 9]
    assert sorted(record.message for record in done.logs) == [f"working on {n}" for n in range(4)]
    assert done.stderr == b""
    if code is PROCESS:
        assert [(file.name, file.content) for file in done.files] == [("from-a-worker.txt", b"t/1")]


def test_a_program_whose_process_was_forked_ahead_starts_new_ones_like_any(tmp_path: Path) -> None:
    done = run_preloaded(SPAWN, "subprocess", payload=PAYLOAD)
    assert done.result == [0, 3, 6, 9]
    assert len(done.logs) == 4


def test_a_message_that_is_too_large_to_be_handed_on_is_said_and_the_rest_is_there() -> None:
    code = SPAWN.replace('payload["factor"]', "len(topic)")
    done = run(code, payload="x" * (17 << 20))
    assert done.result == [0, 3, 6, 9]
    assert b"too large for a new process" in done.stderr


AGAIN = """
import subprocess, sys

if len(sys.argv) > 1:
    log("in the child", "warning")
    print(payload["factor"], topic, __name__, sys.argv[1:], __file__ == sys.argv[0])
    LEAVE
child = subprocess.run([sys.executable, __file__, "again"], capture_output=True, text=True)
result = [child.stdout, child.returncode, child.stderr]
"""


# What a file is called has no part in how its process ends: each name with one end, each end with one name.
@pytest.mark.parametrize(
    ("leave", "status", "filename"),
    [
        *(("sys.exit(7)", 7, filename) for filename in ("script.py", "größe 1.py", "-x.py", "flow", "[1].py")),
        ("sys.exit(0)", 0, "script.py"),
        ("return 1", 0, "script.py"),
        ("await __import__('asyncio').sleep(0); sys.exit(0)", 0, "script.py"),
    ],
)
def test_a_program_starts_itself_again(leave: str, status: int, filename: str) -> None:
    done = run(AGAIN.replace("LEAVE", leave), payload=PAYLOAD, filename=filename)
    assert done.result == ["3 t/1 __main__ ['again'] True\n", status, ""]
    assert [(record.level, record.message) for record in done.logs] == [("warning", "in the child")]


def test_a_process_of_a_process_and_one_with_an_environment_of_its_own_have_the_names_too() -> None:
    done = run(
        """
        import subprocess, sys
        depth = int(sys.argv[1]) if len(sys.argv) > 1 else 0
        log(f"depth {depth}")
        if depth < 3:
            subprocess.run([sys.executable, "-u", __file__, str(depth + 1)], env={"PATH": "/usr/bin"}, check=True)
        result = depth
        """
    )
    assert [record.message for record in done.logs] == [f"depth {n}" for n in range(4)]


UNGUARDED = """
import concurrent.futures, multiprocessing
def work(n):
    return n
START
"""


@pytest.mark.parametrize(
    "start",
    [
        "with multiprocessing.get_context('spawn').Pool(3) as pool: result = pool.map(work, range(4))",
        "with multiprocessing.get_context('forkserver').Pool(3) as pool: result = pool.map(work, range(4))",
        "spawn = multiprocessing.get_context('spawn')\nresult = list(concurrent.futures.ProcessPoolExecutor(3, spawn).map(work, range(4)))",
        "import time\nmultiprocessing.get_context('spawn').Process(target=work, args=(1,)).start()\ntime.sleep(30)\nresult = 1",
    ],
)
def test_a_program_that_would_start_processes_for_ever_fails_at_once_and_is_told_why(start: str) -> None:
    done = run(UNGUARDED.replace("START", start))
    assert done.error.type == "RuntimeError"
    assert "if __name__ == '__main__':" in done.error.message
    assert done.error.line == 5 + start.count("\n") - (1 if "sleep" in start else 0) - ("sleep" in start)
    assert (done.ended, done.quit.signal) == ("exited", "SIGKILL")
    assert done.quit.wall_s < 25


@pytest.mark.parametrize(
    "before",
    [
        "import os; os.closerange(3, 200)",
        "import os; os.closerange(3, 200); kept = [open(__file__) for _ in range(5)]",
        "import os; os.environ['TMPDIR'] = '/not/there'",
    ],
)
def test_processes_start_also_where_nothing_can_be_handed_on(before: str) -> None:
    look = "import sys; print(len(sys.argv), 'sandbox_program' in sys.modules)"
    done = run(
        f"{before}\nimport subprocess, sys\n"
        f"child = subprocess.run([sys.executable, '-c', {look!r}], capture_output=True, text=True)\n"
        "print(child.stdout, child.returncode, flush=True)\nresult = 1"
    )
    assert done.stdout == b"1 False\n 0\n"
    assert (b"does without the program's variables" in done.stderr) is ("TMPDIR" in before)


FAILS = """
import subprocess, sys
if len(sys.argv) > 1:
    1 / 0  # mine
child = subprocess.run([sys.executable, __file__, "again"], capture_output=True, text=True)
result = [child.returncode, child.stderr]
"""


NUMBERS = """
import os, subprocess, sys
open("child.py", "w").write("from sandbox_program import helpers\\ntry:\\n    helpers.log('said')\\nexcept OSError: print('no channel')")
kept = {}
for number in range(3, 10):
    open("mine.txt", "w").write("import x, which is no length" * 9)
    shell = f"exec {number}<>mine.txt; {sys.executable} child.py"
    child = subprocess.run(["/bin/bash", "-c", shell], capture_output=True, text=True)
    kept[number] = [child.stdout, child.stderr[-200:], open("mine.txt").read() == "import x, which is no length" * 9]
result = sorted(map(tuple, kept.values()))
"""


def test_a_file_of_a_shell_that_has_the_number_of_what_is_handed_on_stays_as_it_is() -> None:
    done = run(NUMBERS)
    assert done.error is None, done.error
    assert len(done.logs) == len([one for one in done.result if one[0] == ""])
    assert all(whole for *_, whole in done.result), done.result
    assert "no channel\n" in [said for said, *_ in done.result], "one number was the channel's"


def test_a_new_process_has_the_environment_that_c_has() -> None:
    done = run("""
        import ctypes, os, subprocess
        os.putenv("BY_PUTENV", "1")
        ctypes.CDLL(None).setenv(b"BY_C", b"2", 1)
        ctypes.CDLL(None).unsetenv(b"HOME")
        result = subprocess.run("echo $BY_PUTENV $BY_C $HOME", shell=True, capture_output=True, text=True).stdout
    """)
    assert done.result == "1 2\n"


def test_a_child_that_fails_shows_the_line_of_the_program() -> None:
    status, said = run(FAILS).result
    assert status == 1
    assert 'script.py", line 4' in said
    assert "1 / 0  # mine" in said
    assert said.endswith("ZeroDivisionError: division by zero\n")


CODES = [
    "result = [open(__file__, 'rb').read().hex(), __file__]",
    "\ufeffresult = [open(__file__, 'rb').read().hex(), __file__]\r\n",
    "# coding: latin-1\nö = 1\nresult = [open(__file__, 'rb').read().hex(), __file__]",
]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("filename", "lies"),
    [
        ("script.py", "script.py"),
        ("boiler 1.py", "boiler 1.py"),
        ("flows/boiler.py", "boiler.py"),
        ("../../etc/boiler.py", "boiler.py"),
        ("..", "script.py"),
        ("a\nb.py", "script.py"),
        ("x" * 300, "script.py"),
        ("__main__.py", "__main__.py"),
        ("json.py", "<json.py>"),
        ("sys.py", "<sys.py>"),
        ("colorsys", "colorsys"),
    ],
)
def test_the_program_lies_in_its_directory_as_it_came_whatever_it_is_called(
    code: str, filename: str, lies: str
) -> None:
    done = run(code, filename=filename)
    content, path = done.result
    assert bytes.fromhex(content) == code.encode()
    assert path == str(done.app / lies)


def test_a_program_that_is_called_as_a_module_does_not_stand_in_its_way() -> None:
    for name in ("json", "colorsys", "statistics"):
        code = f"import {name}\nresult = [{name}.__file__ != __file__, __file__]"
        other, path = run(code, filename=f"{name}.py").result
        assert other is True
        assert path.endswith(f"/<{name}.py>")


def test_a_file_that_was_sent_under_the_same_name_stays_what_it_is() -> None:
    code = "result = [open('script.py').read(), 'result' in open(__file__).read()]"
    assert run(code, files={"script.py": b"data"}).result == ["data", True]


def test_a_directory_that_can_not_be_written_costs_a_warning_and_no_result() -> None:
    from sandbox.channel.collector import Collector
    from tests.unit.test_harness_driver import LIMITS

    collector = Collector(LIMITS)
    with started_harness() as process:
        process.app.chmod(0o555)
        process.send_job("result = 1")
        for kind, body in process.frames_until_quit():
            collector.feed(kind, body)
        done = Run(collector, *process.finish(), process.app)
        process.app.chmod(0o755)
    assert done.result == 1
    if os.geteuid():
        assert [warning.split(":")[0] for warning in done.warnings] == [f"the script does not lie in {process.app}"]


INSPECTED = """
import inspect, os, pickle, copy
os.chdir("/")

def double(n):
    return 2 * n

class Press:
    hours = 2

again = [pickle.loads(pickle.dumps(thing)) for thing in (double, Press, log, save_file, read_file, run_command)]
assert pickle.loads(pickle.dumps(log.__func__)) is log.__func__  # as cloudpickle takes methods apart
copied = [copy.deepcopy(thing) for thing in (log, save_file)]
result = [inspect.getsource(double), inspect.getsource(Press), inspect.getsourcefile(Press) == __file__,
          again == [double, Press, log, save_file, read_file, run_command], copied == [log, save_file],
          os.path.basename(inspect.getsourcefile(double)), pickle.dumps(Press()) != b""]
"""


def test_functions_and_classes_can_be_inspected_and_pickled() -> None:
    assert run(INSPECTED).result == [
        "def double(n):\n    return 2 * n\n",
        "class Press:\n    hours = 2\n",
        True,
        True,
        True,
        "script.py",
        True,
    ]


TRACES = """
import json, os, subprocess, sys
look = "import json, os, sys; print(json.dumps([{k: v for k, v in os.environ.items()}, sys.path, sorted(sys.modules)]))"
child = json.loads(subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout)
result = [dict(os.environ) == child[0], [p for p in child[1] if "children" in p], "harness" in child[2],
          "PYTHONPATH" in os.environ, child[2].count("sandbox_program"), "json" in sys.modules,
          sorted(set(os.environ) - set(child[0]))]
"""


def test_start_up_code_leaves_no_trace_in_the_environment_and_the_path_of_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert run(TRACES).result == [True, [], False, False, 1, True, []]


def test_the_image_s_own_start_up_code_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.theirs = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = """
        import os, subprocess, sys
        look = "import os, sys; print(sys.theirs, os.environ['PYTHONPATH'])"
        result = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True).stdout
    """
    assert run(code).result == f"1 {tmp_path}\n"


def test_programs_that_are_no_python_start_as_ever() -> None:
    done = run("""
        import subprocess
        ran = subprocess.run(["sh", "-c", "echo $0 $1; exit 3", "a", "b"], capture_output=True, text=True)
        result = [ran.stdout, ran.returncode, run_command("echo c")["stdout"]]
        try:
            subprocess.run(["/not/there"])
        except FileNotFoundError as error:
            result.append(error.filename)
    """)
    assert done.result == ["a b\n", 3, "c\n", "/not/there"]


# ---- what a program leaves


def files_of(done: Run) -> dict[str, Any]:
    return {file.name: file.content for file in done.files}


LEAVES = """
import os
open("chart.png", "w").write("x")
os.makedirs("out/deep")
open("out/deep/table.csv", "w").write("y")
open("out_deep_table.csv", "w").write("other")
open("given.csv", "a").write("more")
open(".cache", "w").write("z")
os.makedirs("__pycache__")
open("__pycache__/script.pyc", "w").write("z")
os.symlink("/etc/passwd", "link")
os.mkfifo("pipe")
save_file("kept.txt", "k")
result = 1
"""


def test_every_file_that_a_program_leaves_is_handed_over_when_asked_for() -> None:
    done = run(LEAVES, files={"given.csv": b"a,", "same.csv": b"b"}, save_new=True)
    assert files_of(done) == {
        "chart.png": b"x",
        "out_deep_table.csv": b"other",
        "_out_deep_table.csv": b"y",
        "given.csv": b"a,more",
        "kept.txt": b"k",
    }
    assert done.warnings == ()
    assert done.result == 1


@pytest.mark.parametrize("end", ["raise ValueError('x')", "raise SystemExit(3)", "import sys; sys.exit()"])
def test_it_is_so_however_the_program_ends(end: str) -> None:
    done = run(f"open('chart.png', 'w').write('x')\n{end}", save_new=True)
    assert files_of(done) == {"chart.png": b"x"}


def test_without_asking_nothing_is_handed_over_and_the_warning_names_both_ways() -> None:
    done = run("open('chart.png', 'w').write('x')\nresult = 1")
    assert files_of(done) == {}
    assert "save_file('chart.png') hands one over, --save-new DIR all (left: chart.png)" in done.warnings[0]


def test_the_program_itself_is_never_handed_over_nor_named() -> None:
    assert files_of(run("result = 1", save_new=True)) == {}
    assert run("result = 1").warnings == ()
    assert files_of(run("result = 1", save_new=True, filename="json.py")) == {}


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("for n in range(30): open(f'{n}.txt', 'w').write('x')\nresult = 1", "files_limit"),
        ("open('big', 'wb').write(b'x' * (1 << 21))\nresult = 1", "files_limit"),
    ],
)
def test_the_limits_of_saved_files_hold_for_those_that_are_left(code: str, ended: str) -> None:
    assert run(code, save_new=True).ended == ended


ODD_DIRECTORIES = {
    "not to be read": ("os.makedirs('locked')\nos.chmod('locked', 0)", "'locked'", "Permission denied"),
    "too deep": ("for n in range(20):\n    os.mkdir('d' * 250)\n    os.chdir('d' * 250)", "'ddd", "File name too long"),
}


@pytest.mark.parametrize(("made", "named", "why"), ODD_DIRECTORIES.values(), ids=ODD_DIRECTORIES)
def test_a_directory_that_can_not_be_read_costs_no_other_file(made: str, named: str, why: str) -> None:
    done = run(f"import os\nopen('good.txt', 'w').write('good')\n{made}\nresult = 1", save_new=True)
    assert done.result == 1
    assert [(file.name, file.content) for file in done.files] == [("good.txt", b"good")]
    assert len(done.warnings) == 1
    assert named in done.warnings[0]
    assert done.warnings[0].endswith(f"were not saved: {why}")


SHRINKS = """
import os
SIZE = 400_000
for name in ("a", "b"):
    open(name, "wb").write(b"x" * SIZE)
real, calls = os.read, 0
def read(descriptor, size):  # as another process would, while it is read
    global calls
    calls += 1
    if calls == 2:
        os.truncate("a", 0)
    return real(descriptor, size)
os.read = read
"""


def test_a_file_that_becomes_shorter_while_it_is_sent_costs_no_other_file_and_no_result() -> None:
    done = run(SHRINKS + "result = 1", save_new=True)
    assert (done.result, done.ended) == (1, "exited")
    assert [(file.name, len(file.content), file.content.strip(b"x\0")) for file in done.files] == [
        ("a", 400_000, b""),
        ("b", 400_000, b""),
    ]
    assert done.warnings == ("the file 'a' was not saved whole: it became shorter meanwhile, and ends in zeros",)


def test_a_program_that_interrupts_a_file_can_save_another() -> None:
    late = (
        "def read(*_): raise TimeoutError\nos.read = read\ntry:\n    save_file('a')\nexcept TimeoutError:\n    pass\n"
    )
    done = run(SHRINKS + late + "os.read = real\nresult = len(save_file('b'))")
    assert done.error is None
    assert done.ended == "exited"
    assert [file.name for file in done.files] == ["a", "b"]


def test_a_name_that_no_saved_file_may_have_is_told() -> None:
    done = run("open('a\\nb', 'w').write('x')\nresult = 1", save_new=True)
    assert files_of(done) == {}
    assert "was not saved: its name must not contain control" in done.warnings[0]


@pytest.mark.parametrize("end", ["import shutil; shutil.rmtree('.', ignore_errors=True)", "import os; os.chdir('/')"])
def test_a_program_that_clears_or_leaves_its_directory_has_its_result(end: str) -> None:
    assert run(f"{end}\nresult = 1", save_new=True).result == 1


def test_files_sent_with_directories_lie_where_they_are_imported_and_opened_from() -> None:
    files = {
        "plant/__init__.py": b"",
        "plant/press.py": b"HOURS = 2",
        "plant/names.txt": b"a",
        "deep/er/data.csv": b"1,2",
    }
    code = """
        from plant.press import HOURS
        result = [HOURS, open("plant/names.txt").read(), read_file("deep/er/data.csv")]
    """
    assert run(textwrap.dedent(code), files=files).result == [2, "a", "1,2"]


IN_ITS_PLACE = """
import os, sys

if "again" not in sys.argv:
    os.environ["PYTHONHASHSEED"] = "7"
    os.EXEC
log(f"again with {payload['factor']}")
print(sys.flags.hash_randomization, sys.argv[1:], __name__)
"""
ENDS = {
    "a result": ("result = payload", PAYLOAD, None),
    "a top-level return": ("return payload", PAYLOAD, None),
    "an error": ("raise KeyError('gone')", None, "KeyError"),
}


@pytest.mark.parametrize(
    "call",
    [
        "execv(sys.executable, [sys.executable, __file__, 'again'])",
        "execl(sys.executable, sys.executable, *sys.argv, 'again')",
        "execvpe('python3', ['python3', __file__, 'again'], os.environ)",
    ],
)
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_program_that_starts_itself_again_in_its_place_goes_on_as_the_same_run(call: str, end: Any) -> None:
    last, result, kind = end
    done = run(IN_ITS_PLACE.replace("EXEC", call) + last, payload=PAYLOAD)
    assert [record.message for record in done.logs] == ["again with 3"]
    assert done.stdout == b"1 ['again'] __main__\n"
    assert end is ENDS["an error"] or done.result == result
    assert (done.error and done.error.type) == kind
    if done.error is not None:
        assert done.error.line == len((IN_ITS_PLACE + last).splitlines())


def test_a_program_that_another_takes_the_place_of_has_no_result() -> None:
    done = run("import os, sys\nresult = 1\nos.execv(sys.executable, [sys.executable, '-c', 'print(2)'])")
    assert (done.stdout, done.collector.result_json()) == (b"2\n", None)


def test_a_program_that_can_t_be_started_in_its_place_leaves_everything_as_it_was() -> None:
    code = """
import os
try:
    os.execv("/nowhere", ["nowhere"])
except FileNotFoundError as error:
    log(str(error))
kept = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
result = sorted(number for number in kept if os.get_inheritable(number))
"""
    done = run(code)
    assert done.result == [0, 1, 2]
    assert [record.message for record in done.logs] == ["[Errno 2] No such file or directory: '/nowhere'"]


def test_a_python_that_a_shell_starts_finds_the_programs_names() -> None:
    code = """
import os, sys
if len(sys.argv) > 1:
    log(f"worker {sys.argv[1]} of {payload['factor']}")
    sys.exit(5)
result = [os.waitstatus_to_exitcode(os.system(f"{sys.executable} {__file__} {n}")) for n in "ab"]
"""
    done = run(code, payload=PAYLOAD)
    assert done.result == [5, 5]
    assert [record.message for record in done.logs] == ["worker a of 3", "worker b of 3"]
