"""The server name in the first message of a TLS client, read strictly and within bounds; pure."""

from __future__ import annotations

__all__ = ["ClientHelloReader", "HelloRefused"]

MAX_HELLO_BYTES = 16 << 10
MAX_RAW_BYTES = 64 << 10  # a sender may cut the message into records of a few bytes, five bytes of header each
HANDSHAKE = 22
CLIENT_HELLO = 1
SERVER_NAME = 0
# Encrypted Client Hello and its predecessor: the name that counts would be one that we can't read.
HIDDEN_NAME = {0xFE0D, 0xFFCE}


class HelloRefused(ValueError):
    """What came is no ClientHello that names its server plainly."""


class ClientHelloReader:
    """Takes bytes as they come until the ClientHello is complete.

    Then `complete` is true and `server_name` is the name as sent, ASCII but otherwise unchecked, or None without one.
    """

    def __init__(self) -> None:
        self.complete = False
        self.server_name: str | None = None
        self._raw_bytes = 0
        self._record = bytearray()  # the header, and then the payload that has not been looked at
        self._hello = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises HelloRefused, and nothing else."""
        self._raw_bytes += len(data)
        if self._raw_bytes > MAX_RAW_BYTES:
            raise HelloRefused(f"the TLS handshake is cut into more than {MAX_RAW_BYTES} bytes")
        self._record += data
        start = 0
        while not self.complete and len(self._record) > start:
            end = self._end_of_record(start)
            if end is None:
                break
            self._hello += self._record[start + 5 : end]
            self._check_hello()
            start = end
        del self._record[:start]

    def _end_of_record(self, start: int) -> int | None:
        """Return where the record at `start` ends, None while it is not all there."""
        header = self._record[start : start + 5]
        if header[0] != HANDSHAKE or bytes(header[1:2]) not in (b"", b"\x03"):
            raise HelloRefused("this is not TLS: only TLS goes through a tunnel")
        if len(header) < 5:
            return None
        length = int.from_bytes(header[3:5], "big")
        if not 0 < length <= MAX_HELLO_BYTES:
            raise HelloRefused(f"a TLS record of {length} bytes is not part of a handshake")
        end = start + 5 + length
        return end if len(self._record) >= end else None

    def _check_hello(self) -> None:
        if self._hello[0] != CLIENT_HELLO:
            raise HelloRefused("the TLS handshake does not begin with a ClientHello")
        if len(self._hello) < 4:
            return
        length = int.from_bytes(self._hello[1:4], "big")
        if length > MAX_HELLO_BYTES:
            raise HelloRefused(f"a ClientHello of {length} bytes is larger than {MAX_HELLO_BYTES}")
        if len(self._hello) - 4 > length:
            raise HelloRefused("more than a ClientHello is in the first TLS message")
        if len(self._hello) - 4 == length:
            self.server_name = _server_name(_Fields(bytes(self._hello[4:])))
            self.complete = True


class _Fields:
    """Reads fields with a length in front, each within the one around it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) < count:
            raise HelloRefused("the ClientHello is cut short")
        self._at += count
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def inner(self, size: int) -> _Fields:
        """Return the fields inside the next one, whose length is a number of `size` bytes."""
        return _Fields(self.take(self.number(size)))

    def end(self) -> None:
        if self:
            raise HelloRefused("the ClientHello has bytes that belong to nothing")


def _server_name(hello: _Fields) -> str | None:
    hello.take(2 + 32)  # version, random
    for size in (1, 2, 1):  # session, ciphers, compression
        hello.inner(size)
    if not hello:
        return None
    extensions = hello.inner(2)
    hello.end()
    seen: set[int] = set()
    name = None
    while extensions:
        kind = extensions.number(2)
        content = extensions.inner(2)
        if kind in seen:
            raise HelloRefused("the ClientHello has one extension twice")
        seen.add(kind)
        if kind in HIDDEN_NAME:
            raise HelloRefused("the TLS handshake hides the name of its server (ECH)")
        if kind == SERVER_NAME:
            name = _only_name(content)
    return name


def _only_name(extension: _Fields) -> str:
    names = extension.inner(2)
    extension.end()
    if names.number(1) != 0:
        raise HelloRefused("the TLS server name is not a host name")
    name = names.take(names.number(2))
    names.end()
    if not name.isascii():
        raise HelloRefused("the TLS server name is not ASCII")
    return name.decode("ascii")
