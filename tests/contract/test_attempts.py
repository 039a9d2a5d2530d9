"""Test the login limiter with counts in memory and in databases, and the table that stores the counts."""

import re
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
from sqlalchemy import URL, select, text

from mlapi import Authenticator, InvalidCredentialsError, RepositoryUnavailableError, TooManyAttemptsError, User, Users
from mlapi.adapters.memory import InMemoryAttempts, InMemoryOutbox, InMemoryTokens, PlainCipher
from mlapi.adapters.sql.attempts import SqlAttempts
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.tables import attempts
from mlapi.application.login_throttle import KNOWN_ADDRESS_SECONDS, AttemptLimits, FixedWindowAttemptLimiter
from mlapi.application.mailing import Mailing
from mlapi.domain.attempts import Attempt, AttemptCounts, WindowCount
from mlapi.domain.users import UsernameKey, utc_now
from mlapi.testing.attempts import ELSEWHERE, HOME, guess, log_in
from tests.contract.attempts_contract import WINDOW_SECONDS, FixedWindowContract, guesses, make_limits

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
        guess(limiter, "ada", one)

        assert guess(limiter, "bob", other) is not together


class TestFixedWindowAttemptLimiterInADatabase(FixedWindowContract):
    @pytest.fixture
    def counts(self, database: Database) -> AttemptCounts:
        return SqlAttempts(database)


# --- several threads and processes


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_share_the_limit_of_a_mailbox(
    processes: int, url: URL, open_database: Callable[[URL], Database]
) -> None:
    databases = [open_database(url) for _ in range(processes)]
    upgrade(databases[0])

    def restart(database: Database) -> Mailing:
        return Mailing(InMemoryOutbox(), SqlAttempts(database), clock=utc_now, per_recipient=3)

    admitted = [restart(database).admit("ada@example.com") for _ in range(4) for database in databases]

    assert admitted == [True] * 3 + [False] * (len(admitted) - 3)


def test_workers_share_their_counts(url: URL, open_database: Callable[[URL], Database]) -> None:
    databases = [open_database(url), open_database(url)]
    upgrade(databases[0])
    limits = make_limits(per_name_and_address=4)
    workers = [FixedWindowAttemptLimiter(SqlAttempts(database), limits) for database in databases]

    results = [guess(worker) for worker in workers * 3]

    assert results == [True] * 4 + [False] * 2


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
        attempt = Attempt(username=username.format(number), address=address.format(number))
        while True:
            try:
                limiter.start(attempt)
                limiter.record_failure(attempt)
            except TooManyAttemptsError as error:
                if error.is_final:
                    return False
            else:
                return True
            finally:
                limiter.end(attempt)
            attempt = Attempt(username=attempt.username, address=attempt.address)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(count, range(40)))

    assert sum(results) == 10


# --- the table


def test_table_contains_no_names_or_addresses(database: Database) -> None:
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database), make_limits())
    guess(limiter, "ada", ELSEWHERE)
    log_in(limiter, "ada", HOME)

    keys = [key for key, _, _ in read_rows(database)]

    digest = "[0-9a-f]{64}"
    forms = [f"address/{digest}", f"pair/{digest}/{digest}", f"name/{digest}", f"known/{digest}/{digest}"]
    assert all(re.fullmatch(f"({'|'.join(forms)})/[0-9]+/[0-9]+/second", key) for key in keys)
    assert len(keys) == 4


def test_window_starts_with_the_first_attempt(database: Database) -> None:
    clock = SettableSeconds()
    counts = SqlAttempts(database, clock=clock)

    counts.add(["one"], window_seconds=WINDOW_SECONDS)
    clock.now += WINDOW_SECONDS - 1
    first = counts.add(["one"], window_seconds=WINDOW_SECONDS)
    clock.now += 1
    ended = counts.read(["one"])
    second = counts.add(["one"], window_seconds=WINDOW_SECONDS)

    assert first == [WindowCount(2, START + WINDOW_SECONDS)]
    assert ended == [WindowCount(0, START + WINDOW_SECONDS)]
    assert second == [WindowCount(1, START + 2 * WINDOW_SECONDS)]


