"""Boundary: nothing outside the sandbox can be reached, by any family of sockets."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.escape.attacks import needs_known_architecture, needs_x86_64, program
from tests.escape.bench import HOST_NETWORK, UNCONFINED, Bench, WeakResult, extra_mount

# Families that the profile leaves out. The kernel never answers socket() with ENOSYS, so ENOSYS is the filter's.
DENIED_FAMILIES = {
    "AF_VSOCK": 40, "AF_NETLINK": 16, "AF_ALG": 38, "AF_PACKET": 17, "AF_KEY": 15, "AF_BLUETOOTH": 31, "AF_CAN": 29,
    "AF_TIPC": 30, "AF_RXRPC": 33, "AF_XDP": 44, "AF_QIPCRTR": 42, "AF_RDS": 21, "AF_SMC": 43,
}  # fmt: skip # a table

PROBE = program("""
def reach(family, kind, address):
    with socket.socket(family, kind) as end:
        end.settimeout(1)
        if kind == socket.SOCK_DGRAM:
            end.sendto(b"x", address)
        else:
            end.connect(address)

def resolved():
    socket.getaddrinfo("example.com", 80)

INET, INET6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
seen = {
    "ipv4": attempt(reach, INET, STREAM, ("192.0.2.1", 80)),
    "ipv6": attempt(reach, INET6, STREAM, ("2001:db8::1", 80)),
    "udp": attempt(reach, INET, DGRAM, ("192.0.2.1", 53)),
    "udp6": attempt(reach, INET6, DGRAM, ("2001:db8::1", 53)),
    "broadcast": attempt(reach, INET, DGRAM, ("224.0.0.251", 5353)),
    "metadata": attempt(reach, INET, STREAM, ("169.254.169.254", 80)),
    "dns": attempt(resolved),
    "host loopback": attempt(reach, INET, STREAM, ("127.0.0.1", payload["port"])),
    "host loopback, IPv4 in IPv6": attempt(reach, INET6, STREAM, ("::ffff:127.0.0.1", payload["port"])),
    "abstract": attempt(reach, UNIX, STREAM, payload["abstract"]),
    "pathname": attempt(reach, UNIX, STREAM, payload["pathname"]),
    "interfaces": [line.partition(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]],
    "routes": len(open("/proc/net/route").read().splitlines()) - 1,
    "hosts": open("/etc/hosts").read() if os.path.exists("/etc/hosts") else "",
    "sockets of engines": [path for path in payload["engines"] if os.path.exists(path)],
    "job channel": attempt(reach, UNIX, STREAM, "/run/sandbox/job/job.sock"),
}
for name, family in payload["families"].items():
    for kind in (1, 2, 3, 5):
        seen[f"{name} {kind}"] = call("socket", family, kind, 0)
        seen[f"{name} {kind} high"] = call("socket", family | 1 << 32, kind, 0)
for name, arguments in {
    "raw": (2, 3, 1), "raw6": (10, 3, 58), "icmp": (2, 2, 1), "sctp": (2, 1, 132), "packet type": (2, 10, 0),
    "high family": (2 | 1 << 32, 1, 0), "high type": (2, 3 | 1 << 32, 255), "high protocol": (2, 3, 1 | 1 << 32),
}.items():
    seen[name] = call("socket", *arguments)
