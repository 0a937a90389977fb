"""Asks a service for its health again and again, and each time a server that does nothing else.

The two are asked in processes of their own. The second tells what the machine and the asking itself take at that
moment. What the asking thread and the thread that answers waited for a processor meanwhile belongs to the machine as
well, and is taken off: the kernel counts it for each thread (https://docs.kernel.org/scheduler/sched-stats.html).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.client import Client

ROOT = Path(__file__).resolve().parents[2]
PAUSE_S = 0.02
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Seen:
    """What answers took, in seconds, one after the other: the service's, and the bare server's right after."""

    service: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)


@contextlib.contextmanager
def looked_at(path: str, pid: int) -> Iterator[Seen]:
    """Look at the service of this process while the block lasts; afterwards there is what was seen."""
    seen = Seen()
    command = [sys.executable, "-m", "tests.integration.looker", path, str(pid)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it looks
        try:
            yield seen
        finally:
            said, _ = process.communicate(b"x", 60)
    seen.service, seen.bare = json.loads(said)


def serve_bare(listener: socket.socket) -> None:
    """Answer every request on one connection."""
    connection, _ = listener.accept()
    with connection:
        while connection.recv(65_536):
            connection.sendall(ANSWER)


def waited_s(pids: Sequence[int]) -> float:
    """Return how long the first threads of processes have waited for a processor since they began, in seconds."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) for pid in pids) / 1e9


def timed(client: Client, answering: int) -> float:
    """Return how long one answer takes, without what the two threads waited for a processor."""
    pids = (os.getpid(), answering)
    waited_before_s, began = waited_s(pids), time.perf_counter()
    client.health()
    took_s = time.perf_counter() - began
    return max(took_s - (waited_s(pids) - waited_before_s), 0.0)


def main(path: str, pid: int) -> None:
    """Look until something comes on standard input."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}/s")
        listener.listen()
        bare_pid = os.fork()
        if bare_pid == 0:
            threading.Timer(600, os._exit, (1,)).start()
            serve_bare(listener)
            os._exit(0)
        service: list[float] = []
        bare: list[float] = []
        with Client(path) as there, Client(f"{place}/s") as here:
            print("looking", flush=True)
            while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
                service.append(timed(there, pid))
                bare.append(timed(here, bare_pid))
        os.wait()
    print(json.dumps([service, bare]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
