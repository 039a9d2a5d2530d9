"""Test the login limiter with counts in memory and in databases, and the table that stores the counts."""

import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest
from sqlalchemy import URL, select, text

from mlapi import RepositoryUnavailableError, TooManyAttemptsError
from mlapi.adapters.memory import InMemoryAttempts
from mlapi.adapters.sql import Database, SqlAttempts, upgrade
from mlapi.adapters.sql.tables import attempts
from mlapi.application.login_throttle import KNOWN_ADDRESS_SECONDS, AttemptLimits, FixedWindowAttemptLimiter
from mlapi.domain.attempts import AttemptCounts, WindowCount
from tests.contract.attempts_contract import (
    ELSEWHERE,
    HOME,
    WINDOW_SECONDS,
    FixedWindowContract,
    are_allowed,
    log_in,
    make_limits,
)

SITES = {
    "IPv6, same network": ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
    "IPv6, other notation": ("2001:db8:1:2::1", "2001:0DB8:0001:0002:0:0:0:9", True),
    "IPv6, next network": ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
    "IPv6, link-local": ("fe80::1%eth0", "fe80::2", True),
    "IPv4 in IPv6": ("192.0.2.1", "::ffff:192.0.2.1", True),
    "IPv4 in IPv6, next address": ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    "IPv4 in IPv6, in hex": ("192.0.2.1", "::ffff:c000:201", True),
    "IPv4, next address": ("192.0.2.1", "192.0.2.2", False),
    "not IP addresses": ("testclient", "", False),
    "same text, not an IP address": ("unix:", "unix:", True),
}
START = 1_795_521_600.0