result = seen
""")

SANDBOXED = {
    "ipv4": "ENETUNREACH", "ipv6": {"ENETUNREACH", "EADDRNOTAVAIL"}, "udp": "ENETUNREACH",
    "udp6": {"ENETUNREACH", "EADDRNOTAVAIL"}, "broadcast": "ENETUNREACH", "metadata": "ENETUNREACH",
    "dns": "gaierror", "host loopback": "ECONNREFUSED",
    "host loopback, IPv4 in IPv6": "ECONNREFUSED", "abstract": "ECONNREFUSED", "pathname": "ENOENT",
    "interfaces": ["lo"], "routes": 0, "sockets of engines": [], "job channel": "ENOENT",
}  # fmt: skip # a table


@dataclass
class Listeners:
    """Sockets of the host that the test opened, and how many connections each took."""

    payload: dict[str, Any]
    directory: Path
    taken: list[str]


@pytest.fixture(scope="module")
def listeners() -> Iterator[Listeners]:
    directory = Path(tempfile.mkdtemp(prefix="socket-", dir="/tmp"))
    directory.chmod(0o755)
    abstract = f"\0sandbox-test-{os.getpid()}"
    servers: dict[str, tuple[socket.socket, Any]] = {
        "loopback": (socket.socket(socket.AF_INET), ("127.0.0.1", 0)),
        "abstract": (socket.socket(socket.AF_UNIX), abstract),
        "pathname": (socket.socket(socket.AF_UNIX), str(directory / "host.sock")),
    }
    taken: list[str] = []

    def serve(name: str, server: socket.socket) -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return
            taken.append(name)

    threads = []
    for name, (server, address) in servers.items():
        server.bind(address)
        server.listen(8)
        threads.append(threading.Thread(target=serve, args=(name, server), daemon=True))
        threads[-1].start()
    (directory / "host.sock").chmod(0o777)
    engines = [
        "/run/podman/podman.sock",
        "/var/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/dbus/system_bus_socket",
        f"/run/user/{os.getuid()}",
    ]
    payload = {
        "port": servers["loopback"][0].getsockname()[1],
        "abstract": abstract,
        "pathname": str(directory / "host.sock"),
        "engines": engines,
        "families": DENIED_FAMILIES,
    }
    yield Listeners(payload, directory, taken)
    for server, _ in servers.values():
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    for thread in threads:
        thread.join(5)
    (directory / "host.sock").unlink()
    directory.rmdir()


@pytest.fixture(scope="module")
def seen(bench: Bench, listeners: Listeners) -> dict[str, Any]:
    found: dict[str, Any] = bench.value(PROBE, payload=listeners.payload)
    assert listeners.taken == [], "a connection left the sandbox"
    return found


@pytest.fixture(scope="module")
def unconfined(bench: Bench, listeners: Listeners) -> WeakResult:
    return bench.run_weakened(PROBE, UNCONFINED, payload=listeners.payload)


@pytest.mark.parametrize("name", SANDBOXED)
def test_nothing_outside_answers(seen: dict[str, Any], name: str) -> None:
    expected = SANDBOXED[name]
    assert seen[name] in expected if isinstance(expected, set) else seen[name] == expected


def test_no_name_of_the_host_is_in_etc_hosts(seen: dict[str, Any]) -> None:
    assert socket.gethostname() not in seen["hosts"].split()


@pytest.mark.host_only
@pytest.mark.control
def test_with_the_host_s_network_the_same_attack_reaches_the_host(bench: Bench, listeners: Listeners) -> None:
    roomy = bench.policy_with(limits__memory_mib=4096)  # the sockets of the whole host count as its own
    weak = bench.run_weakened(PROBE, HOST_NETWORK, payload=listeners.payload, policy=roomy)
    reached = weak.value
    assert reached["host loopback"] == reached["abstract"] == "ok"
    assert {"loopback", "abstract"} <= set(listeners.taken)
    listeners.taken.clear()
    assert {"namespaces", "no network"} <= weak.noticed


@pytest.mark.host_only
@pytest.mark.control
def test_with_the_host_s_directory_mounted_the_same_attack_reaches_its_socket(
    bench: Bench, listeners: Listeners
) -> None:
    # Even read-only: a mount flag does not stop a connection, only its absence does.
    weaken = extra_mount(listeners.directory, "/mnt", "ro")
    weak = bench.run_weakened(PROBE, weaken, payload={**listeners.payload, "pathname": "/mnt/host.sock"})
    assert weak.value["pathname"] == "ok"
    assert "pathname" in listeners.taken
    listeners.taken.clear()
    assert "mounts" in weak.noticed


@needs_known_architecture
@pytest.mark.parametrize("family", DENIED_FAMILIES)
def test_other_address_families_are_refused_by_the_filter(seen: dict[str, Any], family: str) -> None:
    assert {answer for name, answer in seen.items() if name.split(" ")[0] == family} == {"ENOSYS"}


@needs_known_architecture
@pytest.mark.parametrize(
    "name", ["raw", "raw6", "icmp", "sctp", "packet type", "high family", "high type", "high protocol"]
)
def test_other_kinds_of_internet_sockets_are_refused_by_the_filter(seen: dict[str, Any], name: str) -> None:
    assert seen[name] == "ENOSYS"


@needs_known_architecture
@pytest.mark.host_only
@pytest.mark.control
def test_without_the_filter_the_kernel_answers_instead(unconfined: WeakResult) -> None:
    answers = {name: answer for name, answer in unconfined.value.items() if name.startswith("AF_")}
    assert "ENOSYS" not in answers.values()
    assert answers["AF_NETLINK 2"] == answers["AF_NETLINK 2 high"] == "ok"
    assert unconfined.value["raw"] == "EPERM"
    assert unconfined.noticed == {"seccomp"}


INT_80 = program("""
def through_the_32_bit_gate(number, *arguments):
    "socket(family, type, 0) by int 0x80, from a page of machine code; answers like the kernel: -errno or a value."
    ebx, ecx, edx = arguments
    code = (b"\\x53" + b"\\xb8" + struct.pack("<i", number) + b"\\xbb" + struct.pack("<i", ebx)
            + b"\\xb9" + struct.pack("<i", ecx) + b"\\xba" + struct.pack("<i", edx) + b"\\xcd\\x80\\x5b\\xc3")
    page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()

