"""The machine of `scripts/vm-test`: another user, and root's rights, which no host of anybody's lends to a test."""

from __future__ import annotations

import subprocess

NEWCOMER = "newcomer"


def as_root(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as root: sudo asks the user of the tests for no password there."""
    return subprocess.run(["sudo", "-n", *command], capture_output=True, text=True, timeout=120, check=False)
