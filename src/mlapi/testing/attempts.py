"""The contract suite for `AttemptLimiter`.

A subclass provides the fixture ``attempts``: a limiter that has counted no attempts yet. It allows three attempts a
minute for one name from one address, and at least a hundred for one name or one address alone.
"""

import pytest

from mlapi import AttemptLimiter, TooManyAttemptsError

HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
ATTEMPT_LIMIT = 3


def is_allowed(attempts: AttemptLimiter, username: str = "ada", address: str = HOME) -> bool:
    try:
        attempts.count(username, address)
    except TooManyAttemptsError:
        return False
    return True


def log_in(attempts: AttemptLimiter, username: str = "ada", address: str = HOME) -> bool:
    """Count an attempt and record its success. Return whether the address was known."""
    was_known = attempts.count(username, address)
    attempts.record_success(username, address, was_known=was_known)
    return was_known


class AttemptLimiterContract:
    def test_attempts_are_allowed_up_to_the_limit(self, attempts: AttemptLimiter) -> None:
        results = [is_allowed(attempts) for _ in range(ATTEMPT_LIMIT + 2)]

        assert results == [True] * ATTEMPT_LIMIT + [False] * 2

    def test_rejection_says_when_to_retry(self, attempts: AttemptLimiter) -> None:
        for _ in range(ATTEMPT_LIMIT):
            attempts.count("ada", HOME)

        with pytest.raises(TooManyAttemptsError) as error_info:
            attempts.count("ada", HOME)

        assert 1 <= error_info.value.retry_after_seconds <= 60
        assert isinstance(error_info.value.retry_after_seconds, int)

    def test_other_names_and_addresses_are_not_limited(self, attempts: AttemptLimiter) -> None:
        while is_allowed(attempts):
            pass

        others = [("bob", HOME), ("ada", ELSEWHERE), ("bob", ELSEWHERE)]
        assert [is_allowed(attempts, name, address) for name, address in others] == [True] * 3

    def test_login_makes_the_address_known(self, attempts: AttemptLimiter) -> None:
        known = [attempts.count("ada", HOME), log_in(attempts), attempts.count("ada", HOME)]

        others = [attempts.count("ada", ELSEWHERE), attempts.count("bob", HOME)]
        assert (known, others) == ([False, False, True], [False, False])

    def test_known_address_is_not_limited_by_name(self, attempts: AttemptLimiter) -> None:
        log_in(attempts)

        assert [is_allowed(attempts) for _ in range(2 * ATTEMPT_LIMIT)] == [True] * (2 * ATTEMPT_LIMIT)

    def test_guessing_from_elsewhere_does_not_lock_the_user_out(self, attempts: AttemptLimiter) -> None:
        log_in(attempts)
        while is_allowed(attempts, "ada", ELSEWHERE):
            pass

        assert is_allowed(attempts, "ada", HOME)

    def test_successful_attempt_is_not_counted(self, attempts: AttemptLimiter) -> None:
        wrong = [attempts.count("ada", ELSEWHERE) for _ in range(ATTEMPT_LIMIT - 1)]

        right = log_in(attempts, "ada", ELSEWHERE)

        assert [*wrong, right] == [False] * ATTEMPT_LIMIT
        assert [log_in(attempts, "bob") for _ in range(2 * ATTEMPT_LIMIT)] == [False] + [True] * (2 * ATTEMPT_LIMIT - 1)

    @pytest.mark.parametrize("username", ["", "nobody", "\0", "\ud800", "é" * 10_000])
    @pytest.mark.parametrize("address", ["", "::1", "testclient", "\ud800"])
    def test_names_and_addresses_may_be_any_text(self, attempts: AttemptLimiter, username: str, address: str) -> None:
        results = [is_allowed(attempts, username, address) for _ in range(ATTEMPT_LIMIT + 1)]

        assert results == [True] * ATTEMPT_LIMIT + [False]
