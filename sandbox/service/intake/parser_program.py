"""The program that takes large and hard bodies apart, in a process of its own beside the service: `Parser` starts it.

It has its body as a file in memory and answers on the socket that is its standard input; large parts of the answer
stand in that file, behind the body. It bounds itself: its memory for each body by the body's size, its processor time
for each body by `CPU_S`.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
import socket
import struct
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from sandbox.errors import Internal, SandboxError
from sandbox.service.allocator import give_back
from sandbox.service.intake.asked import Asked, Taken, UnknownPolicy, check_asked, environment_asked, run_asked
from sandbox.service.intake.bodies import Written

CPU_S = 5
# A text may be held once as it came, once decoded, and once more as bytes; objects of short fields come on top.
MEMORY_TIMES = 4
MEMORY_BYTES = 128 << 20
LENGTH = struct.Struct("!I")
READY = b"."
OWN_PRIORITY = 10
KINDS: dict[str, Callable[[Written, Mapping[str, int]], Taken]] = {
    "run": run_asked,
    "check": check_asked,
    "environment": environment_asked,
}


class Order(msgspec.Struct, frozen=True):
    """What is to be taken apart: a body of `size_bytes` of one of `KINDS`; `code_kib` as for `run_asked`."""

    kind: str
    size_bytes: int
    code_kib: dict[str, int]


class Understood(msgspec.Struct, frozen=True, tag=True):
    """What it asks for; its large parts have so many bytes, and stand in the file behind the body."""

    asked: Asked
    sizes: list[int]


class Unknown(msgspec.Struct, frozen=True, tag=True):
    """It names a policy that the caller may not use."""

    policy: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """What is wrong with it, as an error's code and words."""

    code: str
    message: str
    hint: str


class Ended(Exception):
    """Nobody is at the other end any more."""


def main() -> None:
    """Take one body after the other apart, until the service ends."""
    os.nice(OWN_PRIORITY)  # whoever waits for the service's event loop comes first
    give_back()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    with socket.socket(fileno=0) as channel:
        channel.sendall(READY)
        while True:
            try:
                order, file = received_order(channel)
            except Ended:
                return
            try:
                bound(own_bytes + MEMORY_BYTES + MEMORY_TIMES * order.size_bytes)
                answer, parts = answer_to(order, file)
                end = order.size_bytes
                for part in parts:
                    end += put(file, part, end)
            finally:
                os.close(file)
            del parts  # which is what keeps the body
            send(channel, msgspec.msgpack.encode(answer))
            del answer  # the next body's memory would be less by that


def bound(memory_bytes: int) -> None:
    """Let this process have so much memory, and `CPU_S` more of processor time."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard), hard)
    )
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard == resource.RLIM_INFINITY else min(seconds, hard), hard))


def answer_to(order: Order, file: int) -> tuple[Understood | Unknown | Refused, list[memoryview]]:
    """Return what a body asks for, and the large parts of that."""
    body = memoryview(mmap.mmap(file, order.size_bytes, prot=mmap.PROT_READ))
    try:
        asked, large = KINDS[order.kind](body, order.code_kib)
    except UnknownPolicy as error:
        return Unknown(error.name), []
    except SandboxError as error:
        return Refused(error.code, error.message, error.hint), []
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - told to whoever asked, in words of ours: what the error says may be the caller's text
        place = traceback.extract_tb(error.__traceback__)[-1]
        defect = f"the service has a defect: {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
        return Refused(Internal.code, defect, "report this, if you can with what was sent"), []
    parts = [memoryview(part) for part in large]
    return Understood(asked, list(map(len, parts))), parts


def put(file: int, part: memoryview, place: int) -> int:
    """Write a part into the file, and return its size."""
    done = 0
    while done < len(part):
        done += os.pwrite(file, part[done:], place + done)
    return done


# ---- what passes between the two: a length, and so many bytes of msgpack; with an order, the body's file


def send(channel: socket.socket, message: bytes) -> None:
    """Send a message."""
    channel.sendall(LENGTH.pack(len(message)) + message)


def send_order(channel: socket.socket, order: Order, file: int) -> None:
    """Send an order with its file."""
    message = msgspec.msgpack.encode(order)
    socket.send_fds(channel, [LENGTH.pack(len(message))], [file])
    channel.sendall(message)


def received(channel: socket.socket) -> bytes:
    """Return the next message. Raises `Ended`."""
    (size,) = LENGTH.unpack(exactly(channel, LENGTH.size))
    return exactly(channel, size)


def received_order(channel: socket.socket) -> tuple[Order, int]:
    """Return the next order, and the descriptor of its file. Raises `Ended`."""
    head, files, _, _ = socket.recv_fds(channel, LENGTH.size, 1)
    if not files:
        raise Ended
    (size,) = LENGTH.unpack(head + exactly(channel, LENGTH.size - len(head)))
    return msgspec.msgpack.decode(exactly(channel, size), type=Order), files[0]


def exactly(channel: socket.socket, size: int) -> bytes:
    """Return so many bytes. Raises `Ended`."""
    parts = []
    while size:
        part = channel.recv(min(size, 1 << 16))
        if not part:
            raise Ended
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
