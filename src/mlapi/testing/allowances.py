"""The contract suite for `Allowances`.

A subclass provides two fixtures: ``repository``, an empty `UserRepository`, and ``allowances`` for the same users.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlapi import RepositoryUnavailableError, UserId, UserRepository
from mlapi.domain.allowances import MAX_USED, Allowances, Draw, Drawn
from mlapi.domain.commands import Remove
from mlapi.domain.plans import Window
from mlapi.testing.samples import LATER, UNKNOWN_IDS, registered

LIMIT = 10
MANY = 2**40


def request_draw(user_id: UserId, wanted: int = 1, **fields: object) -> Draw:
    """Return a draw from an allowance of ten requests per month: a month rarely ends during a test."""
    values = {"allowance": "requests per month", "window": Window.MONTH, "limit": LIMIT, **fields}
    return Draw(user_id=user_id, wanted=wanted, **values)  # type: ignore[arg-type]  # the test passes the right types


def draw_one(allowances: Allowances, draw: Draw) -> Drawn:
    """Draw once, for a user who exists."""
    (drawn,) = allowances.draw([draw])
    assert drawn is not None
    return drawn


def granted(results: Sequence[Drawn | None]) -> list[int | None]:
    """Return the number that each draw granted, or None for unknown users."""
    return [None if drawn is None else drawn.granted for drawn in results]


class AllowancesContract:
    @pytest.fixture
    def ada(self, repository: UserRepository) -> UserId:
        return registered(repository, "ada").id

    @pytest.fixture
    def bob(self, repository: UserRepository) -> UserId:
        return registered(repository, "bob").id

    # --- drawing and giving back

    def test_draws_are_granted_up_to_the_limit(self, allowances: Allowances, ada: UserId) -> None:
        results = [draw_one(allowances, request_draw(ada, wanted)) for wanted in (3, 5, 5, 1)]

        assert [(drawn.granted, drawn.used) for drawn in results] == [(3, 3), (5, 8), (2, 10), (0, 10)]

    def test_nothing_is_granted_if_too_few_are_left(self, allowances: Allowances, ada: UserId) -> None:
        allowances.draw([request_draw(ada, LIMIT - 2)])

        results = [allowances.draw([request_draw(ada, 5, at_least=least)]) for least in (3, 2)]

        assert [granted(drawn) for drawn in results] == [[0], [2]]

    def test_draws_without_a_limit_are_granted(self, allowances: Allowances, ada: UserId) -> None:
        allowances.draw([request_draw(ada, LIMIT)])

        drawn = draw_one(allowances, request_draw(ada, MANY, limit=None))

        assert (drawn.granted, drawn.used) == (MANY, MANY + LIMIT)

    def test_count_never_exceeds_the_storable_maximum(self, allowances: Allowances, ada: UserId) -> None:
        drawn = [draw_one(allowances, request_draw(ada, MAX_USED - 1, limit=None)) for _ in range(3)]

        assert [each.used for each in drawn] == [MAX_USED - 1, MAX_USED, MAX_USED]

    def test_given_back_requests_can_be_drawn_again(self, allowances: Allowances, ada: UserId) -> None:
        starts_at = draw_one(allowances, request_draw(ada, LIMIT)).starts_at

        given_back = draw_one(allowances, request_draw(ada, -4, starts_at=starts_at))
        again = draw_one(allowances, request_draw(ada, LIMIT))

        assert (given_back.granted, given_back.used) == (-4, LIMIT - 4)
        assert (again.granted, again.used) == (4, LIMIT)

    def test_requests_of_an_ended_window_are_not_given_back(self, allowances: Allowances, ada: UserId) -> None:
        starts_at = draw_one(allowances, request_draw(ada, LIMIT)).starts_at

        ended = draw_one(allowances, request_draw(ada, -4, starts_at=starts_at - 1))

        assert (ended.granted, ended.used) == (0, LIMIT)

    def test_no_more_than_was_used_is_given_back(self, allowances: Allowances, ada: UserId) -> None:
        starts_at = draw_one(allowances, request_draw(ada, 1)).starts_at

        given_back = draw_one(allowances, request_draw(ada, -MANY, starts_at=starts_at))

        assert given_back.used == 0

    def test_nothing_is_given_back_to_an_unused_allowance(self, allowances: Allowances, ada: UserId) -> None:
        starts_at = draw_one(allowances, request_draw(ada, 0)).starts_at

        assert draw_one(allowances, request_draw(ada, -1, starts_at=starts_at)).used == 0

    @pytest.mark.parametrize(("limit", "expected"), [(5, 0), (LIMIT, 0), (LIMIT + 2, 2)])
    def test_changed_limit_keeps_the_count(
        self, allowances: Allowances, ada: UserId, limit: int, expected: int
    ) -> None:
        allowances.draw([request_draw(ada, LIMIT)])

        assert granted(allowances.draw([request_draw(ada, 3, limit=limit)])) == [expected]

    # --- windows

    @pytest.mark.parametrize("window", Window)
    def test_window_is_the_current_one(self, allowances: Allowances, ada: UserId, window: Window) -> None:
        before = time.time()
        drawn = draw_one(allowances, request_draw(ada, window=window))
        after = time.time()

        assert drawn.starts_at in {window.start_of(before), window.start_of(after)}
        remaining = window.end_of(drawn.starts_at) - after
        assert remaining - 1 <= drawn.ends_in_seconds <= remaining + (after - before) + 1

    # --- several users, allowances and draws

    def test_users_and_allowances_are_counted_separately(
        self, allowances: Allowances, ada: UserId, bob: UserId
    ) -> None:
        draws = [
            request_draw(ada, LIMIT),
            request_draw(bob, LIMIT),
            request_draw(ada, LIMIT, allowance="units per month"),
        ]

        assert granted([allowances.draw([draw])[0] for draw in draws]) == [LIMIT] * 3

    def test_later_draws_see_the_effects_of_earlier_ones(
        self, allowances: Allowances, ada: UserId, bob: UserId
    ) -> None:
        starts_at = draw_one(allowances, request_draw(ada, 0)).starts_at

        results = allowances.draw(
            [
                request_draw(ada, 8),
                request_draw(bob, 3),
                request_draw(ada, 8),
                request_draw(ada, -5, starts_at=starts_at),
                request_draw(ada, 8),
                request_draw(bob, 3),
            ]
        )

        assert granted(results) == [8, 3, 2, -5, 5, 3]
        assert [drawn.used for drawn in results if drawn is not None] == [8, 3, 10, 5, 10, 6]

    def test_unknown_users_do_not_affect_the_others(
        self, allowances: Allowances, repository: UserRepository, ada: UserId, bob: UserId
    ) -> None:
        allowances.draw([request_draw(bob)])
        repository.apply([Remove(user_id=bob, at=LATER)])

        results = allowances.draw([request_draw(user_id) for user_id in (*UNKNOWN_IDS, ada, bob)])

        assert granted(results) == [*[None] * len(UNKNOWN_IDS), 1, None]

    def test_many_draws_fit_in_one_transaction(
        self, allowances: Allowances, repository: UserRepository, ada: UserId
    ) -> None:
        users = [ada, *(registered(repository, f"user{number}").id for number in range(20))]

        results = allowances.draw([request_draw(user_id) for user_id in users] * 100)

        assert granted(results) == [1] * LIMIT * len(users) + [0] * (100 - LIMIT) * len(users)

    def test_no_draws_have_no_results(self, allowances: Allowances) -> None:
        assert (allowances.draw([]), allowances.read([])) == ([], [])

    # --- reading

    def test_reading_changes_nothing(self, allowances: Allowances, ada: UserId, bob: UserId) -> None:
        allowances.draw([request_draw(ada, 7)])

        reads = [allowances.read([request_draw(ada, 5), request_draw(bob, 5)]) for _ in range(2)]

        assert [[(0, drawn.used) for drawn in read if drawn is not None] for read in reads] == [[(0, 7), (0, 0)]] * 2

    def test_reading_reports_the_same_window_as_drawing(self, allowances: Allowances, ada: UserId) -> None:
        drawn = draw_one(allowances, request_draw(ada))

        (read,) = allowances.read([request_draw(ada)])

        assert read is not None
        assert (read.granted, read.used, read.starts_at) == (0, 1, drawn.starts_at)
        assert read.ends_in_seconds == pytest.approx(drawn.ends_in_seconds, abs=60)

    def test_unknown_users_have_used_nothing(self, allowances: Allowances) -> None:
        reads = allowances.read([request_draw(user_id) for user_id in UNKNOWN_IDS])

        assert {read and read.used for read in reads} <= {None, 0}

    # --- transactions

    def test_draw_is_rolled_back_after_the_deadline(self, allowances: Allowances, ada: UserId) -> None:
        with pytest.raises(RepositoryUnavailableError, match="too late to commit"):
            allowances.draw([request_draw(ada, 5)], commit_by=time.monotonic() - 1)

        assert draw_one(allowances, request_draw(ada, 0)).used == 0

    def test_draw_before_the_deadline_is_committed(self, allowances: Allowances, ada: UserId) -> None:
        allowances.draw([request_draw(ada, 5)], commit_by=time.monotonic() + 60)

        assert draw_one(allowances, request_draw(ada, 0)).used == 5

    def test_concurrent_draws_do_not_exceed_the_limit(self, allowances: Allowances, ada: UserId, bob: UserId) -> None:
        orders = [[ada, bob], [bob, ada]]

        def draw_some(number: int) -> int:
            results = allowances.draw([request_draw(user_id, 2, limit=45) for user_id in orders[number % 2]])
            return sum(drawn.granted for drawn in results if drawn is not None)

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(draw_some, range(60))) == 2 * 45
