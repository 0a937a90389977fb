"""The server name in a TLS ClientHello: real ones are read however they are cut, everything else is refused."""

from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.egress.client_hello import MAX_HELLO_BYTES, MAX_RAW_BYTES, ClientHelloReader, HelloRefused


def real_hello(name: str | None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def vector(size: int, content: bytes) -> bytes:
    return len(content).to_bytes(size, "big") + content


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">H", kind) + vector(2, content)


def sni(name: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, bytes([kind]) + vector(2, name)))


def message(*extensions: bytes, padding: int = 0) -> bytes:
    """Return a ClientHello as a handshake message, without records."""
    parts = [b"\x03\x03" + bytes(32), vector(1, b""), vector(2, b"\x13\x01"), vector(1, b"\0")]
    parts.append(vector(2, b"".join(extensions) + (extension(21, bytes(padding)) if padding else b"")))
    return b"\x01" + vector(3, b"".join(parts))


def records(content: bytes, size: int = MAX_HELLO_BYTES) -> bytes:
    cut = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"\x16\x03\x01" + vector(2, part) for part in cut)


def read(data: bytes, step: int = 0) -> ClientHelloReader:
    reader = ClientHelloReader()
    for start in range(0, len(data), step or max(1, len(data))):
        reader.feed(data[start : start + (step or len(data))])
    return reader


def test_a_real_hello_names_its_server() -> None:
    assert read(real_hello("api.example.com")).server_name == "api.example.com"


def test_a_real_hello_without_a_name_has_none() -> None:
    reader = read(real_hello(None))
    assert reader.complete
    assert reader.server_name is None


def test_a_hello_without_extensions_has_no_name() -> None:
    bare = b"\x03\x03" + bytes(32) + vector(1, b"") + vector(2, b"\x13\x01") + vector(1, b"\0")
    assert read(records(b"\x01" + vector(3, bare))).server_name is None


@pytest.mark.parametrize("record", [1, 2, 5, 100])
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_hello_is_read_over_many_records_and_segments(record: int, step: int) -> None:
    assert read(records(real_hello("api.example.com")[5:], record), step).server_name == "api.example.com"


def test_nothing_is_believed_before_the_hello_is_complete() -> None:
    reader = read(real_hello("api.example.com")[:-1])
    assert not reader.complete
    assert reader.server_name is None


def test_what_follows_in_records_of_its_own_is_not_looked_at() -> None:
    assert read(real_hello("a.test") + b"\x17\x03\x03\x00\x05early").server_name == "a.test"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not TLS"),
        (b"\x80\x2e\x01\x00\x02", "not TLS"),
        (b"\x16\x02\x00\x00\x05", "not TLS"),
        (b"\x17\x03\x03\x00\x01a", "not TLS"),
        (b"\x16\x03\x01\x00\x00", "record of 0 bytes"),
        (b"\x16\x03\x01\x40\x01", "record of 16385 bytes"),
        (records(b"\x02\x00\x00\x01a"), "does not begin with a ClientHello"),
        (records(b"\x01\x00\x40\x01"), "larger than"),
        (records(b"\x01\xff\xff\xff"), "larger than"),
        (records(message(sni(b"a.test")) + b"\x01"), "more than a ClientHello"),
        (records(b"\x01" + vector(3, b"\x03\x03")), "cut short"),
        (records(message(sni(b"a.test"), sni(b"b.test"))), "twice"),
        (
            records(message(extension(0, vector(2, b"\0" + vector(2, b"a") + b"\0" + vector(2, b"b"))))),
            "belong to nothing",
        ),
        (records(message(extension(0, vector(2, b"\0" + vector(2, b"a")) + b"x"))), "belong to nothing"),
        (records(message(extension(0, b""))), "cut short"),
        (records(message(sni(b"a.test", kind=1))), "not a host name"),
        (records(message(sni("é.test".encode()))), "not ASCII"),
        (records(message(sni(b"a.test"), extension(0xFE0D, b"x"))), "hides the name"),
        (records(message(extension(0xFE0D, b"x"))), "hides the name"),
        (records(message(sni(b"a.test"), extension(0xFFCE, b"x"))), "hides the name"),
    ],
)
def test_what_names_no_server_plainly_is_refused_in_words(data: bytes, words: str) -> None:
    for step in (0, 1):
        with pytest.raises(HelloRefused, match=words):
            read(data, step)


def test_a_hello_may_be_large_but_not_too_large() -> None:
    assert read(records(message(sni(b"a.test"), padding=15_000))).server_name == "a.test"
    with pytest.raises(HelloRefused, match="larger than"):
        read(records(message(sni(b"a.test"), padding=17_000)))


def test_a_hello_may_be_in_crumbs_but_not_in_too_many() -> None:
    crumbs = records(message(sni(b"a.test"), padding=15_000), 1)
    assert len(crumbs) > MAX_RAW_BYTES
    with pytest.raises(HelloRefused, match="is cut into more than"):
        read(crumbs, 1000)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_read_or_refused(data: bytes, step: int) -> None:
    for prefix in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03"):
        try:
            reader = read(prefix + data, step)
        except HelloRefused:
            continue
        assert reader.complete or reader.server_name is None


@given(st.integers(0, 600), st.binary(min_size=1, max_size=4))
def test_a_damaged_hello_is_read_or_refused(at: int, damage: bytes) -> None:
    data = bytearray(records(message(sni(b"api.example.com"), padding=300)))
    data[at : at + len(damage)] = damage
    try:
        name = read(bytes(data)).server_name
    except HelloRefused:
        return
    assert name is None or name.isascii()
