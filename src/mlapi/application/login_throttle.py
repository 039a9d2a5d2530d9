"""Limit how fast passwords can be guessed, by counting failed logins in fixed time windows.

Three counts stop three ways of guessing: many names from one address, one name from one address, and one name from
many addresses. The last count could let an attacker lock a user out. Therefore it does not apply to addresses where the
user has logged in before, and all windows are short.

The limits must not reveal which names exist, or where a user logs in. Every failure adds to all three counts, whether
the name exists or not. Known addresses are exempt only with the correct password. While the limit for a name is
reached, the cipher still runs for each attempt, and every wrong password gets the same error.

Only failures are stored. Running attempts occupy slots in the memory of this process, so an attempt that is canceled,
times out or finds the database unavailable leaves nothing behind. Processes do not share these slots, so together they
may start more attempts than the limit allows. The failures above the limit get the same error as attempts that are
rejected at the start.
"""

import time
from collections import Counter
from collections.abc import Iterator

import attrs

from mlapi.application.inline import run_inline
from mlapi.application.repeated_warnings import RepeatedWarnings
from mlapi.application.shared_counts import InlineCounts, Keys, SharedCounts
from mlapi.application.window_counts import WINDOW_SECONDS, count_key, digest, seconds_until
from mlapi.domain.addresses import rate_limit_key
from mlapi.domain.attempts import Attempt, AttemptCounts, WindowCount
from mlapi.domain.errors import ServiceUnavailableError, TooManyAttemptsError
from mlapi.forks import call_in_children, new_lock

KNOWN_ADDRESS_SECONDS = 30 * 24 * 3600
_MAX_CACHED_COUNTS = 10_000
_RETRY_SECONDS = 1
_UNLIMITED = 2**31


@attrs.frozen(kw_only=True)
class AttemptLimits:
    """Maximum number of failed attempts for each count, within `WINDOW_SECONDS`. None for no limit."""

    per_address: int | None = 200
    per_name: int | None = 200
    per_name_and_address: int | None = 20


@attrs.frozen
class _Limit:
    key: str
    max_count: int


@attrs.frozen(kw_only=True)
class _Limits:
    """The limits that apply to an attempt, and the key under which its address is stored as known."""

    address: _Limit
    pair: _Limit
    name: _Limit
    known_key: str

    def __iter__(self) -> Iterator[_Limit]:
        return iter((self.address, self.pair, self.name))

    @property
    def keys(self) -> Keys:
        """The keys of the counts that a failure adds to."""
        return self.address.key, self.pair.key, self.name.key


@attrs.frozen(kw_only=True)
class _RunningAttempt:
    """An attempt that has been started."""

    limits: _Limits
    is_address_known: bool
    is_name_limited: bool
    """True if the limit for the name is reached."""
    may_exceed_name_limit: bool
    """True if the limit for the name is reached once all running attempts have failed."""


