"""Counts of login attempts and allowances in memory."""

import time
from collections.abc import Callable, Sequence

import attrs

from mlapi.domain.allowances import AllowanceUse, Draw, Drawn
from mlapi.domain.attempts import Attempt, WindowCount
from mlapi.domain.errors import (
    RepositoryUnavailableError,
)
from mlapi.domain.users import UserId
from mlapi.forks import new_lock

_PURGE_INTERVAL_SECONDS = 10.0


class InMemoryAttempts:
    """`AttemptCounts` for one process.

    Args:
        clock: returns seconds since 1970.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = new_lock()
        self._counts: dict[str, WindowCount] = {}
        self._purged_at = clock()

    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        now = self._clock()
        return [self._get(key, now) for key in keys]

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        with self._lock:
            now = self._clock()
            self._purge(now)
            return [self._count(key, now, window_seconds) for key in keys]

    read_nowait = read

    def _count(self, key: str, now: float, window_seconds: float) -> WindowCount:
        found = self._get(key, now)
        ends_at = found.ends_at_timestamp if found.count else now + window_seconds
        self._counts[key] = counted = WindowCount(found.count + 1, ends_at)
        return counted

    def _get(self, key: str, now: float) -> WindowCount:
        found = self._counts.get(key)
        return WindowCount(0, now) if found is None or found.ends_at_timestamp <= now else found

    def _purge(self, now: float) -> None:
        if now - self._purged_at >= _PURGE_INTERVAL_SECONDS:
            self._purged_at = now
            self._counts = {key: count for key, count in self._counts.items() if count.ends_at_timestamp > now}


class InMemoryAllowances:
    """`Allowances` for one process.

    Args:
        has_user: returns whether a user exists.
        clock: returns seconds since 1970.
    """

    def __init__(self, has_user: Callable[[UserId], bool], *, clock: Callable[[], float] = time.time) -> None:
        self._has_user = has_user
        self._clock = clock
        self._lock = new_lock()
        self._uses: dict[UserId, dict[str, AllowanceUse]] = {}

    def draw(self, requests: Sequence[Draw], *, commit_by: float | None = None) -> list[Drawn | None]:
        with self._lock:
            if commit_by is not None and time.monotonic() > commit_by:
                raise RepositoryUnavailableError("too late to commit")
            return [self._draw(request) for request in requests]

    def read(self, requests: Sequence[Draw]) -> list[Drawn | None]:
        return self.draw([attrs.evolve(request, wanted=0) for request in requests])

    def _draw(self, request: Draw) -> Drawn | None:
        if not self._has_user(request.user_id):
            self._uses.pop(request.user_id, None)
            return None
        uses = self._uses.get(request.user_id, {})
        use, drawn = request.apply_to(uses.get(request.allowance), self._clock())
        if drawn.granted:
            self._uses[request.user_id] = {**uses, request.allowance: use}
        return drawn


class UnlimitedAttempts:
    """An `AttemptLimiter` for tests that allows every attempt."""

    def start(self, attempt: Attempt) -> None:
        """Allow the attempt."""

    def record_failure(self, attempt: Attempt) -> None:
        """Do nothing."""

    def record_success(self, attempt: Attempt) -> None:
        """Do nothing."""

    def end(self, attempt: Attempt) -> None:
        attempt.is_over = True
