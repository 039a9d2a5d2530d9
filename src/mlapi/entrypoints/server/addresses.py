"""Limit how many connections one client address may have open."""

import logging
from collections import Counter
from collections.abc import Sequence

from mlapi.domain.addresses import UNIX_PEER, Network, is_in_any, rate_limit_key

MIN_DEFAULT_PER_ADDRESS = 10
_MAX_LOGGED_ADDRESSES = 100

_logger = logging.getLogger("mlapi")


def default_per_address(max_connections: int) -> int:
    """Return the default limit: a tenth of all connections, but at least 10 or half of them, whichever is less."""
    return max(1, max_connections // 10, min(MIN_DEFAULT_PER_ADDRESS, max_connections // 2))


class ConnectionsPerAddress:
    """Counts the open connections of each client address. An IPv6 address counts as its /64 network.

    Args:
        limit: how many connections an address may have.
        trusted_proxies: addresses without a limit, because their connections carry the requests of many clients.
    """

    def __init__(self, limit: int, trusted_proxies: Sequence[Network] = ()) -> None:
        self.limit = limit
        self._trusted_proxies = trusted_proxies
        self._counts: Counter[str] = Counter()
        self._logged: set[str] = set()

    def add(self, address: str) -> int:
        """Count a new connection. Return how many connections above the limit the address now has."""
        network = rate_limit_key(address)
        self._counts[network] += 1
        if address == UNIX_PEER:  # its clients are proxies, and file permissions decide who may connect
            return 0
        surplus = self._counts[network] - self.limit
        if surplus <= 0 or is_in_any(address, self._trusted_proxies):
            return 0
        self._log_once(network)
        return surplus

    def remove(self, address: str) -> None:
        """Forget a closed connection."""
        network = rate_limit_key(address)
        self._counts[network] -= 1
        if not self._counts[network]:
            del self._counts[network]

    def _log_once(self, network: str) -> None:
        if network not in self._logged and len(self._logged) < _MAX_LOGGED_ADDRESSES:
            self._logged.add(network)
            _logger.warning(
                "%s has more than %d connections to this worker, so new ones get 503: if it is a proxy, add it to"
                " http.trusted_proxies; otherwise, --connections-per-address sets the limit",
                network,
                self.limit,
            )
