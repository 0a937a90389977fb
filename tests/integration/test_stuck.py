"""Readers, registries and images that would hold a run up: deadlines, caps and Ctrl-C hold all the same."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.image.admission import REPOSITORY
from tests.command import COMMAND, left_behind, on_terminal, our_containers, sandbox
from tests.waiting import until

pytestmark = pytest.mark.podman
FLOOD = "import sys\nwhile True: sys.stdout.write('x' * 65536)\n"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


@contextmanager
def running(*arguments: str, stdout: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command; kill it at the end, so that a test that fails does not wait for it."""
    with subprocess.Popen([*COMMAND, "run", *arguments], stdout=stdout, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def unread() -> Iterator[tuple[int, int]]:
    """Give a pipe that nobody reads: (read end, write end)."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def unread_bytes(pipe: tuple[int, int]) -> int:
    return int.from_bytes(fcntl.ioctl(pipe[0], termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_reader_that_stops_reading_does_not_stop_the_clock(script: Path, unread: tuple[int, int]) -> None:
    script.write_text(FLOOD.replace("while True:", "for _ in range(100):") + "import time\ntime.sleep(60)\n")
    with running(str(script), "--timeout", "1s", stdout=unread[1]) as process:
        until(our_containers)
        until(our_containers, [], within_s=15)
        assert process.poll() is None, "it still waits for its reader"


def test_a_reader_that_stops_reading_does_not_stop_ctrl_c(script: Path, unread: tuple[int, int]) -> None:
    script.write_text(FLOOD.replace("while True:", "for _ in range(100):") + "import time\ntime.sleep(60)\n")
    with running(str(script), stdout=unread[1]) as process:
        until(lambda: unread_bytes(unread), lambda seen: seen > 60_000)  # as much as a pipe holds
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert left_behind() == []


def test_a_reader_that_stops_reading_does_not_stop_the_memory_cap(script: Path, unread: tuple[int, int]) -> None:
    script.write_text(
        FLOOD.replace("while True:", "for _ in range(100):") + "x = []\nwhile True: x.append(bytearray(1 << 22))\n"
    )
    with running(str(script), "--memory", "256m", stdout=unread[1]) as process:
        until(our_containers)
        until(our_containers, [], within_s=20)
        assert process.poll() is None, "it still waits for its reader"


def test_ctrl_c_ends_a_pull_from_a_registry_that_never_answers(script: Path) -> None:
    script.write_text("result = 1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        name = f"127.0.0.1:{silent.getsockname()[1]}/team/image:1"
        with running(str(script), "--image", name, stdout=subprocess.DEVNULL) as process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
            connection.close()
    assert left_behind() == []


def test_the_health_check_of_an_image_never_runs(script: Path, tmp_path: Path) -> None:
    name = "localhost/with-health-check:1"
    (tmp_path / "Containerfile").write_text(
        f"FROM {REPOSITORY}:latest\nHEALTHCHECK --interval=1s CMD python3 -c pass\n"
    )
    subprocess.run(
        [
            "podman",
            "build",
            "--network",
            "none",
            "--format",
            "docker",
            "--tag",
            name,
            "--file",
            str(tmp_path / "Containerfile"),
            str(tmp_path),
        ],
        check=True,
        capture_output=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    try:
        script.write_text("print('ready', flush=True)\nimport time\ntime.sleep(30)\n")
        with running(str(script), "--image", name, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            shown = subprocess.run(
                ["podman", "inspect", "--format", "{{json .Config.Healthcheck}}", our_containers()[0]],
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
            )
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert "python3" not in shown.stdout
    finally:
        subprocess.run(["podman", "rmi", "--force", name], check=False, capture_output=True, timeout=60)


def test_a_container_that_lost_its_workspace_is_removed_by_the_doctor(script: Path) -> None:
    from sandbox import places
    from sandbox.container.spec import OWNER_LABEL, PLACE_LABEL, RUN_LABEL, runs_id

    place = runs_id(places.runtime_dir() / "runs")
    labels = {RUN_LABEL: "lost", OWNER_LABEL: "19999", PLACE_LABEL: place}
    options = [part for name, value in labels.items() for part in ("--label", f"{name}={value}")]
    subprocess.run(
        ["podman", "create", *options, f"{REPOSITORY}:latest", "/bin/true"], check=True, capture_output=True, timeout=60
    )
    assert our_containers() != []
    assert sandbox("doctor").returncode == 0
    assert left_behind() == []


def test_a_file_that_can_not_be_saved_does_not_lose_the_result(script: Path, tmp_path: Path) -> None:
    script.write_text("save_file('report.txt', 'x'); result = 'precious'")
    (tmp_path / "out" / "report.txt" / "in the way").mkdir(parents=True)
    answer = sandbox("run", script, "--save-files", tmp_path / "out")
    assert answer.stdout == "precious\n"
    assert answer.returncode == 2
    assert "report.txt" in answer.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.txt"]


def test_warnings_of_the_compiler_show_the_script_s_text_escaped_on_a_terminal(script: Path) -> None:
    script.write_text("x = 1 is 1  # \x1b]0;PWNED\x07\nresult = x\n")
    status, seen = on_terminal("run", script)
    assert status == 0
    assert b"SyntaxWarning" in seen
    assert b"\x1b]0" not in seen
    assert b"\\x1b]0;PWNED" in seen
