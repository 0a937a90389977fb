"""Rules of the egress proxy: what is a rule, and that nothing is allowed which is not literally one."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.egress.rules import Allowlist, Rule, canonical_host, literal_address, parse_rule, shown

LIST = Allowlist(tuple(parse_rule(text) for text in ("api.example.com:443", "192.168.1.20:8080", "[fd00::20]:443")))
# Every one is 127.0.0.1, 169.254.169.254 or ::1 to some resolver.
SPELLINGS = [
    "127.0.0.1",
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "0",
    "0x",
    "127.0.0.1.",
    "127.000.000.001",
    "1.2.3.0x4",
    "169.254.169.254",
    "[::1]",
    "::1",
    "[::ffff:127.0.0.1]",
    "::ffff:7f00:1",
    "[fe80::1%eth0]",
    "[fe80::1%25eth0]",
    "[0:0:0:0:0:0:0:1]",
    "[::127.0.0.1]",
    "[1270.0.0.1]",
    "1.2.3.4.5",
]
NO_NAMES = [
    "",
    ".",
    "api.example.com.",
    ".api.example.com",
    "api..example.com",
    "api.example.com\0",
    "api.example.com\0.evil.test",
    "api.example.com ",
    " api.example.com",
    "api.example.com\n",
    "api\t.example.com",
    "api.example.com%00",
    "a@api.example.com",
    "api.example.com\\@evil.test",
    "[api.example.com]",
    "api.example.com/",
    "api.example.com#",
    "api.example.com?",
    "-a.test",
    "a-.test",
    "api_x.example.com",
    "*.example.com",
    "a" * 64 + ".test",
    "a." * 127 + "test",
    "\uff41pi.example.com",
    "bücher.example",
    "api\u3002example\u3002com",
    "api.example.com:443",
]

hosts = st.text(alphabet=string.ascii_letters + string.digits + ".-:[]%@\\/_ \0\n\r*xX0", max_size=40)


@pytest.mark.parametrize("text", ["api.example.com:443", "a:1", "xn--bcher-kva.example:65535", "3com.example:80"])
def test_a_rule_is_a_host_and_a_port(text: str) -> None:
    assert str(parse_rule(text)) == text


def test_a_rule_is_kept_in_lower_case() -> None:
    assert parse_rule("API.Example.COM:443") == Rule("api.example.com", 443)


@pytest.mark.parametrize("text", ["192.168.1.20:8080", "[fd00::20]:443", "127.0.0.1:9"])
def test_an_address_in_its_canonical_spelling_can_be_a_rule(text: str) -> None:
    assert str(parse_rule(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("api.example.com", "has no port"),
        ("", "has no port"),
        ("https://api.example.com", "is a URL"),
        ("https://api.example.com:443", "is a URL"),
        ("*.example.com:443", "wildcard"),
        ("*:443", "wildcard"),
        ("api.example.com:0", "not a port"),
        ("api.example.com:65536", "not a port"),
        ("api.example.com:0443", "not a port"),
        ("api.example.com:٤٤٣", "not a port"),
        ("api.example.com:+443", "not a port"),
        ("api.example.com:443/path", "not a port"),
        (":443", "host is empty"),
        ("bücher.example:443", "punycode"),
        ("api.example.com.:443", "ends with a dot"),
        ("fd00::20:443", "has no port"),
        ("[FD00::20]:443", r"another spelling: write \[fd00::20\]:443"),
        ("[::ffff:10.0.0.1]:443", "another spelling: write 10.0.0.1:443"),
        ("[10.0.0.1]:443", "another spelling: write 10.0.0.1:443"),
        ("[fe80::1%1]:443", "IP address"),
        ("0x7f.1:443", "IP address"),
        ("127.1:443", "IP address"),
    ],
)
def test_what_is_no_rule_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_rule(text)


@pytest.mark.parametrize("text", NO_NAMES)
def test_what_is_not_plainly_a_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        canonical_host(text)


@pytest.mark.parametrize("text", SPELLINGS)
def test_addresses_are_refused_in_every_spelling(text: str) -> None:
    with pytest.raises(ValueError, match=r"IP address|ends with a dot|not a host name"):
        canonical_host(text)
    assert not Allowlist((Rule("api.example.com", 80),)).decide(text, 80).allowed


def test_a_name_with_digits_is_no_address() -> None:
    assert canonical_host("127.0.0.1.example.com") == "127.0.0.1.example.com"
    assert canonical_host("0x7f.example") == "0x7f.example"


def test_the_name_of_a_rule_is_allowed_in_any_case_at_its_port_only() -> None:
    assert LIST.decide("api.example.com", 443).allowed
    assert LIST.decide("API.eXample.COM", 443).host == "api.example.com"
    refused = LIST.decide("api.example.com", 80)
    assert not refused.allowed
    assert refused.reason == "api.example.com:80 is not in the policy's network.allow"


@pytest.mark.parametrize(
    "host", ["example.com", "www.api.example.com", "api.example.com.evil.test", "xapi.example.com"]
)
def test_neither_parents_nor_children_nor_lookalikes_of_a_rule_are_allowed(host: str) -> None:
    assert not LIST.decide(host, 443).allowed


def test_an_address_is_allowed_as_exactly_the_rule_says_it() -> None:
    assert LIST.decide("192.168.1.20", 8080).allowed
    assert LIST.decide("[fd00::20]", 443).allowed
    other = ["192.168.1.020", "192.168.276", "0xc0a80114", "3232235796", "[::ffff:192.168.1.20]", "192.168.1.20."]
    assert [host for host in other if LIST.decide(host, 8080).allowed] == []
    assert [h for h in ("fd00::20", "[FD00::20]", "[fd00:0::20]", "[fd00::20%1]") if LIST.decide(h, 443).allowed] == []


def test_an_empty_list_allows_nothing() -> None:
    assert not Allowlist(()).decide("api.example.com", 443).allowed


def test_the_reason_names_the_section_of_the_policy() -> None:
    reason = Allowlist((), section="build").decide("evil.test", 443).reason
    assert reason == "evil.test:443 is not in the policy's build.allow"


def test_what_is_shown_of_a_host_is_printable_and_bounded() -> None:
    assert shown("a\r\nSet-Cookie: x\x1b[31m'é") == "a??Set-Cookie: x?[31m??"
    assert len(shown("a" * 10_000)) < 120


@given(st.text(max_size=60) | hosts, st.integers(-5, 70_000))
@example("api.example.com", 443)
def test_only_what_is_literally_a_rule_is_allowed(host: str, port: int) -> None:
    decision = LIST.decide(host, port)
    assert decision.allowed == (f"{host.lower()}:{port}" in {str(rule) for rule in LIST.rules} and host.isascii())
    assert decision.allowed or decision.reason
    assert re.fullmatch(r"[ -~]*", decision.host + decision.reason)


@given(st.text(max_size=60) | hosts)
def test_canonical_names_are_plain_and_stay_what_they_are(text: str) -> None:
    try:
        name = canonical_host(text)
    except ValueError:
        return
    assert re.fullmatch(r"[a-z0-9.-]{1,253}", name)
    assert name == text.lower() == canonical_host(name)
    assert literal_address(name) is None


@given(st.text(max_size=60) | st.builds("{}:{}".format, hosts, st.integers(-1, 70_000)))
def test_a_rule_that_is_read_reads_as_itself(text: str) -> None:
    try:
        rule = parse_rule(text)
    except ValueError:
        return
    assert parse_rule(str(rule)) == rule
    assert str(rule) == text.lower()
    assert Allowlist((rule,)).decide(rule.host, rule.port).allowed
