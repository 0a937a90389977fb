"""Runs the harness as an ordinary child process on the host, for the other test modules, and tests that."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.channel.collector import Collector
from sandbox.channel.frames import HEADER, RunCaps, job_frames
from sandbox.container.harness_files import harness_source, write_sources

PYTHON = os.environ.get("HARNESS_PYTHON", sys.executable)  # to try the harness on other versions
START = "import sys; sys.path[0] = sys.argv[1]; import harness; harness.main(sys.argv[2], sys.argv[3])"
LIMITS = RunCaps(output_bytes=1 << 20, result_bytes=1 << 20, files_bytes=1 << 20, files_count=20, log_records=200)


@dataclass
class Run:
    """A finished run: what the collector holds, and what the harness itself said and did."""

    collector: Collector
    harness_stderr: str
    harness_status: int
    app: Path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.collector, name)

    @property
    def result(self) -> Any:
        text = self.collector.result_json()
        assert text is not None, (self.collector.error, self.collector.stderr, self.collector.quit)
        return json.loads(text)

    @property
    def ended(self) -> str:
        assert self.collector.quit is not None
        return self.collector.quit.ended


class Harness:
    """One harness process and the runner's end of its job socket."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes], app: Path) -> None:
        self.connection = connection
        self.process = process
        self.app = app

    def send_job(self, code: str, *, payload: Any = None, raw_payload: bytes | None = None, **fields: Any) -> None:
        for frame in job_frames(**job(code, payload=payload, raw_payload=raw_payload, **fields)):
            self.connection.sendall(frame)

    def frames(self) -> Iterator[tuple[str, bytes]]:
        with self.connection.makefile("rb") as stream:
            while head := stream.read(5):
                kind, size = struct.unpack(">cI", head)
                yield kind.decode(), stream.read(size)

    def frames_until_quit(self) -> Iterator[tuple[str, bytes]]:
        for kind, body in self.frames():
            yield kind, body
            if kind == "Q":
                return

    def finish(self) -> tuple[str, int]:
        self.connection.close()
        _, stderr = self.process.communicate(timeout=20)
        return stderr.decode(), self.process.returncode


def job(code: str, *, payload: Any = None, raw_payload: bytes | None = None, **fields: Any) -> dict[str, Any]:
    message: Mapping[str, Any] = fields.pop("message", {"_msgid": "m1", "topic": "t/1"})
    return {
        "run_id": "r-1",
        "node_id": "n-1",
        "topic": "t/1",
        "timestamp": "2024-05-01T10:00:00+00:00",
        "filename": "script.py",
        "env": {},
        "limits": LIMITS,
        "code": textwrap.dedent(code).encode(),
        "payload_json": json.dumps(payload).encode() if raw_payload is None else raw_payload,
        "message_json": json.dumps(message).encode(),
        "files": {},
        **fields,
    }


def separate(chunks: Iterable[bytes]) -> list[bytes]:
    """Return the frames that chunks of them hold, one by one."""
    data, frames = b"".join(chunks), []
    while data:
        end = HEADER.size + HEADER.unpack_from(data)[1]
        frames.append(data[:end])
        data = data[end:]
    return frames


@functools.cache
def harness_sources() -> Path:
    """Return a directory with the harness, joined once: each time, that took more than most programs."""
    made = tempfile.TemporaryDirectory(prefix="harness-")
    atexit.register(made.cleanup)
    write_sources(Path(made.name))
    return Path(made.name)


@contextmanager
def started_harness(python: str = PYTHON) -> Iterator[Harness]:
    """Start a harness in a new short directory (a socket's path has at most 107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="h-") as directory:
        base = Path(directory)
        shutil.copytree(harness_sources(), base / "lib")
        (base / "app").mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(base / "job.sock"))
            listener.listen(1)
            listener.settimeout(20)
            process = subprocess.Popen(
                [python, "-s", "-B", "-c", START, str(base / "lib"), str(base / "job.sock"), str(base / "app")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            with process:
                connection, _ = listener.accept()
                connection.settimeout(30)
                try:
                    yield Harness(connection, process, base / "app")
                finally:
                    connection.close()
                    process.kill()


def run(
    code: str,
    *,
    python: str = PYTHON,
    look: Callable[[Harness], None] | None = None,
    **fields: Any,
) -> Run:
    """Run one program to its end; `look` sees the harness before it goes away."""
    collector = Collector(fields.get("limits", LIMITS))
    with started_harness(python) as process:
        process.send_job(code, **fields)
        for kind, body in process.frames_until_quit():
            collector.feed(kind, body)
        if look is not None:
            look(process)
        stderr, status = process.finish()
        return Run(collector, stderr, status, process.app)


def test_a_program_gives_a_result_and_the_harness_leaves_quietly() -> None:
    done = run("result = payload * 2", payload=21)
    assert done.result == 42
    assert done.ended == "exited"
    assert (done.quit.exit_code, done.quit.signal) == (0, None)
    assert (done.harness_stderr, done.harness_status) == ("", 0)


def test_ready_names_the_python_and_the_end_reports_the_resources_used() -> None:
    done = run("sum(range(2_000_000))\nresult = 1")
    ask = "import sys; print([*sys.version_info[:3]], sys.implementation.name)"
    answer = subprocess.run([PYTHON, "-c", ask], capture_output=True, check=True, text=True).stdout
    assert f"{done.ready.python} {done.ready.implementation}\n" == answer
    assert done.quit.max_rss_kib > 1000
    assert done.quit.wall_s > 0
    assert done.quit.cpu_s > 0


def test_the_harness_is_not_the_users_business() -> None:
    done = run("""
        import os, sys
        result = ["harness" in sys.modules, [p for p in sys.path if p.endswith("/lib")], sys.argv,
                  sys.path[0] == os.getcwd(), sorted(int(d) for d in os.listdir("/proc/self/fd"))]
    """)
    loaded, paths, argv, cwd_first, descriptors = done.result
    assert not loaded
    assert paths == []
    assert argv == ["script.py"]
    assert cwd_first
    assert descriptors[:3] == [0, 1, 2]
    assert len(descriptors) == 5  # and the channel, and the directory being listed


OURS = """
import importlib, sys
lib = sys._getframe().f_back.f_code.co_filename.rpartition("/")[0] + "/"
found = []
for name in ("harness", "harness.text", "text", "limits", "supervisor"):
    try:
        found.append(importlib.import_module(name).__name__)
    except ImportError:
        pass
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
result = [lib.endswith("/lib/"), found, [file for file in files if file.startswith(lib)]]
"""


@pytest.mark.parametrize("ahead", [False, True])
def test_a_program_finds_no_module_of_the_harness_under_any_name(ahead: bool) -> None:
    from tests.unit.test_harness_preload import run_preloaded  # which imports this module

    done = run_preloaded(OURS, "decimal") if ahead else run(OURS)
    assert done.result == [True, [], []]


def test_the_harness_loads_only_what_it_needs_to_say_ready(tmp_path: Path) -> None:
    (tmp_path / "harness.py").write_text(harness_source())
    listing = "import os, sys; before = set(sys.modules); import harness; print(*sorted(set(sys.modules) - before))"
    # Without the site module, whose start-up files differ between hosts.
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-B",
            "-c",
            f"import sys; sys.path.insert(0, sys.argv[1]); {listing}",
            str(tmp_path),
        ],
        capture_output=True,
        check=True,
        text=True,
    )
    assert set(done.stdout.split()) <= {"harness", "__future__", "_socket", "select", "struct", "_struct", "gc"}
