"""The contract suite for `FixedWindowAttemptLimiter` with any storage.

A subclass provides the fixture ``counts``, which starts empty. The tests use real time. Windows that must end
during a test last one second.
"""

import time
from contextlib import AbstractContextManager

import pytest

from mlapi import AttemptLimiter, TooManyAttemptsError
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.domain.attempts import AttemptCountReader, AttemptCounts, AttemptCountWriter

HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
WINDOW_SECONDS = 60
MANY = 1000
ALLOWED = 0


def make_limits(*, per_address: int = MANY, per_name: int = MANY, per_name_and_address: int = MANY) -> AttemptLimits:
    return AttemptLimits(per_address=per_address, per_name=per_name, per_name_and_address=per_name_and_address)


def attempt(limiter: AttemptLimiter, username: str = "ada", address: str = HOME) -> int:
    """Count an attempt. Return 0 if it is allowed, otherwise the seconds to wait."""
    try:
        limiter.count(username, address)
    except TooManyAttemptsError as error:
        return error.retry_after_seconds
    return ALLOWED


def are_allowed(limiter: AttemptLimiter, *attempts: tuple[str, str]) -> list[bool]:
    return [attempt(limiter, username, address) == ALLOWED for username, address in attempts]


def log_in(limiter: AttemptLimiter, username: str = "ada", address: str = HOME) -> None:
    """Count an attempt and record its success."""
    was_known = limiter.count(username, address)
    limiter.record_success(username, address, was_known=was_known)


class CountingAttemptCounts:
    """Attempt counts that record each read and write."""

    def __init__(self, counts: AttemptCounts) -> None:
        self.uses = 0
        self._counts = counts

    def transaction(self) -> AbstractContextManager[AttemptCountWriter]:
        self.uses += 1
        return self._counts.transaction()

    def reading(self) -> AbstractContextManager[AttemptCountReader]:
        self.uses += 1
        return self._counts.reading()


