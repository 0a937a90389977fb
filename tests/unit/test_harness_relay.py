"""The relay inside the sandbox: bytes go through unchanged, both ways, and nothing hangs when an end goes away."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.inside.harness.relay import MAX_RELAYED, Relay
from tests.unit.test_harness_driver import run

Answer = Callable[[socket.socket], None]
LARGE_BYTES = 24 << 20


class Far:
    """The Unix socket at the far end, and the loopback port of the relay that leads to it."""

    def __init__(self, place: Path) -> None:
        self.path = str(place / "out.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(128)
        self.port = 0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def serve(self, answer: Answer, count: int = 1) -> threading.Thread:
        """Answer `count` connections, each in a thread of its own."""

        def accept() -> None:
            for _ in range(count):
                connection, _ = self.listener.accept()
                connection.settimeout(20)
                threading.Thread(target=answered, args=(connection,), daemon=True).start()

        def answered(connection: socket.socket) -> None:
            with connection:
                answer(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def far() -> Iterator[Far]:
    with tempfile.TemporaryDirectory(prefix="r-") as directory:
        place = Far(Path(directory))
        near = socket.socket()
        near.bind(("127.0.0.1", 0))
        near.listen(128)
        place.port = near.getsockname()[1]

        def relayed() -> None:
            place.listener.close()  # it is the far end's, and this is a copy
            Relay(near, place.path).serve()

        relay = multiprocessing.get_context("fork").Process(target=relayed, daemon=True)
        relay.start()
        near.close()
        try:
            yield place
        finally:
            relay.kill()
            relay.join()
            place.listener.close()


def everything(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        return stream.read()


def test_bytes_go_there_and_back(far: Far) -> None:
    far.serve(lambda connection: connection.sendall(connection.recv(100).upper()))
    with far.connect() as near:
        near.sendall(b"hello")
        assert everything(near) == b"HELLO"


def test_the_end_of_one_direction_is_passed_on_and_the_other_stays_open(far: Far) -> None:
    far.serve(lambda connection: connection.sendall(b"got " + everything(connection)))
    with far.connect() as near:
        near.sendall(b"all of it")
        near.shutdown(socket.SHUT_WR)
        assert everything(near) == b"got all of it"


def test_much_more_than_any_buffer_arrives_whole_at_a_reader_that_is_slow_to_start(far: Far) -> None:
    content = os.urandom(1 << 20) * (LARGE_BYTES >> 20)
    far.serve(lambda connection: connection.sendall(content))
    with far.connect() as near:
        first = near.recv(1)  # what was sent meanwhile waits in buffers, and the far end has closed when it is read
        assert hashlib.sha256(first + everything(near)).digest() == hashlib.sha256(content).digest()


def test_much_arrives_whole_in_both_directions_at_once(far: Far) -> None:
    def echo(connection: socket.socket) -> None:
        while block := connection.recv(65_536):
            connection.sendall(block)

    far.serve(echo)
    content = os.urandom(1 << 20) * 8
    with far.connect() as near:

        def send() -> None:
            near.sendall(content)
            near.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert everything(near) == content
        sender.join()


def test_more_connections_than_fit_at_once_are_served_one_after_the_other(far: Far) -> None:
    count = MAX_RELAYED + 10
    far.serve(lambda connection: connection.sendall(connection.recv(10)), count)
    open_ones = [far.connect() for _ in range(count)]
    for number, near in enumerate(open_ones):
        near.sendall(b"%03d" % number)
        assert everything(near) == b"%03d" % number
        near.close()


def test_a_far_end_that_is_gone_closes_the_near_end_and_the_relay_goes_on(far: Far) -> None:
    far.listener.close()
    with far.connect() as near:
        assert everything(near) == b""
    with far.connect() as near:
        assert everything(near) == b""


def test_a_near_end_that_breaks_off_is_noticed_at_the_far_end(far: Far) -> None:
    noticed = threading.Event()

    def wait(connection: socket.socket) -> None:
        connection.sendall(b"x")
        if not everything(connection):
            noticed.set()

    far.serve(wait)
    near = far.connect()
    near.recv(1)
    near.close()
    assert noticed.wait(20)


def test_a_program_reaches_the_socket_through_its_loopback_port_and_the_relay_ends_with_it() -> None:
    with tempfile.TemporaryDirectory(prefix="r-") as directory, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        far = Far(Path(directory))
        far.serve(lambda connection: connection.sendall(connection.recv(100)[::-1]))
        done = run(
            f"""
            import socket
            with socket.create_connection(("127.0.0.1", {port})) as connection:
                connection.sendall(b"olleh")
                result = connection.recv(100).decode()
            """,
            relay={"port": port, "target": far.path},
        )
        far.listener.close()
    assert done.result == "hello"
    assert done.ended == "exited"


def test_without_a_way_out_nothing_listens() -> None:
    done = run("""
        import socket
        with socket.socket() as probe:
            result = probe.connect_ex(("127.0.0.1", 3128)) != 0
    """)
    assert done.result is True
