"""A company's network on this machine: its servers are reached through its HTTP proxy (tinyproxy) and not otherwise.

Names and addresses of its servers are known to the proxy alone. Nothing leaves this machine.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.behind_proxy import PROXY_PORT

BEHIND = Path(__file__).with_name("behind_proxy.py")
# Of the documentation ranges (RFC 5737), which the egress proxy takes for public ones.
ADDRESS = "203.0.113.5"
NAME = "packages.company.invalid"


@dataclass(kw_only=True)
class CompanyNetwork:
    """`proxy` is where the proxy listens on this host's loopback, `sockets` what the servers of the tests accept on."""

    port: int
    place: Path
    login: str
    sockets: Sequence[socket.socket] = field(default=(), repr=False)

    @property
    def proxy(self) -> str:
        """Return the proxy's address, without the login."""
        return f"http://127.0.0.1:{self.port}"

    def asked(self) -> list[str]:
        """Return the request lines that came to the proxy: "CONNECT packages.company.invalid:443"."""
        lines = (self.place / "tinyproxy.log").read_text().splitlines()
        return [line.partition("): ")[2].partition(" HTTP/")[0] for line in lines if "Request (" in line]


@contextmanager
def company_network(
    place: Path,
    *,
    hosts: Mapping[str, str],
    listen: Sequence[tuple[str, int]] = (),
    login: str = "",
    refuses: str = "",
    commands: Sequence[Sequence[str]] = (),
) -> Iterator[CompanyNetwork]:
    """Start one. `hosts` are its names, `listen` what the tests serve on, `commands` other servers in it.

    The proxy wants `login` ("user:password"), and refuses names that match `refuses`, an extended regular expression.
    """
    assert shutil.which("tinyproxy"), "tinyproxy is missing: scripts/setup --dev installs it"
    (place / "refused").write_text(f"{refuses}\n" if refuses else "")
    user, _, password = login.partition(":")
    lines = [
        f"Port {PROXY_PORT}",
        "Listen 127.0.0.1",
        f'LogFile "{place}/tinyproxy.log"',
        "LogLevel Info",
        "MaxClients 100",
        *([f"BasicAuth {user} {password}"] if login else []),
        *([f'Filter "{place}/refused"', "FilterExtended On"] if refuses else []),
    ]
    (place / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
    with ExitStack() as held:
        outside = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        ours, theirs = map(held.enter_context, socket.socketpair())
        job = {"place": str(place), "hosts": dict(hosts), "listen": list(listen), "commands": list(map(list, commands))}
        process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child",
             sys.executable, BEHIND, str(outside.fileno()), str(theirs.fileno())],
            pass_fds=(outside.fileno(), theirs.fileno()), stdin=subprocess.PIPE, cwd=BEHIND.parents[2],
        )  # fmt: skip # a command line
        held.callback(process.wait)
        held.callback(process.kill)
        assert process.stdin is not None
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
        theirs.close()
        ours.settimeout(30)
        said, files, _, _ = socket.recv_fds(ours, 16, len(listen))
        assert said == b"ready", "the network could not be made, see above"
        sockets = [held.enter_context(socket.socket(fileno=number)) for number in files]
        yield CompanyNetwork(port=outside.getsockname()[1], place=place, login=login, sockets=sockets)
