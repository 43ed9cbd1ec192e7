"""From which address a request comes, as far as anybody trustworthy says so.

`X-Forwarded-For` is written by any sender. Each proxy appends the address that it has seen,
so only what our own proxies have appended counts: the list is read from the right, and no further
than trusted proxies reach. What stands left of that is the client's own words.
"""

import ipaddress
from collections.abc import Collection, Sequence
from typing import Final, TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

FORWARDED_FOR: Final = "X-Forwarded-For"


def parse_network(text: str) -> Network | None:
    """One address, or a range as CIDR without host bits; None for anything else."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def parse_address(text: str) -> Address | None:
    """An address as sockets and proxies write it; IPv4 within IPv6 counts as IPv4."""
    if "%" in text:  # A zone, which means something on one machine only.
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_within(address: Address, networks: Collection[Network]) -> bool:
    """Whether any of the ranges has the address."""
    return any(address in network for network in networks)


def client_address(
    peer: str, forwarded: Sequence[str], proxies: Collection[Network]
) -> Address | None:
    """Returns the nearest address that is no trusted proxy's; None if a proxy names none.

    `peer` is the other end of the socket, and `forwarded` holds the lines of the header. If all are
    trusted, the farthest one is the client: a call from within.
    """
    address = parse_address(peer)
    hops = [hop.strip() for line in forwarded for hop in line.split(",")]
    while address is not None and is_within(address, proxies) and hops:
        address = parse_address(_without_port(hops.pop()))
    return address


def _without_port(hop: str) -> str:
    """Some proxies append `192.0.2.1:4711` or `[2001:db8::1]:4711`."""
    if hop.startswith("["):
        inside, bracket, port = hop[1:].partition("]")
        return inside if bracket and (not port or _is_port(port)) else ""
    host, colon, port = hop.rpartition(":")
    return host if colon and ":" not in host and _is_port(f":{port}") else hop


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6
