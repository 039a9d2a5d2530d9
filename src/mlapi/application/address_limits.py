"""Limit how many requests of one kind each client address may send."""

import time
from typing import final

from mlapi.application.repeated_warnings import RepeatedWarnings
from mlapi.application.window_counts import WINDOW_SECONDS, count_key, digest, seconds_until
from mlapi.domain.addresses import rate_limit_key
from mlapi.domain.attempts import AttemptCounts
from mlapi.domain.errors import TooManyAttemptsError

_MAX_CACHED_REJECTIONS = 10_000


@final
class AddressLimiter:
    """Limits how many requests of one kind each address may send, in fixed windows. Rejected requests count too.

    Args:
        counts: stores the counts, which all processes share.
        per_address: maximum number of requests in a window from an IPv4 address or IPv6 /64 network.
        kind: the kind of request, which is counted separately.
        setting: the setting that contains the limit, for the log; None for a fixed limit.
        window_seconds: the length of a window.
    """

    def __init__(
        self,
        counts: AttemptCounts,
        *,
        per_address: int,
        kind: str,
        setting: str | None = None,
        window_seconds: int = WINDOW_SECONDS,
    ) -> None:
        self._counts = counts
        self._per_address = per_address
        self._kind = kind
        self._setting = setting
        self._window_seconds = window_seconds
        self._rejections = RepeatedWarnings(interval_seconds=window_seconds)
        self._rejected_until: dict[str, float] = {}
        """The end of the window (`time.time`), by key, for the keys that have exceeded the limit.

        This cache rejects a flood from one address without asking the database."""

    def check(self, address: str) -> None:
        """Raise an error if this process knows that the limit is exceeded. Does not wait or count.

        Raises:
            TooManyAttemptsError: if the limit is exceeded.
        """
        until = self._rejected_until.get(self._key(address), 0.0)
        if until > time.time():
            raise TooManyAttemptsError(seconds_until(until))

    def count(self, address: str) -> None:
        """Count a request, and return once the database has stored the count.

        Raises:
            TooManyAttemptsError: if the limit is exceeded.
            RepositoryUnavailableError: if the database is unavailable.
        """
        self.check(address)
        key = self._key(address)
        (count,) = self._counts.add([key], window_seconds=self._window_seconds)
        if count.count > self._per_address:
            if len(self._rejected_until) >= _MAX_CACHED_REJECTIONS:
                self._rejected_until.clear()
            self._rejected_until[key] = count.ends_at_timestamp
            hint = f"; otherwise, {self._setting} sets the limit" if self._setting else ""
            self._rejections.log(
                f"{self._kind} from {address}: too many in {self._window_seconds} seconds: if it is a proxy, add it to"
                f" http.trusted_proxies{hint}"
            )
            raise TooManyAttemptsError(seconds_until(count.ends_at_timestamp))

    def _key(self, address: str) -> str:
        return count_key(self._kind, digest(rate_limit_key(address)), self._per_address, self._window_seconds)
