"""The command line with a service: the same result as without one, and what it tells of the service."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import COMMAND, document, environment, left_behind, sandbox, without_socket
from tests.integration.service import Service, served
from tests.unit.test_client import Served
from tests.waiting import until

# What no two runs have in common: names, times and measurements.
OWN = {"run_id", "started_at", "durations", "peak_memory_mib", "cpu_s", "elapsed_s", "evidence"}
USER_ID = re.compile(r"uid \d+ \(host \d+\)")
FULL = """
import sys
print('to stdout: grün', flush=True)
print('to stderr', file=sys.stderr, flush=True)
log('working', 'warning')
save_file('a.bin', b'\\x00\\xff')
output_topic = 'north'
result = {'n': payload['n'] * 2, 'topic': topic, 'exact': 12345678901234567890123, 'variable': __import__('os').environ.get('COLOUR')}
"""
SCRIPTS: list[tuple[str, str, list[str]]] = [
    ("all of it", FULL, ["--input", '{"n": 21}', "--topic", "sums", "--env", "COLOUR=red"]),
    ("an exception", "def f():\n    raise ValueError('no \\x1b[31m')\nf()", []),
    ("no result", "print('x')", []),
    ("an exit status", "import sys\nsys.exit(9)", []),
    ("too long", "import time\ntime.sleep(60)", ["--timeout", "500ms"]),
    ("too much output", "print('x' * (40 << 20))", []),
    ("bytes that are no text", "import sys\nsys.stdout.buffer.write(b'\\xff\\x00\\xc3')\nresult = 1", []),
    (
        "a character cut in two",
        "import os, time\nos.write(1, b'\\xc3')\ntime.sleep(0.3)\nos.write(1, b'\\xa4')\nresult = 1",
        [],
    ),
    ("a large result", "result = ['x' * 100] * 20_000", []),
    ("a warning", "result = float('nan')", []),
    ("syntax", "x = 1\nif x\n    y = 2", []),
    ("a looser limit", "result = 1", ["--memory", "900g"]),
    ("a reserved variable", "result = 1", ["--env", "LD_PRELOAD=x"]),
    ("no such image", "result = 1", ["--image", "localhost/absent:1"]),
    ("a file's name", "result = 1", ["--file", "../x=/etc/hostname"]),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("service")) as running:
        yield running
    assert left_behind() == []


@pytest.fixture
def with_service(service: Service) -> dict[str, str]:
    return environment(SANDBOX_SOCKET=service.socket)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text("result = 1")
    return path


def common(value: Any) -> Any:
    """Return a document without what belongs to one run alone."""
    if isinstance(value, dict):
        return {name: common(inner) for name, inner in value.items() if name not in OWN}
    if isinstance(value, list):
        return [common(inner) for inner in value]
    return USER_ID.sub("uid N", value) if isinstance(value, str) else value


def asked(service: Service) -> int:
    """Return how many requests for a run the service has had."""
    with service.client() as client:
        return len(client.runs(limit=500))


@pytest.mark.parametrize(("code", "options"), [case[1:] for case in SCRIPTS], ids=[case[0] for case in SCRIPTS])
def test_a_run_looks_the_same_with_and_without_a_service(
    script: Path, service: Service, with_service: dict[str, str], code: str, options: list[str]
) -> None:
    script.write_text(code)
    before = asked(service)
    there = sandbox("run", script, *options, env=with_service)
    here = sandbox("run", script, *options, "--no-service", env=with_service)
    assert (there.returncode, there.stdout, there.stderr) == (here.returncode, here.stdout, here.stderr)
    found = sandbox("run", script, "--json", *options, env=with_service)
    expected = sandbox("run", script, "--json", *options, "--no-service", env=with_service)
    assert (found.returncode, found.stderr) == (expected.returncode, expected.stderr)
    assert common(json.loads(found.stdout)) == common(json.loads(expected.stdout))
    assert list(json.loads(found.stdout)) == list(json.loads(expected.stdout))
    assert asked(service) - before == 2, "the other two were runs of this process"


def test_output_comes_byte_for_byte(script: Path, with_service: dict[str, str]) -> None:
    script.write_text(
        "import sys\nsys.stdout.buffer.write(b'\\xff\\x00\\\\xff\\xc3')\nsys.stderr.buffer.write(b'\\xfe')"
    )
    answer = subprocess.run(
        [*COMMAND, "run", str(script), "--quiet"], env=with_service, capture_output=True, timeout=60, check=False
    )
    assert answer.stdout == b"\xff\x00\\xff\xc3\n"
    assert answer.stderr.startswith(b"\xfe\n")


def test_secrets_and_files_go_both_ways(script: Path, tmp_path: Path, with_service: dict[str, str]) -> None:
    script.write_text(
        "import os\nsave_file('out.bin', read_file('in', binary=True)[::-1])\nresult = len(os.environ['TOKEN'])"
    )
    (tmp_path / "in").write_bytes(b"\x00\x01\xff")
    answer = sandbox(
        "run", script, "--secret", "TOKEN", "--file", f"in={tmp_path / 'in'}", "--save-files", tmp_path / "kept",
        env={**with_service, "TOKEN": "four"},
    )  # fmt: skip # a command line
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "4\n", "")
    assert (tmp_path / "kept/out.bin").read_bytes() == b"\xff\x01\x00"


def test_output_comes_while_the_program_still_runs(script: Path, with_service: dict[str, str]) -> None:
    script.write_text("import time\nprint('first', flush=True)\ntime.sleep(60)")
    with running(script, with_service) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"


def running(script: Path, env: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
    """Start a run; leaving the context ends it."""

    class Running(subprocess.Popen[bytes]):
        def __exit__(self, *error: Any) -> None:
            self.kill()
            super().__exit__(*error)

    return Running([*COMMAND, "run", str(script), *options], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_cancels_the_run_and_its_last_words_still_come(
    script: Path, service: Service, with_service: dict[str, str], number: signal.Signals
) -> None:
    script.write_text("import time\nprint('under way', flush=True)\ntime.sleep(60)")
    with running(script, with_service, "--json") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"under way\n"
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    found = json.loads(said)
    assert (found["outcome"], found["stdout"]) == ("cancelled", "under way\n")
    with service.client() as client:
        assert client.get(f"/v1/runs/{found['run_id']}")["outcome"] == "cancelled"


def test_a_command_that_is_killed_takes_its_run_along(
    script: Path, service: Service, with_service: dict[str, str]
) -> None:
    script.write_text("import time\nprint('under way', flush=True)\ntime.sleep(60)")
    with running(script, with_service) as process, service.client() as client:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        until(lambda: client.health()["runs"]["running"], 0)


def test_a_reader_that_goes_away_ends_the_run_quietly(
    script: Path, service: Service, with_service: dict[str, str]
) -> None:
    script.write_text("while True: print('x' * 1000)")
    with running(script, with_service) as process, service.client() as client:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 141
        until(lambda: client.health()["runs"]["running"], 0)


def test_the_service_is_found_at_its_usual_place(script: Path, service: Service) -> None:
    before = asked(service)
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:
        place = Path(runtime) / "podman-sandbox-runner"
        place.mkdir(mode=0o700)
        (place / "service.sock").symlink_to(service.socket)
        variables = without_socket(XDG_RUNTIME_DIR=runtime)
        assert sandbox("run", script, env=variables).stdout == "1\n"
    assert asked(service) == before + 1


def test_the_service_is_found_where_its_configuration_has_it_listen(
    script: Path, tmp_path: Path, service: Service
) -> None:
    file = tmp_path / "service.toml"
    file.write_text(f'[socket]\npath = "{service.socket}"\n')
    variables = without_socket(SANDBOX_CONFIG=str(file))
    before = asked(service)
    assert sandbox("run", script, env=variables).stdout == "1\n"
    assert asked(service) == before + 1
    assert document("ps", env=variables) == {"runs": []}
    file.write_text("[socket\n")
    answer = sandbox("run", script, env=variables)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "this is not valid TOML" in answer.stderr


# ---- when the service is not asked


def test_a_policy_of_the_caller_s_own_stays_in_this_process(
    script: Path, tmp_path: Path, service: Service, with_service: dict[str, str]
) -> None:
    policy = tmp_path / "mine.toml"
    policy.write_text('extends = "default"\n')
    before = asked(service)
    assert document("run", script, "--policy", policy, env=with_service)["receipt"]["policy"] == "mine"
    assert (
        document("--policy-dir", tmp_path, "run", script, "--policy", "mine", env=with_service)["receipt"]["policy"]
        == "mine"
    )
    assert asked(service) == before
    assert document("run", script, "--policy", "small", env=with_service)["receipt"]["policy"] == "small"
    assert asked(service) == before + 1


PLACES = {
    "absent": ("No such file or directory", "start it: sandbox serve"),
    "file/s": ("Not a directory", "start it: sandbox serve"),
    "dead": ("nobody listens", "start it: sandbox serve"),
    "file": ("it is not a socket", "name the socket of a service"),
    "directory": ("it is not a socket", "name the socket of a service"),
    "closed/service.sock": ("Permission denied", "ask whoever runs the service"),
    "shut": ("Permission denied", "its owner, for access"),
    "x" * 200: ("more than 107 bytes", "name the socket of a service"),
    "loop": ("Too many levels of symbolic links", "name the socket of a service"),
}


def named_by_variable(place: str) -> tuple[str, str]:
    """Return what is said of a place that $SANDBOX_SOCKET names, where a service that is started would not listen."""
    why, hint = PLACES[place]
    return why, "$SANDBOX_SOCKET names it" if "sandbox serve" in hint else hint


@pytest.fixture
def places() -> Iterator[Path]:
    """Give a directory with every kind of place where no service can be had."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as name,
        socket.socket(socket.AF_UNIX) as dead,
        socket.socket(socket.AF_UNIX) as shut,
    ):
        directory = Path(name)
        dead.bind(f"{name}/dead")
        shut.bind(f"{name}/shut")
        shut.listen()
        (directory / "shut").chmod(0)
        (directory / "file").touch()
        (directory / "directory").mkdir()
        (directory / "loop").symlink_to("loop")
        (directory / "closed").mkdir(mode=0)  # as the directory of somebody else is
        yield directory
        (directory / "closed").chmod(0o700)


