"""`sandbox run`: what a person, a script or Node-RED sees of one run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.policy.directories import policy_directories
from sandbox.policy.load import load_policy
from tests.command import COMMAND, document, environment, left_behind, on_terminal, our_containers, sandbox, workspaces

pytestmark = pytest.mark.podman
LIMITS = load_policy("default", directories=policy_directories()).policy.limits


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert left_behind() == []


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


def test_a_script_gets_its_input_and_gives_its_result(script: Path) -> None:
    script.write_text("print('working on', topic)\nresult = {'double': payload['n'] * 2}\n")
    answer = sandbox("run", script, "--input", '{"n": 21}', "--topic", "sums")
    assert answer.returncode == 0
    printed, _, result = answer.stdout.partition("\n")
    assert printed == "working on sums"
    assert json.loads(result) == {"double": 42}


def test_a_script_from_standard_input_runs(script: Path) -> None:
    assert json.loads(sandbox("run", "-", stdin="result = 7").stdout) == 7


def test_input_comes_from_a_file_or_from_standard_input(script: Path, tmp_path: Path) -> None:
    script.write_text("result = payload + 1")
    data = tmp_path / "data.json"
    data.write_text("1")
    assert sandbox("run", script, "--input", f"@{data}").stdout.strip() == "2"
    assert sandbox("run", script, "--input", "-", stdin="2").stdout.strip() == "3"
    assert sandbox("run", script, "--input", "-3").stdout.strip() == "-2"


def test_output_streams_while_the_program_still_runs(script: Path) -> None:
    script.write_text("import sys, time\nprint('first', flush=True)\ntime.sleep(5)\nresult = 1\n")
    process = subprocess.Popen([*COMMAND, "run", str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"first\n"
        assert process.poll() is None, "the line came only at the end"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def test_a_policy_with_an_old_section_runs_and_warns(script: Path, tmp_path: Path) -> None:
    script.write_text("import os\nresult = os.environ['A']")
    policy = tmp_path / "mine.toml"
    policy.write_text("extends = 'default'\n[environment]\nallow = ['A']\n")
    answer = sandbox("run", script, "--policy", policy, "--env", "A=1")
    assert (answer.returncode, answer.stdout.strip()) == (0, "1")
    assert answer.stderr.count(f"sandbox: warning: {policy}:2: the section environment is called variables now") == 1
    assert "variables now" not in sandbox("run", script, "--policy", policy, "--env", "A=1", "--quiet").stderr


def test_json_carries_the_result_the_output_and_the_receipt(script: Path) -> None:
    script.write_text("print('hi')\nlog('note', 'warning')\nsave_file('a.bin', b'\\x00\\x01')\nresult = [1, None]\n")
    found = document("run", script)
    assert (found["outcome"], found["result"], found["stdout"]) == ("succeeded", [1, None], "hi\n")
    assert [(record["level"], record["message"]) for record in found["logs"]] == [("warning", "note")]
    assert found["files"] == [{"name": "a.bin", "size_bytes": 2, "content_base64": "AAE="}]
    receipt = found["receipt"]
    for name in ("policy_hash", "image_digest", "code_hash", "payload_hash"):
        assert receipt[name].startswith("sha256:")
        assert len(receipt[name]) == len("sha256:") + 64
    controls = {control["control"]: control for control in receipt["controls"]}
    assert {"no network", "seccomp", "no capabilities", "read-only root", "memory", "cpus", "processes"} <= set(
        controls
    )
    for control in controls.values():
        assert control["status"] in ("proven", "fallback")
        assert control["mechanism"]
        assert control["evidence"]


def test_the_receipt_names_what_holds_memory_cpus_and_processes(script: Path) -> None:
    script.write_text("result = 1")
    controls = {control["control"]: control for control in document("run", script)["receipt"]["controls"]}
    for name, fallback in (("memory", "rlimit+watchdog"), ("cpus", "affinity+rlimit"), ("processes", "rlimit")):
        by = controls[name]
        assert (by["status"], by["mechanism"]) in (("proven", "cgroup"), ("fallback", fallback))


def test_strict_refuses_a_host_without_cgroup_v2_and_runs_on_one_with_it(script: Path) -> None:
    script.write_text("result = 1")
    report = json.loads(sandbox("doctor", "--json").stdout)
    capped = {
        row["name"]: row["status"] for row in report["capabilities"] if row["name"] in ("memory", "cpus", "processes")
    }
    answer = sandbox("run", script, "--policy", "strict")
    if set(capped.values()) == {"ok"}:
        assert answer.returncode == 0
        return
    assert answer.returncode == 4
    for word in ("memory", "CPUs", "processes", "what to do", "cgroup v2"):
        assert word in answer.stderr
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("code", "outcome", "status"),
    [
        ("result = None", "succeeded", 0),
        ("1 / 0", "failed", 1),
        ("import sys; sys.exit(9)", "failed", 1),
        ("x = 1", "no_result", 3),
        ("import os; os._exit(0)", "no_result", 3),
        ("import time; time.sleep(60)", "timed_out", 124),
        ("while True: pass", "timed_out", 124),
        ("x = []\nwhile True: x.append(bytearray(1 << 22))", "out_of_memory", 137),
        ("import os\nwhile True: os.fork()", "too_many_processes", 5),
        ("while True: print('x' * 100000)", "output_limit", 6),
        ("result = 'x' * (1 << 26)", "output_limit", 6),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed", 7),
    ],
)
def test_each_outcome_has_its_exit_status(script: Path, code: str, outcome: str, status: int) -> None:
    script.write_text(code)
    answer = sandbox("run", script, "--json", "--timeout", "4s")
    assert (json.loads(answer.stdout)["outcome"], answer.returncode) == (outcome, status)


def test_a_traceback_names_the_users_own_line_and_nothing_of_ours(script: Path) -> None:
    script.write_text("def f(x):\n    return 1 / x\n\nresult = f(0)\n")
    found = document("run", script)
    assert (found["error"]["type"], found["error"]["line"]) == ("ZeroDivisionError", 2)
    assert 'File "script.py", line 4' in found["error"]["traceback"]
    assert "return 1 / x" in found["error"]["traceback"]
    assert "harness" not in found["error"]["traceback"]


def test_limits_of_the_request_only_tighten(script: Path) -> None:
    script.write_text("result = 1")
    answer = sandbox("run", script, "--memory", f"{LIMITS.memory_mib * 2}m")
    assert answer.returncode == 10
    assert f"{LIMITS.memory_mib} MiB" in answer.stderr


def test_variables_secrets_and_files_reach_the_program(script: Path, tmp_path: Path) -> None:
    script.write_text("import os\nresult = [os.environ['PLANT'], os.environ['TOKEN'], read_file('notes.txt')]\n")
    notes = tmp_path / "n.txt"
    notes.write_text("line")
    options = ("--env", "PLANT=north", "--secret", "TOKEN", "--file", f"notes.txt={notes}")
    found = document("run", script, *options, env=environment(TOKEN="s3cret-value"))
    assert found["result"] == ["north", "s3cret-value", "line"]
    assert "s3cret-value" not in json.dumps(found["receipt"])


def test_saved_files_arrive_in_the_directory(script: Path, tmp_path: Path) -> None:
    script.write_text("save_file('report.csv', 'a,b\\n'); result = 1")
    target = tmp_path / "out"
    assert sandbox("run", script, "--save-files", target).returncode == 0
    assert [path.name for path in target.iterdir()] == ["report.csv"]
    assert (target / "report.csv").read_text() == "a,b\n"


def test_files_that_nobody_keeps_are_mentioned(script: Path) -> None:
    script.write_text("save_file('report.csv', 'x'); result = 1")
    answer = sandbox("run", script)
    assert "1 file(s) not kept (report.csv); --save-files" in answer.stderr
    script.write_text("for n in range(7): save_file(f'{n}.txt', 'x')\nresult = 1")
    assert (
        "7 file(s) not kept (0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more); --save-files"
        in sandbox("run", script).stderr
    )


def test_quiet_leaves_only_output_and_result(script: Path) -> None:
    script.write_text("log('noise'); print('out'); result = 5")
    answer = sandbox("run", script, "--quiet")
    assert (answer.stdout, answer.stderr) == ("out\n5\n", "")


def test_progress_appears_on_a_terminal_only(script: Path) -> None:
    script.write_text("result = 5")
    assert "sandbox" not in sandbox("run", script).stderr
    status, seen = on_terminal("run", script)
    assert status == 0
    assert b"starting the sandbox" in seen


def interrupted(script: Path, number: signal.Signals) -> tuple[int, float]:
    """Send a signal to a run whose program is under way; return the exit status and how long the end took."""
    script.write_text("import time\nprint('under way', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen([*COMMAND, "run", str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"under way\n"
        began = time.monotonic()
        process.send_signal(number)
        process.communicate(timeout=30)
        return process.returncode, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_sandbox_and_leaves_nothing(script: Path, number: signal.Signals) -> None:
    status, _ = interrupted(script, number)
    assert status == 130
    assert left_behind() == []


def wait_for_our_code(pid: int) -> None:
    """Wait until the command's first line has run: Python's start-up catches SIGINT, and that line lets it go again."""
    caught = False
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        mask = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert mask is not None
        now = bool(int(mask[1], 16) & 1 << signal.SIGINT - 1)
        if caught and not now:
            return
        caught = caught or now
    pytest.fail("the command never let SIGINT go")


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
def test_an_interrupt_while_the_sandbox_starts_leaves_nothing(script: Path, delay_s: float) -> None:
    script.write_text("result = 1")
    process = subprocess.Popen([*COMMAND, "run", str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_our_code(process.pid)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    # Before anything is started the signal itself ends the process; a shell calls that 130, too.
    assert process.returncode in (0, 130, -signal.SIGINT)
    assert b"Traceback" not in errors
    assert left_behind() == []


def test_after_sigkill_the_container_ends_by_itself_and_the_next_command_clears_the_workspace(script: Path) -> None:
    status, _ = interrupted(script, signal.SIGKILL)
    assert status == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while our_containers() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert our_containers() == [], "the container outlived its runner"
    left = workspaces()
    assert left != []
    script.write_text("result = 1")
    assert sandbox("run", script).returncode == 0
    assert set(left) & set(workspaces()) == set()


def test_a_reader_that_goes_away_ends_the_run_quietly(script: Path) -> None:
    script.write_text("while True: print('x' * 1000)")
    process = subprocess.Popen([*COMMAND, "run", str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=30) == 141
    assert errors == b""


def test_the_iot_template_gives_statistics_of_thousands_of_readings() -> None:
    found = document("template", "run", "iot")
    assert found["additional_data"]["readings"] > 4000
    assert len(found["result"]["sensors"]) == 3
    assert found["output_topic"] == "iot/statistics"


@pytest.mark.parametrize("name", ["simple", "json", "files", "commands", "environment"])
def test_every_template_succeeds(name: str) -> None:
    assert document("template", "run", name)["outcome"] == "succeeded"


def test_another_policy_directory_comes_first(script: Path, tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "tiny.toml").write_text('extends = "default"\n[limits]\nprocesses = 20\n')
    script.write_text("result = 1")
    answer = sandbox("--policy-dir", policies, "run", script, "--policy", "tiny", "--json")
    found = json.loads(answer.stdout)
    assert found["receipt"]["policy"] == "tiny"
    processes = next(control for control in found["receipt"]["controls"] if control["control"] == "processes")
    assert processes["wanted"] == "20 processes"
