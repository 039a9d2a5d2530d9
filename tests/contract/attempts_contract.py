"""The contract suite for `FixedWindowAttemptLimiter` with any storage.

A subclass provides the fixture ``counts``, which starts empty. The tests use real time. Windows that must end
during a test last one second.
"""

import asyncio
import time
from collections.abc import Sequence

import pytest

from mlapi import AttemptLimiter, RepositoryUnavailableError, TooManyAttemptsError
from mlapi.application.async_attempts import BatchedAttemptLimiter
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.application.shared_counts import BatchedCounts
from mlapi.domain.attempts import Attempt, AttemptCounts, WindowCount
from mlapi.testing.attempts import ELSEWHERE, HOME, give_up, guess, log_in

WINDOW_SECONDS = 60
MANY = 1000


def make_limits(
    *, per_address: int | None = MANY, per_name: int | None = MANY, per_name_and_address: int | None = MANY
) -> AttemptLimits:
    return AttemptLimits(per_address=per_address, per_name=per_name, per_name_and_address=per_name_and_address)


def guesses(limiter: AttemptLimiter, *attempts: tuple[str, str]) -> list[bool]:
    """Make attempts with wrong passwords. Return whether each was allowed."""
    return [guess(limiter, username, address) for username, address in attempts]


def retry_after(limiter: AttemptLimiter, username: str = "ada", address: str = HOME) -> int:
    """Return the seconds to wait for an attempt, or 0 if it is allowed. It is not counted."""
    try:
        give_up(limiter, username, address)
    except TooManyAttemptsError as error:
        return error.retry_after_seconds
    return 0


class CountingAttemptCounts:
    """Attempt counts that record each use, and fail if ``error`` is set."""

    def __init__(self, counts: AttemptCounts) -> None:
        self.uses: list[str] = []
        self.error: RepositoryUnavailableError | None = None
        self._counts = counts

    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        self.uses.append("read")
        return self._counts.read(keys)

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        self.uses.append("add")
        if self.error is not None:
            raise self.error
        return self._counts.add(keys, window_seconds=window_seconds)