@pytest.mark.parametrize("named_by", ["variable", "setting", "file"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[:12])
def test_a_named_service_that_can_t_be_had_is_an_error_and_nothing_runs_here_instead(
    script: Path, places: Path, tmp_path: Path, place: str, named_by: str
) -> None:
    (tmp_path / "service.toml").write_text(f'[socket]\npath = "{places / place}"\n')
    variables = {
        "variable": environment(SANDBOX_SOCKET=str(places / place)),
        "setting": without_socket() | {"SANDBOX_SOCKET__PATH": str(places / place)},
        "file": without_socket(SANDBOX_CONFIG=str(tmp_path / "service.toml")),
    }[named_by]
    why, hint = named_by_variable(place) if named_by == "variable" else PLACES[place]
    answers = [sandbox(*command, env=variables) for command in (["run", script], ["template", "run", "api"])]
    for answer in answers:
        assert (answer.returncode, answer.stdout) == (13, "")
        assert why in answer.stderr
        assert hint in answer.stderr
        assert ("sandbox serve" in answer.stderr) == ("sandbox serve" in hint), "what would not help is not advised"
        assert "--no-service" in answer.stderr


def test_without_the_service_it_runs_here_where_that_is_said(script: Path, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    for answer in (
        sandbox("run", script, "--no-service", env=environment(SANDBOX_SOCKET=absent)),
        sandbox("run", script, env=environment(SANDBOX_SOCKET=absent) | {"SANDBOX_NO_SERVICE": "1"}),
    ):
        assert (answer.returncode, answer.stdout, answer.stderr) == (0, "1\n", "")


@pytest.mark.parametrize("place", ["absent", "file", "shut", "x" * 200], ids=lambda place: place[:12])
@pytest.mark.parametrize(
    "command", [["ps"], ["runs"], ["logs", "f" * 32], ["stop", "--all"], ["top"]], ids=lambda command: command[0]
)
def test_commands_about_the_service_say_the_same_of_it(places: Path, place: str, command: list[str]) -> None:
    why, hint = named_by_variable(place)
    answer = sandbox(*command, env=environment(SANDBOX_SOCKET=str(places / place)))
    assert (answer.returncode, answer.stdout) == (13, "")
    assert why in answer.stderr
    assert hint in answer.stderr


def test_a_socket_of_ours_that_refuses_us_is_an_error(
    script: Path, service: Service, with_service: dict[str, str]
) -> None:
    mode = os.stat(service.socket).st_mode & 0o777
    os.chmod(service.socket, 0)
    try:
        answer = sandbox("run", script, env=with_service)
        assert answer.returncode == 13
        assert "Permission denied" in answer.stderr
    finally:
        os.chmod(service.socket, mode)


def test_who_has_no_right_is_told_so_and_nothing_runs_here_instead(script: Path) -> None:
    body = {
        "error": {"code": "access_denied", "message": "the user x may not use this service", "hint": "ask", "facts": {}}
    }
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        refusing = Served(f"{place}/s")
        refusing.answer(refusing.says(body, status=403))
        answer = sandbox("run", script, env=environment(SANDBOX_SOCKET=refusing.path))
        refusing.close()
    assert (answer.returncode, answer.stdout) == (15, "")
    assert "may not use this service" in answer.stderr


# ---- what the service does


def test_what_goes_on_is_listed_and_can_be_ended_by_the_beginning_of_its_id(
    script: Path, service: Service, with_service: dict[str, str]
) -> None:
    code = "import time\ntime.sleep(60)"
    script.write_text(code)
    assert sandbox("ps", env=with_service).stdout == ""
    with running(script, with_service, "--quiet") as process:
        until(lambda: [row["state"] for row in listed("ps", with_service)], ["running"])
        head, line = sandbox("ps", env=with_service).stdout.splitlines()
        assert head.split() == ["RUN", "AGE", "WHO", "NODE", "POLICY", "STEP"]
        run_id = listed("ps", with_service)[0]["run_id"]
        assert line.split()[0] == run_id[:12]
        assert sandbox("stop", "", env=with_service).returncode == 2
        assert sandbox("stop", run_id[:6], env=with_service).returncode == 0
        assert process.wait(timeout=30) == 130
    assert sandbox("stop", run_id[:6], env=with_service).returncode == 2
    shown = sandbox("logs", run_id[:12], env=with_service)
    assert "cancelled" in shown.stdout
    assert "not kept" in shown.stderr
    assert code not in shown.stdout
    newest = listed("runs", with_service, "--outcome", "cancelled", "--limit", "1")
    assert [row["run_id"] for row in newest] == [run_id]
    assert sandbox("logs", "f" * 32, env=with_service).returncode == 2


def listed(command: str, env: dict[str, str], *options: str) -> list[dict[str, Any]]:
    """Return the runs that a command lists."""
    found: list[dict[str, Any]] = document(command, *options, env=env)["runs"]
    return found


def test_everything_can_be_ended_at_once(script: Path, with_service: dict[str, str]) -> None:
    script.write_text("import time\ntime.sleep(60)")
    with running(script, with_service) as first, running(script, with_service) as second:
        until(lambda: [row["state"] for row in listed("ps", with_service)], ["running"] * 2)
        assert sandbox("stop", "--all", env=with_service).stdout == "2 run(s) ended\n"
        assert [first.wait(timeout=30), second.wait(timeout=30)] == [130, 130]
    assert sandbox("stop", env=with_service).returncode == 2


def test_names_that_callers_chose_can_t_steer_a_terminal(service: Service, with_service: dict[str, str]) -> None:
    with service.client() as client:
        client.run("result = 1", node_id="n\x1b[31m\nfake", topic="t")
    said = [sandbox("runs", "--limit", "1", env=with_service), sandbox("top", env=with_service)]
    run_id = listed("runs", with_service, "--limit", "1")[0]["run_id"]
    for answer in (*said, sandbox("logs", run_id, env=with_service)):
        assert "\x1b" not in answer.stdout
        assert "\\x1b[31m" in answer.stdout


def test_top_without_a_terminal_is_one_look(script: Path, with_service: dict[str, str]) -> None:
    assert sandbox("run", script, env=with_service).returncode == 0
    answer = sandbox("top", env=with_service)
    assert answer.returncode == 0
    assert [line.split()[0] for line in answer.stdout.splitlines()[:3]] == ["service", "runs", "pool"]
    found = document("top", env=with_service)
    assert found["health"]["status"] == "ok"
    assert found["ended_runs"] > 0
    assert found["last"][0]["outcome"] == "succeeded"


# ---- the client library


def test_a_client_outlives_its_service(tmp_path: Path) -> None:
    with served(tmp_path) as first:
        client = first.client()
        assert client.run("result = 1").value == 1
        path = Path(first.socket)
    with served(tmp_path) as second:
        path.parent.mkdir(parents=True)
        path.symlink_to(second.socket)
        try:
            assert client.run("result = 2").value == 2
        finally:
            path.unlink()
            path.parent.rmdir()
            path.parent.parent.rmdir()
            client.close()


def test_ten_megabytes_go_in_and_come_back(service: Service) -> None:
    text = json.dumps(["x" * 100] * 97_000).encode()
    with service.client() as client:
        assert client.run("result = payload", payload_json=text).value == json.loads(text)
        last = list(client.stream("print('x' * 1000)\nresult = payload", payload_json=text))[-1]
        assert last["result"] == json.loads(text)


def test_a_stream_that_is_closed_early_ends_its_run(service: Service) -> None:
    with service.client() as client:
        events = client.stream("import time\nprint('x', flush=True)\ntime.sleep(60)", node_id="early")
        while next(events)["event"] != "stdout":
            pass
        assert [row["state"] for row in client.runs(node="early")] == ["running"], "other calls go on meanwhile"
        events.close()
        until(lambda: client.runs(node="early")[0]["outcome"], "cancelled")
        began = time.monotonic()
        assert client.run("result = 1").value == 1
        assert time.monotonic() - began < 30


# ---- a newer version -----------------------------------------------------------------------------


def test_a_service_that_was_started_by_hand_is_found_and_its_restart_is_told(service: Service) -> None:
    """Where systemd keeps it: tests/kernel/test_service.py."""
    answer = sandbox("serve", "--restart")
    told = [line for line in answer.stdout.splitlines() if f"process {service.process.pid} is a service" in line]
    assert (answer.returncode, len(told)) == (0, 1), answer.stderr
    pid = service.process.pid
    assert f"to restart it: kill {pid}; tail --pid={pid} -f /dev/null; " in told[0]
    assert told[0].endswith(f" sandbox --policy-dir {service.policies} serve &")
    assert service.process.poll() is None


def test_the_socket_is_printed_as_clients_look_for_it(service: Service) -> None:
    assert sandbox("config", "socket", env=environment(SANDBOX_SOCKET=service.socket)).stdout == f"{service.socket}\n"
