"""The contract suite for `AttemptLimiter`.

A subclass provides the fixture ``attempts``: a limiter that has counted no attempts yet. It allows three wrong guesses
a minute for one name from one address, and at least a hundred for one name or one address alone.
"""

from collections.abc import Callable

import pytest

from mlapi import AttemptLimiter, TooManyAttemptsError
from mlapi.domain.attempts import Attempt

HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
ATTEMPT_LIMIT = 3


def guess(attempts: AttemptLimiter, username: str = "ada", address: str = HOME) -> bool:
    """Make an attempt with a wrong password. Return whether it was allowed."""
    return _make(attempts, attempts.record_failure, Attempt(username=username, address=address))


def log_in(attempts: AttemptLimiter, username: str = "ada", address: str = HOME) -> bool:
    """Make an attempt with the correct password. Return whether it was allowed."""
    return _make(attempts, attempts.record_success, Attempt(username=username, address=address))


def _make(attempts: AttemptLimiter, record: Callable[[Attempt], object], attempt: Attempt) -> bool:
    try:
        attempts.start(attempt)
        record(attempt)
    except TooManyAttemptsError:
        return False
    finally:
        attempts.end(attempt)
    return True


def give_up(attempts: AttemptLimiter, username: str = "ada", address: str = HOME) -> None:
    """Make an attempt that ends before its password is verified, for example because the database is unavailable."""
    attempt = Attempt(username=username, address=address)
    attempts.start(attempt)
    attempts.end(attempt)


class AttemptLimiterContract:
    def test_guesses_are_allowed_up_to_the_limit(self, attempts: AttemptLimiter) -> None:
        results = [guess(attempts) for _ in range(ATTEMPT_LIMIT + 2)]

        assert results == [True] * ATTEMPT_LIMIT + [False] * 2

    def test_correct_password_is_rejected_after_the_limit(self, attempts: AttemptLimiter) -> None:
        guesses = [guess(attempts) for _ in range(ATTEMPT_LIMIT)]

        assert [*guesses, log_in(attempts)] == [True] * ATTEMPT_LIMIT + [False]

    def test_rejection_says_when_to_retry(self, attempts: AttemptLimiter) -> None:
        while guess(attempts):
            pass

        with pytest.raises(TooManyAttemptsError) as error_info:
            attempts.start(Attempt(username="ada", address=HOME))

        assert 1 <= error_info.value.retry_after_seconds <= 60
        assert isinstance(error_info.value.retry_after_seconds, int)
        assert error_info.value.is_final

    def test_other_names_and_addresses_are_not_limited(self, attempts: AttemptLimiter) -> None:
        while guess(attempts):
            pass

        others = [("bob", HOME), ("ada", ELSEWHERE), ("bob", ELSEWHERE)]
        assert [guess(attempts, name, address) for name, address in others] == [True] * 3

    def test_successful_attempts_are_not_counted(self, attempts: AttemptLimiter) -> None:
        wrong = [guess(attempts) for _ in range(ATTEMPT_LIMIT - 1)]

        right = [log_in(attempts) for _ in range(40 * ATTEMPT_LIMIT)]

        assert wrong == [True] * (ATTEMPT_LIMIT - 1)
        assert right == [True] * (40 * ATTEMPT_LIMIT)
        assert [guess(attempts), guess(attempts)] == [True, False]

    def test_attempts_without_a_result_are_not_counted(self, attempts: AttemptLimiter) -> None:
        for _ in range(40 * ATTEMPT_LIMIT):
            give_up(attempts)

        assert [guess(attempts) for _ in range(ATTEMPT_LIMIT + 1)] == [True] * ATTEMPT_LIMIT + [False]

    def test_running_attempts_count_toward_the_limit(self, attempts: AttemptLimiter) -> None:
        running = [Attempt(username="ada", address=HOME) for _ in range(ATTEMPT_LIMIT)]
        for attempt in running:
            attempts.start(attempt)

        with pytest.raises(TooManyAttemptsError) as error_info:
            attempts.start(Attempt(username="ada", address=HOME))

        assert not error_info.value.is_final
        attempts.record_success(running[0])
        for attempt in running:
            attempts.end(attempt)
        assert log_in(attempts)

    def test_ended_attempt_occupies_no_slot(self, attempts: AttemptLimiter) -> None:
        for _ in range(2 * ATTEMPT_LIMIT):
            attempt = Attempt(username="ada", address=HOME)
            attempts.end(attempt)
            attempts.start(attempt)

        assert log_in(attempts)

    def test_guesses_at_a_known_address_are_limited_too(self, attempts: AttemptLimiter) -> None:
        log_in(attempts)

        results = [[guess(attempts, name) for _ in range(ATTEMPT_LIMIT + 2)] for name in ("ada", "nobody")]

        assert results == [[True] * ATTEMPT_LIMIT + [False] * 2] * 2

    def test_guessing_from_elsewhere_does_not_lock_the_user_out(self, attempts: AttemptLimiter) -> None:
        log_in(attempts)
        for number in range(400):
            guess(attempts, "ada", f"203.0.113.{number % 200}")

        assert log_in(attempts)

    @pytest.mark.parametrize("username", ["", "nobody", "\0", "\ud800", "é" * 10_000])
    @pytest.mark.parametrize("address", ["", "::1", "testclient", "\ud800"])
    def test_names_and_addresses_may_be_any_text(self, attempts: AttemptLimiter, username: str, address: str) -> None:
        results = [guess(attempts, username, address) for _ in range(ATTEMPT_LIMIT + 1)]

        assert results == [True] * ATTEMPT_LIMIT + [False]
