"""The head and the body of a request to the egress proxy: one reading only, and everything else refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.egress.request_body import BodyRefused, ChunkedBody, SizedBody, body_of
from sandbox.egress.request_head import HeadRefused, RequestHead, parse_head

pieces = st.sampled_from(
    [
        b"GET",
        b"CONNECT",
        b" ",
        b"http://",
        b"a.test",
        b":80",
        b"/",
        b" HTTP/1.1",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"Host: a.test",
        b"Content-Length: 1",
        b"Transfer-Encoding: chunked",
        b"\t",
        b"\0",
        b"@",
        b"[",
        b"]",
        b"\xff",
        b"Connection: host",
        b":",
    ]
)
heads = st.lists(pieces, max_size=12).map(b"".join) | st.binary(max_size=80)


def head(first: str, *fields: str) -> bytes:
    return ("\r\n".join((first, *fields)) + "\r\n\r\n").encode("latin-1")


def plain(
    *fields: str, method: str = "GET", url: str = "http://a.test/x?y=1", host: str = "Host: a.test"
) -> RequestHead:
    return parse_head(head(f"{method} {url} HTTP/1.1", host, *fields))


@pytest.mark.parametrize(
    "data",
    [
        head("CONNECT a.test:443 HTTP/1.1", "Host: a.test:443"),
        head("CONNECT a.test:443 HTTP/1.1", "Host: a.test", "Proxy-Authorization: x"),
        head("CONNECT A.test:443 HTTP/1.1", "Host: a.TEST:443"),
        head("CONNECT a.test:443 HTTP/1.0"),
    ],
)
def test_the_tunnels_that_clients_ask_for_are_read(data: bytes) -> None:
    asked = parse_head(data)
    assert asked.tunnel
    assert (asked.host.lower(), asked.port) == ("a.test", 443)


def test_a_plain_request_becomes_one_in_origin_form_without_what_is_for_the_proxy() -> None:
    asked = plain(
        "Accept: */*",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic secret",
        "Connection: keep-alive, X-Mine",
        "Keep-Alive: 5",
        "X-Mine: 1",
        "TE: trailers",
        "Cookie: a=\xe9",
        method="DELETE",
        url="http://A.test:8080/x?y=1",
        host="Host: a.TEST:8080",
    )
    assert (asked.host, asked.port, asked.tunnel) == ("A.test", 8080, False)
    assert (
        asked.forwarded("a.test")
        == b"DELETE /x?y=1 HTTP/1.1\r\nHost: a.test:8080\r\nAccept: */*\r\nCookie: a=\xe9\r\nConnection: close\r\n\r\n"
    )


def test_the_length_of_a_body_is_kept() -> None:
    assert b"\r\nContent-Length: 12\r\n" in plain("Content-Length: 12", method="PUT").forwarded("a.test")
    assert b"\r\nContent-Length: 0\r\n" in plain(method="POST").forwarded("a.test")
    chunked = plain("Transfer-Encoding: Chunked", method="POST").forwarded("a.test")
    assert b"\r\nTransfer-Encoding: chunked\r\n" in chunked
    assert b"Content-Length" not in chunked


def test_an_address_without_a_path_asks_for_the_root() -> None:
    assert plain(url="http://a.test").path == "/"
    assert plain(url="http://a.test?x=1").path == "/?x=1"


def test_naming_a_length_as_hop_by_hop_does_not_remove_it() -> None:
    sent = plain("Connection: content-length, host", "Content-Length: 5", method="POST").forwarded("a.test")
    assert b"\r\nContent-Length: 5\r\n" in sent
    assert sent.count(b"\r\nHost: a.test\r\n") == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not complete"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n", "not complete"),
        (head("GET / HTTP/1.1", "Host: a.test"), "only CONNECT"),
        (head("OPTIONS * HTTP/1.1", "Host: a.test"), "only CONNECT"),
        (head("GET https://a.test/ HTTP/1.1", "Host: a.test"), "only CONNECT"),
        (head("GET ftp://a.test/ HTTP/1.1", "Host: a.test"), "only CONNECT"),
        (head("get http://a.test/ HTTP/1.1", "Host: a.test"), "request line"),
        (head("GET  http://a.test/ HTTP/1.1", "Host: a.test"), "request line"),
        (head("GET http://a.test/ x HTTP/1.1", "Host: a.test"), "request line"),
        (head("GET http://a.test/"), "request line"),
        (head("GET http://a.test/ HTTP/1.1 ", "Host: a.test"), "request line"),
        (head("GET http://a.test/\x7f HTTP/1.1", "Host: a.test"), "request line"),
        (head("GET http://a.test/ HTTP/1.0", "Host: a.test"), "HTTP/1.0 is not spoken"),
        (head("PRI * HTTP/2.0"), "HTTP/2.0 is not spoken"),
        (head("TRACE http://a.test/ HTTP/1.1", "Host: a.test"), "TRACE"),
        (head("GET http://a.test/ HTTP/1.1"), "Host header differs"),
        (head("GET http://a.test/ HTTP/1.1", "Host: b.test"), "Host header differs"),
        (head("GET http://a.test/ HTTP/1.1", "Host: a.test:81"), "Host header differs"),
        (head("GET http://a.test:81/ HTTP/1.1", "Host: a.test"), "Host header differs"),
        (head("GET http://a.test/ HTTP/1.1", "Host: a.test", "host: a.test"), "two Host"),
        (head("CONNECT a.test:443 HTTP/1.1", "Host: b.test:443"), "Host header differs"),
        (head("CONNECT a.test HTTP/1.1"), "no port"),
        (head("CONNECT a.test: HTTP/1.1"), "not a port"),
        (head("CONNECT a.test:443@evil.test HTTP/1.1"), "user name"),
        (head("CONNECT evil.test@a.test:443 HTTP/1.1"), "user name"),
        (head("CONNECT a.test:443:80 HTTP/1.1"), "not a port"),
        (head("CONNECT :443 HTTP/1.1"), "names no host"),
        (head("CONNECT http://a.test:443 HTTP/1.1"), "not a port"),
        (head("CONNECT a.test:443 HTTP/1.1", "Content-Length: 1"), "no body"),
        (head("CONNECT a.test:443 HTTP/1.1", "Transfer-Encoding: chunked"), "no body"),
        (head("GET http://x@a.test/ HTTP/1.1", "Host: a.test"), "user name"),
        (head("GET http://a.test/#f HTTP/1.1", "Host: a.test"), "fragment"),
        (head("GET http:///x HTTP/1.1", "Host: a.test"), "names no host"),
        (head("GET http://a.test/ HTTP/1.1", "Host: a.test", "Upgrade: websocket", "Connection: Upgrade"), "Upgrade"),
        (head("GET http://a.test/ HTTP/1.1", "Host: a.test", " folded"), "header line"),
        (head("GET http://a.test/ HTTP/1.1", "Host : a.test"), "header line"),
        (head("GET http://a.test/ HTTP/1.1", "Host: a.test", "X: a\nY: b"), "header line"),
        (head("GET http://a.test/ HTTP/1.1", "Host: a.test", "X: a\rY: b"), "header line"),
        (head("GET http://a.test/ HTTP/1.1", "Host: a.test", "X: a\0"), "header line"),
        (head("GET http://a.test/ HTTP/1.1", "Host: a.test", "X"), "header line"),
        (head("GET http://a.test/ HTTP/1.1", "Host: a.test", ": x"), "header line"),
    ],
)
def test_what_is_malformed_or_not_served_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(HeadRefused, match=words) as refused:
        parse_head(data)
    assert refused.value.status == {"TRACE": 405, "HTTP/1.0 is not spoken": 505, "HTTP/2.0 is not spoken": 505}.get(
        words, 400
    )


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Length: 3", "Transfer-Encoding: chunked"),
        ("Content-Length: 3", "Content-Length: 3"),
        ("Content-Length: 3, 3",),
        ("Content-Length: +3",),
        ("Content-Length: 0x3",),
        ("Content-Length: ",),
        ("Content-Length: -1",),
        ("Content-Length: 9999999999999999",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: \x0bchunked",),
        ("Transfer-Encoding : chunked",),
    ],
)
def test_two_readings_of_a_length_are_refused(fields: tuple[str, ...]) -> None:
    with pytest.raises(HeadRefused):
        plain(*fields, method="POST")


@given(heads)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        asked = parse_head(data)
    except HeadRefused:
        return
    if not asked.tunnel:
        sent = asked.forwarded("a.test")
        assert sent.count(b"\r\n\r\n") == 1
        assert sent.lower().count(b"\r\nhost:") == 1
        assert sent.endswith(b"\r\nConnection: close\r\n\r\n")


def test_a_sized_body_ends_at_its_length() -> None:
    body = SizedBody(5)
    assert (body.take(b"abc"), body.complete) == (3, False)
    assert (body.take(b"deGET http"), body.complete) == (2, True)
    assert body_of(0).complete


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_a_chunked_body_ends_at_its_last_chunk_however_it_is_cut(step: int) -> None:
    framed = b"3\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\n"
    data = framed + b"GET http://evil.test/ HTTP/1.1\r\n\r\n"
    body, taken = ChunkedBody(), 0
    while not body.complete:
        taken += body.take(data[taken : taken + step])
    assert data[:taken] == framed


@pytest.mark.parametrize(
    "data",
    [
        b"3\r\nabcX\r\n",
        b"3\nabc\r\n",
        b"\r\n",
        b"-1\r\n",
        b"0x3\r\nabc",
        b"3;ext=1\r\nabc\r\n",
        b"3 \r\nabc\r\n",
        b"g\r\n",
        b"0\r\nTrailer: x\r\n\r\n",
        b"1234567890123456\r\n",
        b"3\r\r\nabc",
        b"3\rX",
        b"+3\r\nabc\r\n",
        b"3" * 100,
    ],
)
def test_chunks_that_could_be_read_in_two_ways_are_refused(data: bytes) -> None:
    for step in (1, len(data)):
        body = ChunkedBody()
        with pytest.raises(BodyRefused):  # noqa: PT012 - cut in several places
            taken = 0
            while taken < len(data):
                taken += body.take(data[taken : taken + step])


@given(
    st.lists(st.sampled_from([b"1", b"a", b"0", b"\r\n", b"\r", b"\n", b";", b" ", b"xyz"]), max_size=20),
    st.integers(1, 9),
)
def test_any_chunks_are_taken_or_refused_alike_however_they_are_cut(parts: list[bytes], step: int) -> None:
    data = b"".join(parts)

    def taken(size: int) -> tuple[int, bool] | None:
        body, used = ChunkedBody(), 0
        try:
            while used < len(data) and not body.complete:
                used += body.take(data[used : used + size])
        except BodyRefused:
            return None
        return used, body.complete

    assert taken(step) == taken(max(1, len(data)))
