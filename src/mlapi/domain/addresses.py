"""IP addresses and networks of clients. Equal addresses in different notations are equal."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network | Literal["unix"]
"""A network, or ``unix`` for the programs that connect through a Unix socket."""

UNIX_PEER: Final = "unix"
"""Stands for the address of a client that is connected through a Unix socket."""

_MAX_ADDRESS_CHARS = 64
_MAX_CACHED_ADDRESSES = 1_000
_IPV6_PREFIX_BITS = 64  # one customer has at least a /64: RFC 6177, section 2


def parse_address(text: str) -> Address | None:
    """Return the address, or None if it is invalid. IPv4-mapped IPv6 addresses are converted to IPv4."""
    return _parse(text) if len(text) <= _MAX_ADDRESS_CHARS else None


@lru_cache(_MAX_CACHED_ADDRESSES)
def _parse(text: str) -> Address | None:
    # Cached, because most requests come from the same clients and proxies: parsing takes most of the time to find the
    # client behind a proxy.
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


@lru_cache(_MAX_CACHED_ADDRESSES)
def rate_limit_key(text: str) -> str:
    """Return the rate-limit key for an address.

    An IPv6 address is truncated to its /64 network, because one client controls all of it. Text that is not an address
    is returned unchanged.
    """
    parsed = parse_address(text)
    if parsed is None:
        return text
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(ipaddress.ip_network((int(parsed), _IPV6_PREFIX_BITS), strict=False))


def is_loopback(text: str) -> bool:
    """Return whether a text is an address of this machine that other machines cannot reach."""
    parsed = parse_address(text)
    return parsed is not None and parsed.is_loopback


def is_in_any(text: str, networks: Iterable[Network]) -> bool:
    """Return whether a text is an address in one of the networks."""
    if text == UNIX_PEER:
        return UNIX_PEER in networks
    parsed = parse_address(text)
    return parsed is not None and any(not isinstance(network, str) and parsed in network for network in networks)
