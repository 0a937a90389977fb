"""The IP addresses of this host, read from the kernel without starting a program."""

from __future__ import annotations

import contextlib
import re
from ipaddress import IPv6Address
from pathlib import Path

from sandbox.errors import NotEnforceable

__all__ = ["own_addresses"]

_LOCAL = re.compile(r"\|-- ([0-9.]+)\n +/32 host LOCAL")


def own_addresses(proc_net: Path = Path("/proc/net")) -> frozenset[str]:
    """Return this network namespace's own addresses, each in its canonical spelling.

    Raises NotEnforceable when they can't be read: a sandbox could then reach services of its own host.
    """
    found: set[str] = set()
    try:
        found.update(_LOCAL.findall((proc_net / "fib_trie").read_text()))
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            lines = (proc_net / "if_inet6").read_text().splitlines()
            found.update(str(IPv6Address(int(line.split()[0], 16))) for line in lines)
    except OSError as error:
        raise NotEnforceable(
            f"the addresses of this host can't be read: {error.strerror} ({error.filename})",
            hint="let the runner read /proc/net; without it, egress can't keep sandboxes off this host's own services",
        ) from None
    return frozenset(found)
