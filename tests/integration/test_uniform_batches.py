"""Batches of one kind take a single round trip to PostgreSQL, with the effect of a transaction."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import URL

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.postgresql.session import BoundedConnection
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.adapters.sql.schema import upgrade
from mlapi.domain.actors import ANYONE, Actor
from mlapi.domain.commands import Command, Outcome, Register, Remove, SetEnabled
from mlapi.domain.errors import RepositoryUnavailableError, UserExistsError, UserNotFoundError
from mlapi.domain.users import MAX_USER_ID, EncryptedPassword, User, UserId, utc_now
from tests.integration.test_login_round_trips import CountingProxy
from tests.waiting import wait_until

ADMIN = Actor("admin", "request-1")


def registration(name: str, actor: Actor = ADMIN) -> Register:
    return Register(
        username=name, password=EncryptedPassword("x"), email=f"{name}@example.com", at=utc_now(), actor=actor
    )


def toggle(user_id: int, *, enabled: bool = False, actor: Actor = ADMIN) -> SetEnabled:
    return SetEnabled(user_id=UserId(user_id), enabled=enabled, at=utc_now(), actor=actor)


def removal(user_id: int) -> Remove:
    return Remove(user_id=UserId(user_id), actor=ADMIN)


@pytest.fixture
def repository(postgres_database: Database) -> SqlUserRepository:
    return SqlUserRepository(postgres_database)


def register(repository: SqlUserRepository, *names: str) -> list[UserId]:
    outcomes = repository.apply([registration(name) for name in names])
    return [outcome.id for outcome in outcomes if isinstance(outcome, User)]


def newest_entries(repository: SqlUserRepository, count: int) -> list[tuple[str, str, UserId | None]]:
    entries = repository.audit.list_page(limit=count)
    return [(entry.action, entry.outcome, entry.user_id) for entry in reversed(entries)]


@contextmanager
def applying(repository: SqlUserRepository, commands: Sequence[Command], database: Database) -> Iterator[list[Outcome]]:
    """Apply commands in a thread, which must wait for a lock; yield a list that will contain the outcomes."""
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.extend(repository.apply(commands)))
    thread.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    def is_waiting() -> bool:
        with database.engine.connect() as observer:  # a transaction would see the same activity again
            return observer.exec_driver_sql(waiting).scalar() == 1

    wait_until(is_waiting)
    yield outcomes
    thread.join(10)


def test_batch_of_one_kind_takes_a_single_round_trip(postgres_url: URL) -> None:
    assert postgres_url.port is not None
    with CountingProxy(postgres_url.port) as proxy, Database(postgres_url.set(port=proxy.port)) as database:
        upgrade(database)
        repository = SqlUserRepository(database)

        def count(*commands: Command) -> int:
            before = proxy.round_trips
            repository.apply(commands, commit_by=time.monotonic() + 5)
            return proxy.round_trips - before

        count(registration("ada"))
        counted = [
            count(registration("ada"), registration("bob"), registration("eve", Actor(ANYONE))),
            count(toggle(1), toggle(99)),
            count(removal(1), removal(99)),
        ]

    assert counted == [1, 1, 1]


@pytest.mark.parametrize(
    "commands",
    [
        [toggle(1), toggle(1, enabled=True)],
        [toggle(MAX_USER_ID + 1)],
        [toggle(99, actor=Actor(ANYONE))],
        [registration("bob"), registration("BOB")],
        [toggle(1), removal(1)],
        [removal(1), removal(1)],
    ],
)
def test_dependent_commands_have_the_same_outcomes(repository: SqlUserRepository, commands: list[Command]) -> None:
    register(repository, "ada")

    together = repository.apply(commands)

    assert len(together) == len(commands)
    assert not isinstance(together[0], User) or together[0].id in {1, 2}


def test_entries_keep_the_order_of_the_batch(repository: SqlUserRepository) -> None:
    ada, bob, eve = register(repository, "ada", "bob", "eve")
    register(repository, "zoe", "bob", "kim")

    repository.apply([toggle(eve), toggle(99), toggle(ada)])
    outcomes = repository.apply([removal(eve), removal(99), removal(ada)])

    assert outcomes[1] == UserNotFoundError(99)
    assert [entry[2] for entry in newest_entries(repository, 9)] == [4, bob, 6, eve, 99, ada, eve, 99, ada]
    assert [entry[1] for entry in newest_entries(repository, 9)][1::3] == ["user_exists", *["user_not_found"] * 2]


def test_only_names_that_are_kept_are_in_entries_of_removals(repository: SqlUserRepository) -> None:
    ids = register(repository, 'a"\\é', "bob")
    repository.apply(
        [Remove(user_id=user_id, keeps_name=keeps) for user_id, keeps in zip(ids, (True, False), strict=True)]
    )

    kept, dropped = reversed(repository.audit.list_page(limit=2))

    assert kept.changes == '{"username": ["a\\"\\\\é", null]}'
    assert dropped.changes is None


def test_name_taken_during_a_registration_is_reported(
    postgres_database: Database, repository: SqlUserRepository
) -> None:
    with postgres_database.engine.connect() as rival:
        rival.exec_driver_sql(
            "INSERT INTO users (username, username_key, password, email, enabled, created_datetime, updated_datetime,"
            " token_epoch) VALUES ('ada', 'ada', 'x', 'x', true, now(), now(), 'x')"
        )
        with applying(repository, [registration("ada"), registration("bob")], postgres_database) as outcomes:
            rival.commit()

    assert outcomes[0] == UserExistsError(1)
    assert [entry[:2] for entry in newest_entries(repository, 9)] == [("register", "user_exists"), ("register", "done")]


def test_link_made_during_a_removal_is_removed(postgres_database: Database, repository: SqlUserRepository) -> None:
    (ada,) = register(repository, "ada")
    with postgres_database.engine.connect() as rival:
        rival.exec_driver_sql("SELECT FROM users FOR UPDATE")
        with applying(repository, [removal(ada)], postgres_database):
            rival.exec_driver_sql(
                "INSERT INTO mlapi_links (id, user_id, purpose, digest, token_epoch, email, created_datetime,"
                f" expires_datetime) VALUES ('x', {ada}, 'password', 'x', 'x', 'x', now(), now())"
            )
            rival.commit()
        assert rival.exec_driver_sql("SELECT count(*) FROM mlapi_links").scalar() == 0


def test_batch_without_an_answer_may_be_done(postgres_database: Database, repository: SqlUserRepository) -> None:
    (ada,) = register(repository, "ada")
    with postgres_database.engine.connect() as rival:
        rival.exec_driver_sql("SELECT FROM users FOR UPDATE")
        with driver_connection(postgres_database) as connection:
            connection.statement_seconds, connection.statement_timeout_seconds = 0.5, 0.0
        with pytest.raises(RepositoryUnavailableError, match="did not answer within") as raised:
            repository.apply([toggle(ada)])

    assert raised.value.may_be_done


def test_batch_that_the_server_starts_too_late_changes_nothing(postgres_database: Database) -> None:
    with driver_connection(postgres_database) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.commit_together([(b"CREATE TABLE late ()", {})], time.time() - 0.1)
        connection.rollback()

        assert connection.execute("SELECT to_regclass('late')").fetchall() == [(None,)]


def test_batch_is_applied_although_the_server_clock_was_set(
    postgres_database: Database, repository: SqlUserRepository
) -> None:
    register(repository, "ada")
    with driver_connection(postgres_database) as connection:
        connection._clock_offset_seconds -= 60  # as if the server's clock had been set forward since

        (outcome,) = repository.apply([toggle(1)])

        assert isinstance(outcome, User)
        assert connection._clock_expires_monotonic == 0  # the next batch reads the server's clock


def test_batch_begins_a_transaction_after_an_idle_time(
    postgres_database: Database, repository: SqlUserRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(repository, "ada")
    with driver_connection(postgres_database) as connection:
        begun = list[float]()

        def begin() -> None:
            begun.append(time.monotonic())
            BoundedConnection.begin(connection)

        monkeypatch.setattr(connection, "begin", begin)
        repository.apply([toggle(1)])  # this reads the server's clock
        repository.apply([toggle(1, enabled=True)])
        before = len(begun)
        connection._answered_monotonic -= 60

        repository.apply([toggle(1)])
        repository.apply([toggle(1, enabled=True)])

        assert len(begun) == before + 1


@contextmanager
def driver_connection(database: Database) -> Iterator[BoundedConnection]:
    """Yield the only connection, which the database also uses."""
    pooled = database.engine.raw_connection()
    connection = pooled.driver_connection
    pooled.close()
    assert isinstance(connection, BoundedConnection)
    yield connection


def test_warning_of_a_trigger_is_not_a_canceled_commit(
    postgres_database: Database, repository: SqlUserRepository
) -> None:
    with postgres_database.writing() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE WARNING 'careful'; RETURN NEW; END $$;"
            "CREATE TRIGGER warn BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION warn()"
        )

    assert register(repository, "ada") == [1]
