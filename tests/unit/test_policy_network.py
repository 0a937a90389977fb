"""[network]: which hosts a policy may name, what fits together, and which of two lists is the tighter one."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.policy.explain import meaning
from sandbox.policy.load import Policy, load_policy, shipped_directory
from sandbox.policy.order import ORDER

DOCS = (Path(__file__).parents[2] / "docs/writing-policies.md").read_text()
API = '[network]\nmode = "allowlist"\nallow = ["api.example.com:443"]\n'


def load(directory: Path, text: str) -> Policy:
    (directory / "t.toml").write_text(text)
    return load_policy("t", directories=[directory, shipped_directory()]).policy


def refused(directory: Path, text: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        load(directory, text)
    return caught.value


@pytest.mark.parametrize("name", ["default", "strict"])
def test_shipped_policies_reach_no_host(name: str) -> None:
    network = load_policy(name, directories=[shipped_directory()]).policy.network
    assert (network.mode, network.allow, network.allow_addresses) == ("none", (), ())


# ---- values


def test_rules_and_addresses_differ_by_more_than_spelling_or_not_at_all(tmp_path: Path) -> None:
    upper = load(tmp_path, API.replace("api.example", "API.Example") + 'allow_addresses = ["10.0.0.1"]')
    lower = load(tmp_path, API + 'allow_addresses = ["10.0.0.1/32"]')
    assert upper.network.allow == ("api.example.com:443",)
    assert upper.hash == lower.hash


@pytest.mark.parametrize("rule", ["api.example.com:443", "192.168.1.20:8080", "[fd00::1]:443", "localhost:8080"])
def test_exact_hosts_with_a_port_are_taken(tmp_path: Path, rule: str) -> None:
    assert load(tmp_path, f'network.mode = "allowlist"\nnetwork.allow = ["{rule}"]').network.allow == (rule,)


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "api.example.com",
        "*",
        "*.example.com:443",
        "*:443",
        "api.example.com:*",
        "https://api.example.com:443",
        "api.example.com:443/path",
        "api.example.com:0",
        "api.example.com:65536",
        "user@api.example.com:443",
        "api.example.com:443@evil.example",
        "0x7f000001:80",
        "2130706433:80",
        "127.1:80",
        "a b:443",
        "@index",
        "api.example.com:443\\n",
        "api.example.com:443\\u0000",
    ],
)
def test_what_is_no_exact_host_and_port_is_refused(tmp_path: Path, rule: str) -> None:
    error = refused(tmp_path, f'network.mode = "allowlist"\nnetwork.allow = ["{rule}"]')
    assert ":2: entry 1 of network.allow is " in error.message
    assert ", but it is not a rule: " in error.message


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.168.1.20", "192.168.1.20/32"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("127.0.0.1/32", "127.0.0.1/32"),
        ("fd00::1", "fd00::1/128"),
        ("FD00:0::/8", "fd00::/8"),
    ],
)
def test_addresses_are_kept_as_networks(tmp_path: Path, text: str, network: str) -> None:
    assert load(tmp_path, f'network.allow_addresses = ["{text}"]').network.allow_addresses == (network,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "localhost",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0.0/255.0.0.0",
        "10.1",
        "010.0.0.1",
        "fe80::1%eth0",
        "167772161",
        "10.0.0.0/8 ",
        "::/129",
    ],
)
def test_what_is_no_network_is_refused(tmp_path: Path, text: str) -> None:
    error = refused(tmp_path, f'network.allow_addresses = ["{text}"]')
    assert ", but it must be an IP address or a network such as" in error.message


def test_list_that_is_none_gets_an_example_of_its_own(tmp_path: Path) -> None:
    assert 'such as ["api.example.com:443"]' in refused(tmp_path, 'network.allow = "api.example.com:443"').message


# ---- what fits together


def test_hosts_without_the_mode_are_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, 'network.allow = ["api.example.com:443"]')
    assert ":1: network.mode is none, but network.allow lists hosts" in error.message
    assert "network.mode at built-in" in error.hint


def test_mode_without_hosts_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, 'network.mode = "allowlist"')
    assert ":1: network.mode is allowlist, but network.allow lists no hosts" in error.message


def test_child_that_closes_the_network_says_so_in_both_keys(tmp_path: Path) -> None:
    (tmp_path / "api.toml").write_text(API)
    assert "network.allow lists hosts" in refused(tmp_path, 'extends = "api"\nnetwork.mode = "none"').message
    closed = load(tmp_path, 'extends = "api"\nnetwork.mode = "none"\nnetwork.allow = []')
    assert closed.network.mode == "none"


def test_child_of_an_api_policy_cannot_add_a_host(tmp_path: Path) -> None:
    (tmp_path / "api.toml").write_text(API.replace('"]', '", "b.example.com:443"]'))
    with pytest.raises(PolicyDenied, match=r"network\.allow = .* is not as tight"):
        load(tmp_path, 'extends = "api"\nnetwork.allow = ["api.example.com:80"]')
    assert load(tmp_path, 'extends = "api"\nnetwork.allow = ["b.example.com:443"]').network.allow == (
        "b.example.com:443",
    )


@pytest.mark.parametrize("line", ["transfer_mib = 63", "connections = 99", 'allow_addresses = ["10.0.0.1"]'])
def test_hash_covers_every_key_of_the_network(tmp_path: Path, line: str) -> None:
    before = load(tmp_path, API)
    after = load(tmp_path, API + line)
    assert after.hash != before.hash
    assert after.build_hash == before.build_hash


# ---- tightness


@pytest.mark.parametrize(
    ("key", "value", "ceiling", "tight"),
    [
        ("network.mode", "none", "allowlist", True),
        ("network.mode", "allowlist", "none", False),
        ("network.allow", ("a:1",), ("a:1", "b:1"), True),
        ("network.allow", (), (), True),
        ("network.allow", ("a:2",), ("a:1",), False),
        ("network.allow_addresses", ("10.1.0.0/16",), ("10.0.0.0/8",), True),
        ("network.allow_addresses", ("10.0.0.0/8",), ("10.0.0.0/8", "fd00::/8"), True),
        ("network.allow_addresses", (), (), True),
        ("network.allow_addresses", ("10.0.0.0/8",), ("10.1.0.0/16",), False),
        ("network.allow_addresses", ("fd00:1::/32",), ("fd00::/8",), True),
        ("network.allow_addresses", ("fd00::/8",), ("fd00:1::/32",), False),
        ("network.allow_addresses", ("10.0.0.0/8",), ("::/0",), False),
        ("network.allow_addresses", ("fd00::/8",), ("0.0.0.0/0",), False),
        ("network.allow_addresses", ("10.0.0.1/32", "127.0.0.1/32"), ("10.0.0.0/8",), False),
    ],
)
def test_which_network_is_as_tight(key: str, value: Any, ceiling: Any, *, tight: bool) -> None:
    assert ORDER[key](value, ceiling) is tight


networks = st.builds(
    lambda address, prefix: str(ip_network((address, prefix), strict=False)), st.integers(0, 255), st.integers(24, 32)
)


@given(value=st.lists(networks, max_size=3), ceiling=st.lists(networks, max_size=3))
def test_tighter_addresses_are_all_within_the_looser(value: list[str], ceiling: list[str]) -> None:
    def addresses(texts: list[str]) -> set[object]:
        return {address for text in texts for address in ip_network(text)}

    if ORDER["network.allow_addresses"](tuple(value), tuple(ceiling)):
        assert addresses(value) <= addresses(ceiling)


# ---- in plain words, and as documented


def test_explanation_names_the_hosts_and_claims_no_more_than_that() -> None:
    assert meaning("network.allow", ()) == "The program can reach no host."
    sentence = meaning("network.allow", ("api.example.com:443",))
    assert "connects to api.example.com:443 and nothing else" in sentence
    assert "what is sent there is not looked at" in sentence
    assert "192.168.1.20/32" in meaning("network.allow_addresses", ("192.168.1.20/32",))
    assert "egress proxy" in meaning("network.mode", "allowlist")


def test_documented_policy_for_an_api_is_valid(tmp_path: Path) -> None:
    section = DOCS.split("\n## Let a program reach an API\n", 1)[1].split("\n## ", 1)[0]
    example = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)[0]
    policy = load(tmp_path, example)
    assert policy.network.mode == "allowlist"
    assert policy.network.allow == ("api.example.com:443",)
