"""Makes a network of its own, whose only way in is a proxy; `tests.integration.company_network` starts it.

It runs as process 1 of fresh user, pid, mount and network namespaces. A socket belongs to the network in which it was
made, whoever holds it: the one that it is given accepts what comes from outside, and those that it makes are handed to
the tests, which serve on them.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

PROXY_PORT = 8888


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, until it ends."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


async def to_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one connection to the proxy and back."""
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", PROXY_PORT)
    await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))
    inner_writer.close()
    writer.close()


def reachable() -> bool:
    """Tell whether the proxy listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PROXY_PORT)) == 0


async def serve(
    proxy: subprocess.Popen[bytes], outside: socket.socket, control: socket.socket, sockets: list[socket.socket]
) -> None:
    """Serve for ever, once the proxy listens."""
    while not reachable():
        if proxy.poll() is not None:
            sys.exit("the proxy ended at once")
        await asyncio.sleep(0.01)
    await asyncio.start_server(to_proxy, sock=outside)
    socket.send_fds(control, [b"ready"], [made.fileno() for made in sockets])
    await asyncio.Event().wait()


def main() -> None:
    """Make the network that standard input describes."""
    job = json.load(sys.stdin)
    place = Path(job["place"])
    commands = [["ip", "link", "set", "lo", "up"]]
    commands += [["ip", "address", "add", f"{address}/32", "dev", "lo"] for address in set(job["hosts"].values())]
    (place / "hosts").write_text("".join(f"{address} {name}\n" for name, address in job["hosts"].items()))
    commands.append(["mount", "--bind", str(place / "hosts"), "/etc/hosts"])
    for command in commands:
        subprocess.run(command, check=True)
    sockets = [socket.create_server((host, port), backlog=128) for host, port in job["listen"]]
    others = [
        started(command) for command in (["tinyproxy", "-d", "-c", str(place / "tinyproxy.conf")], *job["commands"])
    ]
    outside, control = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    asyncio.run(serve(others[0], outside, control, sockets))


def started(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a program; what it complains about is seen where the tests' output is."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