class FixedWindowContract:
    def test_one_name_from_one_address_is_limited(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=3))

        results = guesses(limiter, *[("ada", HOME)] * 6)

        assert results == [True] * 3 + [False] * 3
        assert 0 < retry_after(limiter) <= WINDOW_SECONDS
        assert guesses(limiter, ("ada", ELSEWHERE), ("bob", HOME)) == [True, True]

    def test_one_address_is_limited_for_all_names(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_address=3))

        results = guesses(limiter, *[(f"user{number}", HOME) for number in range(6)])

        assert results == [True] * 3 + [False] * 3
        assert 0 < retry_after(limiter, "user9") <= WINDOW_SECONDS
        assert guesses(limiter, ("user5", ELSEWHERE)) == [True]

    def test_one_name_is_limited_for_all_addresses(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=3))

        results = guesses(limiter, *[("ada", f"192.0.2.{number}") for number in range(6)])

        assert results == [True] * 3 + [False] * 3
        assert not log_in(limiter, "ada", "192.0.2.9")
        assert guesses(limiter, ("bob", "192.0.2.5")) == [True]

    def test_default_limits_are_enforced(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, AttemptLimits())

        results = guesses(limiter, *[("ada", HOME)] * 21)

        assert AttemptLimits() == AttemptLimits(per_address=200, per_name=200, per_name_and_address=20)
        assert results == [True] * 20 + [False]
        assert 0 < retry_after(limiter) <= WINDOW_SECONDS

    def test_limit_of_none_never_rejects(self, counts: AttemptCounts) -> None:
        limits = make_limits(per_address=None, per_name=None, per_name_and_address=None)
        limiter = FixedWindowAttemptLimiter(counts, limits)

        assert guesses(limiter, *[("ada", HOME)] * 30) == [True] * 30

    def test_rejection_gives_whole_seconds_to_wait(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_address=1), window_seconds=1)
        guess(limiter)

        with pytest.raises(TooManyAttemptsError) as error_info:
            limiter.start(Attempt(username="bob", address=HOME))

        assert error_info.value == TooManyAttemptsError(1)
        assert str(error_info.value) == "too many attempts: retry in 1 seconds"

    def test_attempts_are_allowed_again_after_the_window(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=1), window_seconds=1)
        before = guesses(limiter, ("ada", HOME), ("ada", HOME))

        time.sleep(1.05)

        assert before == [True, False]
        assert guesses(limiter, ("ada", HOME), ("ada", HOME)) == [True, False]

    def test_addresses_of_one_ipv6_network_count_together(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_address=1))
        guess(limiter, "ada", "2001:db8:1:2::1")

        results = guesses(limiter, ("bob", "2001:db8:1:2:ffff::9"), ("bob", "2001:db8:1:3::1"))

        assert results == [False, True]

    def test_failure_before_a_success_still_counts(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=2))
        guess(limiter)

        log_in(limiter)

        assert guesses(limiter, ("ada", ELSEWHERE), ("ada", ELSEWHERE)) == [True, False]

    def test_successes_are_never_limited_and_stored_once(self, counts: AttemptCounts) -> None:
        counted = CountingAttemptCounts(counts)
        limiter = FixedWindowAttemptLimiter(counted, make_limits(per_address=2, per_name=2, per_name_and_address=2))

        results = [log_in(limiter) for _ in range(10)]

        assert results == [True] * 10
        assert counted.uses == ["read", "add"] + ["read"] * 9
        assert guesses(limiter, ("ada", HOME), ("ada", HOME), ("ada", HOME)) == [True, True, False]

    def test_attacker_elsewhere_does_not_lock_the_owner_out(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=5, per_name_and_address=3))
        log_in(limiter)
        results = guesses(limiter, *[("ada", f"203.0.113.{number % 3}") for number in range(20)])

        assert sum(results) == 5
        assert log_in(limiter)
        assert not log_in(limiter, "ada", ELSEWHERE)

    def test_flooded_name_gets_the_same_errors_everywhere(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=5, per_name_and_address=3))
        log_in(limiter)
        for number in range(5):
            guesses(limiter, ("ada", f"203.0.113.{number}"), ("nobody", f"203.0.113.{number}"))

        attempts = [Attempt(username=name, address=HOME) for name in ("ada", "nobody") for _ in range(4)]
        results = []
        for attempt in attempts:
            try:
                limiter.start(attempt)
                results.append("started")  # so the cipher runs
                limiter.record_failure(attempt)
            except TooManyAttemptsError as error:
                results.append("rejected" if error.is_final else "must wait")
            limiter.end(attempt)

        assert results == [*["started", "rejected"] * 3, "rejected"] * 2

    def test_correct_guess_at_a_flooded_name_looks_wrong(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=1, per_name_and_address=3))
        guess(limiter, "ada", ELSEWHERE)

        results = [log_in(limiter) for _ in range(3)]

        assert results == [False] * 3
        with pytest.raises(TooManyAttemptsError):  # it was counted like a wrong guess
            limiter.start(Attempt(username="ada", address=HOME))

    def test_running_attempts_do_not_flood_a_name(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=2))
        running = [Attempt(username="ada", address=f"192.0.2.{number}") for number in range(8)]
        for attempt in running:
            limiter.start(attempt)

        for attempt in running:
            limiter.record_success(attempt)
            limiter.end(attempt)

        assert log_in(limiter, "ada", ELSEWHERE)

    def test_attempts_may_exceed_the_limit_while_they_run(self, counts: AttemptCounts) -> None:
        limits = make_limits(per_name_and_address=2)
        attempts = [Attempt(username="ada", address=HOME) for _ in range(4)]
        limiters = [FixedWindowAttemptLimiter(counts, limits) for _ in attempts]  # each in its own process
        results = []
        for limiter, attempt in zip(limiters, attempts, strict=True):
            limiter.start(attempt)

        for limiter, attempt in zip(limiters, attempts, strict=True):
            try:
                limiter.record_failure(attempt)
            except TooManyAttemptsError:
                results.append("too many")
            else:
                results.append("wrong")

        assert results == ["wrong", "wrong", "too many", "too many"]

    @pytest.mark.parametrize(
        ("limits", "username", "address"),
        [
            pytest.param(make_limits(per_name=10), "ada", "192.0.2.{}", id="name"),
            pytest.param(make_limits(per_address=10), "user{}", HOME, id="address"),
            pytest.param(make_limits(per_name_and_address=10), "ada", HOME, id="name and address"),
        ],
    )
    def test_failures_in_one_batch_allow_exactly_the_limit(
        self, counts: AttemptCounts, limits: AttemptLimits, username: str, address: str
    ) -> None:
        guesses(FixedWindowAttemptLimiter(counts, limits), *[(username.format(1), address.format(1))] * 7)
        counted = CountingAttemptCounts(counts)
        limiters = [FixedWindowAttemptLimiter(counted, limits) for _ in range(16)]  # each in its own process
        attempts = [Attempt(username=username.format(1), address=address.format(1)) for _ in limiters]
        for limiter, attempt in zip(limiters, attempts, strict=True):
            limiter.start(attempt)
        counted.uses.clear()

        async def record_failures() -> list[BaseException | None]:
            shared = BatchedCounts(counted)
            failures = [
                limiter.record_failure_with(shared, attempt)
                for limiter, attempt in zip(limiters, attempts, strict=True)
            ]
            try:
                return await asyncio.gather(*failures, return_exceptions=True)
            finally:
                shared.close()

        results = asyncio.run(record_failures())

        assert [type(result) for result in results] == [type(None)] * 3 + [TooManyAttemptsError] * 13
        assert counted.uses == ["add"]

    def test_attempts_in_one_batch_start_within_the_limit(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=10))
        guesses(limiter, *[("ada", HOME)] * 7)
        attempts = [Attempt(username="ada", address=HOME) for _ in range(16)]

        async def start() -> list[BaseException | None]:
            batched = BatchedAttemptLimiter(limiter)
            try:
                return await asyncio.gather(*map(batched.start, attempts), return_exceptions=True)
            finally:
                batched.close()

        results = asyncio.run(start())

        assert results == [None] * 3 + [TooManyAttemptsError(1, is_final=False)] * 13

    def test_owner_logins_give_an_attacker_no_extra_guesses(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=3))
        log_in(limiter)
        results = [guesses(limiter, ("ada", ELSEWHERE))]

        for _ in range(3):
            log_in(limiter)
            results.append(guesses(limiter, ("ada", ELSEWHERE)))

        assert results == [[True], [True], [True], [False]]

    def test_address_is_known_for_one_name_only(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=1))
        log_in(limiter)
        guesses(limiter, ("ada", "203.0.113.1"), ("bob", "203.0.113.1"))

        assert [log_in(limiter), log_in(limiter, "bob"), log_in(limiter, "ada", ELSEWHERE)] == [True, False, False]

    def test_rejected_attempt_counts_toward_no_other_limit(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=1, per_address=3))
        guess(limiter)

        rejected = guesses(limiter, *[("ada", HOME)] * 5)

        assert rejected == [False] * 5
        assert guesses(limiter, ("bob", HOME), ("eve", HOME), ("mallory", HOME)) == [True, True, False]

    def test_limiters_share_their_counts(self, counts: AttemptCounts) -> None:
        limits = make_limits(per_name_and_address=4)
        one, two = FixedWindowAttemptLimiter(counts, limits), FixedWindowAttemptLimiter(counts, limits)

        results = [guess(limiter) for limiter in (one, two, one, two, one, two)]

        assert results == [True] * 4 + [False] * 2

    def test_limiters_share_known_addresses(self, counts: AttemptCounts) -> None:
        limits = make_limits(per_name=1)
        one, two = FixedWindowAttemptLimiter(counts, limits), FixedWindowAttemptLimiter(counts, limits)

        log_in(one)
        guess(one, "ada", ELSEWHERE)

        assert [log_in(two), log_in(two, "ada", "203.0.113.1")] == [True, False]

    @pytest.mark.parametrize(
        "limits", [make_limits(per_address=2), make_limits(per_name_and_address=2)], ids=["address", "name and address"]
    )
    def test_flood_of_rejections_does_not_reach_the_storage(self, counts: AttemptCounts, limits: AttemptLimits) -> None:
        counted = CountingAttemptCounts(counts)
        limiter = FixedWindowAttemptLimiter(counted, limits)

        results = [guess(limiter) for _ in range(50)]

        assert results == [True] * 2 + [False] * 48
        assert counted.uses == ["read", "add"] * 2

    def test_cached_counts_are_bounded(self, counts: AttemptCounts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mlapi.application.login_throttle._MAX_CACHED_COUNTS", 5)
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=1))
        names = [f"user{number}" for number in range(12)]

        results = [guesses(limiter, *[(name, HOME) for name in names]) for _ in range(3)]

        assert results == [[True] * 12, [False] * 12, [False] * 12]
        assert len(limiter._seen) <= 5
        assert not limiter._running_counts

    def test_failures_that_cannot_be_stored_are_limited(
        self, counts: AttemptCounts, caplog: pytest.LogCaptureFixture
    ) -> None:
        counted = CountingAttemptCounts(counts)
        limiter = FixedWindowAttemptLimiter(counted, make_limits(per_name_and_address=3))
        guess(limiter)
        counted.error = RepositoryUnavailableError("disk full")

        results = guesses(limiter, *[("ada", HOME)] * 4, *[("bob", HOME)] * 4)

        assert results == [True, True, False, False, True, True, True, False]
        assert "only this process counts failed logins: the database is unavailable: disk full" in caplog.text
        assert log_in(limiter, "eve")
        assert "was not stored as known: the database is unavailable: disk full" in caplog.text

    def test_names_and_addresses_may_be_any_text(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=1))
        texts = ["", "a", "é", "a/b", "\0", "\ud800", "x" * 10_000, "' OR 1=1 --", "%"]
        pairs = [(username, address) for username in texts for address in texts]

        results = [guesses(limiter, *pairs) for _ in range(2)]

        assert results == [[True] * len(pairs), [False] * len(pairs)]
