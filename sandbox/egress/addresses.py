"""Which IP addresses the proxy never connects to, and why in words; pure.

The standard library's `is_global` changes from one Python to the next, so the networks are written down here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

__all__ = ["address_problem"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# A machine's credentials are served here to whoever asks; no exception opens these.
_METADATA = {
    ip_address(text)
    for text in (
        "169.254.169.254",
        "169.254.170.2",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
    )
}
_TRANSLATED = ip_network("64:ff9b::/96")
_COMPATIBLE = ip_network("::/96")
# The more special network first. The documentation ranges 192.0.2.0/24, 198.51.100.0/24 and 203.0.113.0/24 are left
# out: some private networks use them.
_REFUSED: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(text), words)
    for text, words in (
        ("0.0.0.0/8", "an address of no particular host"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a provider's internal address (CGNAT)"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "an address of network protocols"),
        ("192.88.99.0/24", "an address of 6to4 relays"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "an address for benchmarks"),
        ("224.0.0.0/4", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("::/128", "an address of no particular host"),
        ("::1/128", "the loopback address"),
        ("::ffff:0:0/96", "an IPv4 address written as IPv6"),
        ("64:ff9b::/96", "a translated IPv4 address (NAT64)"),
        ("64:ff9b:1::/48", "a translated IPv4 address (NAT64)"),
        ("2001::/32", "a tunnelled IPv4 address (Teredo)"),
        ("2001:10::/28", "an identifier, not an address (ORCHID)"),
        ("2001:20::/28", "an identifier, not an address (ORCHID)"),
        ("2002::/16", "a tunnelled IPv4 address (6to4)"),
        ("fc00::/7", "a private address (ULA)"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a site-local address"),
        ("ff00::/8", "a multicast address"),
    )
)
_GLOBAL_UNICAST = ip_network("2000::/3")


def address_problem(text: str, *, exceptions: Collection[Network], own: Collection[str]) -> str | None:
    """Return why nobody may connect to an address, such as "10.1.2.3 is a private address"; None when one may.

    `exceptions` are networks that may be connected to nevertheless; `own` are the addresses of this host, each in
    its canonical spelling. An IPv4 address inside an IPv6 one has to pass as well.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return f"{text[:60]!r} is not an IP address"
    if isinstance(address, IPv6Address) and address.scope_id:
        return f"{address} belongs to one network interface"
    for embedded in _embedded(address):
        if problem := address_problem(str(embedded), exceptions=exceptions, own=own):
            return f"{address} leads to {problem}"
    if address in _METADATA:
        return f"{address} is an address of cloud metadata"
    if any(address in network for network in exceptions):
        return None
    if str(address) in own:
        return f"{address} is an address of this host"
    for network, words in _REFUSED:
        if address in network:
            return f"{address} is {words}"
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return f"{address} is not a global address"
    return None


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that an IPv6 address stands for, where a network on the way translates it."""
    if isinstance(address, IPv4Address):
        return
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    elif address.sixtofour:
        yield address.sixtofour
    elif address.teredo:
        yield from address.teredo
    elif address in _TRANSLATED or (address in _COMPATIBLE and int(address) > 1):
        yield IPv4Address(int(address) & 0xFFFFFFFF)
