"""What a sandbox may connect to: exact `host:port` rules, and nothing that is not literally one of them; pure."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from sandbox.egress.addresses import address_problem

__all__ = ["Allowlist", "Decision", "Rule", "canonical_host", "literal_address", "parse_port", "parse_rule", "shown"]

MAX_HOST_CHARS = 253
SHOWN_CHARS = 100
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# What resolvers take for a number in the last place makes the whole an IPv4 address: 127.1, 0x7f000001, 0177.0.0.1.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True)
class Rule:
    """One host, as a canonical name or a canonical IP literal (IPv6 in brackets), and one TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Decision:
    """Whether a host and port may be connected to. `host` is canonical when allowed, printable in any case."""

    allowed: bool
    host: str
    port: int
    reason: str


@dataclass(frozen=True)
class Allowlist:
    """The rules of one sandbox. An empty list allows nothing.

    `addresses` are networks that allowed hosts may be in although they are refused otherwise. `section` is the
    section of the policy that the rules come from, for the reasons in words.
    """

    rules: tuple[Rule, ...]
    addresses: tuple[IPv4Network | IPv6Network, ...] = ()
    section: str = "network"

    def decide(self, host: str, port: int) -> Decision:
        """Judge what a program asked for. Never raises, whatever the text."""
        try:
            name = (
                host
                if literal_address(host) and any(host == rule.host for rule in self.rules)
                else canonical_host(host)
            )
        except ValueError as error:
            return Decision(allowed=False, host=shown(host), port=port, reason=str(error))
        rule = Rule(name, port)
        if rule in self.rules:
            return Decision(allowed=True, host=name, port=port, reason="")
        return Decision(
            allowed=False,
            host=name,
            port=port,
            reason=f"{shown(str(rule))} is not in the policy's {self.section}.allow",
        )

    def address_problem(self, address: str, *, own: Collection[str] = ()) -> str | None:
        """Return why an address of an allowed host may not be connected to, or None when it may.

        `own` are this host's addresses, canonical.
        """
        return address_problem(address, exceptions=self.addresses, own=own)


def parse_rule(text: str) -> Rule:
    """Return the rule that `host:port` says. Raises ValueError with words for who wrote it.

    An IP literal counts in its one canonical spelling, IPv6 in brackets.
    """
    if "://" in text:
        raise ValueError(f"{shown(text)!r} is a URL: write host:port, such as api.example.com:443")
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        raise ValueError(f"{shown(text)!r} has no port: write host:port, such as api.example.com:443 or [fd00::1]:443")
    if "*" in host:
        raise ValueError(f"{shown(text)!r} has a wildcard: name each host")
    number = parse_port(port)
    if literal_address(host):
        return Rule(host, number)
    if spelling := _address_spelling(host):
        raise ValueError(f"{shown(host)!r} is an IP address in another spelling: write {spelling}:{number}")
    return Rule(canonical_host(host), number)


def parse_port(text: str) -> int:
    """Return a TCP port from 1 to 65535 out of plain digits. Raises ValueError with words."""
    if not _PORT.fullmatch(text) or int(text) > 65_535:
        raise ValueError(f"{shown(text)!r} is not a port from 1 to 65535")
    return int(text)


def canonical_host(text: str) -> str:
    """Return a host name in lower case. Raises ValueError, with words, for all that is not plainly a name.

    Refused are IP addresses in every spelling, a trailing dot, empty or over-long labels, and any character but
    ASCII letters, digits, hyphen and dot.
    """
    if not text:
        raise ValueError("the host is empty")
    if len(text) > MAX_HOST_CHARS:
        raise ValueError(f"the host has {len(text)} characters, more than {MAX_HOST_CHARS}")
    if not text.isascii():
        raise ValueError(f"{shown(text)!r} has characters outside ASCII: write the name in punycode (xn--...)")
    name = text.lower()
    if name.endswith("."):
        raise ValueError(f"{shown(text)!r} ends with a dot: write the name without it")
    labels = name.split(".")
    if ":" in name or name.startswith("[") or _NUMBER.fullmatch(labels[-1]):
        raise ValueError(
            f"{shown(text)!r} is an IP address: ask for a host by its name, or by exactly a rule's address"
        )
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{shown(text)!r} is not a host name: {_label_problem(label)}")
    return name


def literal_address(host: str) -> str | None:
    """Return the bare address of a canonical IP literal, IPv6 in brackets; None for anything else."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return bare if bare and _address_spelling(host) == host else None


def shown(text: str) -> str:
    """Return text from a sandbox for a message: printable ASCII, clipped, nothing that could end a quotation."""
    clipped = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
    return "".join(char if " " <= char <= "~" and char not in "'\"\\" else "?" for char in clipped)


def _address_spelling(host: str) -> str | None:
    """Return how a rule has to spell an address, or None when `host` is none that Python can read."""
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id:
            return None
        return str(address.ipv4_mapped) if address.ipv4_mapped else f"[{address}]"
    return str(address)


def _label_problem(label: str) -> str:
    if not label:
        return "a part between two dots is empty"
    odd = sorted(set(re.findall(r"[^a-z0-9-]", label)))
    if odd:
        return f"it has the character {shown(odd[0])!r}" if odd[0].isprintable() else "it has a control character"
    if len(label) > 63:
        return "a part between two dots has more than 63 characters"
    return "a part between two dots begins or ends with a hyphen"


def rules_of(hosts: Iterable[str]) -> Iterator[Rule]:
    """Yield a rule for every host; what an index's page names and is no host is refused when it is asked for."""
    for host in dict.fromkeys(hosts):
        with contextlib.suppress(ValueError):
            yield parse_rule(host)


def networks(texts: Sequence[str]) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return IP networks from their texts."""
    return tuple(ip_network(text) for text in texts)