def test_address_is_known_for_thirty_days(database: Database) -> None:
    clock = SettableSeconds()
    counts = SqlAttempts(database, clock=clock)
    log_in(FixedWindowAttemptLimiter(counts, make_limits()))

    clock.now += KNOWN_ADDRESS_SECONDS - 1
    results = []
    for _ in range(2):
        limiter = FixedWindowAttemptLimiter(counts, make_limits(per_name=1))
        guess(limiter, "ada", ELSEWHERE)
        results.append(log_in(limiter))
        clock.now += 1

    assert KNOWN_ADDRESS_SECONDS == 30 * 24 * 60 * 60
    assert results == [True, False]


def test_success_stores_only_the_known_address(database: Database) -> None:
    clock = SettableSeconds()
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database, clock=clock), make_limits())

    for _ in range(3):
        log_in(limiter)

    kinds = [(key.partition("/")[0], count, until) for key, count, until in read_rows(database)]
    assert kinds == [("known", 1, START + KNOWN_ADDRESS_SECONDS)]


def test_expired_counts_are_purged_within_ten_seconds(database: Database) -> None:
    clock = SettableSeconds()
    counts = SqlAttempts(database, clock=clock)
    counts.add(["one", "two"], window_seconds=1)
    counts.add(["long"], window_seconds=WINDOW_SECONDS)

    clock.now += 9
    counts.add(["three"], window_seconds=1)
    before = [key for key, _, _ in read_rows(database)]
    clock.now += 1
    counts.add(["four"], window_seconds=1)

    assert before == ["long", "one", "three", "two"]
    assert [key for key, _, _ in read_rows(database)] == ["four", "long"]


def test_purge_deletes_a_thousand_rows_at_a_time(database: Database) -> None:
    clock = SettableSeconds()
    counts = SqlAttempts(database, clock=clock)
    with database.writing() as connection:
        rows = [{"id": f"old {number}", "count": 1, "expires_at": START} for number in range(2500)]
        connection.execute(attempts.insert(), rows)
    clock.now += 10

    counts.add(["new"], window_seconds=WINDOW_SECONDS)

    assert read_rows(database) == [("new", 1, START + 10 + WINDOW_SECONDS)]


def test_purge_deletes_a_limited_number_of_batches(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.adapters.sql.attempts._MAX_PURGE_BATCHES", 2)
    clock = SettableSeconds()
    counts = SqlAttempts(sqlite_database, clock=clock)
    with sqlite_database.writing() as connection:
        rows = [{"id": f"old {number}", "count": 1, "expires_at": START} for number in range(2500)]
        connection.execute(attempts.insert(), rows)
    clock.now += 10

    counts.add(["new"], window_seconds=WINDOW_SECONDS)

    assert len(read_rows(sqlite_database)) == 501


def test_failed_purge_does_not_fail_the_attempt(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(work: object) -> None:
        raise RepositoryUnavailableError("locked")

    clock = SettableSeconds()
    counts = SqlAttempts(sqlite_database, clock=clock)
    clock.now += 10
    monkeypatch.setattr(sqlite_database, "write", fail)

    assert counts.add(["one"], window_seconds=10) == [WindowCount(1, START + 20)]
    assert caplog.messages == ["expired login attempts could not be deleted: the database is unavailable: locked"]


def test_rejected_attempt_writes_nothing(database: Database) -> None:
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database), make_limits(per_name_and_address=1))
    guess(limiter)
    before = read_rows(database)

    results = [guess(FixedWindowAttemptLimiter(SqlAttempts(database), make_limits(per_name_and_address=1)))]
    results += [guess(limiter) for _ in range(20)]

    assert results == [False] * 21
    assert read_rows(database) == before


