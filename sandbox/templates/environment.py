"""Environment check: what a script finds around it, and what it can't do."""

import os
import socket
import sys


def attempt(action):
    """Return "allowed", or the reason why not."""
    try:
        action()
    except OSError as error:
        return error.strerror or type(error).__name__
    return "allowed"


print("=== environment check ===", file=sys.stderr)
save_file("test.txt", "Hello World")

result = {
    "python": sys.version.split()[0],
    "directory": os.getcwd(),
    "user_id": os.getuid(),
    "variables": sorted(os.environ),
    "payload_type": type(payload).__name__,
    "own_file": read_file("test.txt"),
    "attempts": {
        "write to /etc": attempt(lambda: open("/etc/probe", "w")),
        "connect to the internet": attempt(lambda: socket.create_connection(("192.0.2.1", 443), timeout=2)),
        "become root": attempt(lambda: os.setuid(0)),
        "write to /tmp": attempt(lambda: open("/tmp/probe", "w")),
    },
}