class FixedWindowAttemptLimiter:
    """An `AttemptLimiter` that counts in fixed windows.

    The coroutines do the same as the methods for synchronous callers, but attempts can share their queries: see
    `mlapi.application.shared_counts.BatchedCounts`.

    Args:
        counts: stores the counts.
        limits: maximum number of failures in a window.
        window_seconds: the length of a window.
    """

    def __init__(self, counts: AttemptCounts, limits: AttemptLimits, *, window_seconds: int = WINDOW_SECONDS) -> None:
        self.counts = counts
        self._inline = InlineCounts(counts)
        self._limits = limits
        self._window_seconds = window_seconds
        self._lock = new_lock()
        self._forget_running()
        call_in_children(self._forget_running)  # the attempts continue only in the parent
        self._warnings = RepeatedWarnings(interval_seconds=1)
        self._seen: dict[str, WindowCount] = {}
        """The highest counts that this process has seen, by key.

        This cache rejects a flood of attempts from one address without asking the database. It also contains
        failures that could not be stored, because the database was unavailable."""

    def _forget_running(self) -> None:
        self._running: dict[Attempt, _RunningAttempt] = {}
        self._running_counts: Counter[str] = Counter()
        """Number of running attempts, by key."""

    def start(self, attempt: Attempt) -> None:
        run_inline(self.start_with(self._inline, attempt))

    def record_failure(self, attempt: Attempt) -> None:
        run_inline(self.record_failure_with(self._inline, attempt))

    def record_success(self, attempt: Attempt) -> None:
        run_inline(self.record_success_with(self._inline, attempt))

    async def start_with(self, shared: SharedCounts, attempt: Attempt) -> None:
        """See `AttemptLimiter.start`."""
        limits = self._limits_for(attempt)
        with self._lock:
            self._check(limits)
        *counts, known = await shared.read((*limits.keys, limits.known_key))
        with self._lock:
            for key, count in zip(limits.keys, counts, strict=True):
                self._see(key, count)
            self._check(limits)
            if attempt.is_over:
                return
            name, failures = limits.name, self._count(limits.name.key)
            self._running[attempt] = _RunningAttempt(
                limits=limits,
                is_address_known=known.count > 0,
                is_name_limited=failures >= name.max_count,
                may_exceed_name_limit=failures + self._running_counts[name.key] >= name.max_count,
            )
            self._running_counts.update(limits.keys)

    async def record_failure_with(self, shared: SharedCounts, attempt: Attempt) -> None:
        """See `AttemptLimiter.record_failure`."""
        running = self._running.get(attempt)
        limits = self._limits_for(attempt) if running is None else running.limits
        try:
            counts = await shared.add(limits.keys, window_seconds=self._window_seconds)
        except ServiceUnavailableError as error:
            self._warnings.log(f"only this process counts failed logins: {error}")
            counts = self._add_locally(limits.keys)
        with self._lock:
            for key, count in zip(limits.keys, counts, strict=True):
                self._see(key, count)
        for limit, count in zip(limits, counts, strict=True):
            if count.count > limit.max_count:
                raise TooManyAttemptsError(seconds_until(count.ends_at_timestamp))

    async def record_success_with(self, shared: SharedCounts, attempt: Attempt) -> None:
        """See `AttemptLimiter.record_success`."""
        running = self._running.get(attempt)
        if running is None or running.is_address_known:
            return
        if running.is_name_limited or (
            running.may_exceed_name_limit and await self._is_limited(shared, running.limits.name)
        ):
            # Do the same as for a failure, which raises the error: the counts and the response time must not reveal
            # that the password was correct.
            await self.record_failure_with(shared, attempt)
        try:
            await shared.add((running.limits.known_key,), window_seconds=KNOWN_ADDRESS_SECONDS)
        except ServiceUnavailableError as error:
            self._warnings.log(f"the address of a successful login was not stored as known: {error}")

    def end(self, attempt: Attempt) -> None:
        with self._lock:
            attempt.is_over = True
            running = self._running.pop(attempt, None)
            for key in () if running is None else running.limits.keys:
                self._running_counts[key] -= 1
                if not self._running_counts[key]:
                    del self._running_counts[key]

    async def _is_limited(self, shared: SharedCounts, limit: _Limit) -> bool:
        (count,) = await shared.read((limit.key,))
        with self._lock:
            self._see(limit.key, count)
        return count.count >= limit.max_count

    def _add_locally(self, keys: Keys) -> list[WindowCount]:
        """Add like `AttemptCounts.add`, but only to the counts that this process has seen."""
        now = time.time()
        new_window = WindowCount(0, now + self._window_seconds)
        with self._lock:
            for key in keys:
                seen = self._seen.get(key, new_window)
                window = seen if seen.ends_at_timestamp > now else new_window
                self._see(key, attrs.evolve(window, count=window.count + 1))
            return [self._seen[key] for key in keys]

    def _check(self, limits: _Limits) -> None:
        """Raise `TooManyAttemptsError` if the limit for the address or for the pair is reached."""
        for limit in (limits.address, limits.pair):
            if self._count(limit.key) >= limit.max_count:
                raise TooManyAttemptsError(seconds_until(self._seen[limit.key].ends_at_timestamp))
        for limit in (limits.address, limits.pair):
            if self._count(limit.key) + self._running_counts[limit.key] >= limit.max_count:
                raise TooManyAttemptsError(_RETRY_SECONDS, is_final=False)

    def _count(self, key: str) -> int:
        """Return the highest count seen for a key in the current window."""
        seen = self._seen.get(key)
        return seen.count if seen is not None and seen.ends_at_timestamp > time.time() else 0

    def _see(self, key: str, count: WindowCount) -> None:
        if count.count > self._count(key):
            self._seen.pop(key, None)  # move it to the end
            self._seen[key] = count
            if len(self._seen) > _MAX_CACHED_COUNTS:
                del self._seen[next(iter(self._seen))]

    def _limits_for(self, attempt: Attempt) -> _Limits:
        name, network = digest(attempt.username), digest(rate_limit_key(attempt.address))
        return _Limits(
            address=self._limit("address", network, self._limits.per_address),
            pair=self._limit("pair", f"{name}/{network}", self._limits.per_name_and_address),
            name=self._limit("name", name, self._limits.per_name),
            known_key=count_key("known", f"{name}/{network}", 1, KNOWN_ADDRESS_SECONDS),
        )

    def _limit(self, kind: str, counted: str, max_count: int | None) -> _Limit:
        limit = _UNLIMITED if max_count is None else max_count
        return _Limit(count_key(kind, counted, limit, self._window_seconds), limit)
