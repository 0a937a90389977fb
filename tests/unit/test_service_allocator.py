"""Memory that the service gives back: large blocks go to the system when they are free."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKS_MIB = 100
PROGRAM = """
import os, sys
from sandbox.service.allocator import give_back
if sys.argv[1] == "gives back":
    assert give_back()

def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

first = b"x" * (30 << 20)
del first  # from here on the library keeps blocks of this size
before = rss()
blocks = [b"x" * (20 << 20) for _ in range(5)]
behind = b"x" * 200_000  # what lies behind them keeps them from being cut off
del blocks
print(rss() - before)
"""


@pytest.mark.parametrize("does", ["gives back", "the control"])
def test_large_blocks_go_back_to_the_system(does: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, does], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert (int(said) < BLOCKS_MIB // 10) == (does == "gives back"), said
