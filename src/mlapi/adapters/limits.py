"""Guessing is slow: attempts to log in are counted in fixed windows, through the library limits.

Three counts stand against three ways to guess: one address with many names, one address with one name, many addresses
with one name. The last could shut the owner of a name out, so it does not hold for the addresses from which he has
logged in before, and every window is short.
"""

import hashlib
import ipaddress
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import attrs
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from mlapi.domain.errors import TooManyAttemptsError

WINDOW = 60
"""Seconds."""
KNOWN_FOR = 30 * 24 * 3600
"""Seconds for which an address is remembered to be one of a name's own."""
_SITE_BITS = 64  # of an IPv6 address, which one customer has at least: RFC 6177, 2
_REMEMBERED = 10_000


@attrs.frozen(kw_only=True)
class AttemptLimits:
    """How many attempts are let through in a `WINDOW`."""

    per_address: int = 200
    per_name: int = 200
    per_name_and_address: int = 20


class FixedWindowAttemptLimiter:
    """An `AttemptLimiter`.

    Args:
        transaction: gives the storage of the counts for what belongs together. It must take negative amounts.
        reading: gives it for a look; what is refused by that is not counted, so that a flood writes nothing.
        limits: how many.
        window: seconds.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Storage]],
        limits: AttemptLimits,
        *,
        reading: Callable[[], AbstractContextManager[Storage]] | None = None,
        window: int = WINDOW,
    ) -> None:
        self._transaction = transaction
        self._reading = transaction if reading is None else reading
        self._window = window
        self._per_address = RateLimitItemPerSecond(limits.per_address, window, "address")
        self._per_pair = RateLimitItemPerSecond(limits.per_name_and_address, window, "pair")
        self._per_name = RateLimitItemPerSecond(limits.per_name, window, "name")
        self._known = RateLimitItemPerSecond(1, KNOWN_FOR, "known")
        self._refused: dict[str, float] = {}
        """Until when, by `time.time`, what was refused needs not be counted: a flood from an address does not reach the
        database."""

    def count(self, username: str, address: str) -> bool:
        name, site = _digest(username), _digest(_site(address))
        per_address, per_pair = self._per_address.key_for(site), self._per_pair.key_for(name, site)
        for key in (per_address, per_pair):
            if (until := self._refused.get(key, 0.0)) > time.time():
                raise TooManyAttemptsError(_seconds_until(until))
        with self._reading() as storage:
            limiter = FixedWindowRateLimiter(storage)
            counts = self._counts(storage, name, site)
            self._refuse(storage, next((count for count in counts if not limiter.test(count[0], *count[1])), None))
        with self._transaction() as storage:
            limiter = FixedWindowRateLimiter(storage)
            counts = self._counts(storage, name, site)
            # In this order in every process, and no further than the first limit that is reached.
            self._refuse(storage, next((count for count in counts if not limiter.hit(count[0], *count[1])), None))
        return len(counts) == 1

    def record_success(self, username: str, address: str, *, was_known: bool) -> None:
        name, site = _digest(username), _digest(_site(address))
        per_pair = self._per_pair.key_for(name, site)
        with self._transaction() as storage:
            self._take_back(storage, self._per_address.key_for(site))
            if not was_known:
                self._take_back(storage, per_pair)
                self._take_back(storage, self._per_name.key_for(name))
            known = self._known.key_for(name, site)
            if storage.get(known) == 0:
                storage.incr(known, KNOWN_FOR)
        self._refused.pop(per_pair, None)

    def _counts(self, storage: Storage, name: str, site: str) -> list[tuple[RateLimitItem, tuple[str, ...]]]:
        """Return what an attempt is counted for: from an address that is known for the name, that address alone."""
        counts: list[tuple[RateLimitItem, tuple[str, ...]]] = [(self._per_address, (site,))]
        if storage.get(self._known.key_for(name, site)) == 0:
            counts += [(self._per_pair, (name, site)), (self._per_name, (name,))]
        return counts

    def _refuse(self, storage: Storage, refused: tuple[RateLimitItem, tuple[str, ...]] | None) -> None:
        if refused is None:
            return
        item, identifiers = refused
        until = storage.get_expiry(item.key_for(*identifiers))
        if item is not self._per_name:  # which does not hold for every address
            if len(self._refused) >= _REMEMBERED:
                self._refused.clear()
            self._refused[item.key_for(*identifiers)] = until
        raise TooManyAttemptsError(_seconds_until(until))

    def _take_back(self, storage: Storage, key: str) -> None:
        if storage.get(key) > 0:  # else its window is over
            storage.incr(key, self._window, -1)


def _seconds_until(until: float) -> int:
    return max(1, math.ceil(until - time.time()))


def _site(address: str) -> str:
    """Return what stands for an address: of IPv6 the network that one customer has, or he could change at will."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _SITE_BITS), strict=False))


def _digest(text: str) -> str:
    """Return what a count is kept under, which shows neither names nor addresses to whoever reads the table."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
