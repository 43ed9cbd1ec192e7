"""Which addresses a webhook may be sent to: public ones, and the networks that an endpoint allows.

An address in the settings may be wrong, or a name may be pointed at our own network later. Names
are resolved here, and the connection goes to exactly the addresses that were judged.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: In which an IPv4 address is translated (RFC 6052).
_TRANSLATED: Final = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefused(OSError):
    """A name or address leads to where no webhook may be sent."""


def is_allowed(address: Address, networks: Sequence[Network]) -> bool:
    """Returns whether a webhook may be sent to the address."""
    real = _unwrapped(address)
    if any(real in network for network in networks):
        return True
    return real.is_global and not real.is_multicast and not real.is_reserved


def check_literal(host: str, networks: Sequence[Network]) -> None:
    """Raises :class:`AddressRefused` for a host that is an address and not allowed.

    aiohttp asks no resolver about such a host.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return
    if not is_allowed(address, networks):
        raise AddressRefused("the address is not public")


class GuardedResolver(AbstractResolver):
    """Resolves a name to those of its addresses that are allowed."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        allowed = [
            one
            for one in found
            if is_allowed(ipaddress.ip_address(one["host"].partition("%")[0]), self._networks)
        ]
        if not allowed:
            raise AddressRefused("the name leads to no public address")
        return allowed

    async def close(self) -> None:
        await self._inner.close()


def _unwrapped(address: Address) -> Address:
    """Returns the IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
