"""Limit how fast passwords can be guessed, by counting login attempts in fixed time windows.

Three counts stop three ways of guessing: many names from one address, one name from one address, and one name from
many addresses. The last count could let an attacker lock a user out. Therefore it ignores addresses from which the
user has logged in before, and all windows are short.
"""

import hashlib
import ipaddress
import math
import time

import attrs

from mlapi.domain.attempts import AttemptCountReader, AttemptCounts, AttemptCountWriter
from mlapi.domain.errors import TooManyAttemptsError

WINDOW_SECONDS = 60
KNOWN_ADDRESS_SECONDS = 30 * 24 * 3600
_IPV6_PREFIX_BITS = 64  # one customer has at least a /64: RFC 6177, section 2
_MAX_CACHED_REJECTIONS = 10_000


@attrs.frozen(kw_only=True)
class AttemptLimits:
    """Maximum number of attempts for each count, within `WINDOW_SECONDS`."""

    per_address: int = 200
    per_name: int = 200
    per_name_and_address: int = 20


@attrs.frozen
class _Count:
    """A count of attempts, with its limit."""

    key: str
    limit: int
    is_cacheable: bool
    """True if a rejection applies to every attempt with this key. Known addresses are exempt from a name's count."""


class FixedWindowAttemptLimiter:
    """An `AttemptLimiter` that counts in fixed windows.

    Args:
        counts: stores the counts.
        limits: maximum number of attempts in a window.
        window_seconds: the length of a window.
    """

    def __init__(self, counts: AttemptCounts, limits: AttemptLimits, *, window_seconds: int = WINDOW_SECONDS) -> None:
        self._counts = counts
        self._limits = limits
        self._window_seconds = window_seconds
        self._rejected_until: dict[str, float] = {}
        """Keys that are over their limit, with the end of their window (`time.time`).

        With this cache, a flood of attempts from one address is rejected without reaching the database."""

    def count(self, username: str, address: str) -> bool:
        name, site = _digest(username), _digest(client_site(address))
        for count in (self._of_address(site), self._of_pair(name, site)):
            if (until := self._rejected_until.get(count.key, 0.0)) > time.time():
                raise TooManyAttemptsError(_seconds_until(until))
        # Check first without writing, so that a flood of rejected attempts causes no writes.
        with self._counts.reading() as reader:
            for count in self._counts_for(reader, name, site):
                if reader.get(count.key).count >= count.limit:
                    self._reject(reader, count)
        with self._counts.transaction() as writer:
            counts = self._counts_for(writer, name, site)
            for count in counts:  # in the same order in every process, so that row locks cannot deadlock
                if writer.add(count.key, window_seconds=self._window_seconds) > count.limit:
                    self._reject(writer, count)
        return len(counts) == 1

    def record_success(self, username: str, address: str, *, was_known: bool) -> None:
        name, site = _digest(username), _digest(client_site(address))
        pair = self._of_pair(name, site)
        with self._counts.transaction() as writer:
            writer.subtract(self._of_address(site).key)
            if not was_known:
                writer.subtract(pair.key)
                writer.subtract(self._of_name(name).key)
            self._remember_address(writer, name, site)
        self._rejected_until.pop(pair.key, None)

    def _counts_for(self, reader: AttemptCountReader, name: str, site: str) -> list[_Count]:
        """Return the counts that an attempt adds to: only the address's count if the address is known for this name."""
        counts = [self._of_address(site)]
        if not _is_known(reader, name, site):
            counts += [self._of_pair(name, site), self._of_name(name)]
        return counts

    def _of_address(self, site: str) -> _Count:
        return self._count_of("address", site, limit=self._limits.per_address)

    def _of_pair(self, name: str, site: str) -> _Count:
        return self._count_of("pair", f"{name}/{site}", limit=self._limits.per_name_and_address)

    def _of_name(self, name: str) -> _Count:
        return self._count_of("name", name, limit=self._limits.per_name, is_cacheable=False)

    def _count_of(self, kind: str, counted: str, *, limit: int, is_cacheable: bool = True) -> _Count:
        return _Count(_key(kind, counted, limit, self._window_seconds), limit, is_cacheable)

    def _remember_address(self, writer: AttemptCountWriter, name: str, site: str) -> None:
        if not _is_known(writer, name, site):
            writer.add(_known_key(name, site), window_seconds=KNOWN_ADDRESS_SECONDS)

    def _reject(self, reader: AttemptCountReader, count: _Count) -> None:
        until = reader.get(count.key).ends_at_timestamp
        if count.is_cacheable:
            if len(self._rejected_until) >= _MAX_CACHED_REJECTIONS:
                self._rejected_until.clear()
            self._rejected_until[count.key] = until
        raise TooManyAttemptsError(_seconds_until(until))


def _is_known(reader: AttemptCountReader, name: str, site: str) -> bool:
    """Return whether a user with this name has logged in from the address within `KNOWN_ADDRESS_SECONDS`."""
    return reader.get(_known_key(name, site)).count > 0


def _known_key(name: str, site: str) -> str:
    return _key("known", f"{name}/{site}", 1, KNOWN_ADDRESS_SECONDS)


def _key(kind: str, counted: str, limit: int, window_seconds: int) -> str:
    """Return the key of a count. It contains the limit, so that counting starts again when the limit is changed."""
    return f"{kind}/{counted}/{limit}/{window_seconds}/second"


def _seconds_until(until: float) -> int:
    return max(1, math.ceil(until - time.time()))


def client_site(address: str) -> str:
    """Return the rate-limit key for an address.

    An IPv6 address is truncated to its /64 network, because one client controls all of it.
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


def _digest(text: str) -> str:
    """Return a digest for a key, so that the table of counts contains neither names nor addresses."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