class FixedWindowContract:
    def test_one_name_from_one_address_is_limited(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=3))

        results = [attempt(limiter) for _ in range(6)]

        assert results[:3] == [ALLOWED] * 3
        assert all(0 < seconds <= WINDOW_SECONDS for seconds in results[3:])
        assert are_allowed(limiter, ("ada", ELSEWHERE), ("bob", HOME)) == [True, True]

    def test_one_address_is_limited_for_all_names(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_address=3))

        results = [attempt(limiter, f"user{number}") for number in range(6)]

        assert results[:3] == [ALLOWED] * 3
        assert all(0 < seconds <= WINDOW_SECONDS for seconds in results[3:])
        assert are_allowed(limiter, ("user5", ELSEWHERE)) == [True]

    def test_one_name_is_limited_for_all_addresses(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=3))

        results = [attempt(limiter, "ada", f"192.0.2.{number}") for number in range(6)]

        assert results[:3] == [ALLOWED] * 3
        assert all(0 < seconds <= WINDOW_SECONDS for seconds in results[3:])
        assert are_allowed(limiter, ("bob", "192.0.2.5")) == [True]

    def test_default_limits_are_enforced(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, AttemptLimits())

        results = [attempt(limiter) for _ in range(21)]

        assert AttemptLimits() == AttemptLimits(per_address=200, per_name=200, per_name_and_address=20)
        assert results[:20] == [ALLOWED] * 20
        assert 0 < results[20] <= WINDOW_SECONDS

    def test_rejection_gives_whole_seconds_to_wait(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_address=1), window_seconds=1)
        limiter.count("ada", HOME)

        with pytest.raises(TooManyAttemptsError) as error_info:
            limiter.count("bob", HOME)

        assert error_info.value == TooManyAttemptsError(1)
        assert str(error_info.value) == "too many login attempts: retry in 1 seconds"

    def test_attempts_are_allowed_again_after_the_window(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=1), window_seconds=1)
        before = are_allowed(limiter, ("ada", HOME), ("ada", HOME))

        time.sleep(1.05)

        assert before == [True, False]
        assert are_allowed(limiter, ("ada", HOME), ("ada", HOME)) == [True, False]

    def test_addresses_of_one_ipv6_network_count_together(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_address=1))
        limiter.count("ada", "2001:db8:1:2::1")

        results = are_allowed(limiter, ("bob", "2001:db8:1:2:ffff::9"), ("bob", "2001:db8:1:3::1"))

        assert results == [False, True]

    def test_success_is_subtracted_from_every_count(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_address=2, per_name=2))

        log_in(limiter)
        log_in(limiter, "bob", ELSEWHERE)

        by_address = are_allowed(limiter, ("eve", HOME), ("eve", HOME), ("eve", HOME))
        by_name = are_allowed(limiter, *[("bob", f"203.0.113.{number}") for number in range(3)])
        assert by_address == by_name == [True, True, False]

    def test_failure_before_a_success_still_counts(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=2))
        limiter.count("ada", HOME)

        log_in(limiter)

        assert are_allowed(limiter, ("ada", ELSEWHERE), ("ada", ELSEWHERE)) == [True, False]

    def test_known_address_is_limited_only_by_its_own_count(self, counts: AttemptCounts) -> None:
        limits = make_limits(per_address=6, per_name=1, per_name_and_address=1)
        limiter = FixedWindowAttemptLimiter(counts, limits)
        log_in(limiter)

        results = are_allowed(limiter, *[("ada", HOME)] * 7)

        assert results == [True] * 6 + [False]

    def test_repeated_successes_are_never_limited(self, counts: AttemptCounts) -> None:
        limits = make_limits(per_address=2, per_name=2, per_name_and_address=2)
        limiter = FixedWindowAttemptLimiter(counts, limits)

        for _ in range(10):
            log_in(limiter)

        assert are_allowed(limiter, ("ada", HOME), ("ada", HOME), ("ada", HOME)) == [True, True, False]

    def test_attacker_elsewhere_does_not_lock_the_owner_out(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=5, per_name_and_address=3))
        log_in(limiter)
        guesses = are_allowed(limiter, *[("ada", f"203.0.113.{number % 3}") for number in range(20)])

        owner = are_allowed(limiter, ("ada", HOME))

        assert sum(guesses) == 5
        assert owner == [True]
        assert are_allowed(limiter, ("ada", ELSEWHERE)) == [False]

    def test_owner_logins_give_an_attacker_no_extra_guesses(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=3))
        log_in(limiter)
        guesses = [are_allowed(limiter, ("ada", ELSEWHERE))]

        for _ in range(3):
            log_in(limiter)
            guesses.append(are_allowed(limiter, ("ada", ELSEWHERE)))

        assert guesses == [[True], [True], [True], [False]]

    def test_address_is_known_for_one_name_only(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=1))
        log_in(limiter)

        assert are_allowed(limiter, ("bob", HOME), ("bob", HOME)) == [True, False]
        assert are_allowed(limiter, ("ada", ELSEWHERE), ("ada", ELSEWHERE)) == [True, False]

    def test_late_success_does_not_reduce_counts_of_the_next_window(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_address=2), window_seconds=1)
        limiter.count("ada", HOME)
        time.sleep(1.05)

        limiter.record_success("ada", HOME, was_known=False)

        assert are_allowed(limiter, ("bob", HOME), ("bob", HOME), ("bob", HOME)) == [True, True, False]

    def test_concurrent_successes_leave_all_counts_at_zero(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=3, per_name=3))
        known = [limiter.count("ada", HOME) for _ in range(3)]

        for was_known in known:
            limiter.record_success("ada", HOME, was_known=was_known)

        assert known == [False] * 3
        assert limiter.count("ada", HOME)
        assert are_allowed(limiter, *[("ada", ELSEWHERE)] * 4) == [True, True, True, False]

    def test_success_allows_a_previously_rejected_attempt(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=2))
        rejected = are_allowed(limiter, *[("ada", HOME)] * 3)

        limiter.record_success("ada", HOME, was_known=False)

        assert rejected == [True, True, False]
        assert are_allowed(limiter, ("ada", HOME)) == [True]

    def test_rejected_attempt_counts_toward_no_other_limit(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=1, per_address=2))
        limiter.count("ada", ELSEWHERE)

        rejected = are_allowed(limiter, *[("ada", HOME)] * 5)

        assert rejected == [False] * 5
        assert are_allowed(limiter, ("bob", HOME), ("eve", HOME), ("eve", HOME)) == [True, True, False]

    def test_limiters_share_their_counts(self, counts: AttemptCounts) -> None:
        limits = make_limits(per_name_and_address=4)
        one, two = FixedWindowAttemptLimiter(counts, limits), FixedWindowAttemptLimiter(counts, limits)

        results = [attempt(limiter) == ALLOWED for limiter in (one, two, one, two, one, two)]

        assert results == [True] * 4 + [False] * 2

    def test_limiters_share_known_addresses(self, counts: AttemptCounts) -> None:
        limits = make_limits(per_name_and_address=1)
        one, two = FixedWindowAttemptLimiter(counts, limits), FixedWindowAttemptLimiter(counts, limits)

        log_in(one)

        assert are_allowed(two, *[("ada", HOME)] * 3) == [True] * 3

    @pytest.mark.parametrize(
        "limits", [make_limits(per_address=2), make_limits(per_name_and_address=2)], ids=["address", "name and address"]
    )
    def test_flood_of_rejections_does_not_reach_the_storage(self, counts: AttemptCounts, limits: AttemptLimits) -> None:
        counted = CountingAttemptCounts(counts)
        limiter = FixedWindowAttemptLimiter(counted, limits)

        results = [attempt(limiter) == ALLOWED for _ in range(50)]

        assert results == [True] * 2 + [False] * 48
        assert counted.uses == 2 * 2 + 1  # each allowed attempt uses the storage twice, the first rejected one once

    def test_rejection_cache_is_bounded(self, counts: AttemptCounts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mlapi.application.login_throttle._MAX_CACHED_REJECTIONS", 5)
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=1))
        names = [f"user{number}" for number in range(12)]

        results = [are_allowed(limiter, *[(name, HOME) for name in names]) for _ in range(3)]

        assert results == [[True] * 12, [False] * 12, [False] * 12]
        assert len(limiter._rejected_until) <= 5

    def test_names_and_addresses_may_be_any_text(self, counts: AttemptCounts) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name_and_address=1))
        texts = ["", "a", "é", "a/b", "\0", "\ud800", "x" * 10_000, "' OR 1=1 --", "%"]
        pairs = [(username, address) for username in texts for address in texts]

        results = [are_allowed(limiter, *pairs) for _ in range(2)]

        assert results == [[True] * len(pairs), [False] * len(pairs)]