def test_only_counts_are_written_without_a_disk_sync(postgres_database: Database) -> None:
    with postgres_database.writing() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " NEW.id := NEW.id || ' ' || current_setting('synchronous_commit'); RETURN NEW; END $$"
            )
        )
        connection.execute(
            text("CREATE TRIGGER note BEFORE INSERT ON mlapi_attempts FOR EACH ROW EXECUTE FUNCTION note()")
        )

    with suppress(KeyError):  # the trigger has changed the key
        SqlAttempts(postgres_database).add(["one"], window_seconds=WINDOW_SECONDS)

    with postgres_database.writing() as connection:
        afterwards = connection.execute(text("SHOW synchronous_commit")).scalar_one()
    assert ([key for key, _, _ in read_rows(postgres_database)], afterwards) == (["one off"], "on")


# --- lost connections


class CutAttempts(SqlAttempts):
    """Calls ``cut`` before each use of the database."""

    cut: Callable[[], object]

    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        self.cut()
        return super().read(keys)

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        self.cut()
        return super().add(keys, window_seconds=window_seconds)


class CutUsers(SqlUserRepository):
    """Calls ``cut`` before each lookup."""

    cut: Callable[[], object]

    def find(self, key: UsernameKey) -> User | None:
        self.cut()
        return super().find(key)


def test_every_step_of_a_login_repeats_after_a_lost_connection(
    postgres_database: Database, postgres_url: URL, open_database: Callable[[URL], Database]
) -> None:
    admin = open_database(postgres_url)
    cuts: list[int] = []

    def cut() -> None:
        with admin.reading() as connection:
            statement = text(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            cuts.append(len(connection.execute(statement).all()))

    repository, counts = CutUsers(postgres_database), CutAttempts(postgres_database)
    repository.cut = counts.cut = cut
    users = Users(repository, PlainCipher())
    users.register(username="ada", password="difference engine", email="ada@example.com")
    cuts.clear()
    limiter = FixedWindowAttemptLimiter(counts, make_limits())
    authenticator = Authenticator(users, InMemoryTokens(), limiter)

    first = authenticator.log_in(username="ada", password="difference engine", address=HOME)
    with pytest.raises(InvalidCredentialsError):
        authenticator.log_in(username="ada", password="wrong", address=HOME)
    second = authenticator.log_in(username="ada", password="difference engine", address=HOME)

    assert first.token != second.token
    assert cuts == [1] * (3 + 3 + 2)
    (failures,) = [count for key, count, _ in read_rows(postgres_database) if key.startswith("name/")]
    assert failures == 1


# --- an unavailable database


def test_missing_table_allows_no_attempts(database: Database) -> None:
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database), make_limits())
    with database.writing() as connection:
        connection.execute(text("DROP TABLE mlapi_attempts"))

    with pytest.raises(RepositoryUnavailableError, match=r"a table is missing|SQLITE_ERROR"):
        guess(limiter)


def test_unavailable_server_allows_no_attempts(postgres_url: URL, open_database: Callable[[URL], Database]) -> None:
    database = open_database(postgres_url.set(port=1))
    limiter = FixedWindowAttemptLimiter(SqlAttempts(database), make_limits())

    with pytest.raises(RepositoryUnavailableError):
        guess(limiter)


def test_locked_database_limits_attempts_in_this_process(sqlite_database: Database, sqlite_url: URL) -> None:
    with (
        Database(sqlite_url, timeout_seconds=0.05) as database,
        closing(sqlite3.connect(str(sqlite_url.database), isolation_level=None)) as keeper,
    ):
        limiter = FixedWindowAttemptLimiter(SqlAttempts(database), make_limits(per_name_and_address=2))
        keeper.execute("BEGIN IMMEDIATE")

        results = guesses(limiter, *[("ada", HOME)] * 3)

        keeper.execute("ROLLBACK")
        assert results == [True, True, False]
        assert guess(limiter, "bob")
