"""Login attempts, and the port that stores how many have failed."""

import ipaddress
from collections.abc import Sequence
from typing import Protocol

import attrs

_IPV6_PREFIX_BITS = 64  # one customer has at least a /64: RFC 6177, section 2


@attrs.define(kw_only=True, eq=False)
class Attempt:
    """A login attempt, from the moment a client sends it until it gets a response.

    Attributes:
        username: any text; usually a canonical username. No such user needs to exist.
        address: any text that identifies the client.
        is_over: True once `mlapi.domain.ports.AttemptLimiter.end` was called.
    """

    username: str
    address: str
    is_over: bool = False


@attrs.frozen
class WindowCount:
    """The number of events counted in a time window, and the time when the window ends."""

    count: int
    ends_at_timestamp: float
    """Seconds since 1970."""


class AttemptCounts(Protocol):
    """Counts events, such as failed logins, in fixed time windows.

    Keys are printable ASCII of at most 200 characters and contain neither usernames nor addresses. Counts must be
    shared by all processes that share the users. Delete expired counts regularly, because attacks create many.

    An implementation may repeat each method on a new connection after losing one. An event may then be counted twice,
    but it is never lost. Both methods raise `RepositoryUnavailableError` while the database is unavailable.
    """

    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        """Return the count for each key and the end of its window, without waiting for writers.

        If nothing was added or the window has ended, the count is 0 and the end is the current time.
        """
        ...

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        """Add 1 to the count for each key, and return the new counts.

        The first event opens a window of ``window_seconds``. Later events do not extend it. After the window has ended,
        the next event opens a new one with a count of 1.

        Concurrent calls must not lose each other's events. Durability is not required: a crash may lose the latest
        counts.

        Args:
            keys: at most ten, all different, in any order.
            window_seconds: the length of a new window.
        """
        ...


def client_site(address: str) -> str:
    """Return the rate-limit key for an address. Equal addresses in different notations are equal.

    An IPv6 address is truncated to its /64 network, because one client controls all of it. Text that is not an address
    is returned unchanged.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _IPV6_PREFIX_BITS), strict=False))
