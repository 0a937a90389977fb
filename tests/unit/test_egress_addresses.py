"""Addresses that the egress proxy never connects to, the exceptions, and this host's own."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.egress.own_addresses import own_addresses
from sandbox.egress.rules import Allowlist
from sandbox.errors import NotEnforceable

NOTHING = Allowlist(())
REFUSED = [
    ("0.0.0.0", "no particular host"),
    ("0.1.2.3", "no particular host"),
    ("10.1.2.3", "private"),
    ("100.64.0.1", "CGNAT"),
    ("100.127.255.255", "CGNAT"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("169.254.1.1", "link-local"),
    ("169.254.169.254", "metadata"),
    ("168.63.129.16", "metadata"),
    ("172.16.0.1", "private"),
    ("172.31.255.255", "private"),
    ("192.0.0.8", "protocols"),
    ("192.168.0.1", "private"),
    ("198.18.0.1", "benchmarks"),
    ("198.19.255.255", "benchmarks"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.1", "reserved"),
    ("255.255.255.255", "broadcast"),
    ("::", "no particular host"),
    ("::1", "loopback"),
    ("::ffff:8.8.8.8", "IPv4"),
    ("::ffff:127.0.0.1", "loopback"),
    ("::7f00:1", "loopback"),
    ("64:ff9b::7f00:1", "loopback"),
    ("64:ff9b::808:808", "NAT64"),
    ("64:ff9b:1::1", "NAT64"),
    ("2001:0:4136:e378::1", "Teredo|leads to"),
    ("2002:7f00:1::", "loopback"),
    ("2002:808:808::1", "6to4"),
    ("fc00::1", "ULA"),
    ("fd00:ec2::254", "metadata"),
    ("fe80::1", "link-local"),
    ("febf::1", "link-local"),
    ("fec0::1", "site-local"),
    ("ff02::1", "multicast"),
    ("100::1", "not a global"),
    ("4000::1", "not a global"),
    ("fe80::1%eth0", "interface"),
    ("localhost", "not an IP"),
    ("", "not an IP"),
    ("127.1", "not an IP"),
    ("010.0.0.1", "not an IP"),
]


@pytest.mark.parametrize(("address", "words"), REFUSED)
def test_addresses_that_are_not_public_are_refused_in_words(address: str, words: str) -> None:
    problem = NOTHING.address_problem(address)
    assert problem
    assert any(word in problem for word in words.split("|")), problem


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "192.0.2.7",
        "198.17.0.1",
        "198.20.0.1",
        "198.51.100.7",
        "203.0.113.7",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00::1",
        "2001:4860::8888",
    ],
)
def test_public_addresses_may_be_connected_to(address: str) -> None:
    assert NOTHING.address_problem(address) is None


def test_an_exception_opens_its_network_and_no_other() -> None:
    allow = Allowlist((), addresses=(ip_network("192.168.1.20/32"), ip_network("fd00:1::/64")))
    assert allow.address_problem("192.168.1.20") is None
    assert allow.address_problem("fd00:1::5") is None
    assert allow.address_problem("192.168.1.21")
    assert allow.address_problem("fd00:2::5")


def test_no_exception_opens_cloud_metadata() -> None:
    allow = Allowlist((), addresses=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    assert allow.address_problem("10.0.0.1") is None
    for address in (
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "169.254.170.2",
        "168.63.129.16",
        "100.100.100.200",
        "::ffff:100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
    ):
        assert "metadata" in (allow.address_problem(address) or "")
    for beside in ("100.100.100.201", "192.0.0.193", "fd20:ce::253"):
        assert allow.address_problem(beside) is None


def test_a_translated_address_needs_both_itself_and_what_it_stands_for() -> None:
    nat64 = Allowlist((), addresses=(ip_network("64:ff9b::/96"),))
    assert nat64.address_problem("64:ff9b::808:808") is None
    assert nat64.address_problem("64:ff9b::a00:1") == "64:ff9b::a00:1 leads to 10.0.0.1 is a private address"
    mapped = Allowlist((), addresses=(ip_network("10.0.0.0/8"),))
    assert mapped.address_problem("::ffff:10.0.0.1")


def test_this_hosts_own_addresses_are_refused_unless_excepted() -> None:
    own = frozenset({"203.0.113.7", "2a00::7"})
    assert NOTHING.address_problem("203.0.113.7", own=own) == "203.0.113.7 is an address of this host"
    assert NOTHING.address_problem("2a00:0::7", own=own)
    assert NOTHING.address_problem("203.0.113.8", own=own) is None
    assert Allowlist((), addresses=(ip_network("203.0.113.7/32"),)).address_problem("203.0.113.7", own=own) is None


@given(st.ip_addresses())
def test_every_address_gets_an_answer_and_none_of_the_standard_librarys_private_ones_passes(address: object) -> None:
    problem = NOTHING.address_problem(str(address))
    known = ip_address(str(address))
    if known.is_loopback or known.is_multicast or known.is_link_local or known.is_unspecified:
        assert problem


@given(st.text(max_size=30))
def test_text_that_is_no_address_is_refused(text: str) -> None:
    if NOTHING.address_problem(text) is None:
        ip_address(text)


def test_own_addresses_are_what_the_kernel_calls_local(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(
        "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 203.0.113.0\n        /24 link UNICAST\n"
        "     |-- 203.0.113.7\n        /32 host LOCAL\n     |-- 203.0.113.255\n        /32 link BROADCAST\n"
    )
    (tmp_path / "if_inet6").write_text("2a000000000000000000000000000007 02 40 00 82     eth0\n")
    assert own_addresses(tmp_path) == {"203.0.113.7", "2a00::7"}


def test_own_addresses_of_this_machine_have_loopback_among_them() -> None:
    assert "127.0.0.1" in own_addresses()


def test_without_ipv6_the_others_count(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text("     |-- 203.0.113.7\n        /32 host LOCAL\n")
    assert own_addresses(tmp_path) == {"203.0.113.7"}


def test_unknown_own_addresses_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotEnforceable, match="can't be read"):
        own_addresses(tmp_path)