class SettableSeconds:
    """A clock in seconds since 1970 that stands still until it is set."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def read_rows(database: Database) -> list[tuple[str, int, float]]:
    with database.reading() as connection:
        rows = connection.execute(select(attempts).order_by(attempts.c.id)).all()
    return [(key, count, until) for key, count, until in rows]


class TestFixedWindowAttemptLimiterInMemory(FixedWindowContract):
    @pytest.fixture
    def counts(self) -> AttemptCounts:
        return InMemoryAttempts()

    @pytest.mark.parametrize(("one", "other", "together"), SITES.values(), ids=SITES.keys())
    def test_addresses_of_one_customer_network_count_together(
        self, counts: AttemptCounts, one: str, other: str, together: bool
    ) -> None:
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_address=1))
        limiter.count("ada", one)

        assert are_allowed(limiter, ("bob", other)) == [not together]


class TestFixedWindowAttemptLimiterInADatabase(FixedWindowContract):
    @pytest.fixture
    def counts(self, database: Database) -> AttemptCounts:
        return SqlAttempts(database)


# --- several processes


def test_workers_share_their_counts(url: URL, open_database: Callable[[URL], Database]) -> None:
    databases = [open_database(url), open_database(url)]
    upgrade(databases[0])
    limits = make_limits(per_name_and_address=4)
    workers = [FixedWindowAttemptLimiter(SqlAttempts(database), limits) for database in databases]

    results = [are_allowed(worker, ("ada", HOME)) for worker in workers * 3]

    assert results == [[True]] * 4 + [[False]] * 2


@pytest.mark.parametrize(
    ("limits", "username", "address"),
    [
        pytest.param(make_limits(per_name=10), "ada", "192.0.2.{}", id="name"),
        pytest.param(make_limits(per_address=10), "user{}", HOME, id="address"),
        pytest.param(make_limits(per_name_and_address=10), "ada", HOME, id="name and address"),
    ],
)
def test_concurrent_threads_allow_exactly_the_limit(
    database: Database, limits: AttemptLimits, username: str, address: str
) -> None:
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database), limits)

    def count(number: int) -> bool:
        (result,) = are_allowed(limiter, (username.format(number), address.format(number)))
        return result

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(count, range(40)))

    assert sum(results) == 10


def test_concurrent_logins_leave_all_counts_at_zero(database: Database) -> None:
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database), make_limits())
    log_in(limiter)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: log_in(limiter), range(40)))

    assert [count for key, count, _ in read_rows(database) if not key.startswith("known/")] == [0, 0, 0]


# --- the table


def test_table_contains_no_names_or_addresses(database: Database) -> None:
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database), make_limits())
    limiter.count("ada", ELSEWHERE)
    log_in(limiter, "ada", HOME)

    keys = [key for key, _, _ in read_rows(database)]

    digest = "[0-9a-f]{64}"
    forms = [f"address/{digest}", f"pair/{digest}/{digest}", f"name/{digest}", f"known/{digest}/{digest}"]
    assert all(re.fullmatch(f"({'|'.join(forms)})/[0-9]+/[0-9]+/second", key) for key in keys)
    assert len(keys) == 6


def test_window_starts_with_the_first_attempt(database: Database) -> None:
    clock = SettableSeconds()
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database, clock=clock), make_limits())

    limiter.count("ada", HOME)
    clock.now += WINDOW_SECONDS - 1
    limiter.count("ada", HOME)
    first = {(count, until) for _, count, until in read_rows(database)}
    clock.now += 1
    limiter.count("ada", HOME)

    assert first == {(2, START + WINDOW_SECONDS)}
    assert {(count, until) for _, count, until in read_rows(database)} == {(1, START + 2 * WINDOW_SECONDS)}


def test_address_is_known_for_thirty_days(database: Database) -> None:
    clock = SettableSeconds()
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database, clock=clock), make_limits(per_name_and_address=1))
    log_in(limiter)

    clock.now += KNOWN_ADDRESS_SECONDS - 1
    known = are_allowed(limiter, *[("ada", HOME)] * 3)
    clock.now += 1
    unknown = are_allowed(limiter, *[("ada", HOME)] * 3)

    assert KNOWN_ADDRESS_SECONDS == 30 * 24 * 60 * 60
    assert (known, unknown) == ([True] * 3, [True, False, False])


def test_success_leaves_all_counts_at_zero(database: Database) -> None:
    clock = SettableSeconds()
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database, clock=clock), make_limits())

    log_in(limiter)

    kinds = [(key.partition("/")[0], count, until) for key, count, until in read_rows(database)]
    assert kinds == [
        ("address", 0, START + WINDOW_SECONDS),
        ("known", 1, START + KNOWN_ADDRESS_SECONDS),
        ("name", 0, START + WINDOW_SECONDS),
        ("pair", 0, START + WINDOW_SECONDS),
    ]


def test_expired_counts_are_purged_within_ten_seconds(database: Database) -> None:
    clock = SettableSeconds()
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database, clock=clock), make_limits(), window_seconds=1)
    log_in(limiter, "ada")
    limiter.count("bob", ELSEWHERE)

    clock.now += 9
    limiter.count("eve", "203.0.113.1")
    before = len(read_rows(database))
    clock.now += 1
    limiter.count("mallory", "203.0.113.2")

    assert before == 4 + 3 + 3
    assert [key.partition("/")[0] for key, _, _ in read_rows(database)] == ["address", "known", "name", "pair"]


def test_purge_deletes_a_thousand_rows_at_a_time(database: Database) -> None:
    clock = SettableSeconds()
    counts = SqlAttempts(database, clock=clock)
    with database.writing() as connection:
        rows = [{"id": f"old {number}", "count": 1, "expires_at": START} for number in range(2500)]
        connection.execute(attempts.insert(), rows)
        connection.execute(attempts.insert(), [{"id": "new", "count": 1, "expires_at": START + WINDOW_SECONDS}])
    clock.now += 10

    with counts.transaction():
        pass

    assert read_rows(database) == [("new", 1, START + WINDOW_SECONDS)]


def test_purge_deletes_a_limited_number_of_batches(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.adapters.sql.attempts._MAX_PURGE_BATCHES", 2)
    clock = SettableSeconds()
    counts = SqlAttempts(sqlite_database, clock=clock)
    with sqlite_database.writing() as connection:
        rows = [{"id": f"old {number}", "count": 1, "expires_at": START} for number in range(2500)]
        connection.execute(attempts.insert(), rows)
    clock.now += 10

    with counts.transaction():
        pass

    assert len(read_rows(sqlite_database)) == 500


def test_rejected_attempt_writes_nothing(database: Database) -> None:
    counts = SqlAttempts(database, clock=SettableSeconds())
    limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=1))
    limiter.count("ada", HOME)
    before = read_rows(database)

    for number in range(20):
        with pytest.raises(TooManyAttemptsError):
            limiter.count("ada", f"203.0.113.{number}")

    assert read_rows(database) == before


def test_rolled_back_attempt_is_not_counted(database: Database) -> None:
    def count_and_fail() -> None:
        with SqlAttempts(database).transaction() as storage:
            storage.add("one", window_seconds=WINDOW_SECONDS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        count_and_fail()

    assert read_rows(database) == []


def test_only_attempt_transactions_skip_the_sync_to_disk(postgres_database: Database) -> None:
    show = text("SHOW synchronous_commit")

    with SqlAttempts(postgres_database).transaction() as storage:
        within = storage._connection.execute(show).scalar_one()
    with postgres_database.writing() as connection:
        afterwards = connection.execute(show).scalar_one()

    assert (within, afterwards) == ("off", "on")


# --- the counts without a limiter


def test_transaction_reads_its_own_counts(database: Database) -> None:
    clock = SettableSeconds()

    with SqlAttempts(database, clock=clock).transaction() as counts:
        added = [counts.add(key, window_seconds=seconds) for key, seconds in (("one", 10), ("one", 99), ("two", 20))]
        read = [counts.get(key) for key in ("one", "two", "three")]

    assert added == [1, 2, 1]
    assert read == [WindowCount(2, START + 10), WindowCount(1, START + 20), WindowCount(0, START)]


def test_count_never_drops_below_zero(database: Database) -> None:
    clock = SettableSeconds()
    attempt_counts = SqlAttempts(database, clock=clock)

    with attempt_counts.transaction() as counts:
        counts.subtract("one")
        counts.add("one", window_seconds=10)
        counts.subtract("one")
        counts.subtract("one")
        counts.add("two", window_seconds=10)
        now = counts.get("one")
    clock.now += 10
    with attempt_counts.transaction() as counts:
        counts.subtract("two")
        later = [counts.get("two").count, counts.add("two", window_seconds=10)]

    assert now == WindowCount(0, START + 10)
    assert later == [0, 1]


# --- an unavailable database


def test_missing_table_allows_no_attempts(database: Database) -> None:
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database), make_limits())
    with database.writing() as connection:
        connection.execute(text("DROP TABLE mlapi_attempts"))

    for call in (limiter.count, partial(limiter.record_success, was_known=False)):
        with pytest.raises(RepositoryUnavailableError, match="mlapi_attempts"):
            call("ada", HOME)


def test_unavailable_server_allows_no_attempts(postgres_url: URL, open_database: Callable[[URL], Database]) -> None:
    database = open_database(postgres_url.set(port=1))
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database), make_limits())

    for call in (limiter.count, partial(limiter.record_success, was_known=False)):
        with pytest.raises(RepositoryUnavailableError):
            call("ada", HOME)


def test_locked_database_allows_no_attempts(sqlite_database: Database, sqlite_url: URL) -> None:
    with (
        Database(sqlite_url, timeout_seconds=0.05) as database,
        closing(sqlite3.connect(str(sqlite_url.database), isolation_level=None)) as keeper,
    ):
        limiter = FixedWindowAttemptLimiter(SqlAttempts(database), make_limits())
        keeper.execute("BEGIN IMMEDIATE")

        with pytest.raises(RepositoryUnavailableError, match="locked"):
            limiter.count("ada", HOME)

        keeper.execute("ROLLBACK")
        assert are_allowed(limiter, ("ada", HOME)) == [True]


def test_failed_purge_rejects_the_attempt_and_is_retried(database: Database) -> None:
    clock = SettableSeconds()
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database, clock=clock), make_limits())
    with database.writing() as connection:
        connection.execute(text("ALTER TABLE mlapi_attempts RENAME TO hidden"))
    clock.now += WINDOW_SECONDS

    with pytest.raises(RepositoryUnavailableError):
        limiter.count("ada", HOME)

    with database.writing() as connection:
        connection.execute(text("ALTER TABLE hidden RENAME TO mlapi_attempts"))
    assert are_allowed(limiter, ("ada", HOME)) == [True]
