"""What every `AttemptLimiter` must do.

A subclass gives the fixture ``attempts``: an empty one that lets three attempts of one name from one address through in
a minute, and a hundred or more of one name or of one address.
"""

import pytest

from mlapi import AttemptLimiter, TooManyAttemptsError

HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
AT_MOST = 3


def is_let_through(attempts: AttemptLimiter, username: str = "ada", address: str = HOME) -> bool:
    try:
        attempts.count(username, address)
    except TooManyAttemptsError:
        return False
    return True


def log_in(attempts: AttemptLimiter, username: str = "ada", address: str = HOME) -> bool:
    """Count an attempt that was right; return whether the address was known."""
    was_known = attempts.count(username, address)
    attempts.record_success(username, address, was_known=was_known)
    return was_known


class AttemptLimiterContract:
    def test_attempts_are_let_through_up_to_the_limit(self, attempts: AttemptLimiter) -> None:
        answers = [is_let_through(attempts) for _ in range(AT_MOST + 2)]

        assert answers == [True] * AT_MOST + [False] * 2

    def test_a_refusal_says_when_to_come_again(self, attempts: AttemptLimiter) -> None:
        for _ in range(AT_MOST):
            attempts.count("ada", HOME)

        with pytest.raises(TooManyAttemptsError) as refusal:
            attempts.count("ada", HOME)

        assert 1 <= refusal.value.retry_after <= 60
        assert isinstance(refusal.value.retry_after, int)

    def test_another_name_and_another_address_are_let_through(self, attempts: AttemptLimiter) -> None:
        while is_let_through(attempts):
            pass

        others = [("bob", HOME), ("ada", ELSEWHERE), ("bob", ELSEWHERE)]
        assert [is_let_through(attempts, name, address) for name, address in others] == [True] * 3

    def test_an_address_is_known_once_the_name_was_logged_in_from_there(self, attempts: AttemptLimiter) -> None:
        known = [attempts.count("ada", HOME), log_in(attempts), attempts.count("ada", HOME)]

        others = [attempts.count("ada", ELSEWHERE), attempts.count("bob", HOME)]
        assert (known, others) == ([False, False, True], [False, False])

    def test_an_attempt_at_a_known_address_is_not_counted_for_the_name(self, attempts: AttemptLimiter) -> None:
        log_in(attempts)

        assert [is_let_through(attempts) for _ in range(2 * AT_MOST)] == [True] * (2 * AT_MOST)

    def test_who_is_refused_elsewhere_is_let_through_at_home(self, attempts: AttemptLimiter) -> None:
        log_in(attempts)
        while is_let_through(attempts, "ada", ELSEWHERE):
            pass

        assert is_let_through(attempts, "ada", HOME)

    def test_an_attempt_that_was_right_is_taken_back(self, attempts: AttemptLimiter) -> None:
        wrong = [attempts.count("ada", ELSEWHERE) for _ in range(AT_MOST - 1)]

        right = log_in(attempts, "ada", ELSEWHERE)

        assert [*wrong, right] == [False] * AT_MOST
        assert [log_in(attempts, "bob") for _ in range(2 * AT_MOST)] == [False] + [True] * (2 * AT_MOST - 1)

    @pytest.mark.parametrize("username", ["", "nobody", "\0", "\ud800", "é" * 10_000])
    @pytest.mark.parametrize("address", ["", "::1", "testclient", "\ud800"])
    def test_names_and_addresses_may_be_anything(self, attempts: AttemptLimiter, username: str, address: str) -> None:
        answers = [is_let_through(attempts, username, address) for _ in range(AT_MOST + 1)]

        assert answers == [True] * AT_MOST + [False]
