"""Monitors that outlive their containers are found by the whole id, and killed with all that they started."""

from __future__ import annotations

import subprocess
import uuid

from sandbox.engine.conmon import kill_left_over, monitors
from sandbox.kernel.family import family
from tests.waiting import until


def test_a_left_over_monitor_is_killed_with_what_it_started_and_no_other() -> None:
    ours, other = uuid.uuid4().hex, uuid.uuid4().hex
    processes = [
        subprocess.Popen(["/usr/bin/conmon", "-c", "sleep 60 & sleep 60 & wait", name], executable="/bin/sh")
        for name in (ours, other)
    ]
    try:
        until(lambda: [len(family(process.pid)) for process in processes], [3, 3])
        # What it has forked has its command line until it runs another program.
        until(lambda: monitors(ours), [processes[0].pid])
        assert monitors(ours[:12]) == []
        below = family(processes[0].pid)
        kill_left_over(ours)
        processes[0].wait(10)  # killed, or at its own end: what it waited for was killed first
        assert monitors(ours) == []
        assert not [pid for pid in below if family(pid) != [pid]]
        assert processes[1].poll() is None
    finally:
        for name in (ours, other):
            kill_left_over(name)
        for process in processes:
            process.wait(10)