result = {
    # 359 is socket and 20 getpid in the 32-bit table; 0x40000000 selects the x32 table.
    "int80 getpid": in_child(lambda: through_the_32_bit_gate(20, 0, 0, 0)),
    "int80 vsock": in_child(lambda: through_the_32_bit_gate(359, 40, 1, 0)),
    "int80 netlink": in_child(lambda: through_the_32_bit_gate(359, 16, 3, 0)),
    "x32 socket": in_child(lambda: name_of(*raw(0x40000000 | 41, 40, 1, 0))),
    "x32 getpid": in_child(lambda: name_of(*raw(0x40000000 | 39))),
}
""")


@needs_x86_64
def test_calls_through_other_tables_kill_the_caller(bench: Bench) -> None:
    assert set(bench.value(INT_80).values()) == {"SIGSYS"}


@needs_x86_64
@pytest.mark.host_only
@pytest.mark.control
def test_without_the_filter_the_32_bit_gate_opens_sockets(bench: Bench) -> None:
    weak = bench.run_weakened(INT_80, UNCONFINED)
    if int(weak.value["int80 getpid"]) == -38:
        pytest.skip("this kernel has no 32-bit calls")
    assert int(weak.value["int80 netlink"]) >= 0
    assert weak.noticed == {"seccomp"}


@needs_x86_64
def test_a_program_that_uses_another_table_itself_ends_as_killed(bench: Bench) -> None:
    ended = bench.run(INT_80 + "\nthrough_the_32_bit_gate(20, 0, 0, 0)")
    assert (ended.outcome.value, ended.signal) == ("killed", "SIGSYS")
    assert "SIGSYS" in ended.explanation


def test_sockets_inside_the_sandbox_work(bench: Bench) -> None:
    program_text = """
        import socket
        found = []
        for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, "/tmp/own.sock")):
            with socket.socket(family) as server, socket.socket(family) as client:
                server.bind(address)
                server.listen()
                client.connect(server.getsockname())
                with server.accept()[0] as end:
                    client.send(b"hello")
                    found.append(end.recv(10).decode())
        result = found
    """
    assert bench.value(program_text) == ["hello", "hello"]
